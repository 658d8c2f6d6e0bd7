"""Content hashes (BLAKE2b, 128 bits) of tensors, files and folders, for manifests and caches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def hash_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_file(path: Path) -> str:
    """Of a file's bytes, as ``hash_bytes``, a part at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_json(value: Any) -> str:
    """Of plain data, whatever the order of its keys."""
    import json

    return hash_bytes(json.dumps(value, sort_keys=True, default=str).encode())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, dtypes and values, in name order."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy())  # which makes no copy
    return digest.hexdigest()
