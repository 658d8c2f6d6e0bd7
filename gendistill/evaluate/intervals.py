"""Means, paired intervals and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def paired_interval(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of ours[r] - theirs[r] over training runs r, both lists sharing seeds.

    n differences give n - 1 degrees of freedom; runs without a partner are left out. Without spread it is one point.

    Raises:
        ValueError: fewer than two pairs.
    """
    n = min(len(ours), len(theirs))
    if n < 2:
        raise ValueError(f"A paired interval needs at least 2 pairs, got {n}.")
    differences = np.asarray(ours[:n], float) - np.asarray(theirs[:n], float)
    half = stats.t.ppf(0.5 + level / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n)
    return float(differences.mean() - half), float(differences.mean() + half)


def by_set(values: Sequence[float], sets: int) -> list[float]:
    """Mean of the runs of each set, run r being of set r % sets.

    Raises:
        ValueError: a set has no run.
    """
    if len(values) < sets:
        raise ValueError(f"{len(values)} runs are too few for {sets} sets.")
    return [float(np.mean(values[s::sets])) for s in range(sets)]


def verdict(interval: tuple[float, float] | None) -> str:
    """What the interval against random allows to say."""
    if interval is None:
        return "reference"
    low, high = interval
    if low > 0:
        return "better than random"
    return "worse than random" if high < 0 else "not better than random"
