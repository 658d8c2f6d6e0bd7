"""Speed of whole evaluation runs, compiled and in bf16, against eager fp32 ones, and whether they score alike.

    pytest tests/benchmarks/test_judge.py --benchmark-only

CIFAR-10's shapes: ConvNet-3 of width 64, 32 px, 10 classes, IPC 10, 200 steps of batches of 64, 10 000 test images.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gendistill.config import EvaluateConfig
from gendistill.data.dataset import Split
from gendistill.data.pixels import to_uint8
from gendistill.evaluation.evaluator import TrainingRun
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.networks.factories import build_network
from gendistill.networks.pieces import backward_in_pieces, piece_rows
from gendistill.networks.training import mean_loss
from gendistill.seeding import torch_rng
from tests.benchmarks.test_training import in_turn, store

CLASSES, SIZE = 10, 32
EAGER = EvaluateConfig(flip=True, shift=4, compile=False, mixed_precision="no")
FAST = EvaluateConfig(flip=True, shift=4, compile=True, mixed_precision="auto")


def fields(per_class: int, purpose: str) -> Split:
    """A smooth picture of every class under noise, so that there is something to learn."""
    means = torch.randn(CLASSES, 3, 4, 4, generator=torch_rng(0, "means"))
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    noise = torch.randn(len(labels), 3, 8, 8, generator=torch_rng(0, purpose))
    pictures = F.interpolate(means, (SIZE, SIZE), mode="bicubic")[labels] / 6
    return Split(to_uint8(pictures + F.interpolate(noise, (SIZE, SIZE), mode="bicubic") / 2), labels)


@pytest.fixture(scope="module")
def trials() -> tuple[TrainingRun, TrainingRun]:
    test = fields(1000, "test")
    return TrainingRun(resolve_protocol(FAST), test, CLASSES), TrainingRun(resolve_protocol(EAGER), test, CLASSES)


def test_a_run_is_faster_than_an_eager_one(benchmark: Any, trials: tuple[TrainingRun, TrainingRun]) -> None:
    """Training and the look at the test split; what compiling takes comes before, once for each size of batch."""
    train = fields(10, "train")
    fast, eager = (lambda trial=trial: trial.run("convnet", train, None, 0) for trial in trials)
    ours, theirs = in_turn(benchmark, fast, eager, rounds=3)
    images = trials[0].settings.steps * trials[0].settings.batch_size
    benchmark.extra_info |= {"trained_images_a_run": images, "threads": torch.get_num_threads()}
    store(benchmark, theirs / ours, 4.0, "eager fp32 runs in pieces, one after the other")
    assert theirs / ours >= 2.0


@pytest.mark.parametrize(
    ("network", "count", "target"), [("convnet", 256, 1.6), ("convnet", 64, 1.2), ("resnet10", 256, 1.2)]
)
def test_pieces_are_faster_than_whole_batches(benchmark: Any, network: str, count: int, target: float) -> None:
    """Forward and backward passes in eager fp32, width 128."""
    model = build_network(network, channels=3, image_size=SIZE, classes=CLASSES)
    images = torch.randn(count, 3, SIZE, SIZE, generator=torch_rng(0, "images"))
    labels = torch.arange(count) % CLASSES
    sides = (
        partial(backward_in_pieces, mean_loss(model), images, labels, rows)
        for rows in (piece_rows(model, images), count)
    )
    ours, theirs = in_turn(benchmark, *sides, rounds=3)
    store(benchmark, theirs / ours, target, "whole batches")
    assert theirs / ours >= target


def test_accuracies_are_those_of_eager_runs(benchmark: Any, trials: tuple[TrainingRun, TrainingRun]) -> None:
    """Five training seeds: the means differ by less than the runs of one side do among themselves."""
    train = fields(2, "train")
    sides = [[trial.run("convnet", train, None, seed)["accuracy"] for seed in range(5)] for trial in trials]
    fast, eager = (torch.tensor(side) for side in sides)
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info["accuracies"] = {"fast": fast.tolist(), "eager": eager.tolist()}
    store(benchmark, float(fast.mean() / eager.mean()), 1.0, "mean accuracy of eager fp32 runs")
    assert 0.2 < eager.mean() < 0.98
    assert (fast.mean() - eager.mean()).abs() <= max(0.01, float(eager.std()))
