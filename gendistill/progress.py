"""What the user sees of a long computation: bars and notes inside ``show_progress``, nothing outside.

``track`` passes items on under a bar. A training loop is a generator that yields a record of every step and returns its
result: ``follow`` runs one under a bar and logs its records, ``finish`` runs one without either. On a terminal a bar is
gone when its work is done; elsewhere a line is printed now and then. TQDM_DISABLE=1 turns both off.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from typing import Any, Protocol, TypeVar

from gendistill.errors import DivergenceError, printable

T = TypeVar("T")
_shown: ContextVar[bool] = ContextVar("gendistill_show_progress", default=False)
_stage: ContextVar[str] = ContextVar("gendistill_stage", default="")
OFTEN, RARELY = 3.0, 30.0  # seconds between two lines: at least, and at most


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


@contextmanager
def numbered_stage(name: str, number: int, count: int) -> Iterator[None]:
    """Bars inside this block begin with "stage 3 of 5"; a note says when the stage is done."""
    token, start = _stage.set(f"stage {number} of {count}, "), time.perf_counter()
    try:
        yield
        note(f"{_stage.get()}{name}: done in {time.perf_counter() - start:.0f} s")
    finally:
        _stage.reset(token)


class Bar(Protocol):
    """What counts the steps of one loop."""

    def update(self, n: float = 1) -> Any: ...

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True) -> Any: ...

    def close(self) -> Any: ...


class _Lines:
    """A bar as lines of a log: at every tenth of the work, but not more often than every 3 s, or after 30 s."""

    def __init__(self, label: str, total: int | None, initial: int) -> None:
        self.label, self.total, self.count, self.values = label, total, initial, ""
        self.first, self.start = initial, time.monotonic()
        self.last, self.tenth = self.start, self._tenth()

    def _tenth(self) -> int:
        return int(10 * self.count // self.total) if self.total else 0

    def update(self, n: float = 1) -> None:
        self.count += int(n)
        now = time.monotonic()
        waited, tenth = now - self.last, self._tenth()
        if waited >= RARELY or (waited >= OFTEN and tenth > self.tenth):
            self.last, self.tenth = now, tenth
            note(self._line(now))

    def _line(self, now: float) -> str:
        values = f"; {self.values}" if self.values else ""
        if not self.total:
            return f"{self.label}: {self.count:,}{values}"
        left = (now - self.start) / max(self.count - self.first, 1) * (self.total - self.count)
        share = 100 * self.count / self.total
        return f"{self.label}: {self.count:,} of {self.total:,} ({share:.0f} %), {left:.0f} s left{values}"

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True) -> None:
        self.values = ", ".join(f"{name} {value}" for name, value in (ordered_dict or {}).items())

    def close(self) -> None:
        """Nothing is left to be drawn."""


@contextmanager
def _bar(label: str, total: int | None, initial: int = 0, shown: bool = True) -> Iterator[Bar | None]:
    """A bar where bars are shown and there is more than one step to count."""
    off = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    if off or total in (0, 1) or not (shown and _shown.get()):
        yield None
        return
    bar: Bar = _drawn(label, total, initial) if _draws() else _Lines(_stage.get() + label, total, initial)
    try:
        yield bar
    finally:
        bar.close()


def _draws() -> bool:
    """Whether standard error is a terminal, or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _drawn(label: str, total: int | None, initial: int) -> Bar:
    from tqdm import tqdm

    found: Bar = tqdm(
        total=total,
        initial=initial,
        desc=f"{_stage.get()}{label:<22}",
        leave=False,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.2,
    )
    return found


def track(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    *,
    initial: int = 0,
    size: Callable[[T], int] | None = None,
) -> Generator[T, None, None]:
    """Pass ``items`` on, with a bar (label, count, rate, time left) where bars are shown.

    An item counts as ``size`` of it, else as one; the bar begins at ``initial``.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with _bar(label, total, initial) as bar:
        for item in items:
            yield item
            if bar is not None:
                bar.update(1 if size is None else size(item))


def is_shown() -> bool:
    """Whether bars and notes are shown here."""
    return _shown.get()


def note(text: str) -> None:
    """One line for the user, where bars are shown."""
    if not _shown.get():
        return
    line = f"gendistill: {printable(text, lines=True)}"
    if _draws():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


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
    With a ``remedy``, what the user can change, a value among them that is not finite raises DivergenceError.
    """
    count = start
    with _bar(label, total, start, shown) as bar:

        def show(record: Mapping[str, Any]) -> None:
            nonlocal count
            count += 1
            if bar is not None:
                bar.update()
            if (count % every and count != total) or (bar is None and log is None and remedy is None):
                return
            plain = {k: v.item() if hasattr(v, "item") else v for k, v in record.items()}
            wrong = [f"{k} is {v}" for k, v in plain.items() if isinstance(v, float) and not isfinite(v)]
            if remedy is not None and wrong:
                at = f"at step {count} of {total}"
                raise DivergenceError(f"{label} diverged: {wrong[0]} {at}; expected a number. {remedy}")
            if bar is not None:
                bar.set_postfix({k: f"{v:.3g}" for k, v in plain.items() if isinstance(v, float)}, refresh=False)
            if log is not None:
                log({**plain, **fields})

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
