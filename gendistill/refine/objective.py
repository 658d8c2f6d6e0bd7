"""What refined images descend on: their class's Wasserstein barycenter, batch-norm statistics and the cross-entropy.

WMDD (arXiv 2311.18531) descends from noise. From images of a set, atom j starts at image j's own point, so that no
image is sent to an arbitrary atom.

Legend: N images, B of a chunk, D dimensions of the feature space, K classes, G classes present, T channels of all
batch-norm layers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.errors import ConfigError
from gendistill.networks.statistics import batch_norm_inputs
from gendistill.networks.teacher import Teacher
from gendistill.objectives.refinement import (
    RealMoments,
    normalised_gap,
    published_gap,
)
from gendistill.refine.feature_space import FeatureSpace
from gendistill.transport.barycenter import Barycenter, assign, class_barycenters, kmeans_atoms, wasserstein2


@dataclass(frozen=True, kw_only=True)
class RefineObjective:
    """loss = features * distance to the own atom + batch_norm * gap of class moments + cross_entropy * CE.

    Moments and cross-entropy are means over the teachers. Distances are in the unit of the feature space.

    Attributes:
        features: Weight of the distance.
        batch_norm: Weight of the gap of batch-norm moments.
        cross_entropy: Weight of the teachers' cross-entropy.
        feature_form: ``released`` is the unsquared norm over the batch, the others are squared distances.
        batch_norm_form: ``normalised`` by layer, or the ``published`` norms.
    """

    features: float = 1.0
    batch_norm: float = 1.0
    cross_entropy: float = 0.1
    feature_form: Literal["squared", "published", "released"] = "squared"
    batch_norm_form: Literal["normalised", "published"] = "normalised"


@dataclass(frozen=True)
class BarycenterTargets:
    """Atoms (N,D) and weights (N,), row i being image i's own; a class's weights have mean 1."""

    atoms: Tensor
    weights: Tensor

    def take(self, positions: Tensor) -> BarycenterTargets:
        return BarycenterTargets(self.atoms[positions], self.weights[positions])


def matched_targets(
    points: Tensor, labels: Tensor, space: FeatureSpace, *, own: bool = True, seed: int = 0, **options: Any
) -> BarycenterTargets:
    """The barycenter of every class present, one atom for each of its images' points (N,D).

    ``own`` starts atom i at image i's own point. Otherwise, as for noise, atoms start at k-means centres, and images
    are assigned to them one to one at the least total squared distance.
    """
    present = labels.unique().tolist()
    ours = [points[labels == c].numpy() for c in present]
    starts = ours if own else [partial(kmeans_atoms, count=len(o), seed=seed) for o in ours]
    names = [space.classes[c] for c in present]
    found = class_barycenters((space.of_class(c) for c in present), starts, names=names, **options)
    if not own:
        found = [_ordered(one, assign(o, one.atoms)) for one, o in zip(found, ours, strict=True)]
    return _as_targets(points, labels, present, found)


def _ordered(one: Barycenter, order: np.ndarray) -> Barycenter:
    return replace(one, atoms=one.atoms[order], weights=one.weights[order])


def _as_targets(points: Tensor, labels: Tensor, present: list[int], found: list[Barycenter]) -> BarycenterTargets:
    atoms, weights = torch.empty_like(points), torch.empty(len(points))
    for label, one in zip(present, found, strict=True):
        atoms[labels == label] = torch.from_numpy(one.atoms).to(points.dtype)
        weights[labels == label] = torch.from_numpy(one.weights * len(one.weights)).float()
    return BarycenterTargets(atoms, weights)


def class_w2(points: Tensor, labels: Tensor, space: FeatureSpace, weights: Tensor | None = None) -> Tensor:
    """Squared W2 (G,) between each class's images and its real images in the feature space."""
    values = []
    for label in labels.unique().tolist():
        own = labels == label
        mass = None if weights is None else weights[own].numpy().astype(np.float64)
        values.append(wasserstein2(points[own].numpy(), space.of_class(label), mass))
    return torch.tensor(values)


TeacherView = dict[str, Tensor]  # by image: moments of all layers (B,T) twice, and cross-entropy (B,)


@dataclass(frozen=True)
class TeacherTerms:
    """The terms that need one teacher's network, for images of some classes."""

    network: nn.Module
    real: RealMoments | None
    objective: RefineObjective
    bf16: bool

    @classmethod
    def of(cls, teacher: Teacher, labels: Tensor, objective: RefineObjective, bf16: bool) -> TeacherTerms:
        moments = teacher.statistics.means, teacher.statistics.variances
        real = RealMoments.of(labels, *moments) if objective.batch_norm else None
        return cls(teacher.network.eval().requires_grad_(False), real, objective, bf16)

    def view(self, images: Tensor, labels: Tensor) -> tuple[Tensor, TeacherView]:
        """Features (B,D) of some of the images, and what the terms are computed from."""
        network: Any = self.network
        found = {}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            with batch_norm_inputs(network) as inputs:  # of the layers that statistics are collected of
                features = network.features(images)
            logits = network.classify(features) if self.objective.cross_entropy else None
        if self.real is not None:
            found["mean"], found["variance"] = self.real.of_images(inputs, len(images))
        if logits is not None:
            found["cross_entropy"] = F.cross_entropy(logits.float(), labels, reduction="none")
        return features, found

    def terms(self, view: TeacherView) -> dict[str, Tensor]:
        """The weighted terms of all images."""
        wanted, found = self.objective, {}
        if self.real is not None:
            gap = normalised_gap if wanted.batch_norm_form == "normalised" else published_gap
            moments = self.real.by_class(view["mean"], view["variance"])
            found["batch_norm"] = wanted.batch_norm * gap(*moments, self.real)
        if "cross_entropy" in view:
            found["cross_entropy"] = wanted.cross_entropy * view["cross_entropy"].mean()
        return found


def require_batch_norm(layers: Collection[str], weight: float) -> None:
    """Refuse batch-norm matching with a network of which no layer has moments."""
    if weight and not layers:
        raise ConfigError(
            "The teacher has no batch-norm layers, so batch-norm refinement cannot work with it. Train one that has "
            "(--network convnet_bn or timm:resnet10t), or set batch_norm_weight 0."
        )
