"""Commands in processes of their own, one or two each, forked from one that has imported the stages.

A new interpreter takes seconds to import torch and diffusers, a fork of one that has them milliseconds. The process
that is forked is itself a fork of pytest's, made before the first test: it computes nothing, so its children start as
a new interpreter would.
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from glob import glob
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers import ROOT, environment

PROCESSES = 2
LOGS = ("stdout", "stderr")
STAGES = ("distill", "evaluate", "finetune", "label", "refine", "run", "sample", "teacher")
LIBRARIES = ("diffusers.models.unets.unet_2d", "ot", "pandas", "scipy.stats", "sklearn.cluster", "sklearn.datasets")


@dataclass(frozen=True)
class Ended:
    """The exit code, minus the signal where one ended it; and what was written."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """A function that runs in a process of its own."""

    def __init__(self, function: Callable[..., None], *arguments: object, **variables: object) -> None:
        self._logs = tempfile.TemporaryDirectory()
        everything = {**environment(), **{name: str(value) for name, value in variables.items()}}
        threads = int(everything.get("OMP_NUM_THREADS") or torch.get_num_threads())
        self.process = server().Process(
            target=_alone, args=(function, arguments, Path(self._logs.name), everything, threads)
        )
        self.process.start()
        atexit.register(self.process.kill)

    def poll(self) -> int | None:
        """The exit code of one that has ended."""
        return self.process.exitcode

    def wait(self, timeout: float = 120) -> Ended:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still at work after {timeout} s"
        logs = (Path(self._logs.name, name).read_text(encoding="utf-8") for name in LOGS)
        return Ended(self.process.exitcode, *logs)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> Ended:
        """End it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.process.pid or 0, how)
        return self.wait()


def start(*words: object) -> Started:
    """Run ``gendistill`` with these words."""
    return Started(_command, [str(word) for word in words])


def run_python(code: str, folder: Path = ROOT, *, path: tuple[Path, ...] = (), **variables: object) -> Ended:
    """Run code by itself in ``folder``, with ``path`` before all other places to import from."""
    return Started(_code, code, folder, [str(folder), *map(str, path)], **variables).wait()


def launch(*commands: tuple[object, ...], kill: Mapping[int, tuple[int, Path]] | None = None) -> list[Ended]:
    """Run commands one after another, each in two processes on CPU (gloo) as torchrun starts them.

    Args:
        commands: Words after ``gendistill``, or a launch script with its arguments.
        kill: By the number of a command, the rank of the process to kill and a pattern of files, one of which has to
            be there before.

    Returns:
        Of each command the exit code of the first process to fail, and what both wrote.
    """
    return [_together([str(word) for word in words], (kill or {}).get(i)) for i, words in enumerate(commands)]


def _together(words: list[str], kill: tuple[int, Path] | None) -> Ended:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent keeps one
    world = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "OMP_NUM_THREADS": 1}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    ranks = [
        Started(_command, words, RANK=rank, LOCAL_RANK=rank, **world, **agent, **meeting) for rank in range(PROCESSES)
    ]
    first, deadline = None, time.monotonic() + 300
    while first is None and time.monotonic() < deadline:
        if kill and glob(str(kill[1])):
            ranks[kill[0]].kill()
            kill = None
        codes = [one.poll() for one in ranks]
        first = next(filter(None, codes), None if None in codes else 0)
        time.sleep(0.01)
    for one in ranks:
        one.process.terminate()
    ended = [one.wait() for one in ranks]
    assert first is not None, f"still at work after 300 s: {words}"
    return Ended(first, "".join(one.stdout for one in ended), "".join(one.stderr for one in ended))


@cache
def server() -> ForkServerContext:
    """Start the process that is forked; call it before anything is computed here."""
    context = multiprocessing.get_context("forkserver")
    stages = (f"gendistill.stages.{name}" for name in STAGES)
    context.set_forkserver_preload([*stages, *LIBRARIES, "tests.processes"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", _fork)
        forkserver.ensure_running()
    return context


def _fork(_: object, command: Sequence[str], kept: Sequence[int]) -> int:
    """Run the server's code in a fork of this process, which has most imports, instead of in a new interpreter."""
    if child := os.fork():
        return child
    try:
        faulthandler.disable()
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__  # not those of pytest
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in {int(name) for name in os.listdir("/dev/fd")} - {0, 1, 2, nothing, *kept}:
            os.dup2(nothing, number, inheritable=False)  # streams of pytest may still be written to
        os.environ.update(environment())
        exec(command[-1], {})
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _alone(
    function: Callable[..., None], arguments: tuple[object, ...], logs: Path, variables: dict[str, str], threads: int
) -> None:
    for descriptor, name in enumerate(LOGS, 1):
        os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    torch.set_num_threads(threads)
    function(*arguments)


def _command(words: list[str]) -> None:
    if words[0].endswith(".py"):
        sys.argv = words
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    else:
        sys.argv = ["gendistill", *words]
        runpy.run_module("gendistill", run_name="__main__")


def _code(code: str, folder: Path, path: list[str]) -> None:
    os.chdir(folder)
    sys.path[:0] = path
    exec(code, {"__name__": "__main__"})
