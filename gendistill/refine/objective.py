"""What refined images descend on: their class's Wasserstein barycenter, batch-norm statistics and the cross-entropy;
and the acceptance gate, which decides what refinements are kept.

WMDD (arXiv 2311.18531) descends from noise. From images of a set, atom j starts at image j's own point, so that no
image is sent to an arbitrary atom.

The gate refines a class only where its W2 to the real images falls, and an image only where the cross-entropy of a
network that did not guide it does not rise. The batch-norm loss cannot decide: it falls whatever the images look like.

Legend: N images, B of a chunk, D dimensions of the feature space, K classes, G classes present, T channels of all
batch-norm layers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.data.pixels import to_float
from gendistill.errors import ConfigError
from gendistill.networks.statistics import batch_norm_inputs
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import infer, inference_rows
from gendistill.objectives.refinement import RealMoments, normalised_gap, published_gap
from gendistill.refine.feature_space import FeatureSpace
from gendistill.transport.barycenter import assign, class_barycenters, kmeans_atoms, wasserstein2


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
    atoms, weights = torch.empty_like(points), torch.empty(len(points))
    for label, mine, one in zip(present, ours, found, strict=True):
        order = slice(None) if own else assign(mine, one.atoms)
        atoms[labels == label] = torch.from_numpy(one.atoms[order]).to(points.dtype)
        weights[labels == label] = torch.from_numpy((one.weights * len(one.weights))[order]).float()
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

    def terms(self, view: TeacherView, balance: Tensor | float = 1.0) -> dict[str, Tensor]:
        """The weighted terms of all images, which ``balance`` (B,) weighs so that classes count alike."""
        wanted, found = self.objective, {}
        if self.real is not None:
            gap = normalised_gap if wanted.batch_norm_form == "normalised" else published_gap
            moments = self.real.by_class(view["mean"], view["variance"])
            found["batch_norm"] = wanted.batch_norm * gap(*moments, self.real)
        if "cross_entropy" in view:
            found["cross_entropy"] = wanted.cross_entropy * (balance * view["cross_entropy"]).mean()
        return found


def require_batch_norm(layers: Collection[str], weight: float) -> None:
    """Refuse batch-norm matching with a network of which no layer has moments."""
    if weight and not layers:
        raise ConfigError(
            "The teacher has no batch-norm layers, so batch-norm refinement cannot work with it. Train one that has "
            "(--network convnet_bn or timm:resnet10t), or set batch_norm_weight 0."
        )


@dataclass(frozen=True)
class Acceptance:
    """What the gate decided.

    Attributes:
        kept: bool (N,): the images that keep their refinement.
        images: How many were refused because the held-out network's cross-entropy rose.
        classes: How many classes were refused because their W2 did not fall.
        before: Mean class W2 of the images before refinement.
        ungated: With every refinement.
        after: With the accepted ones.
    """

    kept: Tensor
    images: int
    classes: int
    before: float
    ungated: float
    after: float


@torch.no_grad()
def gate(
    start: Tensor,
    points: Tensor,
    refined: Tensor,
    labels: Tensor,
    space: FeatureSpace,
    *,
    weights: Tensor | None = None,
    held_out: nn.Module | None = None,
) -> Acceptance:
    """Compare refined uint8 images (N,C,H,W) with those they came from, whose ``points`` (N,D) are of ``space``.

    An image is refused where the cross-entropy of ``held_out``, a network of another architecture, rises on it. Then a
    class is refused where the W2 of its images to its real ones, in the feature space, does not fall.
    """
    kept = torch.ones(len(labels), dtype=torch.bool)
    if held_out is not None:
        kept = cross_entropies(held_out, refined, labels) <= cross_entropies(held_out, start, labels)
    images = int((~kept).sum())
    new = space.points(refined, labels)
    before, ungated = (class_w2(one, labels, space, weights) for one in (points, new))
    after = ungated if not images else class_w2(torch.where(kept[:, None], new, points), labels, space, weights)
    present = labels.unique()
    refused = present[(after >= before) & torch.tensor([bool(kept[labels == c].any()) for c in present])]
    kept &= ~torch.isin(labels, refused)
    means = (float(w2.mean()) for w2 in (before, ungated, torch.minimum(before, after)))
    return Acceptance(kept, images, len(refused), *means)


def cross_entropies(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 512) -> Tensor:
    """Cross-entropy (N,) of each uint8 image."""
    device = next(network.parameters()).device
    network.eval()

    def batch(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(network(to_float(x).to(device)).float(), y.to(device), reduction="none")

    return infer(batch, images, labels, batch_size=inference_rows(network, batch_size, images.shape[1:]))
