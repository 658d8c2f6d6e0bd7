"""A few of many, evenly spaced: what is measured or drawn where all would be too many."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def spread(count: int, most: int | None) -> list[int]:
    """At most ``most`` of the positions 0 to count - 1, evenly spaced; all of them for None."""
    if most is None or count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def spread_by_class(labels: Tensor, classes: int, most: int) -> Tensor:
    """Positions, ascending, of at most ``most`` of ``labels`` (N,): as many of every class, evenly spaced within it.

    Where there are more classes than ``most``, one of each of so many classes.
    """
    each = max(1, most // classes)
    found = [torch.nonzero(labels == c).flatten() for c in spread(classes, most)]
    return torch.cat([index[spread(len(index), each)] for index in found]).sort().values
