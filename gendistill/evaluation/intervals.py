"""Paired intervals, the verdict in words, and the calibration error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def paired_interval(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of ours[r] - theirs[r] over training runs r, both lists sharing seeds.

    n differences give n - 1 degrees of freedom; runs without a partner are left out. Equal differences give one point.

    Raises:
        ValueError: fewer than two pairs.
    """
    from scipy import stats  # a second of imports, which commands without intervals need not wait for

    n = min(len(ours), len(theirs))
    if n < 2:
        raise ValueError(f"A paired interval needs at least 2 pairs, got {n}.")
    differences = np.asarray(ours[:n], float) - np.asarray(theirs[:n], float)
    half = stats.t.ppf(0.5 + level / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n)
    return float(differences.mean() - half), float(differences.mean() + half)


def row_interval(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of the accuracy of ``row`` minus that of ``other``; None where one has fewer than two runs.

    Runs are paired by their number. Where a row pools several synthesis seeds, the pairs are means by set, so that the
    interval covers another seed: run r of the other row, repeated in a cycle where there are fewer, counts for set
    r mod the number of sets. Two pools of different size are independent samples of their sets' means (Welch's t).
    """
    ours, theirs = row["accuracy"], other["accuracy"]
    a, b = (int(one.get("synthesis_seeds") or 1) for one in (row, other))
    if min(len(ours), len(theirs)) < 2:
        return None
    if a == b == 1:
        return paired_interval(ours, theirs)
    if a > 1 and b > 1 and a != b:
        return _welch(by_set(ours, a), by_set(theirs, b))
    if b == 1:
        theirs = np.resize(theirs, len(ours))
    if a == 1:
        ours = np.resize(ours, len(theirs))
    return paired_interval(by_set(ours, max(a, b)), by_set(theirs, max(a, b)))


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the difference of two independent means; one point where neither side varies."""
    from scipy import stats

    if max(map(np.ptp, (ours, theirs))) < 1e-12:
        middle = float(np.mean(ours) - np.mean(theirs))
        return middle, middle
    found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)


def by_set(values: Sequence[float], sets: int) -> list[float]:
    """Mean of the runs of each set, run r being of set r % sets.

    Raises:
        ValueError: a set has no run.
    """
    if len(values) < sets:
        raise ValueError(f"{len(values)} runs are too few for {sets} sets.")
    return [float(np.mean(values[s::sets])) for s in range(sets)]


def verdict(interval: tuple[float, float] | None) -> str:
    """The conclusion that the interval against random images allows."""
    if interval is None:
        return "reference"
    low, high = interval
    if low > 0:
        return "better than random"
    return "worse than random" if high < 0 else "not better than random"


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
