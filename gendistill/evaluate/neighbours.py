"""Precision, recall, density and coverage: how the balls around real and surrogate images lie to one another.

Legend: real (N,D) and made (M,D) are features of ONE class. The ball of a point reaches to its k-th nearest neighbour
among the points of its own side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 5
FEWEST = NEIGHBOURS + 2  # images a side: with k + 1 every ball would hold its whole side


@dataclass(frozen=True)
class Balls:
    """The four shares and rates, each for one class.

    Attributes:
        precision: Share of surrogate images inside some real ball (Kynkaanniemi et al. 2019, eq. 2).
        recall: Share of real images inside some surrogate ball (the same, with the sides changed).
        density: Real balls around a surrogate image over k, in the mean; about 1, and not bounded by it (Naeem et al.
            2020, eq. 3).
        coverage: Share of real balls with a surrogate image inside (the same, eq. 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def balls(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> Balls:
    """How the balls of ``real`` and ``made`` lie to one another.

    Raises:
        ValueError: fewer than k + 2 images on a side.
    """
    if min(len(real), len(made)) < k + 2:
        raise ValueError(f"real has {len(real)} and made {len(made)} image(s); expected at least {k + 2} each.")
    between = _distances(real, made)
    in_real = between <= _radii(real, k)[:, None]  # (N,M)
    in_made = between <= _radii(made, k)
    return Balls(
        precision=in_real.any(0).float().mean().item(),
        recall=in_made.any(1).float().mean().item(),
        density=in_real.sum(0).float().mean().item() / k,
        coverage=in_real.any(1).float().mean().item(),
    )


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbour, (N,)."""
    own = _distances(points, points).fill_diagonal_(-1)  # itself comes first, whatever the rounding
    return own.kthvalue(k + 1, dim=1).values


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double())
