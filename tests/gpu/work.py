"""Small pieces of work on a GPU, and what they are measured by: synchronisations, memory, seconds, operations."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import gendistill as gd
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.trainer import train_generator
from gendistill.runtime import make_accelerator

SYNC = "called a synchronizing CUDA operation"
SMALL = gd.ModelConfig(architecture=gd.UNet(block_out_channels=(16, 32), norm_num_groups=8))
XL = gd.ModelConfig(architecture=gd.DiT(num_layers=28, num_attention_heads=16, attention_head_dim=72))


def few_digits() -> gd.RealData:
    return gd.load_data("digits", max_per_class=40)


def teacher(data: gd.RealData, steps: int, precision: str = "auto") -> gd.Teacher:
    return gd.train_teacher(data, gd.TeacherConfig(steps=steps, width=16, mixed_precision=precision))


def generator(data: gd.RealData, steps: int, precision: str = "auto") -> Generator:
    config = gd.FinetuneConfig(
        model=SMALL, base_steps=steps, minimax_steps=steps, batch_size=16, mixed_precision=precision, compile=False
    )
    return gd.finetune(data, config)[0]


def matched(data: gd.RealData, method: str, steps: int, precision: str = "auto") -> gd.SurrogateSet:
    options = gd.MatchingConfig(width=16, real_batch=16, mixed_precision=precision, compile=False)
    return gd.distill(data, method, 2, config=gd.DistillConfig(method=method, iterations=steps, matching=options))


def refined(data: gd.RealData, guide: gd.Teacher, steps: int, precision: str = "auto") -> gd.SurrogateSet:
    pool = gd.distill(data, "random", 6)
    config = gd.RefineConfig(steps=steps, mixed_precision=precision)
    return gd.refine_set(pool, guide, data, 2, config)[1]


def evaluated(data: gd.RealData, made: gd.SurrogateSet, steps: int, precision: str = "auto") -> float:
    config = gd.EvaluateConfig(steps=steps, width=16, runs=3, mixed_precision=precision, baselines=("random",))
    return float(gd.evaluate(data, made, config).rows[0]["mean"])


def syncs(work: Callable[[], Any]) -> int:
    """How often ``work`` made the host wait for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(SYNC in str(one.message) for one in found)


def syncs_of_a_step(work: Callable[[int], Any], few: int = 10, many: int = 40) -> float:
    """The same of one further step: what surrounds the loop, and the log of every tenth step, hardly count."""
    work(few)  # allocations and compilation
    return (syncs(lambda: work(many)) - syncs(lambda: work(few))) / (many - few)


def seconds(work: Callable[[], Any], rounds: int = 5) -> float:
    """The fastest of some rounds, to the end of the device's work."""
    found = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def matmul_peak(dtype: torch.dtype, side: int = 8192, device: str = "cuda") -> float:
    """FLOP/s of a large product."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b)


def xl_step(batch: int, device: str = "cuda", model: gd.ModelConfig = XL, side: int = 32) -> Mapping[str, float]:
    """A minimax step of a DiT-XL/2 with random weights on latents of ``side``: seconds, FLOP/s, peak memory in bytes.

    Latents are taken as images of four channels, so that the step alone is measured.
    """
    names = tuple(str(label) for label in range(10))
    built = build_generator(model, names, side, 0, codec=PixelCodec(4))
    images = torch.randint(0, 256, (64, 4, side, side), dtype=torch.uint8)
    latents = real_latents(built.codec, gd.Split(images, torch.arange(64) % 10), fingerprint="")
    config = gd.FinetuneConfig(minimax_steps=1000, batch_size=batch, mixed_precision="bf16", compile=False)
    loop = train_generator(built, latents, config, accelerator=make_accelerator("bf16"), criteria=gd.MinimaxConfig())
    next(loop)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        next(loop)
    taken = seconds(lambda: next(loop)) if device == "cuda" else float("nan")
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    flop = float(counter.get_total_flops())
    return {"seconds": taken, "flop": flop, "flop_per_second": flop / taken, "peak_bytes": float(peak)}
