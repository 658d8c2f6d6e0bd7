"""A cache of class statistics: one safetensors file for every network and set of images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn

from gendistill.data.dataset import Split
from gendistill.errors import ArtifactError, StorageError
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import atomic
from gendistill.networks.statistics import ClassStatistics, collect_statistics
from gendistill.progress import note
from gendistill.runtime import processes

RECORD, FORMAT = "made_from", 2  # increased when the meaning of the statistics changes
ADVICE = "Choose another folder for class statistics, or none."


def cached_statistics(
    network_hash: str,
    network: nn.Module,
    split: Split,
    classes: int,
    *,
    cache: Path | None,
    batch_size: int = 512,
    shared: bool = False,
) -> ClassStatistics:
    """The statistics in the folder ``cache``, or collected now and kept there; without a folder only collected.

    With ``shared`` every process calls this, as ``collect_statistics`` says.

    Raises:
        ArtifactError: ``cache`` is a file.
        StorageError: the folder cannot be written.
    """
    if cache is None:
        return collect_statistics(network, split, classes, batch_size, shared=shared)
    key = cache_key(network_hash, split, classes)
    path = cache / f"statistics-{hash_json(key)}.safetensors"
    _make_folder(cache)
    found, free = _read(path, key)
    everywhere = _read_everywhere(found is not None) if shared else True
    if found is not None and everywhere:
        _note(f"class statistics read from {path}")
        return found
    statistics = collect_statistics(network, split, classes, batch_size, shared=shared)
    if free and (not shared or processes().is_main_process):
        _write(path, statistics, key)
    return statistics


def cache_key(network_hash: str, split: Split, classes: int) -> dict[str, str | int]:
    """Everything that determines the statistics: the network, the images and their labels, not the other splits."""
    parts = [hash_tensors({"images": part}) for part in split.images.split(4096)]
    return {
        "format": FORMAT,
        "network": network_hash,
        "split": hash_json([*parts, hash_tensors({"labels": split.labels})]),
        "classes": classes,
    }


def _read(path: Path, key: Mapping[str, Any]) -> tuple[ClassStatistics | None, bool]:
    """(the statistics of this key, or None; whether the file's name is free to be written)."""
    if not path.exists():
        return None, True
    try:
        with safe_open(path, framework="pt") as file:
            made_from = json.loads((file.metadata() or {}).get(RECORD, "{}"))
        statistics = ClassStatistics.load(path)
    except (OSError, ValueError, SafetensorError, ArtifactError) as error:
        _note(f"{path} cannot be read ({error}); the class statistics are collected again.")
        return None, True
    if made_from.get("key") != key:
        _note(f"{path} holds something else and is not overwritten; the class statistics are collected.")
        return None, False
    if made_from.get("content") != hash_tensors(statistics.tensors()):
        _note(f"{path} is damaged; the class statistics are collected again.")
        return None, True
    return statistics, False


def _read_everywhere(found: bool) -> bool:
    """Whether every process read the file; every process has to call this."""
    state = processes()
    if state.num_processes == 1:
        return found
    least = torch.tensor(int(found), device=state.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return bool(least)


def _note(text: str) -> None:
    if processes().is_main_process:
        note(text)


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; expected a folder for class statistics. {ADVICE}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot hold class statistics ({error}). {ADVICE}") from error


def _write(path: Path, statistics: ClassStatistics, key: Mapping[str, Any]) -> None:
    """Atomically, also when several processes write the same file."""
    record = {"key": key, "content": hash_tensors(statistics.tensors())}
    try:
        with atomic(path, shared=True) as partial:
            statistics.save(partial, {RECORD: json.dumps(record, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({error}). {ADVICE}") from error
