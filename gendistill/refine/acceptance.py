"""The acceptance gate: which refined images replace those they came from.

A class is refined only where its W2 to the real images falls, and an image only where the cross-entropy of a network
that did not guide it does not rise. The batch-norm loss cannot decide: it falls whatever the images look like.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.data.pixels import to_float
from gendistill.networks.training import infer
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.objective import class_w2


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

    return infer(batch, images, labels, batch_size=batch_size)
