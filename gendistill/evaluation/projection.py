"""Real and surrogate images as points in a plane: their features, or pixels, by PCA or t-SNE.

Legend: real (N,D) and each set (M,D) are points of one space; N, M and D differ from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.config import Projection as Method
from gendistill.data.class_positions import evenly_spaced_by_class
from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import map_batches
from gendistill.data.pixels import to_float
from gendistill.seeding import derive

MOST_POINTS = 2000  # of the real images, and of each set
PERPLEXITY = 30.0
MOST_SIDE = 64  # pixels are compared on images reduced to this


@dataclass(frozen=True)
class Coordinates:
    """Points in the plane, (N,2) and (M,2); ``explained`` are the shares of the real variance on PCA's two axes."""

    real: Tensor
    sets: list[Tensor]
    explained: tuple[float, float] | None


@dataclass(frozen=True)
class Cloud:
    """Points (N,2) with their labels (N,), drawn from ``total`` images."""

    points: Tensor
    labels: Tensor
    total: int


@dataclass(frozen=True)
class Projection:
    """The training images and the sets by name in one plane; ``space`` says what was projected."""

    method: Method
    space: str
    classes: tuple[str, ...]
    real: Cloud
    sets: dict[str, Cloud]
    explained: tuple[float, float] | None

    def summary(self) -> Mapping[str, object]:
        """Plain numbers."""
        return {
            "method": self.method,
            "space": self.space,
            "explained": self.explained,
            "real_points": len(self.real.points),
            "points": {name: len(cloud.points) for name, cloud in self.sets.items()},
        }


def project_sets(
    data: RealData,
    sets: Mapping[str, Split],
    embed: Callable[[Tensor], Tensor],
    *,
    space: str,
    method: Method = "pca",
    seed: int = 0,
) -> Projection:
    """Draw up to ``MOST_POINTS`` training images and images of each set, as many of every class, and project them.

    ``embed`` turns uint8 images (B,C,H,W) into points (B,D).
    """
    drawn = [
        split.take(evenly_spaced_by_class(split.labels, len(data.classes), MOST_POINTS))
        for split in (data.train, *sets.values())
    ]
    real, *points = (map_batches(embed, split.images) for split in drawn)
    found = project(real, points, method=method, seed=seed)
    clouds = [
        Cloud(at, split.labels, len(whole))
        for at, split, whole in zip((found.real, *found.sets), drawn, (data.train, *sets.values()), strict=True)
    ]
    named = dict(zip(sets, clouds[1:], strict=True))
    return Projection(method, space, data.classes, clouds[0], named, found.explained)


def project(real: Tensor, sets: Sequence[Tensor], *, method: Method = "pca", seed: int = 0) -> Coordinates:
    """Real points (N,D) and sets of points (M,D) -> the plane.

    PCA is of the real points alone, so that its axes depend neither on ``sets`` nor on ``seed``.
    t-SNE places all points together, from their PCA.
    """
    if method == "tsne":
        placed = tsne(torch.cat([real, *sets]), seed).split([len(real), *map(len, sets)])
        return Coordinates(placed[0], list(placed[1:]), None)
    mean, axes, explained = principal_axes(real)
    first, *rest = ((x.double() - mean) @ axes for x in (real, *sets))
    return Coordinates(first, rest, explained)


def principal_axes(points: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """(mean (D,), the two axes (D,2) of most variance, their shares of it) of points (N,D), in float64.

    Of the smaller of covariance and Gram matrix. Every axis points where its largest entry is positive; one without
    variance is 0.
    """
    mean = points.double().mean(0)
    centred = points.double() - mean
    wide = centred.shape[0] < centred.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values.clamp(min=0).flip(0)[:2], vectors.flip(1)[:, :2]
    axes = F.normalize(centred.T @ vectors, dim=0) if wide else vectors
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    axes = axes * signs * (values > values.sum() * 1e-12)
    total = float(centred.square().sum()) or 1.0
    first, second = F.pad(values / total, (0, 2 - len(values))).tolist()
    return mean, F.pad(axes, (0, 2 - axes.shape[1])), (first, second)


def tsne(points: Tensor, seed: int) -> Tensor:
    """t-SNE (van der Maaten and Hinton 2008) of points (N,D) -> (N,2), from their PCA."""
    from sklearn.manifold import TSNE

    mean, axes, _ = principal_axes(points)
    start = (points.double() - mean) @ axes
    spread = start[:, 0].std(correction=0)
    if len(points) < 3 or not spread:
        return start
    model = TSNE(
        2,
        perplexity=min(PERPLEXITY, (len(points) - 1) / 3),
        init=(1e-4 * start / spread).float().numpy(),
        random_state=derive(seed, "t-sne") % 2**32,
    )
    return torch.from_numpy(model.fit_transform(points.float().numpy())).double()


def pixels(images: Tensor) -> Tensor:
    """uint8 (B,C,H,W) -> float32 (B,D) in [-1, 1], of images reduced to ``MOST_SIDE``."""
    if images.shape[-1] <= MOST_SIDE:
        return to_float(images).flatten(1)
    return map_batches(lambda x: F.interpolate(to_float(x), (MOST_SIDE, MOST_SIDE), mode="area"), images, 256).flatten(
        1
    )
