"""The ``pack`` refiner: factor x factor images shrunk into each stored one, so that bytes go as far as IDC's do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.errors import ConfigError
from gendistill.surrogate.decode import bounds
from gendistill.surrogate.surrogate import SurrogateSet


def pack(whole: SurrogateSet, factor: int) -> SurrogateSet:
    """ipc * factor^2 whole images a class -> ipc stored ones, each tile antialiased; images fill tiles in order.

    The inverse of ``decode`` but for what the smaller tiles cannot hold.

    Raises:
        ConfigError: the images are packed already, or a class's number does not fill its tiles.
    """
    tiles = factor**2
    if whole.factor != 1:
        raise ConfigError(f"The set is packed by {whole.factor} already; pack the whole images.")
    short = [(name, n) for name, n in zip(whole.classes, whole.counts, strict=True) if n % tiles]
    if short:
        raise ConfigError(f"Class {short[0][0]!r} has {short[0][1]} images; expected a multiple of {tiles} to pack.")
    order = torch.argsort(whole.labels, stable=True)
    labels = whole.labels[order][::tiles]
    return SurrogateSet(_tiled(whole.images[order], factor), labels, whole.classes, dict(whole.meta), factor)


def _tiled(images: Tensor, factor: int) -> Tensor:
    """uint8 (N*factor^2,C,H,W) -> (N,C,H,W)."""
    groups = images.unflatten(0, (-1, factor**2))
    height, width = images.shape[-2:]
    stored = torch.empty_like(groups[:, 0])
    cells = [(r, c) for r in bounds(height, factor) for c in bounds(width, factor)]
    for view, ((top, bottom), (left, right)) in enumerate(cells):
        small = F.interpolate(groups[:, view].float(), (bottom - top, right - left), mode="bilinear", antialias=True)
        stored[..., top:bottom, left:right] = small.round().clamp(0, 255).to(torch.uint8)
    return stored
