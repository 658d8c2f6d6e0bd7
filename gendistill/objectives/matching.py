"""Objectives of the matching family as pure functions: gradients, means, characteristic functions, cross-entropy.

Legend: D feature dimension; R real and Z synthetic images of one class; K classes; M frequencies; B images. Reductions
in the inputs' dtype, which should be fp32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
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


def waves(features: Tensor, frequencies: Tensor) -> Tensor:
    """(B,2M): cos <t_m, f_b / |f_b|>, then the sines, of features (B,D) at frequencies t (M,D).

    Their mean over the images of a class is the empirical characteristic function of its features, real part and
    imaginary part, at these frequencies. As in the released code of NCFM features are scaled to unit length.

    Raises:
        ValueError: other shapes than these.
    """
    if features.dim() != 2 or frequencies.dim() != 2 or features.shape[1] != frequencies.shape[1]:
        raise ValueError(
            f"Features are {tuple(features.shape)}, frequencies {tuple(frequencies.shape)}; expected (B,D) and (M,D)."
        )
    phases = F.normalize(features, dim=1) @ frequencies.T
    return torch.cat([phases.cos(), phases.sin()], 1)


def characteristic_distance(real: Tensor, synthetic: Tensor, amplitude: float = 0.5) -> Tensor:
    """mean over m of sqrt(a (|r| - |s|)^2 + (1 - a) 2 (|r||s| - Re(r conj s))), a scalar.

    r = r_m and s = s_m are the characteristic functions of real and synthetic features (NCFM, arXiv 2502.20653): the
    first term compares their amplitudes, the second, 2 |r||s| (1 - cos of the angle between them), their phases. They
    add up to |r - s|^2, so for a = 1/2 the root is |r - s| / sqrt(2). A root has no derivative at 0, so it is taken of
    at least 1e-12; where that acts the gradient is 0.

    Args:
        real: (2M,), the means of ``waves``.
        synthetic: (2M,), the same of synthetic images.
        amplitude: The weight a, in [0, 1].

    Raises:
        ValueError: other shapes than these.
    """
    if real.dim() != 1 or real.shape != synthetic.shape or len(real) % 2:
        raise ValueError(f"Got shapes {tuple(real.shape)} and {tuple(synthetic.shape)}; expected (2M,) twice.")
    r, s = real.view(2, -1), synthetic.view(2, -1)
    square = (1 - amplitude) * (r - s).square().sum(0)
    if amplitude != 0.5:
        lengths = [one.square().sum(0).clamp(min=FLOOR**2).sqrt() for one in (r, s)]
        square = square + (2 * amplitude - 1) * (lengths[0] - lengths[1]).square()
    return square.clamp(min=FLOOR**2).sqrt().mean()


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
