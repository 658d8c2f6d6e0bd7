"""The ``pack`` refiner: factor x factor images shrunk into each stored one, as in IDC's multi-formation."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.errors import ConfigError
from gendistill.surrogate.multi_formation import bounds, enlarged, shrunk, tiled, to_pixels
from gendistill.surrogate.set import SurrogateSet


def pack(whole: SurrogateSet, factor: int) -> SurrogateSet:
    """ipc * factor^2 whole images a class -> ipc stored ones, each tile antialiased; images fill tiles in order.

    The inverse of ``decode``, except for the lost resolution.

    Args:
        whole: Images without soft labels and weights; of every class a multiple of factor^2.
        factor: Images a side in a stored image, from 1 to the images' side in pixels.

    Raises:
        ConfigError: the images are packed, labelled or weighted already, too small, or a class's number does not fill
            its tiles.
    """
    tiles = factor**2
    if whole.factor != 1:
        raise ConfigError(f"The set is packed by {whole.factor} already; pack the whole images.")
    if whole.soft_labels is not None or whole.weights is not None:
        what = "weights, of which a stored image has only one" if whole.soft_labels is None else "soft labels"
        raise ConfigError(f"The set to pack has {what}; expected hard labels alone. Pack first and label afterwards.")
    check_tiles(factor, int(whole.images.shape[-1]))
    short = [(name, n) for name, n in zip(whole.classes, whole.counts, strict=True) if n % tiles]
    if short:
        raise ConfigError(f"Class {short[0][0]!r} has {short[0][1]} images; expected a multiple of {tiles} to pack.")
    order = torch.argsort(whole.labels, stable=True)
    labels = whole.labels[order][::tiles]
    return SurrogateSet(tiled(whole.images[order], factor), labels, whole.classes, whole.meta.copy(), factor)


def check_tiles(factor: int, side: int) -> None:
    """Refuse a factor that leaves some tile of an image of ``side`` pixels empty."""
    if not 1 <= factor <= side:
        raise ConfigError(f"pack is {factor}; expected 1 to {side} for images of {side}x{side} px.")


def through_tile(images: Tensor, factor: int) -> Tensor:
    """uint8 images (N,C,H,W) as they come back from the smallest tile of an image that was packed and decoded."""
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    least = [min(end - start for start, end in bounds(side, factor)) for side in (height, width)]
    return to_pixels(enlarged(shrunk(images, *least).float(), height, width))
