"""Processor time of a training on two threads: on a machine with nothing else to do, and beside busy processes.

Run alone, on an idle machine: pytest tests/benchmarks/test_threads.py --benchmark-only.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest

from gendistill.threads import SLEEPS

WORK = """
from gendistill.threads import use_threads
use_threads({count})
import gendistill as gd
gd.train_teacher(gd.load_data(), gd.TeacherConfig(steps=150))
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(count: int, others: int, **variables: str) -> tuple[float, float]:
    """(wall, processor) seconds of a teacher's training with ``count`` threads beside ``others``."""
    plain = {k: v for k, v in os.environ.items() if k not in (*SLEEPS, "OMP_NUM_THREADS")}
    with busy(others):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", WORK.format(count=count)], env=plain | variables, check=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("others", "measure", "target"), [(0, 0, 1.03), (2, 1, 1.3)], ids=["idle", "busy"])
def test_two_threads_waste_little(benchmark: Any, others: int, measure: int, target: float) -> None:
    """Idle: wall time against threads that spin as long as they like. Busy: processor time against idle."""
    ours, reference = [], []
    for _ in range(5):
        ours.append(measured(2, others)[measure])
        spinning = measured(2, 0, OMP_WAIT_POLICY="active") if others == 0 else measured(2, 0)
        reference.append(spinning[measure])
    benchmark.pedantic(lambda: None, rounds=1)
    beside = "threads that spin" if others == 0 else "the same on an idle machine"
    benchmark.extra_info |= {"ratio": round(median(ours) / median(reference), 3), "target": target}
    benchmark.extra_info |= {"ours": ours, "others": reference, "reference": beside}
    assert median(ours) / median(reference) <= target
