"""Devices, precision, compilation, processes and checkpoints; the only module that imports accelerate."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from gendistill import cpu_speed, progress
from gendistill.errors import ArtifactError, ConfigError, DivergenceError, GendistillError, reason
from gendistill.io import read_tensors, write_tensors

if TYPE_CHECKING:  # half a second of imports, which many commands do not need
    from accelerate import Accelerator, PartialState

T = TypeVar("T")

COMPILING = 4e12  # FLOP that take an eager fp32 core 50 s; compiling takes 20 s and bf16 saves half of it
MEASURING = 6e13  # FLOP that take it a quarter of an hour; measuring what is fastest takes 40 s, once a machine


def processes() -> PartialState:
    """This process's rank, world size and device.

    Raises:
        ConfigError: the launcher started another number of processes than run together, so each would do all the work.
    """
    from accelerate import PartialState

    # The timeout is long, because the other processes wait while the main one encodes images.
    state = PartialState(cpu=_on_cpu(), timeout=timedelta(days=2))
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != asked:
        raise ConfigError(
            f"The launcher asked for {asked} processes but {state.num_processes} run together. On CPU start with "
            "`torchrun --nproc_per_node N -m gendistill ...`; accelerate's own --cpu runs a single process."
        )
    return state


def _on_cpu() -> bool:
    """Several processes without a GPU: without this option accelerate runs each of them on its own."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()


def of_main_process(make: Callable[[], T]) -> T:
    """What ``make`` returns in the main process, in every process."""
    from accelerate.utils import broadcast_object_list

    found = [make() if processes().is_main_process else None]
    return cast(T, broadcast_object_list(found)[0])


def check_processes(expected: int | None) -> None:
    """Raises ConfigError when another number of processes runs than the user asked for (``--num_processes``)."""
    running = processes().num_processes
    if expected is not None and running != expected:
        launcher = f"with `torchrun --nproc_per_node {expected} -m gendistill ...`"
        how = "without a launcher" if expected == 1 else launcher
        raise ConfigError(f"num_processes is {expected} but {running} run(s). Start {how}.")


def require_one_process(what: str, advice: str = "") -> None:
    """Raises ConfigError where several processes run ``what``, which would each do all the work."""
    running = processes().num_processes
    if running > 1:
        raise ConfigError(f"{running} processes run {what}; expected 1. Start it without a launcher.{advice}")


def device() -> torch.device:
    """The device of this process: a GPU when there is one."""
    found = processes().device
    return torch.device("cpu") if found.type == "cpu" else found  # without the number that it has beside others


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on the device; a copy to CUDA is from pinned memory and does not wait for the work queued there."""
    if device.type != "cuda":
        return value.to(device)
    return (value.pin_memory() if value.device.type == "cpu" else value).to(device, non_blocking=True)


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU, else in the memory of this machine."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)


def release_memory() -> None:
    """Give the memory that this process has freed back to the system: glibc keeps it in pieces otherwise."""
    import ctypes

    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def native_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 units: recent GPUs, CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def wants_bf16(mixed_precision: str, device: torch.device) -> bool:
    """Whether a network runs under bf16 autocast: ``auto`` means on devices with bf16 units."""
    return mixed_precision == "bf16" or (mixed_precision == "auto" and native_bf16(device))


class ExecutionMode(NamedTuple):
    """How networks are run: under bf16 autocast, and compiled."""

    bf16: bool
    compile: bool


def execution_mode(
    mixed_precision: str,
    compile: bool | str,
    device: torch.device,
    flop: float | Callable[[], float] = 0.0,
    speeds: Callable[[], cpu_speed.Seconds | None] = cpu_speed.speeds,
) -> ExecutionMode:
    """Resolve ``auto`` for precision and compilation.

    On a CPU, where both are ``auto``: eager fp32 for work of less than ``COMPILING``, and the fastest of eager fp32,
    compiled fp32 and compiled bf16, as measured on this machine, from ``MEASURING`` on. Between the two, and where no
    measurement can be kept, bf16 units decide: with them, compiled bf16 takes half the time of eager fp32. The
    choice depends on the work and the machine alone, not on what was measured before. On a GPU ``auto`` is eager bf16;
    that was not measured.

    Args:
        mixed_precision: ``auto``, ``no`` or ``bf16``.
        compile: True, False or ``auto``.
        device: Where the network runs.
        flop: Floating-point operations of all training that shares the compiled code; a function is called only where
            they decide.
        speeds: Seconds of a step by mode, or None where they cannot be kept.
    """
    auto = mixed_precision == "auto"
    if compile == "auto":
        work, units = 0.0, native_bf16(device)
        if device.type == "cpu" and _has_compiler() and (auto or (units and mixed_precision == "bf16")):
            work = flop() if callable(flop) else flop
        if auto and work >= MEASURING and (seconds := speeds()):
            return ExecutionMode(*cpu_speed.MODES[cpu_speed.fastest(seconds)])
        compile = units and work >= COMPILING
    alone = auto and device.type == "cpu" and not compile
    return ExecutionMode(not alone and wants_bf16(mixed_precision, device), bool(compile))


@cache
def _has_compiler() -> bool:
    """torch.compile needs a C++ compiler for a CPU."""
    return sys.platform == "linux" and shutil.which(os.environ.get("CXX", "g++")) is not None


@cache
def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """torch.compile(function), shared by all callers: networks of one structure share code, each shape has its own."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # beyond it eager, silently
    return compiled_anew(function, dynamic=False)


def compiled_anew(function: Callable[..., T], **options: Any) -> Callable[..., T]:
    """torch.compile(function) for one caller; if the compiler fails, the function runs uncompiled.

    torch 2.14, for one, generates wrong C++ for the bf16 gradients of a ResNetAP of 128 px.
    """
    fast = torch.compile(function, **options)
    from torch._dynamo.exc import BackendCompilerFailed  # a second of imports, which torch.compile needs too

    failed = False
    quiet_compiler()

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        nonlocal failed
        if not failed:
            try:
                return fast(*args, **kwargs)
            except BackendCompilerFailed as error:
                failed = True
                progress.note(f"torch.compile fails here ({type(error).__name__}), so this part runs uncompiled")
        return function(*args, **kwargs)

    return call


def quiet_compiler() -> None:
    """Leave out what torch.compile says of machines without CUDA."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


BACKWARD = 2  # forward passes that a backward pass costs: gradients of activations and of weights


@torch.no_grad()
def forward_flop(network: nn.Module, *inputs: Tensor, **named: Tensor) -> float:
    """Floating-point operations of one call (two a multiply-add), of convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode  # 0.2 s to import

    training = network.training
    with FlopCounterMode(display=False) as counter:
        network.eval()(*inputs, **named)
    network.train(training)
    return float(counter.get_total_flops())


def make_accelerator(
    mixed_precision: str = "no",
    gradient_accumulation_steps: int = 1,
    *,
    tracker: str = "none",
    folder: Path | None = None,
) -> Accelerator:
    """An Accelerator.

    Args:
        mixed_precision: ``no``, ``bf16``, or ``auto``: bf16 on a GPU that has it, fp32 on a CPU, where runs are then
            reproducible to the byte.
        gradient_accumulation_steps: Micro-batches per optimiser step.
        tracker: ``none``, ``tensorboard`` or ``wandb``; it also gets what is logged.
        folder: Where the tracker writes.

    Raises:
        ConfigError: the tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    processes()
    if mixed_precision == "auto":
        mixed_precision = "bf16" if torch.cuda.is_available() and native_bf16(torch.device("cuda")) else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state()  # accelerate keeps one precision a process; ours is an argument
    require_tracker(tracker)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        cpu=_on_cpu(),
        log_with=None if tracker == "none" else tracker,
        project_dir=folder,
    )
    if tracker != "none":
        accelerator.init_trackers("gendistill")
    return accelerator


@contextlib.contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Give the caller's Accelerator its settings back at the end: accelerate shares them among all of a process, so
    that a new one changes the accumulation steps and the precision of those that are there."""
    from accelerate.state import AcceleratorState, GradientState

    kept = [(kind._shared_state, dict(kind._shared_state)) for kind in (AcceleratorState, GradientState)]
    try:
        yield
    finally:
        for shared, before in kept:
            shared.clear()
            shared.update(before)


def divides_weights(accelerator: Accelerator) -> bool:
    """Whether the launcher (FSDP or DeepSpeed) gives a process parts of the weights or of the optimiser's state."""
    from accelerate import DistributedType

    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def owns_optimizer(accelerator: Accelerator) -> bool:
    """Whether the launcher (DeepSpeed) keeps the optimiser's state to itself, so that no checkpoint can hold it."""
    from accelerate import DistributedType

    return accelerator.distributed_type == DistributedType.DEEPSPEED


def require_tracker(name: str) -> None:
    """Raises ConfigError if it is not installed."""
    if name != "none" and find_spec(name) is None:
        raise ConfigError(f"report_to is {name!r}, which is not installed; run `pip install {name}`.")


MOST_LOST = 60.0  # seconds of work without a checkpoint, but for one step
MOST_SAVING = 0.02  # of the time, by a caller that says how long a save took


class CheckpointTimer:
    """Whether the last checkpoint is a minute old, by a clock on which all processes agree.

    Agreeing waits for the device, so it is done rarely: half way to the minute, at the pace of the steps so far. Where
    saving takes so long that it would cost more than 2 % of the time, the next checkpoint waits longer.

    Args:
        step: Steps that were done before.
        agree: Seconds of this process -> those that count for all.
        clock: Its seconds.
        wait: Seconds between two checkpoints; None is a minute.
    """

    def __init__(
        self,
        step: int,
        agree: Callable[[float], float] = float,
        clock: Callable[[], float] = time.monotonic,
        wait: float | None = None,
    ) -> None:
        self.agree, self.clock, self.most = agree, clock, MOST_LOST if wait is None else wait
        self.restart(step)

    def restart(self, step: int, took: float = 0.0) -> None:
        """A checkpoint of this step was just saved, which took so many seconds, alike in all processes."""
        self._since, self._saved, self._asked = self.clock(), step, step + 1
        self._wait = max(self.most, took / MOST_SAVING)

    def is_due(self, step: int) -> bool:
        if step < self._asked:
            return False
        seconds = self.agree(self.clock() - self._since)
        pace = seconds / (step - self._saved)
        self._asked = step + max(1, int((self._wait - seconds) / 2 / max(pace, 1e-6)))
        return seconds >= self._wait


class TimeLimit:
    """Whether a training has had its time, which may be shared by several loops; at least one step of each is done.

    Args:
        seconds: From the first step on.
        agree: Seconds of this process -> those that count for all.

    Attributes:
        stopped_at: The step after which the time was over, else None.
    """

    def __init__(self, seconds: float, agree: Callable[[float], float] = float) -> None:
        self.seconds, self.agree = seconds, agree
        self.stopped_at: int | None = None
        self._end: float | None = None

    def begin(self, step: int) -> None:
        """A loop begins, in all processes, with so many steps done before."""
        now = time.monotonic()
        self._end = self._end or now + self.seconds
        left = self.agree(self._end - now)  # processes begin at times of their own
        self._timer = CheckpointTimer(step, self.agree, wait=max(0.0, left))

    def is_over(self, step: int) -> bool:
        """Asked after every step, by all processes alike."""
        if self._timer.is_due(step):
            self.stopped_at = step
        return self.stopped_at is not None


class Checkpoints:
    """Training states as safetensors in ``folder/step-000100/``, each written completely or not at all.

    Args:
        folder: Where the states are.
        every: Steps between two checkpoints.
        keep: How many of the newest are kept.
        identity: What they belong to, as text; states of another identity are refused.
    """

    def __init__(self, folder: Path, every: int, keep: int, identity: Mapping[str, str] | None = None) -> None:
        self.folder, self.every, self.keep, self.identity = folder, every, keep, dict(identity or {})

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        found = (
            p.name.removeprefix("step-") for p in self.folder.glob("step-*") if (p / "state.safetensors").is_file()
        )
        return sorted(int(name) for name in found if name.isdecimal() and name == f"{int(name):06d}")

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"partial-{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        plain = {k: v.detach().cpu().clone() for k, v in state.items()}  # a file holds no shared memory
        try:
            write_tensors(partial / "state.safetensors", plain, self.identity, hashed=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room, and half a state is none
            raise
        target = self.folder / f"step-{step:06d}"
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old:06d}")

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, state) of the newest complete checkpoint, or None.

        Raises:
            ArtifactError: it is damaged, or belongs to another model, seed or phase.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self.file(steps[-1])
        state, found = read_tensors(path, fix="Delete the folder of this checkpoint and resume.")
        other = [f"{k}: {found.get(k)!r} there, {v!r} now" for k, v in self.identity.items() if found.get(k, v) != v]
        if other:
            raise ArtifactError(
                f"The checkpoint {path} belongs to another training ({', '.join(other)}); resume with the settings it "
                "was made with, or start again with --overwrite."
            )
        return steps[-1], state

    def file(self, step: int) -> Path:
        """Where the state of a step is."""
        return self.folder / f"step-{step:06d}" / "state.safetensors"


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Around what takes over the tensors of a file: those that are missing, or of another shape, are one message.

    Raises:
        ArtifactError: the file has such tensors.
    """
    try:
        yield
    except (GendistillError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        what = f"it lacks {error}." if isinstance(error, KeyError) else reason(error)
        raise ArtifactError(
            f"{path} does not hold the state of this training: {what} Delete it and resume, or start again with "
            "--overwrite."
        ) from error


def reset_peak_memory() -> None:
    """Start a new peak where the system allows it; elsewhere the peak is the whole process's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak bytes since the last reset: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError, StopIteration, ValueError):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; the sum shows it, unless it overflows."""
    floats = [one for one in tensors if one.is_floating_point() and one.numel()]
    return all(bool(one.sum().isfinite()) or bool(one.isfinite().all()) for one in floats)


def refuse_divergence(what: str, tensors: Iterable[Tensor], remedy: str) -> None:
    """Check what a computation made: its loss, weights, features or images.

    Args:
        what: The begin of the message, up to "not finite": ``The images of dm are``.
        tensors: What was made.
        remedy: What the user can change, a sentence.

    Raises:
        DivergenceError: one of them is NaN or infinite.
    """
    if not all_finite(tensors):
        raise DivergenceError(f"{what} not finite; expected numbers. {remedy}")


def require_finite_weights(where: str, weights: Mapping[str, Tensor]) -> None:
    """Check weights that were read from a file.

    Raises:
        ArtifactError: one is NaN or infinite, as of a training that diverged.
    """
    for name, tensor in weights.items():
        if not all_finite([tensor]):
            raise ArtifactError(
                f"{where} has weights that are not finite, such as {name!r}; expected numbers. Get the folder again, "
                "or train again with a lower learning rate."
            )


def full_tensor(value: Tensor) -> Tensor:
    """A tensor sharded over processes (FSDP2), gathered by all of them; any other as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, where ``like`` is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _laid_out_as(value: Tensor, like: Tensor) -> Tensor:
    """A copy of a tensor that is stored in the order of ``like``, as channels last, where it has that shape: kernels
    round differently for another order."""
    if type(value) is not Tensor or value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser moments as flat tensors ``optimizer.<parameter>.<name>``; rates come from the schedule."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": full_tensor(value) if isinstance(value, Tensor) else torch.tensor(value)
        for i, entry in state.items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Load the tensors of ``flatten_optimizer``.

    Raises:
        ValueError: one is of no parameter or has another shape, or parameters have other moments.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [number for number, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            parameter = parameters[int(i)]
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{key} has shape {tuple(value.shape)}; expected {tuple(parameter.shape)}")
            state.setdefault(int(i), {})[name] = _laid_out_as(sharded_like(value, parameter), parameter)
    kinds = {(groups[i], frozenset(moments)) for i, moments in state.items()}
    if len(kinds) > len({number for number, _ in kinds}):
        raise ValueError("its optimiser lacks moments of some parameters")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in state.items()}


def unprefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in state.items() if k.startswith(prefix + ".")}
