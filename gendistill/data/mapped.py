"""The images of a split: a uint8 tensor in memory, or rows of a file that is mapped into memory; and their hashes.

Legend: N images, C channels, H = W the side in pixels; M images in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from gendistill.data.pixels import central_share

HASH = 16  # bytes of the hash of an image
BLOCK = 2048  # images of a collection that are looked at together


class MappedImages:
    """uint8 images (N,C,H,W) in a file, of which only those that are asked for are read.

    It has the part of a tensor's interface that batches need: ``len``, ``shape``, ``device``, ``images[index]`` with a
    position, a slice, or a list, array or tensor of positions, and ``split``; each gives tensors.

    Args:
        base: All images of the file, uint8 (M,C,H,W).
        rows: Which of them these are, int64 (N,).
        hashes: Of all images of the file, uint8 (M,16).
    """

    device: ClassVar[torch.device] = torch.device("cpu")
    dtype: ClassVar[torch.dtype] = torch.uint8

    def __init__(self, base: Tensor, rows: Tensor, hashes: np.ndarray) -> None:
        self.base, self.rows, self._hashes = base, rows, hashes

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
        return MappedImages(self.base, self.rows[index], self._hashes)

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches of ``size`` in order, the last with what is left."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def to(self, device: torch.device | str) -> Tensor:
        """All of them on a device: they must fit there."""
        return self[:].to(device)

    def hashes(self) -> np.ndarray:
        """uint8 (N,16), as ``image_hashes`` gives them."""
        return self._hashes[self.rows.numpy()]


Images = Tensor | MappedImages


class CentralImages(MappedImages):
    """Mapped images, each read as ``central_share`` shows it."""

    def __init__(self, images: MappedImages, share: float) -> None:
        vars(self).update(vars(images))
        self.share = share

    def __getitem__(self, index: Any) -> Tensor:
        found = super().__getitem__(index)
        return central_share(found, self.share) if found.dim() == 4 else central_share(found[None], self.share)[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(len(self)))

    def take(self, index: Tensor) -> CentralImages:
        return CentralImages(super().take(index), self.share)

    def hashes(self) -> np.ndarray:
        return np.concatenate([image_hashes(part) for part in self.split(BLOCK)])


def central(images: Images, share: float) -> Images:
    """``central_share`` of the images; those of a file are cut when they are read."""
    return central_share(images, share) if isinstance(images, Tensor) else CentralImages(images, share)


def image_hashes(images: Images) -> np.ndarray:
    """XXH3 (128 bits) of the pixels of each image, uint8 (N,16): equal pixels have equal hashes."""
    if isinstance(images, MappedImages):
        return images.hashes()
    found = b"".join(xxhash.xxh3_128_digest(image.tobytes()) for image in images.cpu().numpy())
    return np.frombuffer(found, np.uint8).reshape(-1, HASH)


def as_bytes(hashes: np.ndarray) -> np.ndarray:
    """Hashes (N,16) as one value each (N,), which NumPy sorts and compares as it does bytes."""
    return np.ascontiguousarray(hashes).view(f"S{HASH}")[:, 0]


def map_batches(function: Callable[[Tensor], Tensor], images: Images, size: int = BLOCK) -> Tensor:
    """``function`` (B,C,H,W) -> (B,...) of all images, ``size`` at a time, joined."""
    return torch.cat([function(part) for part in images.split(size)])


def load_batches(images: Images, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """``images[index]`` on ``device`` for each index of ``batches``.

    Images that lie in a file are read by a thread of their own, one batch ahead, so that the device does not wait.
    """
    if not isinstance(images, MappedImages):
        yield from (images[index.to(images.device)].to(device) for index in batches)
        return

    def read(index: Tensor) -> Tensor:
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
