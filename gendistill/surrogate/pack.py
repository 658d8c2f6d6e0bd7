"""The inverse of ``decode``: factor x factor images shrunk into each stored one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.surrogate.decode import bounds


def tiled(images: Tensor, factor: int) -> Tensor:
    """uint8 (N*factor^2,C,H,W) -> (N,C,H,W), each tile antialiased; images fill the tiles in order."""
    if factor == 1:
        return images
    groups = images.unflatten(0, (-1, factor**2))
    height, width = images.shape[-2:]
    stored = torch.empty_like(groups[:, 0])
    cells = [(r, c) for r in bounds(height, factor) for c in bounds(width, factor)]
    for view, ((top, bottom), (left, right)) in enumerate(cells):
        small = F.interpolate(groups[:, view].float(), (bottom - top, right - left), mode="bilinear", antialias=True)
        stored[..., top:bottom, left:right] = small.round().clamp(0, 255).to(torch.uint8)
    return stored
