"""The parameterisation: what is stored, the views of it that take part, and where it begins.

Stored images are floats in [0, 1], class by class, ``factor`` x ``factor`` views in each (multi-formation of IDC,
arXiv 2205.14959; partition and expansion of IDM, 2307.09742), or those of several factors. Rates of the papers are for
this range. They begin as noise, random real images, representatives of their class, or another set's images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from gendistill.config import MatchingStart
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ArtifactError, ConfigError
from gendistill.matching.selection import embed, representatives
from gendistill.parallel import gathered, share
from gendistill.progress import track
from gendistill.seeding import derive, torch_rng
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.multi_formation import Factor, factor_name, float_views, sides, tiled
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.straight_through import as_coded


@dataclass(frozen=True)
class SyntheticImages:
    """``images`` (K*ipc,C,H,W) in [0, 1], ``ipc`` a class, class by class.

    With a ``coding`` networks see the views of the images that its files hold.
    """

    images: Tensor
    ipc: int
    factor: Factor = 1
    coding: Coding | None = None

    @classmethod
    def of(cls, images: Tensor, ipc: int, factor: Factor) -> SyntheticImages:
        """From stored uint8 images (K*ipc,C,H,W)."""
        return cls((to_float(images) + 1) / 2, ipc, factor)

    @property
    def classes(self) -> int:
        return len(self.images) // self.ipc

    @property
    def labels(self) -> Tensor:
        """(K*ipc,) on the CPU."""
        return torch.arange(self.classes).repeat_interleave(self.ipc)

    def decoded(self, images: Tensor) -> Tensor:
        """All views (n*V,C,H,W) in [-1, 1] of n stored images, those of one after the other, differentiable in them."""
        if self.coding:
            images = (as_coded(2 * images - 1, self.coding) + 1) / 2
        return 2 * float_views(images, self.factor) - 1

    def to(self, device: torch.device) -> SyntheticImages:
        return replace(self, images=self.images.to(device))

    def stored(self) -> Tensor:
        """uint8 images (K*ipc,C,H,W) on the CPU, cut to the range."""
        return to_uint8((2 * self.images.detach() - 1).clamp(-1, 1)).cpu()


def starts(
    data: RealData,
    ipcs: Sequence[int],
    factor: Factor,
    kind: MatchingStart,
    build: Callable[[int], nn.Module],
    *,
    seed: int,
) -> list[SyntheticImages]:
    """One start for each of ``ipcs``, the same whichever others there are; ``build`` makes the network of a clustered
    one, which embeds the real images once for all.

    Normal noise has standard deviation 1/4 around grey, what DC starts from once images are standardised.

    Raises:
        ConfigError: a class has fewer images than ipc x factor^2, or ``kind`` is a folder, whose set ``of_set`` takes.
    """
    classes, tiles = len(data.classes), max(sides(factor))
    if kind not in get_args(MatchingStart):
        raise ConfigError(f"start is {str(kind)!r}; expected {', '.join(get_args(MatchingStart))}, or its set given.")
    if kind == "noise":
        rngs, shape = (torch_rng(seed, "start", ipc, *sides(factor)) for ipc in ipcs), data.train.images.shape[1:]
        draws = (torch.randn(classes * ipc, *shape, generator=rng) for ipc, rng in zip(ipcs, rngs, strict=True))
        return [SyntheticImages(0.5 + 0.25 * draw, ipc, factor) for ipc, draw in zip(ipcs, draws, strict=True)]
    counts = data.train.labels.bincount(minlength=classes).tolist()
    _require_images(counts, max(ipcs), factor, data.classes, "start noise", ConfigError)
    network = build(derive(seed, "start network")) if kind == "clustered" else None

    def chosen(label: int) -> dict[int, Tensor]:
        """The positions of a class, by IPC."""
        index = data.train.of_class(label)
        if network:
            features, own = embed(network, data.train, index), derive(seed, "clustered start", label)
            return {ipc: index[representatives(features, ipc * tiles**2, own)] for ipc in ipcs}
        order = torch.randperm(len(index), generator=torch_rng(seed, "random start", label))
        return {ipc: index[order[: ipc * tiles**2]] for ipc in ipcs}

    own = share(classes)
    picks = gathered({label: chosen(label) for label in (track(own, "clustered start") if network else own)})
    by_ipc = {ipc: torch.cat([picks[label][ipc] for label in range(classes)]) for ipc in ipcs}
    return [SyntheticImages.of(tiled(data.train.images[by_ipc[ipc]], tiles), ipc, factor) for ipc in ipcs]


def of_set(given: SurrogateSet, data: RealData, ipc: int, factor: Factor) -> SyntheticImages:
    """From another set's images: as they are stored where factors agree, else from its whole images, shrunk.

    Raises:
        ArtifactError: it has other classes or another size, too few images, or views that would have to be re-cut.
    """
    if given.classes != data.classes or given.images.shape[1:] != data.train.images.shape[1:]:
        raise ArtifactError(
            f"The set to start from has {len(given.classes)} classes and images {tuple(given.images.shape[1:])}, the "
            f"data {len(data.classes)} and {tuple(data.train.images.shape[1:])}; expected the same."
        )
    given = replace(given, soft_labels=None)  # which are not matched, and those of views have no prefix
    if given.factor == factor:
        return SyntheticImages.of(given.prefix(ipc).images, ipc, factor)
    if given.factor != 1:
        expected = f"whole images or {factor_name(factor)} views" if factor != 1 else "whole images"
        raise ArtifactError(
            f"The set to start from holds {factor_name(given.factor)} views in an image; expected {expected}."
        )
    tiles = max(sides(factor))
    _require_images(given.counts, ipc, factor, given.classes, "another set", ArtifactError)
    return SyntheticImages.of(tiled(given.prefix(ipc * tiles**2).images, tiles), ipc, factor)


def _require_images(
    counts: Sequence[int],
    ipc: int,
    factor: Factor,
    classes: Sequence[str],
    other: str,
    error: type[ConfigError | ArtifactError],
) -> None:
    """Refuse a start from real images, ``counts`` a class, that has too few."""
    wanted, least = ipc * max(sides(factor)) ** 2, min(counts)
    if least < wanted:
        raise error(
            f"ipc {ipc} with factor {factor} starts from {wanted} images of every class (ipc x factor^2), but class "
            f"{classes[counts.index(least)]!r} has {least}; lower ipc or factor, or take {other}."
        )
