"""From values to positions on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Linear map of the values [low, high] to the positions [start, end]."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return round(self.start + (self.end - self.start) * (value - self.low) / span, 2)


def ticks(low: float, high: float) -> list[float]:
    """At most seven round values in [0, 1] from below ``low`` to above ``high``."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1) if (high - low) / s <= 5), 0.2)
    most = round(1 / step)
    first = min(math.floor(low / step), most - 1)
    last = min(max(math.ceil(high / step), first + 1), most)
    return [round(i * step, 6) for i in range(first, last + 1)]
