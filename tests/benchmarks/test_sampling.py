"""Ratios of sampling: batches against one image at a time, and what a larger IPC costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gendistill.config import ClassifierFree, DiT, ModelConfig, SampleConfig, UNet
from gendistill.data.pixels import to_pil, to_uint8
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import Generator
from gendistill.generator.sampler import requests_for, sample
from gendistill.generator.schedulers import make_scheduler
from gendistill.seeding import torch_rng
from gendistill.surrogate.set import SurrogateWriter
from tests.benchmarks.test_training import build, in_turn, store

DIT = ModelConfig(architecture=DiT(num_layers=8, num_attention_heads=4, attention_head_dim=64, patch_size=4))
CONFIG = SampleConfig(num_inference_steps=10, guidance=ClassifierFree(scale=4.0), batch_size=40)
FAST = replace(CONFIG, compile=True)


@torch.no_grad()
def one_at_a_time(generator: Generator, folder: Path, config: SampleConfig) -> None:
    """As the released code: batch 1 with its null twin, fp32, and each image written before the next is begun."""
    for request in requests_for(10, 4):
        steps = make_scheduler(generator, config.scheduler, config.num_inference_steps)
        x = torch.randn(1, *generator.sample_shape, generator=torch_rng(0, request.label, request.index))
        condition = torch.tensor([request.label, generator.null_class])
        for t in steps.timesteps:
            with_class, without = generator.denoise(torch.cat([x, x]), t.expand(2), condition).chunk(2)
            output = without + config.guidance_scale * (with_class - without)
            x = steps.step(output, t, x).prev_sample
        to_pil(to_uint8(x)[0]).save(folder / f"{request.label}-{request.index}.png")


@pytest.mark.parametrize(("model", "size", "least"), [(ModelConfig(), 8, 5.0), (DIT, 32, 3.0)], ids=["unet", "dit"])
def test_batches_are_faster_than_one_image_at_a_time(
    benchmark: Any, tmp_path: Path, model: ModelConfig, size: int, least: float
) -> None:
    """40 images of the digits' UNet (8 px) and of a DiT d256 L8 patch 4 (32 px), ten solver steps each, guidance 4.

    Ours in bf16, compiled. The DiT at one image a time already fills the CPU's fp32 units to a good part.
    """
    generator = build(model, 10, size, PixelCodec(3))

    def batched() -> None:
        with SurrogateWriter(tmp_path / "ours", generator.classes) as writer:
            for batch, images in sample(generator, requests_for(10, 4), FAST):
                for request, image in zip(batch, images, strict=True):
                    writer.put(request.label, request.index, image)

    ours, theirs = in_turn(benchmark, batched, lambda: one_at_a_time(generator, tmp_path, CONFIG), rounds=3)
    store(benchmark, theirs / ours, 5.0, "one image at a time, fp32, each written before the next")
    assert theirs / ours >= least


MEASURE = """
import json, sys, time
from pathlib import Path
from gendistill.config import SampleConfig
from gendistill.runtime import peak_memory, reset_peak_memory
from gendistill.stages.sample import run_stage
config = SampleConfig(ipc=int(sys.argv[3]), pool=0, base=False, num_inference_steps=5, batch_size=100)
run_stage(Path(sys.argv[1]), SampleConfig(ipc=10, pool=0, base=False, num_inference_steps=1, batch_size=100),
          Path(sys.argv[2] + "-warm"), seed=0)
reset_peak_memory()
start = time.perf_counter()
run_stage(Path(sys.argv[1]), config, Path(sys.argv[2]), seed=0)
print(json.dumps([peak_memory(), 10 * config.ipc / (time.perf_counter() - start)]))
"""


def test_memory_and_speed_do_not_grow_with_ipc(benchmark: Any, tmp_path: Path) -> None:
    """IPC 10 and 100 of a 64 px UNet, each in a process of its own; IPC 1 runs too, but fills no batch."""
    model = ModelConfig(architecture=UNet(block_out_channels=(32, 32, 64), norm_num_groups=16))
    build(model, 10, 64, PixelCodec(3)).save_pretrained(tmp_path / "generator")
    found: dict[int, tuple[float, float]] = {}

    def measure(ipc: int) -> None:
        arguments = [str(tmp_path / "generator"), str(tmp_path / f"out-{ipc}"), str(ipc)]
        done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
        peak, speed = __import__("json").loads(done.stdout.splitlines()[-1])
        found[ipc] = peak, speed

    measure(1)
    measure(10)
    benchmark.pedantic(measure, args=(100,), rounds=1)
    benchmark.extra_info["by_ipc"] = {
        str(ipc): {"peak_mib": round(peak / 2**20), "images_per_second": round(speed, 1)}
        for ipc, (peak, speed) in found.items()
    }
    store(benchmark, found[100][0] / found[10][0], 1.05, "peak memory at IPC 10")
    assert found[100][0] / found[10][0] <= 1.05
    assert found[100][1] / found[10][1] >= 0.8


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_bf16_is_near_fp32(benchmark: Any, precision: str) -> None:
    """Images per second by precision, and how far bf16 images are from fp32 ones."""
    generator = build(DIT, 10, 32, PixelCodec(3))
    config = replace(CONFIG, mixed_precision=precision)

    def run() -> torch.Tensor:
        return torch.cat([images for _, images in sample(generator, requests_for(10, 4), config)])

    made = benchmark.pedantic(run, rounds=2, warmup_rounds=1)
    reference = torch.cat([i for _, i in sample(generator, requests_for(10, 4), replace(CONFIG, mixed_precision="no"))])
    gap = (made.float() - reference.float()).abs().mean().item()
    store(benchmark, gap, 2.0, "mean absolute difference from fp32 in levels of 255")
    assert gap <= 2.0
