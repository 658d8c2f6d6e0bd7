"""Many small PNG files to one tensor and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.errors import ArtifactError


def read_images(paths: Sequence[Path], channels: int, size: int) -> Tensor:
    """uint8 (N,channels,size,size) of PNG files.

    Raises:
        ArtifactError: a file cannot be read or has another size; it is named.
    """
    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    for image, path in zip(images, paths, strict=True):
        image.copy_(_read(path, channels, size))
    return images


def _read(path: Path, channels: int, size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            if image.size != (size, size):
                raise ArtifactError(f"{path} is {image.width}x{image.height}; its manifest says {size}x{size}.")
            array = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Copy or make the set again.") from error
    return torch.from_numpy(array).view(size, size, channels).movedim(-1, 0)
