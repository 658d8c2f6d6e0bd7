"""Learning rates over a training: step (0, 1, ...) -> share of the peak rate, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Rate = Callable[[int], float]


def warm_cosine(steps: int) -> Rate:
    """Up a straight line over the first twentieth, under a cosine that ends at 0."""
    warmup = max(1, steps // 20)
    return lambda step: min((step + 1) / warmup, 0.5 * (1 + torch.cos(torch.tensor(step / steps * torch.pi)).item()))


def cosine(steps: int, per_epoch: int = 1) -> Rate:
    """Half a cosine from 1 to 0 in one stair an epoch of ``per_epoch`` steps."""
    epochs = steps // per_epoch
    return lambda step: 0.5 * (1 + math.cos(math.pi * (step // per_epoch) / epochs))


def multi_step(steps: int, milestones: Sequence[float], decay: float, per_epoch: int = 1) -> Rate:
    """Times ``decay`` once each of ``milestones`` is over, shares of the epochs, rounded down to whole ones."""
    epochs = steps // per_epoch
    ends = [math.floor(share * epochs + 1e-9) for share in milestones]
    return lambda step: decay ** sum(step // per_epoch >= end for end in ends)
