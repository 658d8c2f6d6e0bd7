"""Ratios of training speed, both sides in turn in one process. Run alone: pytest tests/benchmarks --benchmark-only"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any, Literal

import pytest
import torch

from gendistill.config import DiT, FinetuneConfig, MinimaxConfig, ModelConfig
from gendistill.data.dataset import Split
from gendistill.data.pixels import to_float
from gendistill.generator.adaptation import adapt
from gendistill.generator.codec import Codec, LatentCodec, PixelCodec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.trainer import train_generator
from gendistill.runtime import make_accelerator
from gendistill.seeding import torch_rng
from tests.benchmarks.conftest import processor
from tests.benchmarks.released import ReleasedLoop
from tests.generator.autoencoders import kl

DIT = ModelConfig(
    architecture=DiT(num_layers=8, num_attention_heads=4, attention_head_dim=64, patch_size=4, learned_sigma=True),
    prediction_type="epsilon",
)


def in_turn(benchmark: Any, *works: Callable[[], Any], rounds: int = 5) -> list[float]:
    """Processor seconds of each side, ours first: medians of ``rounds`` in turn after one warm-up each."""
    seconds: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for side, work in zip(seconds, works, strict=True):
            start = processor_seconds()
            work()
            side.append(processor_seconds() - start)
    benchmark.pedantic(works[0], rounds=1)
    benchmark.extra_info["seconds"] = seconds
    return [median(side) for side in seconds]


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def store(benchmark: Any, ratio: float, target: float, reference: str) -> None:
    benchmark.extra_info |= {"ratio": round(ratio, 3), "target": target, "reference": reference, "cpu": processor()}


def images(count: int, classes: int, size: int) -> Split:
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch_rng(0, "pixels"), dtype=torch.uint8)
    return Split(pixels, torch.arange(count) % classes)


def build(model: ModelConfig, classes: int, size: int, codec: Codec) -> Generator:
    names = tuple(str(c) for c in range(classes))
    generator = build_generator(model, names, size, 0, codec=codec)
    with torch.no_grad():
        for i, parameter in enumerate(generator.network.parameters()):
            if not parameter.any():
                parameter.normal_(std=0.02, generator=torch_rng(0, "start", i))
    return generator


@pytest.mark.parametrize("classes", [10, 100])
def test_minimax_criteria_cost_little_of_a_step(benchmark: Any, classes: int) -> None:
    """A DiT of about 12 M parameters, 32 x 32 pixels, batch 64, memory 64; fp32 on CPU."""
    data = images(640, classes, 32)
    config = FinetuneConfig(base_steps=1000, minimax_steps=1000, batch_size=64)
    loops = []
    for criteria in (MinimaxConfig(), None):
        deep = replace(DIT.architecture, num_layers=10)
        generator = build(replace(DIT, architecture=deep), classes, 32, PixelCodec(3))
        latents = real_latents(generator.codec, data, fingerprint="")
        loops.append(train_generator(generator, latents, config, accelerator=make_accelerator(), criteria=criteria))
    for _ in range(2):  # the memories fill
        next(loops[0])
    ours, plain = in_turn(benchmark, lambda: next(loops[0]), lambda: next(loops[1]), rounds=7)
    store(benchmark, ours / plain, 1.05, "the same step without the criteria and without memory updates")
    assert ours / plain <= 1.05


@pytest.mark.parametrize("batch", [8, 64])
def test_steps_are_faster_than_the_released_organisation(benchmark: Any, batch: int) -> None:
    """DiffFit of a DiT d256 L8 patch 4 on latents of 32 x 32, 10 classes, latents kept: fp32, and bf16 compiled beside.

    The small autoencoder's encoder costs 0.51 of a step's FLOPs; SD's at 256 px costs 0.56 of one of DiT-XL/2 (273 and
    483 GFLOP by torch's flop counter).
    """
    codec = LatentCodec(kl(block_out_channels=(32, 48), layers_per_block=2, norm_num_groups=8), 3)
    data = images(256, 10, 32 * codec.factor)
    loops = [loop_of(codec, data, batch, precision) for precision in ("no", "bf16")]
    other = build(DIT, 10, 32 * codec.factor, codec)
    trained = adapt(other.network, "difffit")
    released = ReleasedLoop(other.network, trained.trainable().values(), codec, other.alphas_cumprod, 10)
    rng = torch_rng(0, "batches")

    def reference() -> None:
        index = torch.randint(len(data), (batch,), generator=rng)
        released.step(to_float(data.images[index]), data.labels[index])

    ours, fast, theirs = in_turn(benchmark, lambda: next(loops[0]), lambda: next(loops[1]), reference)
    benchmark.extra_info["bf16 compiled"] = round(theirs / fast, 3)
    store(benchmark, theirs / ours, 1.5 if batch == 8 else 2.0, "fp32, encoding every step, lists, masks, full EMA")
    assert theirs / ours >= 1  # the matrix products of both sides run at this CPU's peak (docs/results.md)


def loop_of(codec: Codec, data: Split, batch: int, precision: Literal["no", "bf16"]) -> Iterator[Any]:
    """Our minimax training of the DiT by DiffFit; bf16 is compiled."""
    compiles = precision == "bf16"
    config = FinetuneConfig(minimax_steps=1000, batch_size=batch, mixed_precision=precision, compile=compiles)
    generator = build(DIT, 10, data.images.shape[-1], codec)
    return train_generator(
        generator,
        real_latents(codec, data, fingerprint=""),
        config,
        accelerator=make_accelerator(precision),
        adapted=adapt(generator.network, "difffit"),
        criteria=MinimaxConfig(),
    )
