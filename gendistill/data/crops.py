"""Batches of augmented views from a counter: step s of a seed is always the same batch, so nothing of it is stored.

Legend: N images, B a batch, C channels, H = W the side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.data.pixels import to_float
from gendistill.runtime import to_device
from gendistill.seeding import torch_rng


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Positions (B,) of batch ``step`` (0, 1, ...) when ``count`` images are walked in fresh random orders.

    Batches run over the ends of epochs, so all have the same size, also when the set is smaller than a batch. Any step
    can be asked for on its own.
    """
    size = min(batch_size, count)
    start = step * size
    parts = []
    while size > 0:
        epoch, offset = divmod(start, count)
        part = _order(count, seed, epoch)[offset : offset + size]
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return torch.cat(parts)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """Of one epoch; kept for its next batches, as drawing it takes 33 ms for a million images. Not to be written to."""
    return torch.randperm(count, generator=torch_rng(seed, "order", epoch))


def epoch_indices(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Positions of batch ``step`` when every epoch ends with a smaller batch of what is left, as data loaders do."""
    epoch, part = divmod(step, -(-count // batch_size))
    order = _order(count, seed, epoch)
    return order[part * batch_size : (part + 1) * batch_size].clone()


class ViewsRecord(TypedDict):
    """The attributes of ``Views``."""

    seed: int
    batch_size: int
    min_crop: float
    flip: bool
    cutmix: float


@dataclass(frozen=True, kw_only=True)
class Views:
    """Random crop, mirror and CutMix (Yun et al. 2019) of a set's images, replayed from ``seed`` and the step.

    Attributes:
        seed: Of the order of the images and of all their views.
        batch_size: Images a step; a smaller set gives batches of its size.
        min_crop: Least area of a crop, as a share of the image; crops have sides in a ratio of 3/4 to 4/3 and are
            enlarged to the whole side. 1 keeps the whole image.
        flip: Mirror every second image, at random.
        cutmix: alpha of CutMix's Beta(alpha, alpha): every batch gets one box from its images in reverse; 0 is off.
    """

    seed: int
    batch_size: int
    min_crop: float = 1.0
    flip: bool = False
    cutmix: float = 0.0

    def batch(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(views (B,C,H,W) in [-1, 1], positions (B,)) of batch ``step`` of uint8 ``images`` (N,C,H,W)."""
        index = to_device(batch_indices(len(images), self.batch_size, step, self.seed), images.device)
        return self.of(to_float(images[index]), step), index

    def of(self, images: Tensor, step: int) -> Tensor:
        """Views of these float images (B,C,H,W), as they are at ``step``."""
        rng = torch_rng(self.seed, "views", step)
        if self.min_crop < 1 or self.flip:
            images = cropped(images, *boxes(len(images), self.min_crop, self.flip, rng))
        if self.cutmix > 0 and len(images) > 1:
            images, _ = cutmix(images, self.cutmix, rng)
        return images

    def to_dict(self) -> ViewsRecord:
        """Plain values, from which ``Views`` is made again."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "min_crop": self.min_crop,
            "flip": self.flip,
            "cutmix": self.cutmix,
        }


def boxes(count: int, min_crop: float, flip: bool, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(sides (B,2), centres (B,2)) of crops, (x, y) in [-1, 1] units of the image; a mirrored one has a negative x."""
    area, ratio, mirror = torch.rand(3, count, generator=rng)
    area = min_crop + (1 - min_crop) * area
    widest = torch.log(torch.minimum(torch.tensor(4 / 3), 1 / area))  # beyond it a side would leave the image
    ratio = ((2 * ratio - 1) * widest).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1)
    centres = (2 * torch.rand(count, 2, generator=rng) - 1) * (1 - sides)
    if flip:
        sides[:, 0] *= torch.where(mirror < 0.5, -1.0, 1.0)
    return sides, centres


def cropped(images: Tensor, sides: Tensor, centres: Tensor) -> Tensor:
    """Bilinear; crops are enlarged, never shrunk, so there is nothing to antialias."""
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = sides[:, 0], sides[:, 1], centres
    grid = F.affine_grid(to_device(theta, images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def cutmix(images: Tensor, alpha: float, rng: torch.Generator) -> tuple[Tensor, float]:
    """One box of (1 - lambda) H W pixels, clipped at the border, from the batch in reverse order, lambda being drawn
    from Beta(alpha, alpha); and the share of pixels in it, which is the weight of the reversed batch's labels."""
    height, width = images.shape[-2:]
    share = 1 - _beta(alpha, rng)
    y, x = (torch.rand(2, generator=rng) * torch.tensor([height, width])).int().tolist()
    h, w = round(height * share**0.5 / 2), round(width * share**0.5 / 2)
    top, bottom, left, right = max(0, y - h), min(height, y + h), max(0, x - w), min(width, x + w)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, (bottom - top) * (right - left) / (height * width)


def _beta(alpha: float, rng: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha): torch's own takes no generator."""
    import numpy as np

    seed = int(torch.randint(0, 2**62, (), generator=rng))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
