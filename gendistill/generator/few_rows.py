"""A network on few rows of a CPU: each row gets the bits that a full batch gives it, for the time of few.

A kernel chooses by the shape of its input in which order it sums, so the last bits of a row depend on the number of
rows. Convolutions of 3 x 3 and layers on tokens rarely do so, 1 x 1 convolutions and matrix products of few rows often.
Which layers do is found once, by comparing each of them in one full pass; those then get more rows than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Plan = dict[nn.Module, int]  # rows that a layer needs, where it needs more than the others


class FewRows:
    """Calls ``run`` so that no row's bits depend on how many rows there are.

    The first call of each count pads to ``full`` rows and compares; the output of the following ones is compared once
    as a whole, too. Where that differs, the count stays padded.

    Args:
        network: What ``run`` calls; in eager mode, with weights that do not change.
        run: Inputs with one row an image -> output with one row an image.
        full: Rows of the calls that all others have to agree with.
    """

    def __init__(self, network: nn.Module, run: Callable[..., Tensor], full: int) -> None:
        self.network, self.run, self.full = network, run, full
        self._plans: dict[int, Plan | None] = {}  # None: only the full count has the same bits

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output of 1 to ``full`` rows."""
        count = len(inputs[0])
        if count == self.full:
            return self.run(*inputs)
        if count not in self._plans:
            return self._first(*inputs)
        plan = self._plans[count]
        if plan is None:
            return self.run(*(padded(rows, self.full) for rows in inputs))[:count]
        with _more_rows(plan, count):
            return self.run(*inputs)

    def _first(self, *inputs: Tensor) -> Tensor:
        count, plan = len(inputs[0]), Plan()
        with _compared(self.network, plan, count, self.full):
            expected = self.run(*(padded(rows, self.full) for rows in inputs))[:count]
        with _more_rows(plan, count):
            same = torch.equal(self.run(*inputs), expected)
        self._plans[count] = plan if same else None
        return expected


def padded(rows: Tensor, count: int) -> Tensor:
    """``count`` rows: these, and copies of the first one."""
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])])


def _layers(network: nn.Module) -> list[nn.Module]:
    """Modules with weights of their own: the sums are in them, or in functions between them."""
    return [layer for layer in network.modules() if next(layer.parameters(recurse=False), None) is not None]


@contextmanager
def _compared(network: nn.Module, plan: Plan, count: int, full: int) -> Iterator[None]:
    """Writes into the plan the layers whose first ``count`` rows differ alone, with the least count that agrees."""
    counts = [count, *(n for n in (2, 4, 8, 16, 32) if count < n < full), full]

    def compare(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (_has_rows(inputs, full) and isinstance(output, Tensor) and len(output) == full):
            return  # what it does is compared in the network's output
        x, needed = inputs[0], plan.get(layer, count)
        for n in (n for n in counts if n >= needed):
            if n == full or torch.equal(layer.forward(x[:n])[:count], output[:count]):
                if n > count:
                    plan[layer] = n
                return

    handles = [layer.register_forward_hook(compare) for layer in _layers(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _more_rows(plan: Plan, count: int) -> Iterator[None]:
    """Pads the inputs of the plan's layers and cuts their outputs."""
    handles = []
    for layer, needed in plan.items():

        def pad(_: nn.Module, inputs: tuple[Any, ...], needed: int = needed) -> tuple[Any, ...] | None:
            return (padded(inputs[0], needed),) if _has_rows(inputs, count) else None

        def cut(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, needed: int = needed) -> Tensor | None:
            return output[:count] if _has_rows(inputs, needed) else None

        handles += [layer.register_forward_pre_hook(pad), layer.register_forward_hook(cut)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_rows(inputs: tuple[Any, ...], count: int) -> bool:
    return len(inputs) == 1 and isinstance(inputs[0], Tensor) and len(inputs[0]) == count
