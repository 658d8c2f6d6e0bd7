"""Objectives of the matching family as pure functions: gradients, mean features, class-aware cross-entropy.

Legend: D feature dimension; R real and Z synthetic images of one class; K classes. Reductions in the inputs' dtype,
which should be fp32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor
from torch.nn import functional as F

from gendistill.config import Distance

DISTANCES: tuple[Distance, ...] = get_args(Distance)
FLOOR = 1e-6  # the released code's; it is absolute, so rows whose two norms multiply to less hardly count


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], kind: Distance) -> Tensor:
    """Sum over parameters of the distance between two gradients of the same parameter, a scalar.

    cosine: sum over output rows of 1 - <a, b> / (||a|| ||b|| + 1e-6), rows being those of the first dimension, in
    [0, 2] each (DC, arXiv 2006.05929, eq. 10). mse: sum of squared differences, l1: of absolute ones (both in IDC's
    released code, arXiv 2205.14959, eq. 6).

    Every tensor given takes part, so who takes part is the caller's choice: DC and DSA give all weights of 2 or more
    dimensions, the classifier's included; IDC gives none of its linear layers'. Neither gives biases or norms.

    Raises:
        ValueError: unknown kind, lists that do not fit, or for cosine a tensor without output rows (1-D).
    """
    if kind not in DISTANCES:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(DISTANCES)}.")
    shapes, others = [tuple(g.shape) for g in real], [tuple(g.shape) for g in synthetic]
    if not shapes or shapes != others:
        raise ValueError(f"The gradients have shapes {shapes} and {others}; expected the same, and at least one.")
    if kind == "cosine" and min(map(len, shapes)) < 2:
        raise ValueError(f"The gradients have shapes {shapes}; cosine compares output rows, so give no 1-D parameters.")
    apart = {"cosine": _row_cosines, "mse": _squares, "l1": _absolutes}[kind]
    terms = [apart(a, b) for a, b in zip(real, synthetic, strict=True)]
    return sum(terms[1:], terms[0])


def _row_cosines(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + FLOOR)).sum()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum()


def _absolutes(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum()


def mean_feature_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """|| mean of real (R,D) - mean of synthetic (Z,D) ||^2, a scalar: the MMD of a linear kernel (DM, arXiv
    2110.04181, eq. 4; IDM, arXiv 2307.09742).

    Raises:
        ValueError: other shapes than these, or no rows.
    """
    if real.dim() != 2 or synthetic.dim() != 2 or real.shape[1] != synthetic.shape[1]:
        raise ValueError(f"Features are {tuple(real.shape)} and {tuple(synthetic.shape)}; expected (R,D) and (Z,D).")
    if not len(real) or not len(synthetic):
        raise ValueError(f"Means need images; got {len(real)} real and {len(synthetic)} synthetic.")
    return (real.mean(0) - synthetic.mean(0)).square().sum()


def class_aware_cross_entropy(logits: Tensor, labels: Tensor, accuracy: float | Tensor, weight: float) -> Tensor:
    """weight * accuracy * mean cross-entropy of logits (Z,K) with labels (Z,), a scalar (IDM, arXiv 2307.09742).

    ``accuracy`` is the network's on its training data, a FRACTION: a network that knows little says little. IDM's
    released code has it in percent, so its weight of 0.5 is 50 here.

    Raises:
        ValueError: the accuracy is a number, but no fraction; a tensor is not read.
    """
    if not isinstance(accuracy, Tensor) and not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}; expected a fraction from 0 to 1, not percent.")
    return weight * accuracy * F.cross_entropy(logits, labels)
