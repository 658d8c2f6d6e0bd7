"""`gendistill cache`: the stores of decoded images."""

from __future__ import annotations

from gendistill.config import DataConfig
from gendistill.config.commands import CacheCommand
from gendistill.data.store import remove_store
from gendistill.data.store_cache import StoreFolder, cache_of, store_folders
from gendistill.errors import ConfigError, did_you_mean
from gendistill.io import format_bytes
from gendistill.progress import note
from gendistill.stages import Outcome


def main(command: CacheCommand) -> Outcome:
    folder = cache_of(DataConfig(cache=command.cache))
    assert folder is not None
    stores = {one.folder.name: one for one in store_folders(folder)}
    if command.action == "clear":
        return _clear(stores, command.store)
    lines = [f"{name}  {format_bytes(one.size):>9}  {one.text}" for name, one in stores.items()]
    total = f"{len(stores)} store(s) in {folder}, {format_bytes(sum(one.size for one in stores.values()))}"
    found = {name: {"bytes": one.size, "text": one.text} for name, one in stores.items()}
    return Outcome("\n".join([*lines, total]), {"folder": str(folder), "stores": found})


def _clear(stores: dict[str, StoreFolder], names: list[str] | None) -> Outcome:
    chosen = list(stores) if names is None else names
    for name in chosen:
        if name not in stores:
            raise ConfigError(
                f"There is no store {name!r}.{did_you_mean(name, stores)} `gendistill cache list` names all."
            )
    removed = [name for name in chosen if remove_store(stores[name].folder)]
    if kept := [name for name in chosen if name not in removed]:
        note(f"Another process builds {', '.join(kept)}, which is not removed.")
    size = sum(stores[name].size for name in removed)
    return Outcome(f"Removed {len(removed)} store(s), {format_bytes(size)}.", {"removed": removed, "bytes": size})
