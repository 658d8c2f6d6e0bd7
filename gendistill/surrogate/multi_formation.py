"""Multi-formation: one stored image holds factor x factor training images, shrunk and tiled.

So IDC (arXiv 2205.14959, section 4.1) and IDM's partition (2307.09742) spend the bytes of one image on several. Of
several factors an image holds the views of each: (1, 2) is the whole image and its four quarters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Factor = int | tuple[int, ...]


def factor_of(manifest: Mapping[str, Any]) -> Factor:
    """Views a side, of a manifest whose shape was checked; JSON has a list of several."""
    factor = manifest["factor"]
    return tuple(factor) if isinstance(factor, list) else factor


def sides(factor: Factor) -> tuple[int, ...]:
    """The factors, views a side each."""
    return factor if isinstance(factor, tuple) else (factor,)


def views_in(factor: Factor) -> int:
    """Views of one stored image: the sum of the squared factors."""
    return sum(side**2 for side in sides(factor))


def factor_name(factor: Factor) -> str:
    """``2x2``, or ``1x1 and 2x2``."""
    return " and ".join(f"{side}x{side}" for side in sides(factor))


def decode(images: Tensor, factor: Factor) -> Tensor:
    """uint8 (N,C,H,W) -> the uint8 views (N*V,C,H,W): image by image, factor by factor, from the top left by rows.

    Tiles end at the rounded multiples of H/factor and W/factor and are enlarged bilinearly (half-pixel centres). The
    official code instead pads sides that the factor does not divide; elsewhere both agree but for rounding to uint8.

    Args:
        images: uint8 (N,C,H,W), as they are stored.
        factor: f for f x f views of each, or several factors; V is the number of views in all.

    Raises:
        ValueError: a factor is below 1, or above the side.
    """
    views = float_views(images.float(), factor)
    return images if factor == 1 else to_pixels(views)


def float_views(images: Tensor, factor: Factor) -> Tensor:
    """``decode`` of floats (N,C,H,W), not rounded: differentiable, for whoever learns what is stored.

    Raises:
        ValueError: a factor is below 1, or above the side.
    """
    least = min(images.shape[-2:])
    for side in sides(factor):
        if not 1 <= side <= least:
            raise ValueError(f"factor is {factor}; expected 1 to {least} for images of {least} pixels.")
    if factor == 1:
        return images
    return torch.cat([_tiles(images, side) for side in sides(factor)], 1).flatten(0, 1)


def _tiles(images: Tensor, factor: int) -> Tensor:
    """(N,factor^2,C,H,W)."""
    height, width = images.shape[-2:]
    cells = [(rows, columns) for rows in bounds(height, factor) for columns in bounds(width, factor)]
    tiles = [enlarged(images[..., top:bottom, left:right], height, width) for (top, bottom), (left, right) in cells]
    return torch.stack(tiles, 1)


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

    Item i is view i mod V of stored image i div V, which holds V: a Pillow image, after ``transform``.

    Args:
        stored: The dataset of stored images; a Pillow image or an array (H,W) or (H,W,C) each.
        factor: That of the set's manifest.
        transform: What is done to each view.
    """

    def __init__(self, stored: Sequence[tuple[Any, int]], factor: Factor, transform: Any = None) -> None:
        self.stored, self.factor, self.transform = stored, factor, transform

    def __len__(self) -> int:
        return len(self.stored) * views_in(self.factor)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} views")
        position, view = divmod(index % len(self), views_in(self.factor))
        image, label = self.stored[position]
        array = np.asarray(image)
        pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).movedim(-1, 0)
        chosen = decode(pixels[None], self.factor)[view].movedim(0, -1).numpy()
        made = Image.fromarray(chosen[..., 0] if array.ndim == 2 else chosen)
        return (self.transform(made) if self.transform else made), label


def tiled(images: Tensor, factor: int) -> Tensor:
    """uint8 (N*factor^2,C,H,W) -> (N,C,H,W); images fill the tiles in order."""
    if factor == 1:
        return images
    groups = images.unflatten(0, (-1, factor**2))
    height, width = images.shape[-2:]
    stored = torch.empty_like(groups[:, 0])
    cells = [(rows, columns) for rows in bounds(height, factor) for columns in bounds(width, factor)]
    for view, ((top, bottom), (left, right)) in enumerate(cells):
        stored[..., top:bottom, left:right] = shrunk(groups[:, view], bottom - top, right - left)
    return stored


def shrunk(images: Tensor, height: int, width: int) -> Tensor:
    """uint8 (N,C,H,W) -> uint8 (N,C,height,width), bilinear and antialiased."""
    small = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
    return to_pixels(small.clamp(0, 255))


def through_tile(images: Tensor, factor: int) -> Tensor:
    """uint8 images (N,C,H,W) as they come back from the smallest tile of an image that was packed and decoded."""
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    least = [min(end - start for start, end in bounds(side, factor)) for side in (height, width)]
    return to_pixels(enlarged(shrunk(images, *least).float(), height, width))
