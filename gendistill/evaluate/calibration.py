"""How far a classifier's confidence is from its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: sum over bins of n_b / N |accuracy_b - mean confidence_b|.

    ``confidence`` (N,) in [0, 1] is the largest probability of each image, ``correct`` (N,) whether that class is
    right. Bin b of equal width holds confidences in (b / bins, (b + 1) / bins], the first one also 0 (Guo et al. 2017,
    eq. 3).

    Raises:
        ValueError: the two differ in shape, are empty, or a confidence is outside [0, 1].
    """
    if confidence.shape != correct.shape or confidence.dim() != 1 or len(confidence) == 0:
        raise ValueError(
            f"confidence is {tuple(confidence.shape)} and correct {tuple(correct.shape)}; expected (N,) each."
        )
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("A confidence is outside [0, 1].")
    sure = confidence.double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, place, correct.double() - sure)
    return float(gaps.abs().sum() / len(sure))
