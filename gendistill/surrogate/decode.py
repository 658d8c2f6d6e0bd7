"""Multi-formation: one stored image holds factor x factor training images, shrunk and tiled.

So IDC (arXiv 2205.14959, section 4.1) and IDM's partition (2307.09742) spend the bytes of one image on several.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def decode(images: Tensor, factor: int) -> Tensor:
    """uint8 (N,C,H,W) -> the uint8 views (N*factor^2,C,H,W): image by image, tile by tile from the top left.

    Tiles end at the rounded multiples of H/factor and W/factor and are enlarged bilinearly (half-pixel centres). The
    official code instead pads sides that the factor does not divide; elsewhere both agree but for rounding to uint8.

    Raises:
        ValueError: the factor is below 1, or above the side.
    """
    views = float_views(images.float(), factor)
    return images if factor == 1 else to_pixels(views)


def float_views(images: Tensor, factor: int) -> Tensor:
    """``decode`` of floats (N,C,H,W), not rounded: differentiable, for whoever learns what is stored.

    Raises:
        ValueError: the factor is below 1, or above the side.
    """
    height, width = images.shape[-2:]
    if not 1 <= factor <= min(height, width):
        raise ValueError(f"factor is {factor}; expected 1 to {min(height, width)} for {width}x{height} images.")
    if factor == 1:
        return images
    cells = [(rows, columns) for rows in bounds(height, factor) for columns in bounds(width, factor)]
    tiles = [enlarged(images[..., top:bottom, left:right], height, width) for (top, bottom), (left, right) in cells]
    return torch.stack(tiles, 1).flatten(0, 1)


def enlarged(tiles: Tensor, height: int, width: int) -> Tensor:
    """float tiles (N,C,h,w) -> (N,C,height,width), bilinear."""
    return F.interpolate(tiles, (height, width), mode="bilinear")


def to_pixels(images: Tensor) -> Tensor:
    """Floats in [0, 255] -> uint8, rounded."""
    return images.round().to(torch.uint8)


def bounds(side: int, factor: int) -> list[tuple[int, int]]:
    """First pixel and the one after the last of each tile along a side."""
    ends = [round(side * i / factor) for i in range(factor + 1)]
    return list(pairwise(ends))


class Decoded(torch.utils.data.Dataset[tuple[Any, int]]):
    """A dataset of (stored image, label), such as torchvision's ImageFolder, seen as its decoded views.

    Item i is view i mod factor^2 of stored image i div factor^2: a Pillow image, given to ``transform``.
    """

    def __init__(self, stored: Sequence[tuple[Any, int]], factor: int, transform: Any = None) -> None:
        self.stored, self.factor, self.transform = stored, factor, transform

    def __len__(self) -> int:
        return len(self.stored) * self.factor**2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} views")
        position, view = divmod(index % len(self), self.factor**2)
        image, label = self.stored[position]
        array = np.asarray(image)
        pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).movedim(-1, 0)
        chosen = decode(pixels[None], self.factor)[view].movedim(0, -1).numpy()
        made = Image.fromarray(chosen[..., 0] if array.ndim == 2 else chosen)
        return (self.transform(made) if self.transform else made), label
