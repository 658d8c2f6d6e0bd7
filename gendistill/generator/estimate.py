"""What a training will cost, found by rehearsing one optimiser step before the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from gendistill import runtime

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """Parameters, bytes of weights and optimiser state a process, peak bytes as measured, seconds a step."""

    parameters: int
    trainable: int
    state_bytes: int
    peak_bytes: int
    seconds_per_step: float
    steps: int

    def __str__(self) -> str:
        minutes = self.seconds_per_step * self.steps / 60
        time_left = f"{minutes:.0f} min" if minutes >= 2 else f"{minutes * 60:.0f} s"
        share = f"{self.trainable / 1e6:.2f} of {self.parameters / 1e6:.2f} M parameters"
        memory = f"{self.peak_bytes / 2**30:.1f} GiB ({self.state_bytes / 2**30:.2f} GiB weights and optimiser)"
        pace = f"about {time_left} for {self.steps} steps ({self.seconds_per_step:.2f} s each)"
        return f"trains {share}, {memory}, {pace}"


def estimate(
    network: nn.Module,
    trainable: Iterable[nn.Parameter],
    memory_bytes: int,
    rehearse: Callable[[], None],
    micro_batches: int,
    steps: int,
    *,
    compiled: bool = False,
) -> Estimate:
    """Time ``rehearse``, forward and backward of one micro-batch, and add up the state.

    Where the first call compiles, or starts a GPU's libraries, the second is timed.

    A trained parameter is held four times more than as a weight: gradient, two moments of AdamW, running average.
    """
    runtime.reset_peak_memory()
    for _ in range(2 if compiled or torch.cuda.is_available() else 1):
        start = time.perf_counter()
        rehearse()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    parameters = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in trainable)
    state = FLOAT * (parameters + 4 * trained) + memory_bytes
    return Estimate(
        parameters, trained, state, runtime.peak_memory() + 3 * FLOAT * trained, seconds * micro_batches, steps
    )
