"""One or several sets as one folder in a format of other tools, with their provenance and one card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gendistill.config import Format
from gendistill.errors import ArtifactError, ConfigError
from gendistill.surrogate import soft_labels
from gendistill.surrogate.card.card import CARD, card, read_entry
from gendistill.surrogate.evidence import EVIDENCE, PAIRS
from gendistill.surrogate.export import ddranking, imagefolder, webdataset
from gendistill.surrogate.export import formats as parquet
from gendistill.surrogate.export.record import FORMAT, RECORD
from gendistill.surrogate.export.stored import StoredSet
from gendistill.surrogate.manifest import MANIFEST

WRITERS: dict[str, Callable[[StoredSet, Path], None]] = {
    "imagefolder": imagefolder.write,
    "parquet": parquet.write,
    "webdataset": webdataset.write,
    "ddranking": ddranking.write,
}


def check(sets: Sequence[StoredSet], format: Format) -> None:
    """Whether the sets fit into one export.

    Raises:
        ArtifactError: their classes or channels differ, or two have the same IPC.
        ConfigError: several as ddranking.
    """
    if format == "ddranking" and len(sets) > 1:
        raise ConfigError(f"format ddranking takes one set, not {len(sets)}; export them one by one.")
    seen: dict[str, StoredSet] = {}
    for stored in sets:
        if stored.config in seen:
            raise ArtifactError(
                f"{seen[stored.config].folder} and {stored.folder} both have IPC {stored.manifest['ipc']}, which would "
                f"both be called {stored.config}. Export them apart."
            )
        seen[stored.config] = stored
        for what, differ in (("classes", _first_difference), ("channels", _channels)):
            difference = differ(sets[0].manifest, stored.manifest)
            if difference:
                raise ArtifactError(
                    f"{sets[0].folder} and {stored.folder} have different {what} ({difference}); sets of one export "
                    "share them. Export these apart."
                )


def _first_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    names = enumerate(zip_longest(first["classes"], second["classes"]))
    return next((f"class {i} is {a!r} and {b!r}" for i, (a, b) in names if a != b), "")


def _channels(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    found = [first["channels"], second["channels"]]
    return f"{found[0]} and {found[1]}" if found[0] != found[1] else ""


def export(
    sets: Sequence[StoredSet],
    folder: Path,
    format: Format,
    evidence: Mapping[str, dict[str, Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the sets into ``folder``, an empty one: a single set flat, each of several as ``ipc-K/``.

    Beside the data of the format stand manifest.json, evidence.json and soft_labels.json of each set, and its soft
    labels where the format has no place for them. ``evidence`` has parts to add by config; ``facts`` go into
    export.json.

    Raises:
        ArtifactError: the sets do not fit into one export, or not into the format.
        ConfigError: several as ddranking.
    """
    check(sets, format)
    entries, record = [], {}
    for stored in sets:
        part = stored.config if len(sets) > 1 else ""
        target = folder / part
        target.mkdir(exist_ok=True)
        WRITERS[format](stored, target)
        entry = read_entry(stored.folder, stored.manifest, folder=part)
        entry = replace(entry, evidence={**entry.evidence, **(evidence or {}).get(stored.config, {})})
        _write_companions(stored, target, format, entry.evidence)
        entries.append(entry)
        record[stored.config] = {"folder": part, "checksums": stored.manifest["checksums"]}
    (folder / CARD).write_text(card(entries, format=format), encoding="utf-8", errors="replace")
    _write_json(folder / RECORD, {"export": FORMAT, "format": format, "sets": record, **(facts or {})})


def _write_companions(stored: StoredSet, target: Path, format: Format, evidence: dict[str, Any]) -> None:
    shutil.copyfile(stored.folder / MANIFEST, target / MANIFEST)
    if evidence:
        _write_json(target / EVIDENCE, evidence)
    if (stored.folder / PAIRS).is_file():
        shutil.copyfile(stored.folder / PAIRS, target / PAIRS)
    inside = stored.labelled and format != "imagefolder"
    for name in (soft_labels.RECORD, *(() if inside else (soft_labels.TENSORS,))):
        if (stored.folder / name).is_file():
            shutil.copyfile(stored.folder / name, target / name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
