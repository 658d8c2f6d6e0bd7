"""Refinement losses of WMDD (arXiv 2311.18531) as pure functions of tensors.

Legend: features (B,D); labels (B,) int64; a layer's inputs (R,C,H,W) or (R,C), R being B or, where a layer sees several
windows or tokens of an image as rows, a multiple of it, image by image; means and variances (K,C) by class.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def feature_loss(features: Tensor, atoms: Tensor, scale: Tensor) -> Tensor:
    """Mean over images of ||f_i - atom_i||^2 / scale_i, atom i being image i's own (WMDD eq. 9).

    ``scale`` (B,) is the class's total feature variance, so 1 means "as far as a typical real image is from its class
    mean". The released code takes the unsquared norm over the whole batch instead.
    """
    return ((features.float() - atoms).square().sum(1) / scale).mean()


def released_feature_loss(features: Tensor, atoms: Tensor) -> Tensor:
    """||F - B||_F over the whole batch, unsquared, as WMDD's code has it: its gradient does not fade near them."""
    return (features.float() - atoms).square().sum().clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def class_moments(inputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean (K,C), variance (K,C), images (K,)) over rows and positions by class; zeros for an absent class."""
    rows = inputs.float().unflatten(0, (len(labels), -1))  # (B,R/B,C,...)
    flat = rows.transpose(1, 2).flatten(2)  # (B,C,S): an image's rows count as positions
    onehot = torch.nn.functional.one_hot(labels, classes).to(flat.dtype)  # (B,K)
    images = onehot.sum(0)
    weight = onehot / images.clamp(min=1)
    mean = weight.T @ flat.mean(2)
    second = weight.T @ (flat - mean[labels][:, :, None]).square().mean(2)
    return mean, second, images


def batch_norm_loss(
    inputs: Mapping[str, Tensor], labels: Tensor, means: Mapping[str, Tensor], variances: Mapping[str, Tensor]
) -> Tensor:
    """Per-class BN matching, normalised: mean over layers and present classes of
    mean_c (delta mean)^2 / var + mean_c (delta std)^2 / var, var being the real class variance plus 1 % of the layer's.

    WMDD's eq. 10 sums the unnormalised norms ||delta var|| + ||delta mean||, whose size grows with depth and width; the
    division makes a weight carry over between architectures.
    """
    total = next(iter(inputs.values())).new_zeros(())
    for name, value in inputs.items():
        mean, variance, images = class_moments(value, labels, len(means[name]))
        floor = (0.01 * variances[name].mean()).clamp(min=torch.finfo(torch.float32).eps)
        scale = variances[name] + floor
        gap = (mean - means[name]).square() + ((variance + floor).sqrt() - scale.sqrt()).square()
        present = images > 0
        total = total + ((gap / scale).mean(1) * present).sum() / present.sum()
    return total / len(inputs)


def published_batch_norm_loss(
    inputs: Mapping[str, Tensor], labels: Tensor, means: Mapping[str, Tensor], variances: Mapping[str, Tensor]
) -> Tensor:
    """Sum over layers of the mean over present classes of ||delta var|| + ||delta mean|| (WMDD eq. 10)."""
    total = next(iter(inputs.values())).new_zeros(())
    for name, value in inputs.items():
        mean, variance, images = class_moments(value, labels, len(means[name]))
        present = images > 0
        gap = _norm(mean - means[name]) + _norm(variance - variances[name])
        total = total + (gap * present).sum() / present.sum()
    return total


def _norm(rows: Tensor) -> Tensor:
    """Euclidean norms of rows, with a gradient of 0 where a row is 0."""
    return rows.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
