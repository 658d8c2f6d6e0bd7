"""How a process uses a CPU: how many threads compute, how they wait for each other, and what memory they keep.

torch's kernels end with all threads waiting for the slowest. Its OpenMP waits by spinning, which uses up a processor.
Where another process uses that processor, the slowest thread waits for the spinning ones: two threads then take several
times as long as one. So threads here spin for some microseconds and sleep after that; that is set before torch is
imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPINS = "1000"  # turns of libgomp's waiting loop, some microseconds; its own 300 000 are a millisecond
SLEEPS = {"GOMP_SPINCOUNT": SPINS, "KMP_BLOCKTIME": "0"}  # GNU's OpenMP; Intel's and LLVM's, in ms
USERS = ("OMP_WAIT_POLICY", *SLEEPS)  # a user who set one of these has chosen
MMAP_THRESHOLD, TRIM_THRESHOLD = (-3, 2**25), (-1, 2**26)  # glibc's numbers of these two parameters, and bytes


def use_threads(count: int | None) -> None:
    """Let torch, NumPy and scikit-learn compute with ``count`` threads, by default as OMP_NUM_THREADS says, or all.

    Nothing that the user's environment sets is changed, except by ``count``. The number of threads is never chosen by
    the load, because it decides how sums are rounded.
    """
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:  # which has read the environment
        import torch

        if count is not None:
            torch.set_num_threads(count)
        return
    if not any(name in os.environ for name in USERS):
        os.environ.update(SLEEPS)


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free, up to 64 MiB at the end of its heap, for the tensors of the next step.

    It does so by itself as soon as a block of 32 MiB was freed. The tensors of small networks are smaller: glibc then
    returns their memory at every step, and the kernel clears the pages again at the next one, which took up to a
    quarter of an evaluation's time. Nothing changes where the environment sets malloc's parameters, or without glibc.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*MMAP_THRESHOLD)
        mallopt(*TRIM_THRESHOLD)


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_threads() -> int:
    """As many as OMP_NUM_THREADS says, else as there are usable processors."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(said) if said.isdecimal() and int(said) > 0 else usable_processors()


def crowded(threads: int) -> str | None:
    """A sentence for a command that will compute with ``threads`` while other processes keep all processors busy."""
    processors = os.cpu_count() or 1
    try:
        load = min(os.getloadavg()[0], _others_running())  # of the last minute, and still now
    except (OSError, ValueError, IndexError):
        return None
    if threads < 2 or load < processors:
        return None
    return (
        f"other work keeps all {processors} processors busy, so this will take longer; with --threads 1 it uses "
        "the least processor time"
    )


def _others_running() -> int:
    """Threads of other processes that run, or wait for a processor, now."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    own = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path("/proc/self/task").glob("*/stat")]
    return running - own.count("R")
