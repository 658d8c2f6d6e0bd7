"""The ``barycenter`` refiner and the ``wmdd`` back-end: pixels descend to their class's Wasserstein barycenter and
batch-norm statistics (WMDD, arXiv 2311.18531), from noise, from real images or from generated ones.

From given images atom j starts at image j's own point, so that no image is sent to an arbitrary atom, and a trust
region keeps the change small enough to stay the image it was.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.data.images import to_float, to_uint8
from gendistill.errors import ConfigError
from gendistill.networks.registry import batch_norm_layers
from gendistill.networks.statistics import batch_norm_inputs
from gendistill.networks.teacher import Teacher
from gendistill.objectives.refinement import (
    RealMoments,
    feature_loss,
    normalised_gap,
    published_gap,
    released_feature_loss,
)
from gendistill.refine.region import Crops, Region
from gendistill.refine.space import GroundSpace
from gendistill.transport.barycenter import Barycenter, assign, kmeans_atoms, wasserstein2
from gendistill.transport.classes import class_barycenters


@dataclass(frozen=True, kw_only=True)
class Objective:
    """loss = features * distance to the own atom + batch_norm * gap of class moments + cross_entropy * CE.

    ``released`` features are the unsquared norm over the batch; ``published`` moments the unnormalised norms. The unit
    of features is the ground space's. Moments and cross-entropy are means over the teachers.
    """

    features: float = 1.0
    batch_norm: float = 1.0
    cross_entropy: float = 0.1
    feature_form: Literal["squared", "published", "released"] = "squared"
    batch_norm_form: Literal["normalised", "published"] = "normalised"


@dataclass(frozen=True)
class Targets:
    """Atoms (N,D) and weights (N,), row i being image i's own; a class's weights have mean 1."""

    atoms: Tensor
    weights: Tensor


def matched_targets(
    points: Tensor, labels: Tensor, space: GroundSpace, *, own: bool = True, seed: int = 0, **options: Any
) -> Targets:
    """The barycenter of every class present, one atom for each of its images' points (N,D).

    ``own`` starts atom i at image i's own point. Else, for images that mean nothing yet, atoms start at k-means centres
    and images are assigned to them one to one, at the least total squared distance.
    """
    present = labels.unique().tolist()
    ours = [points[labels == c].numpy() for c in present]
    pairs = zip(present, ours, strict=True)
    starts = ours if own else [kmeans_atoms(space.of_class(c), len(o), seed) for c, o in pairs]
    found = class_barycenters((space.of_class(c) for c in present), starts, total=len(present), **options)
    if not own:
        found = [_ordered(one, assign(o, one.atoms)) for one, o in zip(found, ours, strict=True)]
    return _as_targets(points, labels, present, found)


def _ordered(one: Barycenter, order: np.ndarray) -> Barycenter:
    return replace(one, atoms=one.atoms[order], weights=one.weights[order])


def _as_targets(points: Tensor, labels: Tensor, present: list[int], found: list[Barycenter]) -> Targets:
    atoms, weights = torch.empty_like(points), torch.empty(len(points))
    for label, one in zip(present, found, strict=True):
        atoms[labels == label] = torch.from_numpy(one.atoms).to(points.dtype)
        weights[labels == label] = torch.from_numpy(one.weights * len(one.weights)).float()
    return Targets(atoms, weights)


def class_w2(points: Tensor, labels: Tensor, space: GroundSpace, weights: Tensor | None = None) -> Tensor:
    """Squared W2 (K,) between each class's images and its real images in the ground space."""
    values = []
    for label in labels.unique().tolist():
        own = labels == label
        mass = None if weights is None else weights[own].numpy().astype(np.float64)
        values.append(wasserstein2(points[own].numpy(), space.of_class(label), mass))
    return torch.tensor(values)


def refine_chunk(
    start: Tensor,
    labels: Tensor,
    targets: Targets,
    space: GroundSpace,
    *,
    steps: int,
    learning_rate: float,
    objective: Objective,
    region: Region,
    crops: Crops,
    positions: Tensor,
    total: int,
    bf16: bool = False,
) -> Generator[dict[str, Any], None, Tensor]:
    """Adam(0.5, 0.9) with a cosine rate on uint8 images ``start`` (B,C,H,W); yields {step, terms}; returns uint8.

    ``positions`` (B,) are the images' places among ``total``, which choose their crops. Terms are scaled to sums over
    classes, so the gradient of an image does not depend on what else is in the chunk. Deterministic.
    """
    device = next(space.networks[0].parameters()).device
    labels, x0, atoms = labels.to(device), to_float(start).to(device), targets.atoms.to(device)
    judges = [_Judge.of(teacher, labels, objective, bf16) for teacher in space.teachers]
    classes, factors = len(labels.unique()), space.factors(labels)
    delta, images = region.around(x0)
    optimizer = torch.optim.Adam([delta], lr=learning_rate, betas=(0.5, 0.9), fused=True)
    for step in range(steps):  # nothing in here waits for the device
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        x = images(delta)
        seen = crops.of(x, positions, total, step).contiguous(memory_format=torch.channels_last)
        looks = [judge.look(seen) for judge in judges]
        points = space.embed([look.pop("features") for look in looks], x, factors)
        terms = {"atoms": objective.features * _distance(points, atoms, objective)}
        for name in looks[0]:
            terms[name] = torch.stack([look[name] for look in looks]).mean()
        (delta.grad,) = torch.autograd.grad(classes * torch.stack([*terms.values()]).sum(), delta)
        optimizer.step()
        region.hold(delta, step + 1)
        yield {"step": step + 1, **{name: value.detach() for name, value in terms.items()}}
    return to_uint8(images(delta).detach()).cpu()


def _distance(points: Tensor, atoms: Tensor, objective: Objective) -> Tensor:
    if objective.feature_form == "released":
        return released_feature_loss(points, atoms)
    return feature_loss(points, atoms, torch.ones(len(points), device=points.device))  # in the space's own unit


@dataclass(frozen=True)
class _Judge:
    """One teacher before images of classes ``labels``, and the real moments it holds against them."""

    network: nn.Module
    labels: Tensor
    real: RealMoments | None
    objective: Objective
    bf16: bool

    @classmethod
    def of(cls, teacher: Teacher, labels: Tensor, objective: Objective, bf16: bool) -> _Judge:
        moments = teacher.statistics.means, teacher.statistics.variances
        real = RealMoments.of(labels, *moments) if objective.batch_norm else None
        return cls(teacher.network.eval().requires_grad_(False), labels, real, objective, bf16)

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """features (B,D) of the images and the weighted terms that need this network."""
        network: Any = self.network
        wanted, found = self.objective, {}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            with batch_norm_inputs(network) as inputs:  # of the layers that statistics are collected of
                found["features"] = network.features(images)
            logits = network.classify(found["features"]) if wanted.cross_entropy else None
        if self.real is not None:
            gap = normalised_gap if wanted.batch_norm_form == "normalised" else published_gap
            found["batch_norm"] = wanted.batch_norm * gap(inputs, self.real)
        if logits is not None:
            found["cross_entropy"] = wanted.cross_entropy * F.cross_entropy(logits.float(), self.labels)
        return found


def require_batch_norm(network: nn.Module, weight: float) -> None:
    """Refuse batch-norm matching on a network that has none."""
    if weight and not batch_norm_layers(network):
        raise ConfigError(
            "The teacher has no batch-norm layers, so batch-norm refinement cannot work with it. Train one that has "
            "(--network convnet_bn or timm:resnet10t), or set --batch_norm_weight 0."
        )
