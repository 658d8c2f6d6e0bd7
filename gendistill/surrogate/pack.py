"""The inverse of ``decode``: factor x factor images shrunk into each stored one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.surrogate.multi_formation import bounds, to_pixels


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
