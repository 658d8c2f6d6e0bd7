"""The parameterisation: what is stored, and the views of it that take part.

Stored images are floats in [0, 1], class by class, ``factor`` x ``factor`` views in each (multi-formation of IDC,
arXiv 2205.14959; partition and expansion of IDM, 2307.09742), or those of several factors. Rates of the papers are for
this range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gendistill.data.dataset import Split
from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ConfigError
from gendistill.seeding import torch_rng
from gendistill.surrogate.multi_formation import Factor, float_views, sides, tiled


@dataclass(frozen=True)
class SyntheticImages:
    """``images`` (K*ipc,C,H,W) in [0, 1], ``ipc`` a class, class by class."""

    images: Tensor
    ipc: int
    factor: Factor = 1

    @property
    def classes(self) -> int:
        return len(self.images) // self.ipc

    @property
    def labels(self) -> Tensor:
        """(K*ipc,) on the CPU."""
        return torch.arange(self.classes).repeat_interleave(self.ipc)

    def views(self, label: int) -> Tensor:
        """All views (ipc*V,C,H,W) of a class in [-1, 1], differentiable in the images."""
        return self.decoded(self.images[label * self.ipc : (label + 1) * self.ipc])

    def decoded(self, images: Tensor) -> Tensor:
        """All views (n*V,C,H,W) in [-1, 1] of n stored images."""
        return 2 * float_views(images, self.factor) - 1

    def to(self, device: torch.device) -> SyntheticImages:
        return replace(self, images=self.images.to(device))

    def stored(self) -> Tensor:
        """uint8 images (K*ipc,C,H,W) on the CPU, cut to the range."""
        return to_uint8((2 * self.images.detach() - 1).clamp(-1, 1)).cpu()


def of_images(images: Tensor, ipc: int, factor: Factor) -> SyntheticImages:
    """From stored uint8 images (K*ipc,C,H,W)."""
    return SyntheticImages((to_float(images) + 1) / 2, ipc, factor)


def noise(split: Split, classes: int, ipc: int, factor: Factor, seed: int) -> SyntheticImages:
    """Normal noise of standard deviation 1/4 around grey, what DC starts from once images are standardised."""
    shape = (classes * ipc, *split.images.shape[1:])
    return SyntheticImages(
        0.5 + 0.25 * torch.randn(shape, generator=torch_rng(seed, "start", ipc, *sides(factor))), ipc, factor
    )


def of_picks(
    split: Split, picks: Sequence[Tensor], ipc: int, factor: Factor, classes: Sequence[str]
) -> SyntheticImages:
    """Real images at ``picks``, ipc * f^2 a class, shrunk f x f into each stored one, f being the largest factor."""
    tiles = max(sides(factor))
    short = [label for label, own in enumerate(picks) if len(own) != ipc * tiles**2]
    if short:
        raise ConfigError(
            f"ipc {ipc} with factor {factor} starts from {ipc * tiles**2} images of every class (ipc x factor^2), but "
            f"class {classes[short[0]]!r} gave {len(picks[short[0]])}; lower ipc or "
            "factor, or take --matching.start noise."
        )
    return of_images(tiled(split.images[torch.cat(list(picks))], tiles), ipc, factor)
