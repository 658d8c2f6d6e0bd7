"""Barycenters of many classes, side by side in threads: POT, scikit-learn and NumPy work without Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from gendistill.progress import track
from gendistill.seeding import derive
from gendistill.transport.barycenter import Barycenter, solve_barycenter

Start = ArrayLike | Callable[[Any], ArrayLike]


def class_barycenters(
    points_by_class: Iterable[ArrayLike],
    starts: int | Iterable[Start],
    *,
    seed: int = 0,
    workers: int | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> list[Barycenter]:
    """``solve_barycenter`` of every class in order: ``starts`` is k, or one (k,d) a class, or one function a class that
    makes it of the points, in the class's thread; ``options`` are its own.

    The same for any number of ``workers`` (threads; up to 8 unless told), each with one BLAS and one OpenMP thread.
    Classes are drawn from the iterable as they are needed, at most ``workers`` + 1 at a time in memory.

    Raises:
        ValueError: not one start a class, or a class that ``solve_barycenter`` refuses, by its name where ``names`` has
            them, else by its number.
        ConvergenceError: a plan did not converge.
    """
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1.")
    if isinstance(starts, int | np.integer):
        classes: Iterable[tuple[Any, Any]] = zip(points_by_class, repeat(starts), strict=False)
    else:
        classes = zip(points_by_class, starts, strict=True)
    total = len(names) if names else len(points_by_class) if isinstance(points_by_class, Sized) else None

    def solve(label: int, points: ArrayLike, start: int | Start) -> Barycenter:
        try:
            start = start(points) if callable(start) else start
            return solve_barycenter(points, start, seed=derive(seed, "class", label), **options)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"Class {repr(names[label]) if names else label}: {error}") from error

    # OpenMP's limit belongs to a thread, so every worker sets it; BLAS's to the process, so it is undone here.
    with threadpool_limits(1), ThreadPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:

        def running() -> Iterator[Future[Barycenter]]:
            for label, (points, start) in enumerate(classes):
                yield pool.submit(solve, label, points, start)

        return list(track(_in_order(running(), workers), "barycenters", total))


def _in_order(futures: Iterator[Future[Barycenter]], ahead: int) -> Iterator[Barycenter]:
    """Results in order; a new one is started only when fewer than ``ahead`` are waiting."""
    waiting: deque[Future[Barycenter]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
