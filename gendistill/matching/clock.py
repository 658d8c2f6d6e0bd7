"""Where the time of a run goes, by part."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of the parts. On CUDA they are the stream's own, by events: the host runs ahead of it and is not stopped.

    A part that works on the host while the stream waits counts in full, as its end is recorded after that work.
    """

    def __init__(self, parts: Sequence[str], device: torch.device) -> None:
        self.device = device
        self._seconds = dict.fromkeys(parts, 0.0)
        self._open: deque[tuple[str, torch.Event, torch.Event]] = deque()

    def add(self, found: Mapping[str, float]) -> None:
        """Seconds that were counted elsewhere."""
        for name, seconds in found.items():
            self._seconds[name] += seconds

    def seconds(self) -> dict[str, float]:
        """Of every part so far; waits for a GPU to finish them."""
        while self._open:
            self._close(*self._open.popleft())
        return dict(self._seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The seconds of a block, of a part."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[name] += time.perf_counter() - begun
            return
        start, end = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        start.record()
        try:
            yield
        finally:
            end.record()
            self._open.append((name, start, end))
            while self._open and self._open[0][2].query():  # what is over need not be kept
                self._close(*self._open.popleft())

    def _close(self, name: str, start: torch.Event, end: torch.Event) -> None:
        end.synchronize()
        self._seconds[name] += start.elapsed_time(end) / 1000
