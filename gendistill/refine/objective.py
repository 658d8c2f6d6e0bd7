"""The ``barycenter`` refiner and the ``wmdd`` back-end: pixels descend to their class's Wasserstein barycenter and
batch-norm statistics (WMDD, arXiv 2311.18531), from noise, from real images or from generated ones.

From given images atom j starts at image j's own point, so that no image is sent to an arbitrary atom, and a trust
region keeps the change small enough to stay the image it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ConfigError, DataError
from gendistill.networks.statistics import batch_norm_inputs
from gendistill.networks.teacher import Teacher
from gendistill.objectives.refinement import (
    RealMoments,
    feature_loss,
    normalised_gap,
    published_gap,
    released_feature_loss,
)
from gendistill.refine.constraints import RefineAugmentation, TrustRegion
from gendistill.refine.feature_space import FeatureSpace
from gendistill.transport.barycenter import Barycenter, assign, class_barycenters, kmeans_atoms, wasserstein2


@dataclass(frozen=True, kw_only=True)
class RefineObjective:
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
class BarycenterTargets:
    """Atoms (N,D) and weights (N,), row i being image i's own; a class's weights have mean 1."""

    atoms: Tensor
    weights: Tensor


def matched_targets(
    points: Tensor, labels: Tensor, space: FeatureSpace, *, own: bool = True, seed: int = 0, **options: Any
) -> BarycenterTargets:
    """The barycenter of every class present, one atom for each of its images' points (N,D).

    ``own`` starts atom i at image i's own point. Else, for images that mean nothing yet, atoms start at k-means centres
    and images are assigned to them one to one, at the least total squared distance.
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
    targets: BarycenterTargets,
    space: FeatureSpace,
    *,
    steps: int,
    learning_rate: float,
    objective: RefineObjective,
    region: TrustRegion,
    crops: RefineAugmentation,
    positions: Tensor,
    total: int,
    rows: int | None = None,
    bf16: bool = False,
) -> Generator[dict[str, Any], None, Tensor]:
    """Adam(0.5, 0.9) with a cosine rate on uint8 images ``start`` (B,C,H,W); yields {step, terms}; returns uint8.

    ``positions`` (B,) are the images' places among ``total``, which choose their crops. Terms are scaled to sums over
    classes, so the gradient of an image depends on its own class alone, whatever else is in the chunk, but for
    ``released`` features, whose norm is over all of it. More than ``rows`` images go through the networks in pieces,
    twice (activation checkpointing), and count as one batch all the same. Deterministic.

    Raises:
        DataError: the images are no numbers in the end.
    """
    device = next(space.networks[0].parameters()).device
    labels, x0, atoms = labels.to(device), to_float(start).to(device), targets.atoms.to(device)
    judges = [TeacherTerms.of(teacher, labels, objective, bf16) for teacher in space.teachers]
    parts = torch.arange(len(labels)).tensor_split(-(-len(labels) // (rows or len(labels))))
    pieces = [
        MicroBatch(*region.around(x0[part]), labels[part], space.factors(labels[part]), positions[part], total)
        for part in parts
    ]
    optimizer = torch.optim.Adam([piece.delta for piece in pieces], lr=learning_rate, betas=(0.5, 0.9), fused=True)
    classes = len(labels.unique())
    for step in range(steps):  # nothing in here waits for the device
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        points, looks = _seen(pieces, judges, space, crops, step)
        terms = {"atoms": objective.features * _distance(points, atoms, objective)}
        found = [judge.terms(look) for judge, look in zip(judges, looks, strict=True)]
        for name in found[0]:
            terms[name] = torch.stack([one[name] for one in found]).mean()
        loss = classes * torch.stack([*terms.values()]).sum()
        for piece, gradient in zip(pieces, torch.autograd.grad(loss, [p.delta for p in pieces]), strict=True):
            piece.delta.grad = gradient
        optimizer.step()
        for piece in pieces:
            region.hold(piece.delta, step + 1, steps)
        yield {"step": step + 1, **{name: value.detach() for name, value in terms.items()}}
    with torch.no_grad():
        if not all(piece.delta.isfinite().all() for piece in pieces):
            raise DataError(
                "Refinement ended in numbers that are not finite; expected images. Lower the learning rate and the "
                "weights of the objective, and look whether the teacher recognises its own images."
            )
        return torch.cat([to_uint8(piece.images(piece.delta)).cpu() for piece in pieces])


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Images that go through the networks together: what moves them, their labels, their factors in the ground space
    and their places among ``total``."""

    delta: Tensor
    images: Callable[[Tensor], Tensor]
    labels: Tensor
    factors: list[Tensor]
    positions: Tensor
    total: int


TeacherView = dict[str, Tensor]  # by image: moments of all layers (B,T) twice, and cross-entropy (B,)


def _seen(
    pieces: Sequence[MicroBatch],
    judges: Sequence[TeacherTerms],
    space: FeatureSpace,
    crops: RefineAugmentation,
    step: int,
) -> tuple[Tensor, list[TeacherView]]:
    """Points (B,D) of all images in the ground space, and what each judge sees of them."""

    def see(delta: Tensor, piece: MicroBatch) -> tuple[Tensor, list[TeacherView]]:
        x = piece.images(delta)
        seen = crops.of(x, piece.positions, piece.total, step).contiguous(memory_format=torch.channels_last)
        features, looks = zip(*(judge.look(seen, piece.labels) for judge in judges), strict=True)
        return space.embed(features, x, piece.factors), list(looks)

    if len(pieces) == 1:
        return see(pieces[0].delta, pieces[0])
    found = [checkpoint(see, p.delta, p, use_reentrant=False, preserve_rng_state=False) for p in pieces]
    points, looks = zip(*found, strict=True)
    return torch.cat(points), [
        {name: torch.cat([one[name] for one in same]) for name in same[0]} for same in zip(*looks, strict=True)
    ]


def _distance(points: Tensor, atoms: Tensor, objective: RefineObjective) -> Tensor:
    if objective.feature_form == "released":
        return released_feature_loss(points, atoms)
    return feature_loss(points, atoms, torch.ones(len(points), device=points.device))  # in the space's own unit


@dataclass(frozen=True)
class TeacherTerms:
    """One teacher before images of some classes, and the real moments it holds against them."""

    network: nn.Module
    real: RealMoments | None
    objective: RefineObjective
    bf16: bool

    @classmethod
    def of(cls, teacher: Teacher, labels: Tensor, objective: RefineObjective, bf16: bool) -> TeacherTerms:
        moments = teacher.statistics.means, teacher.statistics.variances
        real = RealMoments.of(labels, *moments) if objective.batch_norm else None
        return cls(teacher.network.eval().requires_grad_(False), real, objective, bf16)

    def look(self, images: Tensor, labels: Tensor) -> tuple[Tensor, TeacherView]:
        """Features (B,D) of some of the images, and what the terms that need this network are made of."""
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

    def terms(self, look: TeacherView) -> dict[str, Tensor]:
        """The weighted terms of all images."""
        wanted, found = self.objective, {}
        if self.real is not None:
            gap = normalised_gap if wanted.batch_norm_form == "normalised" else published_gap
            moments = self.real.by_class(look["mean"], look["variance"])
            found["batch_norm"] = wanted.batch_norm * gap(*moments, self.real)
        if "cross_entropy" in look:
            found["cross_entropy"] = wanted.cross_entropy * look["cross_entropy"].mean()
        return found


def require_batch_norm(layers: Collection[str], weight: float) -> None:
    """Refuse batch-norm matching with a network of which no layer has moments."""
    if weight and not layers:
        raise ConfigError(
            "The teacher has no batch-norm layers, so batch-norm refinement cannot work with it. Train one that has "
            "(--network convnet_bn or timm:resnet10t), or set batch_norm_weight 0."
        )
