"""The ``barycenter`` refiner: pixels descend to their class's Wasserstein barycenter and batch-norm statistics.

WMDD (arXiv 2311.18531) from given images instead of noise: atom j starts at image j's own point, so that no image is
sent to an arbitrary atom, and a trust region keeps the change small enough to stay the image it was.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.data.images import to_float, to_uint8
from gendistill.errors import ConfigError
from gendistill.networks.registry import batch_norm_layers
from gendistill.networks.statistics import ClassStatistics, batch_norm_inputs
from gendistill.objectives.refinement import batch_norm_loss, feature_loss
from gendistill.refine.space import GroundSpace, embed_set
from gendistill.surrogate.surrogate import SurrogateSet
from gendistill.transport.barycenter import barycenter, wasserstein2


def matched_atoms(chosen: SurrogateSet, points: Tensor, space: GroundSpace) -> Tensor:
    """Atoms (N,D), row i being image i's own: the barycenter of its class started at the images' points."""
    atoms = torch.empty_like(points)
    for label in range(len(chosen.classes)):
        members = chosen.labels == label
        atoms[members] = torch.from_numpy(barycenter(space.of_class(label), points[members].numpy())).to(points.dtype)
    return atoms


def mean_w2(chosen: SurrogateSet, points: Tensor, space: GroundSpace) -> float:
    """Squared W2 between a class's images and its real images in the ground space, mean over classes."""
    values = [wasserstein2(points[chosen.labels == c].numpy(), space.of_class(c)) for c in range(len(chosen.classes))]
    return sum(values) / len(values)


def refine(
    chosen: SurrogateSet,
    network: nn.Module,
    statistics: ClassStatistics,
    space: GroundSpace,
    *,
    steps: int = 200,
    learning_rate: float = 0.03,
    trust_region: float = 1.0,
    feature_weight: float = 1.0,
    batch_norm_weight: float = 1.0,
    cross_entropy_weight: float = 0.1,
) -> Generator[dict[str, Any], None, SurrogateSet]:
    """Optimise x0 + delta, |delta|_inf <= trust_region, by Adam(0.5, 0.9) with a cosine rate on all images at once.

    loss = feature_weight * ||z - atom||^2 + batch_norm_weight * L_BN + cross_entropy_weight * CE, z being the point in
    the ground space. Deterministic. Yields {step, loss terms}; the returned set's meta has W2 before and after.

    Raises:
        ConfigError: batch-norm matching is asked of a teacher without batch norm.
    """
    require_batch_norm(network, batch_norm_weight)
    device = next(network.parameters()).device
    network = network.eval().requires_grad_(False)
    labels, x0 = chosen.labels.to(device), to_float(chosen.images).to(device)
    before = embed_set(network, space, chosen.images, chosen.labels)
    atoms = matched_atoms(chosen, before, space).to(device)
    means = {k: v.to(device) for k, v in statistics.means.items()}
    variances = {k: v.to(device) for k, v in statistics.variances.items()}
    unit = torch.ones(len(labels), device=device)  # the ground space is scaled already
    delta = torch.zeros_like(x0, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=learning_rate, betas=(0.5, 0.9))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        x = (x0 + delta).clamp(-1, 1)
        with batch_norm_inputs(network) as inputs:
            features = network.features(x)  # type: ignore[operator]
        terms = {"atoms": feature_weight * feature_loss(space.embed(features, x, labels), atoms, unit)}
        if batch_norm_weight:
            terms["batch_norm"] = batch_norm_weight * batch_norm_loss(inputs, labels, means, variances)
        if cross_entropy_weight:
            logits = network.classify(features)  # type: ignore[operator]
            terms["cross_entropy"] = cross_entropy_weight * F.cross_entropy(logits, labels)
        (delta.grad,) = torch.autograd.grad(torch.stack([*terms.values()]).sum(), delta)
        optimizer.step()
        with torch.no_grad():
            delta.clamp_(-trust_region, trust_region)
        yield {"step": step + 1, **{k: v.detach() for k, v in terms.items()}}
    images = to_uint8((x0 + delta).detach()).cpu()
    after = embed_set(network, space, images, chosen.labels)
    w2 = {"before": mean_w2(chosen, before, space), "after": mean_w2(chosen, after, space)}
    return SurrogateSet(images, chosen.labels, chosen.classes, {**chosen.meta, "w2": w2})


def require_batch_norm(network: nn.Module, weight: float) -> None:
    """Refuse batch-norm matching on a network that has none."""
    if weight and not batch_norm_layers(network):
        raise ConfigError(
            "The teacher has no batch-norm layers, so batch-norm refinement cannot work with it. Train one that has "
            "(--network convnet_bn or timm:resnet10t), or set --batch_norm_weight 0."
        )
