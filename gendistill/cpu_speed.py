"""How fast this CPU trains in fp32 and bf16, eager and compiled: measured once for each machine, and kept."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import progress
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_json
from gendistill.io import cache_root, read_json, write_json

Seconds = dict[str, float]  # of a step, by mode

EAGER = "fp32"
MODES = {EAGER: (False, False), "fp32 compiled": (False, True), "bf16 compiled": (True, True)}  # in bf16, compiled
FASTER = 1.2  # than eager fp32: less is within what a busy machine disturbs
ROUNDS = 4
STEP = "instance norm, eager in pieces of 32"  # what is measured; another text has every machine measured again


def fastest(seconds: Seconds, modes: Collection[str] = tuple(MODES)) -> str:
    """The fastest of some modes; eager fp32 unless it takes ``FASTER`` times as long."""
    best = min((mode for mode in modes if mode in seconds), key=lambda mode: seconds[mode])
    return best if seconds[EAGER] >= FASTER * seconds[best] else EAGER


def speeds(measure: Callable[[], Seconds] | None = None) -> Seconds | None:
    """Seconds of a training step in each mode, from an earlier process or measured now (a minute).

    None where nothing can be kept, so that all processes of a run, and the next run, decide alike.
    """
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one measures
            found = kept()
            if found is None:
                progress.note("Measuring once how fast this CPU trains in fp32 and bf16, eager and compiled")
                found = (measure or measured)()
                write_json(path, {"machine": machine(), "seconds": found}, hashed=True)
            return found
    except OSError:
        return None


def kept() -> Seconds | None:
    """What was measured for this machine, if anything; a damaged file counts as nothing."""
    with suppress(ArtifactError):
        found = read_json(
            _file(), kind="a folder of measured speeds", fix="Delete it.", required=["machine", "seconds"]
        )
        seconds = found["seconds"]
        sane = isinstance(seconds, dict) and all(isinstance(s, float) and s > 0 for s in seconds.values())
        if sane and EAGER in seconds and found["machine"] == machine():
            return seconds
    return None


def _file() -> Path:
    return cache_root() / "speed" / f"{hash_json(machine())[:16]}.json"


def machine() -> dict[str, Any]:
    """What speeds depend on: processor, flags, kernels, threads, torch, and the step that is measured."""
    return {
        "step": STEP,
        "processor": _processor(),
        "flags": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "kernels": [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measured(
    make: Callable[[bool, bool], Callable[[], object]] | None = None,
    clock: Callable[[], float] | None = None,
) -> Seconds:
    """Least seconds of a step in each mode, in turns; a mode that fails to compile is left out.

    Args:
        make: (bf16, compiled) -> a step, which is called once before it is timed.
        clock: Its seconds; None is processor time for one thread, which other work disturbs less, else wall time.
    """
    clock = clock or (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)
    steps: dict[str, Callable[[], object]] = {}
    seconds: Seconds = {}
    for mode, how in MODES.items():
        step = (make or _training_step)(*how)
        with suppress(torch._dynamo.exc.BackendCompilerFailed):
            step()
            seconds[mode], steps[mode] = _timed(step, clock), step
    hopeful = [mode for mode in steps if seconds[mode] < 2 * seconds[EAGER]]
    for _ in range(ROUNDS - 1):
        for mode in hopeful:
            seconds[mode] = min(seconds[mode], _timed(steps[mode], clock))
    return seconds


def _timed(step: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def _training_step(bf16: bool, compiled: bool) -> Callable[[], None]:
    """Forward and backward through two convolutions of 64 channels, on 64 images of 32 px, eager in pieces of 32, as
    trainings go (``networks/pieces.py``)."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns when CUDA is missing
    layout = torch.channels_last if compiled else torch.contiguous_format
    layers = [layer for _ in range(2) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(64, 64), nn.ReLU())]
    network = nn.Sequential(*layers).to(memory_format=layout)
    images = torch.linspace(-1, 1, 64**2 * 32**2).view(64, 64, 32, 32).contiguous(memory_format=layout)
    images.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = network(x)
        return F.mse_loss(out.float(), torch.zeros(()).expand_as(out))

    forward = torch.compile(loss, dynamic=False) if compiled else loss
    rows = 64 if compiled else 32

    def step() -> None:
        for part in images.split(rows):
            forward(part).backward()

    return step
