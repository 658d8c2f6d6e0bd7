"""Ratios of refinement: image-steps a second against WMDD's loop organised as released, on the same network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gendistill import runtime
from gendistill.networks.factories import batch_norm_layers, build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish
from gendistill.refine.constraints import PixelRegion, RefineAugmentation
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.objective import BarycenterTargets, RefineObjective
from gendistill.refine.optimization import refine_chunk
from gendistill.seeding import torch_rng
from tests.benchmarks.released_wmdd import ReleasedLoop
from tests.benchmarks.test_training import images, in_turn, store

CLASSES, LEARNING_RATE = 10, 0.03
PUBLISHED = RefineObjective(
    cross_entropy=1.0, feature_form="released", batch_norm_form="published"
)  # terms on both sides


class Problem:
    """``ipc`` random images a class, each with a random atom, before an untrained teacher."""

    def __init__(self, network: str, size: int, ipc: int, *, steps: int, width: int = 64) -> None:
        self.steps, split = steps, images(64, CLASSES, size)
        built = build_network(network, channels=3, image_size=size, classes=CLASSES, width=width).eval()
        statistics = collect_statistics(built, split, CLASSES)
        self.teacher = Teacher(built, statistics, tuple(map(str, range(CLASSES))), {"name": network})
        self.space = FeatureSpace.build([self.teacher], split, 0.0, scaled=False)
        self.labels = torch.arange(CLASSES).repeat_interleave(ipc)
        self.start = images(len(self.labels), CLASSES, size).images // 2 + 64  # ends of the range are held differently
        shape = len(self.labels), statistics.features.shape[1]
        self.atoms = statistics.features.std() * torch.randn(shape, generator=torch_rng(0, "atoms"))

    def ours(self, crops: RefineAugmentation, *, bf16: bool = False) -> Any:
        return refine_chunk(
            self.start, self.labels, BarycenterTargets(self.atoms, torch.ones(len(self.labels))), self.space,
            steps=self.steps,
            learning_rate=LEARNING_RATE, objective=PUBLISHED, region=PixelRegion(bound=2.0), crops=crops,
            positions=torch.arange(len(self.labels)), total=len(self.labels), bf16=bf16,
        )  # fmt: skip

    def released(self, *, crops: bool) -> ReleasedLoop:
        return ReleasedLoop(
            self.teacher, self.start, self.labels, self.atoms, steps=self.steps, learning_rate=LEARNING_RATE,
            crops=crops,
        )  # fmt: skip


@contextmanager
def rows_seen(network: nn.Module) -> Iterator[list[int]]:
    """Rows of every batch that the first batch-norm layer gets inside the block."""
    seen: list[int] = []
    layer = next(iter(batch_norm_layers(network).values()))
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


def test_both_sides_of_the_benchmark_are_the_same_optimisation() -> None:
    """Without crops: the same terms at every step, and the same images after the last."""
    problem = Problem("convnet_bn", 16, 2, steps=4, width=8)
    released = problem.released(crops=False)
    theirs = list(released.run())
    loop, found = problem.ours(RefineAugmentation()), []
    result: Tensor | None = None
    while result is None:
        try:
            found.append(next(loop))
        except StopIteration as stop:
            result = stop.value
    for mine, other in zip(found, theirs, strict=True):
        names = {"features": "atoms", "batch_norm": "batch_norm", "cross_entropy": "cross_entropy"}
        assert {name: float(mine[own]) for name, own in names.items()} == pytest.approx(other, rel=1e-4)
    gap = (result.int() - released.images.int()).abs()
    assert (result.int() - problem.start.int()).abs().float().mean() > 3
    assert (gap <= 1).float().mean() > 0.999


@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize(("network", "size"), [("timm:resnet18", 64), ("timm:resnet10t", 64), ("convnet_bn", 32)])
def test_refinement_is_faster_than_the_released_organisation(benchmark: Any, network: str, size: int, ipc: int) -> None:
    """10 classes; features, batch norm and cross-entropy through crops on both sides: fp32, and bf16 beside."""
    problem = Problem(network, size, ipc, steps=10 if ipc == 1 else 4)
    crops = RefineAugmentation(min_crop=0.5, flip=True, roll=4)
    with rows_seen(problem.teacher.network) as mine:
        finish(problem.ours(crops))
    released = problem.released(crops=True)
    with rows_seen(released.network) as theirs:
        list(released.run())
    assert sum(mine) == sum(theirs) == CLASSES * ipc * problem.steps
    works = [lambda: finish(problem.ours(crops)), lambda: list(problem.released(crops=True).run())]
    if runtime.native_bf16(torch.device("cpu")):
        works.append(lambda: finish(problem.ours(crops, bf16=True)))
    ours, reference, *fast = in_turn(benchmark, *works, rounds=5 if ipc == 1 else 3)
    ratio, work = reference / ours, CLASSES * ipc * problem.steps
    benchmark.extra_info |= {"image_steps_per_second": round(work / ours, 1)}
    benchmark.extra_info["bf16"] = [round(reference / seconds, 3) for seconds in fast]
    store(benchmark, ratio, 3.0, "fp32 eager, whole classes, moments of all at once, one network")
    assert ratio >= 1.1  # the convolutions of both sides run at this CPU's peak (docs/results.md)
