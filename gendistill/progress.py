"""What the user sees of a long computation: bars and notes inside ``show_progress``, nothing outside.

``track`` passes items on under a bar. A training loop is a generator that yields a record of every step and returns its
result: ``follow`` runs one under a bar and logs its records, ``finish`` runs one without either.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from typing import Any, TypeVar

from gendistill.errors import ConfigError, printable

T = TypeVar("T")
_shown: ContextVar[bool] = ContextVar("gendistill_show_progress", default=False)


@contextmanager
def show_progress(shown: bool = True) -> Iterator[None]:
    """Draw progress bars and print notes on standard error inside this block; the library is silent outside.

    Args:
        shown: False silences a block inside another.

    Example:
        >>> with gd.show_progress():
        ...     teacher = gd.train_teacher(data)
    """
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def track(items: Iterable[T], label: str, total: int | None = None) -> Generator[T, None, None]:
    """Pass ``items`` on, with a bar (label, count, rate, time left) where bars are shown."""
    if not _shown.get():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=f"{label:<22}", total=total, dynamic_ncols=True, smoothing=0.05, mininterval=0.2)


def note(text: str) -> None:
    """One line for the user, where bars are shown."""
    if _shown.get():
        from tqdm import tqdm

        tqdm.write(f"gendistill: {printable(text, lines=True)}", file=sys.stderr)


def finish(loop: Generator[Any, None, T]) -> T:
    """Run a loop to its end, dropping its records, and return what it returns."""
    while True:
        try:
            next(loop)
        except StopIteration as stop:
            return stop.value


def follow(
    loop: Generator[Any, None, T],
    label: str,
    total: int,
    *,
    start: int = 0,
    log: Callable[[Any], None] | None = None,
    every: int = 10,
    shown: bool = True,
    remedy: str | None = None,
    **fields: Any,
) -> T:
    """Run a loop of step records under a ``step_bar``, and return the loop's value."""
    with step_bar(label, total, start=start, log=log, every=every, shown=shown, remedy=remedy, **fields) as show:
        while True:
            try:
                record = next(loop)
            except StopIteration as stop:
                return stop.value
            show(record)


@contextmanager
def step_bar(
    label: str,
    total: int,
    *,
    start: int = 0,
    log: Callable[[Any], None] | None = None,
    every: int = 10,
    shown: bool = True,
    remedy: str | None = None,
    **fields: Any,
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar for a loop of step records, which the function that it yields shows one by one.

    Every ``every``-th record and the last one go to ``log`` with ``fields`` added; only those are read from the device.
    With a ``remedy``, what the user can change, a value among them that is not finite raises ConfigError.
    """
    from tqdm import tqdm

    bar = tqdm(
        total=total,
        initial=start,
        desc=f"{label:<22}",
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.2,
        disable=not (shown and _shown.get()),
    )
    count = start

    def show(record: Mapping[str, Any]) -> None:
        nonlocal count
        count += 1
        bar.update()
        if count % every and count != total:
            return
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in record.items()}
        wrong = [f"{k} is {v}" for k, v in plain.items() if isinstance(v, float) and not isfinite(v)]
        if remedy is not None and wrong:
            raise ConfigError(f"{label} diverged: {wrong[0]} at step {count} of {total}; expected a number. {remedy}")
        bar.set_postfix({k: f"{v:.3g}" for k, v in plain.items() if isinstance(v, float)}, refresh=False)
        if log is not None:
            log({**plain, **fields})

    with bar:
        yield show


def report_problems(problems: Sequence[str], then: str, shown: int = 5) -> None:
    """Notes of the first of what was skipped or altered, and of how many there are of each kind."""
    for problem in problems[:shown]:
        note(problem)
    if problems:
        kinds = Counter(problem.split(":", 1)[0] for problem in problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        more = f" ({len(problems) - shown} more not shown)" if len(problems) > shown else ""
        note(f"{counts}{more}; {then}")
