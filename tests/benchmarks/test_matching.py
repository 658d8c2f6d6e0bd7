"""Speed of whole matching steps against the released organisation, and whether they move the images alike.

    pytest tests/benchmarks/test_matching.py --benchmark-only -s

Processor seconds, fp32 on both sides; ours in bf16 besides where the CPU has units for it.
CIFAR-10's shapes: 32 px, 10 classes, ConvNet-3 of width 128, IPC 10; IDC with DREAM's selection (128 real images a
class, factor 2), IDM (256, factor 2) and DM (256). Images are random, and 1000 a class where CIFAR-10 has 5000: the
released organisation embeds and clusters all of them, ours 512, so the ratio of idc grows with more.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gendistill.config import DistillConfig, MatchingConfig, Representative
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_uint8
from gendistill.matching.build import build
from gendistill.matching.engine import Matcher
from gendistill.matching.methods import plan_runs
from gendistill.seeding import torch_rng
from tests.benchmarks.conftest import uses_bf16
from tests.benchmarks.released_matching import ReleasedMatching
from tests.benchmarks.test_training import store

CLASSES, PER_CLASS, SIZE, IPC = 10, 1000, 32, 10
FAST = MatchingConfig(flip=True, mixed_precision="no", compile=True)
BF16 = MatchingConfig(flip=True, mixed_precision="auto", compile=True)
EXACT = MatchingConfig(flip=True, mixed_precision="no", compile=False)
DREAM = replace(EXACT, selection=Representative(interval=2, candidates=0, dimensions=0, cluster_weights="free"))
LEAST = {"idc": 1.2, "idm": 1.2, "dm": 2.0}  # in fp32
# shares of the steps that are timed: idc clusters in one of ten, here in every second
SHARES = {"idc": (0.1, 0.9), "idm": (0.5, 0.5), "dm": (0.25, 0.25, 0.25, 0.25)}


@pytest.fixture(scope="module")
def data() -> RealData:
    """Random fields of 8 x 8, enlarged: as smooth as photographs are."""
    fields = torch.randn(CLASSES * PER_CLASS, 3, 8, 8, generator=torch_rng(0, "fields"))
    pixels = to_uint8(0.5 * F.interpolate(fields, (SIZE, SIZE), mode="bicubic"))
    split = Split(pixels, torch.arange(len(pixels)) % CLASSES)
    few = split.take(torch.arange(2 * CLASSES))
    return RealData("random fields", tuple(map(str, range(CLASSES))), split, few, few)


def matcher(data: RealData, method: str, config: MatchingConfig) -> Matcher:
    (run,) = plan_runs(DistillConfig(method=method, ipc=IPC, matching=config), data)
    return build(data, run, seed=0)


def timed(work: Any) -> float:
    """Processor seconds; on a GPU those in which the host waits for it are counted as well."""
    start = time.process_time()
    next(work)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - start


@pytest.mark.parametrize("method", list(SHARES))
def test_inner_steps_are_faster_than_the_released_organisation(benchmark: Any, data: RealData, method: str) -> None:
    """Clustering, matching and network training, all sides in turn; what compiling takes is stored apart."""
    modes = {"fp32": FAST, "bf16": BF16} if uses_bf16() else {"fp32": FAST}
    if method == "idc":
        modes = {name: replace(mode, selection=Representative(interval=2)) for name, mode in modes.items()}
    sides = {name: matcher(data, method, mode).run() for name, mode in modes.items()}
    first = {name: timed(side) for name, side in sides.items()}
    if method == "idc":
        for side in sides.values():
            next(side)  # so that the timed steps begin with a clustering
    released = ReleasedMatching(matcher(data, method, DREAM if method == "idc" else EXACT))
    sides["released"] = released.run()
    steps = [{name: timed(side) for name, side in sides.items()} for _ in SHARES[method]]
    seconds = {
        name: sum(share * step[name] for share, step in zip(SHARES[method], steps, strict=True)) for name in sides
    }
    benchmark.pedantic(lambda: next(sides["fp32"]), rounds=1)
    benchmark.extra_info |= {
        "processor_seconds_of_a_step": seconds,
        "of_each_step": steps,
        "bf16_ratio": seconds["released"] / seconds["bf16"] if "bf16" in seconds else None,
        "clustering_of_reference": released.clustering,
        "first_step_with_compiling": first,
        "images_per_class": PER_CLASS,
        "threads": torch.get_num_threads(),
    }
    ratio = seconds["released"] / seconds["fp32"]
    store(benchmark, ratio, 3.0, "fp32 eager, class by class, all parameters, k-means on all images and features")
    print(f"{method}: fp32 {ratio:.2f}, bf16 {benchmark.extra_info['bf16_ratio']}, {seconds}, first steps {first}")
    assert ratio >= LEAST[method]


@pytest.mark.slow
@pytest.mark.parametrize("method", list(SHARES))
def test_the_reference_makes_the_same_steps(data: RealData, method: str) -> None:
    """On the same picks the loop over classes meets the losses of the joint step."""
    small = replace(EXACT, width=8, real_batch=4, **({} if method == "dm" else {"train_batch": 8, "train_steps": 2}))
    few = replace(data, train=data.train.take(torch.arange(40 * CLASSES)))
    exact, loop = matcher(few, method, small).run(), ReleasedMatching(matcher(few, method, small))
    for mine, theirs in zip(islice(exact, 5), islice(loop.run(), 5), strict=True):
        assert theirs.item() == pytest.approx(mine["loss"].item(), rel=1e-4)
    assert (loop.images.detach() - loop.stored.images).abs().max() > 1e-3


@pytest.mark.parametrize("method", list(SHARES))
def test_fast_steps_move_images_as_exact_ones_do(benchmark: Any, data: RealData, method: str) -> None:
    """Three steps on the same picks."""
    fast, exact = (matcher(data, method, config) for config in (BF16, EXACT))
    start, loops = exact.sets[0].images, (fast.run(), exact.run())
    losses = [[next(loop)["loss"] for loop in loops] for _ in range(3)]
    moves = [(one.sets[0].images - start).flatten() for one in (fast, exact)]
    cosine = F.cosine_similarity(*moves, dim=0).item()
    benchmark.pedantic(lambda: next(loops[0]), rounds=1)
    sides = zip(("fast", "exact"), zip(*losses, strict=True), strict=True)
    benchmark.extra_info |= {
        "losses": {name: [loss.item() for loss in side] for name, side in sides},
        "length_of_move": (moves[0].norm() / moves[1].norm()).item(),
    }
    store(benchmark, cosine, 0.95, "the images' move by the same steps in fp32, eager")
    assert cosine > 0.95
