"""Processes that read and write PNG files for this one, where they are many; they need no torch.

Threads gain little: at 32 px they hand the interpreter's lock to one another several times a file. A worker knows no
errors: it ends at the first, and the work is done again where it came from, which raises it or carries on.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen
from typing import TypeVar

from gendistill.progress import track
from gendistill.surrogate import png

T = TypeVar("T")
R = TypeVar("R")
Ask = Callable[[bytes, memoryview], bool]  # whether the memory was filled with the answer to a request
ALONE = 2**22  # bytes of pixels that this process has done with before another has started
BLOCK = 2**19  # bytes of pixels in a request
CORES = min(4, os.cpu_count() or 1)  # for a set; more would wait for this process
MANY = 5000  # images that someone waits for
SERVE = "from gendistill.surrogate.workers import serve; serve()"
REQUEST = struct.Struct(">5I")  # bytes of paths, width, height, channels, bytes of pixels


def request(paths: Sequence[Path], width: int, height: int, channels: int, pixels: bytes = b"") -> bytes:
    """For the pixels of these files, row by row, one file after another; or to write such pixels, for a single byte."""
    names = b"\0".join(map(os.fsencode, paths))
    return REQUEST.pack(len(names), width, height, channels, len(pixels)) + names + pixels


def serve() -> None:
    """The worker: answers requests on standard input to standard output until there are no more."""
    asked, answer = sys.stdin.buffer, sys.stdout.buffer
    try:
        while head := asked.read(REQUEST.size):
            names, width, height, channels, length = REQUEST.unpack(head)
            paths, pixels = [Path(os.fsdecode(name)) for name in asked.read(names).split(b"\0")], asked.read(length)
            if pixels:
                png.write(paths, pixels, width, height, channels)
                answer.write(b"\0")
            else:
                answer.write(b"".join([png.read(path, channels, width) for path in paths]))
            answer.flush()
    except (OSError, ValueError, KeyboardInterrupt):
        os._exit(1)


def spread(work: Callable[[T, Ask], Sequence[R]], blocks: Iterable[T], size: int) -> Iterator[R]:
    """What ``work`` returns of each block, in order; by workers where there are cores and ``size`` bytes of pixels."""
    if CORES == 1 or size <= ALONE:
        for block in blocks:
            yield from work(block, lambda *_: False)
        return
    free: SimpleQueue[Ask] = SimpleQueue()

    def one(block: T) -> Sequence[R]:
        ask = free.get()
        try:
            return work(block, ask)
        finally:
            free.put(ask)

    with ExitStack() as stack:
        for _ in range(CORES):
            free.put(stack.enter_context(_worker()))
        pool = ThreadPoolExecutor(CORES)
        stack.callback(pool.shutdown, cancel_futures=True)
        yield from chain.from_iterable(pool.map(one, blocks))


@contextmanager
def _worker() -> Iterator[Ask]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", SERVE]
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)

    def ask(request: bytes, answer: memoryview) -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            return False
        return process.stdout.readinto(answer) == len(answer)  # type: ignore[attr-defined]

    try:
        yield ask
    finally:
        process.communicate()


def counted(items: Iterable[object], label: str, total: int) -> None:
    """Exhaust ``items``, under a bar if they are many."""
    for _ in track(items, label, total) if total > MANY else items:
        pass
