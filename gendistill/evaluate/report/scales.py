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


@dataclass(frozen=True)
class LogAxis:
    """Map of positive values, even by factors."""

    axis: Axis

    def __call__(self, value: float) -> float:
        return self.axis(math.log10(value))


def log_axis(low: float, high: float, start: float, end: float) -> LogAxis:
    """From below ``low`` to above ``high``, at least a factor of 2 apart."""
    first, last = math.log10(low), math.log10(high)
    spare = max(0.0, (math.log10(2) - (last - first)) / 2)
    return LogAxis(Axis(first - spare, last + spare, start, end))


def log_ticks(low: float, high: float) -> list[float]:
    """Two to nine round values between ``low`` and ``high``, or around them where there are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [d * 10.0**e for e in decades for d in digits if low * 0.999 <= d * 10.0**e <= high * 1.001]
        if len(found) >= 3:
            return found[:: -(-len(found) // 8)]
    return [low, high] if high > low else [low]
