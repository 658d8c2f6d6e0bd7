"""The images of a split: a uint8 tensor in memory, or rows of a file that is mapped into memory; and their hashes.

Legend: N images, C channels, H = W the side in pixels; M images in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from torch import Tensor

HASH = 16  # bytes of the hash of an image


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
        return (self.base[rows] for rows in self.rows.split(size))

    def to(self, device: torch.device | str) -> Tensor:
        """All of them on a device: they must fit there."""
        return self[:].to(device)

    def hashes(self) -> np.ndarray:
        """uint8 (N,16), as ``image_hashes`` gives them."""
        return self._hashes[self.rows.numpy()]


Images = Tensor | MappedImages


def image_hashes(images: Images) -> np.ndarray:
    """XXH3 (128 bits) of the pixels of each image, uint8 (N,16): equal pixels have equal hashes."""
    if isinstance(images, MappedImages):
        return images.hashes()
    found = b"".join(xxhash.xxh3_128_digest(image.tobytes()) for image in images.cpu().numpy())
    return np.frombuffer(found, np.uint8).reshape(-1, HASH)


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
