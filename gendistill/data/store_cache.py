"""Which collections have a store, where it is, and what decides that it is still that of the files on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gendistill.config import DataConfig, to_dict
from gendistill.data.class_names import read_class_names
from gendistill.data.files import walk
from gendistill.data.mapped import SHARE
from gendistill.data.reader import FEW
from gendistill.data.store import JOURNAL, Store, is_part_of_store, is_store, open_store, read_record, remove_store
from gendistill.errors import ArtifactError, StorageError
from gendistill.hashing import hash_json
from gendistill.io import cache_root
from gendistill.progress import note
from gendistill.registry import SOURCES, resolve
from gendistill.runtime import free_memory

GIB = 1 << 30
SLOW = 32 << 20  # bytes of files that take more than a moment to decode
OF_MACHINE = ("cache", "in_memory_gib")  # options that change no image
OF_SPLITS = ("test_fraction", "validation_fraction", "split_seed", "max_per_class")


@dataclass(frozen=True)
class Identity:
    """What changes whenever the images of a source do.

    Attributes:
        content: Hash of names, sizes and times of files, or what the source says itself.
        size: Bytes of the files, where known.
    """

    content: str
    size: int = 0


def identity_of_files(config: DataConfig) -> Identity | None:
    """Of all visible files of a folder: their names, sizes and times. None where the name is no folder of ours."""
    folder = config.folder
    added = (resolve(kind.matches) for name in SOURCES.added() if (kind := SOURCES[name]).matches)
    if folder is None or any(matches and matches(config.name) for matches in added):
        return None
    listed, size = [], 0
    for place, names in walk(folder):
        inside = os.path.relpath(place, folder)
        for name in names:
            found = os.stat(f"{place}/{name}")
            size += found.st_size
            listed.append((inside, name, found.st_size, found.st_mtime_ns))
    return Identity(hash_json(sorted(listed)), size)


def store_key(config: DataConfig, identity: Identity) -> str:
    """Of the options that decide what is read and how it is decoded, and of the content.

    How splits are held out is not among them, except where ``max_per_class`` chooses after it.
    """
    options = to_dict(config)
    left_out = (*OF_MACHINE, "licence", *(() if config.max_per_class else OF_SPLITS))
    read = {"name": str(config.place.resolve()) if config.place else config.name}
    if config.class_names is not None:
        read["class_names"] = hash_json(read_class_names(config.class_names))
    decisive = {name: value for name, value in options.items() if name not in left_out} | read
    return f"{hash_json(decisive)[:16]}-{hash_json(identity.content)[:16]}"


def cache_of(config: DataConfig) -> Path | None:
    """The folder of stores."""
    return cache_root() / "data" if config.cache == "auto" else config.cache


def store_folder(config: DataConfig, identity: Identity) -> Path:
    cache = cache_of(config)
    assert cache is not None
    return cache / store_key(config, identity)


def known_store(config: DataConfig, identity: Identity) -> Store | None:
    """The store of these images, where it was built and is whole."""
    if cache_of(config) is None or not is_store(folder := store_folder(config, identity)):
        return None
    try:
        return open_store(folder, folder.name)
    except ArtifactError as error:
        note(f"{error} Reading them again.")
        return None


def worth_storing(config: DataConfig, identity: Identity, count: int) -> bool:
    """Whether a store saves time: always where a folder is named, else from some thousand images or large files on."""
    return config.cache is not None and (config.cache != "auto" or count >= FEW or identity.size >= SLOW)


def remove_older(made: Store) -> None:
    """Remove the stores of the same source and options from before its files changed."""
    prefix = made.folder.name.partition("-")[0]
    for folder in made.folder.parent.glob(f"{prefix}-*"):
        if folder != made.folder and (is_store(folder) or is_part_of_store(folder)):
            with suppress(StorageError):
                remove_store(folder)


def memory_limit(config: DataConfig) -> float:
    """Bytes of decoded images that memory may hold."""
    return SHARE * free_memory(torch.device("cpu")) if config.in_memory_gib is None else config.in_memory_gib * GIB


@dataclass(frozen=True)
class StoreFolder:
    """A store on disk, whole or not.

    Attributes:
        folder: Where it is.
        size: Bytes that it takes.
        text: What it holds.
    """

    folder: Path
    size: int
    text: str


def store_folders(cache: Path) -> Iterator[StoreFolder]:
    """The stores below a folder, and those that are unfinished or damaged."""
    for folder in sorted(cache.iterdir()) if cache.is_dir() else ():
        if not (is_store(folder) or is_part_of_store(folder)):
            continue
        try:
            size = sum(path.lstat().st_size for path in folder.iterdir())
        except FileNotFoundError:  # another process has just finished it
            continue
        try:
            if not is_store(folder):
                raise ArtifactError
            record = read_record(folder)
        except ArtifactError:
            yield StoreFolder(folder, size, "unfinished" if (folder / JOURNAL).is_file() else "damaged")
            continue
        count, _, side, _ = record["shape"]
        yield StoreFolder(
            folder, size, f"{record['name']}: {count:,} images of {side} px, {len(record['classes'])} classes"
        )
