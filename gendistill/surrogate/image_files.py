"""Many small PNG files to one tensor, and what a tensor would take as such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gendistill.errors import ArtifactError
from gendistill.surrogate import png
from gendistill.surrogate.workers import BLOCK, Ask, counted, request, spread


def read_images(paths: Sequence[Path], channels: int, size: int) -> Tensor:
    """uint8 (N,channels,size,size) of PNG files.

    Raises:
        ArtifactError: a file cannot be read, is damaged or of another size; the first such is named.
    """
    if paths:
        _read(paths[0], channels, size)  # before memory is set aside for a size that is wrong
    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    step = max(1, BLOCK // (channels * size * size))

    def fill(start: int, ask: Ask) -> Sequence[Path]:
        here = paths[start : start + step]
        pixels = torch.empty(len(here), size, size, channels, dtype=torch.uint8)
        view = memoryview(pixels.numpy()).cast("B")
        if not ask(request(here, size, size, channels), view):
            view[:] = b"".join([_read(path, channels, size) for path in here])
        images[start : start + step] = pixels.movedim(-1, 1)
        return here

    counted(spread(fill, range(0, len(paths), step), images.nbytes), "read set", len(paths))
    return images


def _read(path: Path, channels: int, size: int) -> bytes:
    try:
        return png.read(path, channels, size)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Copy or make the set again.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} {error}. Copy or make the set again.") from error


def png_sizes(images: Tensor) -> list[int]:
    """Bytes of each of uint8 ``images`` (N,C,H,W) as the file that a set would hold."""
    channels, height, width = images.shape[1:]
    rows = (image.movedim(0, -1).contiguous().numpy().tobytes() for image in images.cpu())
    return [len(png.encode(pixels, width, height, channels)) for pixels in rows]
