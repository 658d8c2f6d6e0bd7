"""The images of a split: a uint8 tensor in memory, or rows of a file that is mapped into memory; and their hashes.

Legend: N images, C channels, H = W the side in pixels; M images in the file.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from gendistill.data.pixels import central_share
from gendistill.errors import StorageError
from gendistill.io import cache_root, format_bytes, reserve
from gendistill.runtime import free_memory, to_device

CPU = torch.device("cpu")
HASH = 16  # bytes of the hash of an image
BLOCK, BLOCK_BYTES = 2048, 2**25  # images of a collection that are looked at together, and their bytes at most
SHARE = 1 / 4  # of the free memory that a collection may take
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; Python names it from 3.13 on


class MappedImages:
    """uint8 images (N,C,H,W) in a file, of which only those that are asked for are read.

    It has the part of a tensor's interface that batches need: ``len``, ``shape``, ``device``, ``images[index]`` with a
    position, a slice, or a list, array or tensor of positions, and ``split``; each gives tensors.

    Args:
        base: All images of the file, uint8 (M,C,H,W).
        rows: Which of them these are, int64 (N,).
        hashes: Of all images of the file, uint8 (M,16).
        limit: Bytes that these images, or what is computed of each of them, may take in the memory of a device; None is
            a quarter of what is free there.
    """

    device: ClassVar[torch.device] = torch.device("cpu")
    dtype: ClassVar[torch.dtype] = torch.uint8

    def __init__(self, base: Tensor, rows: Tensor, hashes: np.ndarray, limit: float | None = None) -> None:
        self.base, self.rows, self._hashes, self.limit = base, rows, hashes, limit

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"MappedImages({len(self)} images of {'x'.join(map(str, self.shape[1:]))})"

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.base.shape[1:]))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, index: Any) -> Tensor:
        index = torch.from_numpy(index) if isinstance(index, np.ndarray) else index
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        return self.base[int(rows)] if rows.dim() == 0 else self.base[rows]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.base[row] for row in self.rows.tolist())

    def take(self, index: Tensor) -> MappedImages:
        """Some of these, still in the file."""
        return MappedImages(self.base, self.rows[index], self._hashes, self.limit)

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches of ``size`` in order, the last with what is left; each is read while the one before is in use."""
        return load_batches(
            self, (slice(first, first + size) for first in range(0, max(1, len(self)), size)), self.device
        )

    def to(self, device: torch.device | str) -> Tensor:
        """All of them on a device: they must fit there. ``on_device`` moves them only if they do."""
        found, first = torch.empty(self.shape, dtype=self.dtype, device=device), 0
        for part in self.split(block_of(self)):
            found[first : first + len(part)] = part
            first += len(part)
        return found

    def hashes(self) -> np.ndarray:
        """uint8 (N,16), as ``image_hashes`` gives them."""
        return self._hashes[self.rows.numpy()]


Images = Tensor | MappedImages


def block_of(images: Images) -> int:
    """How many of the images are looked at together: ``BLOCK``, or fewer where they are large."""
    return max(1, min(BLOCK, BLOCK_BYTES // max(1, prod(images.shape[1:]))))


def map_file(path: Path, size: int) -> Tensor:
    """The first ``size`` bytes of a file as uint8 (size,), also where they are more than the memory of the machine.

    What is written to the tensor stays in memory. Linux would take room for that beforehand and refuse a file that is
    larger than the memory, as ``torch.from_file`` finds, unless it is asked not to.
    """
    if not size or not sys.platform.startswith("linux"):
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    with path.open("rb") as file:
        pages = mmap.mmap(
            file.fileno(), size, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    return torch.frombuffer(pages, dtype=torch.uint8)


def memory_for(images: Images, device: torch.device = CPU) -> float:
    """Bytes that these images, or what is computed of each of them, may take in the memory of a device."""
    limit = images.limit if isinstance(images, MappedImages) else None
    return SHARE * free_memory(device) if limit is None else limit


def on_device(images: Images, device: torch.device) -> Images:
    """The images on a device; those of a file stay there on a CPU, and where they take more than ``memory_for``."""
    if isinstance(images, Tensor):
        return images.to(device)
    return images if device.type == "cpu" or images.nbytes > memory_for(images, device) else images.to(device)


def float_table(rows: int, shape: Sequence[int], most: float, what: str = "features") -> Tensor:
    """float32 (rows,*shape) in memory, or where that is more than ``most`` bytes in a file that nobody else sees.

    The file has no name, so that it goes with the process, however that ends. ``what`` it holds is for the message.

    Raises:
        StorageError: the folder of caches cannot hold it.
    """
    size, folder = 4 * rows * prod(shape), cache_root()
    if size <= most:
        return torch.empty(rows, *shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            reserve(file.fileno(), size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, *shape)))
    except OSError as error:
        raise StorageError(
            f"{folder} cannot hold the {what} of {rows} images, {format_bytes(size)} ({error}). Set GENDISTILL_CACHE "
            "to a folder with room for them."
        ) from error


Index = Tensor | slice


def read_batch(images: Images, index: Index, device: torch.device) -> Tensor:
    """``images[index]`` on ``device``."""
    there = index if isinstance(index, slice) else to_device(index, images.device)
    return to_device(images[there], device)


class CentralImages(MappedImages):
    """Mapped images, each as ``central_share`` shows it: cut once, where all of them may be in memory, when the first
    is read; else at every reading."""

    def __init__(self, images: MappedImages, share: float) -> None:
        super().__init__(images.base, images.rows, images._hashes, images.limit)
        self.share = share

    def __getitem__(self, index: Any) -> Tensor:
        if self._all_cut is not None:
            index = index.cpu() if isinstance(index, Tensor) else index
            return self._all_cut[index]
        return self._cut(index)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(len(self)))

    def _cut(self, index: Any) -> Tensor:
        found = super().__getitem__(index)
        return central_share(found, self.share) if found.dim() == 4 else central_share(found[None], self.share)[0]

    @cached_property
    def _all_cut(self) -> Tensor | None:
        """All of them, where they fit."""
        if self.nbytes > memory_for(self):
            return None
        found = torch.empty(self.shape, dtype=self.dtype)
        for part in torch.arange(len(self)).split(block_of(self)):
            found[part] = self._cut(part)
        return found

    def take(self, index: Tensor) -> CentralImages:
        return CentralImages(super().take(index), self.share)

    def hashes(self) -> np.ndarray:
        return np.concatenate([image_hashes(part) for part in self.split(block_of(self))])


def central(images: Images, share: float) -> Images:
    """``central_share`` of the images; those of a file are cut when they are read."""
    if isinstance(images, Tensor):
        return central_share(images, share)
    return images if share == 1 else CentralImages(images, share)


def image_hashes(images: Images) -> np.ndarray:
    """XXH3 (128 bits) of the pixels of each image, uint8 (N,16): equal pixels have equal hashes."""
    if isinstance(images, MappedImages):
        return images.hashes()
    found = [hash_of(image) for image in images.cpu().contiguous().numpy()]
    return np.concatenate([*found, np.empty(0, np.uint8)]).reshape(-1, HASH)


def hash_of(image: np.ndarray) -> np.ndarray:
    """The same of one image that is contiguous, uint8 (16,)."""
    return np.frombuffer(xxhash.xxh3_128_digest(image), np.uint8)


def as_bytes(hashes: np.ndarray) -> np.ndarray:
    """Hashes (N,16) as one value each (N,), which NumPy sorts and compares as it does bytes."""
    return np.ascontiguousarray(hashes).view(f"S{HASH}")[:, 0]


def map_batches(function: Callable[[Tensor], Tensor], images: Images, size: int | None = None) -> Tensor:
    """``function`` (B,C,H,W) -> (B,...) of all images, ``size`` or a block at a time, joined."""
    return torch.cat([function(part) for part in images.split(size or block_of(images))])


def load_batches(images: Images, batches: Iterable[Index], device: torch.device) -> Iterator[Tensor]:
    """``images[index]`` on ``device`` for each index of ``batches``.

    Images that lie in a file are read by a thread of their own, one batch ahead, so that the device does not wait.
    """
    if not isinstance(images, MappedImages):
        yield from (read_batch(images, index, device) for index in batches)
        return

    def read(index: Index) -> Tensor:
        found = images[index]
        return found.pin_memory() if device.type == "cuda" else found

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for index in batches:
            following = pool.submit(read, index)
            if pending is not None:
                yield pending.result().to(device, non_blocking=True)
            pending = following
        if pending is not None:
            yield pending.result().to(device, non_blocking=True)


def read_steps(
    images: Images, index_of: Callable[[int], Tensor], device: torch.device, stop: int = 2**62
) -> Callable[[int], Tensor]:
    """step -> ``images[index_of(step)]`` on ``device``; where steps below ``stop`` follow one another, of a file one
    step ahead."""
    if not isinstance(images, MappedImages):
        return lambda step: read_batch(images, index_of(step), device)
    stream: Iterator[Tensor] = iter(())
    following = -1

    def read(step: int) -> Tensor:
        nonlocal stream, following
        if step != following:
            stream = load_batches(images, map(index_of, range(step, stop)), device)
        following = step + 1
        return next(stream)

    return read
