"""The loop over pixels: its bf16 against fp32, and that no step waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gendistill.config import TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.progress import finish
from gendistill.refine.constraints import PixelRegion, RefineAugmentation
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.objective import BarycenterTargets, RefineObjective, class_w2
from gendistill.refine.optimization import refine_chunk

WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "equal", "masked_select", "is_nonzero"}
CROPS = RefineAugmentation(min_crop=0.6, flip=True, roll=1)


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(width=16, steps=120))


@pytest.fixture(scope="module")
def space(digits: RealData, teacher: Teacher) -> FeatureSpace:
    return FeatureSpace.build([teacher], digits.train, pixel_weight=1.0)


@pytest.fixture(scope="module")
def problem(digits: RealData, space: FeatureSpace) -> dict[str, Any]:
    """Three real images a class, whose atoms are three others."""
    start, others = (distill(digits, "random", 3, seed=seed) for seed in (0, 1))
    atoms = space.points(others.images, others.labels)
    return {"start": start.images, "labels": start.labels, "targets": BarycenterTargets(atoms, torch.ones(len(atoms)))}


def loop(problem: dict[str, Any], space: FeatureSpace, steps: int, **options: Any) -> Any:
    count = len(problem["labels"])
    settings = {"objective": RefineObjective(), "region": PixelRegion(), "crops": CROPS, **options}
    return refine_chunk(
        **problem, space=space, steps=steps, learning_rate=0.03, positions=torch.arange(count), total=count, **settings
    )


@pytest.mark.slow
def test_bf16_ends_where_fp32_does(problem: dict[str, Any], space: FeatureSpace) -> None:
    start, labels = problem["start"], problem["labels"]
    full, low = (finish(loop(problem, space, 60, bf16=bf16)) for bf16 in (False, True))
    moved, apart = ((other.float() - full.float()).abs().mean() for other in (start, low))
    assert not torch.equal(low, full)
    assert apart < 0.1 * moved  # measured 0.02
    w2 = [class_w2(space.points(images, labels), labels, space).mean() for images in (full, low)]
    assert w2[1].item() == pytest.approx(w2[0].item(), rel=5e-3)


@pytest.mark.parametrize("form", ["normalised", "published"])
def test_pieces_descend_as_one_batch(problem: dict[str, Any], space: FeatureSpace, form: Any) -> None:
    """The moments of a class are those of all its images, however few go through the network at once."""
    options = {"objective": RefineObjective(batch_norm=10.0, batch_norm_form=form)}
    whole, cut = (list(loop(problem, space, 3, rows=rows, **options)) for rows in (None, 4))
    for one, other in zip(whole, cut, strict=True):
        assert {k: float(v) for k, v in other.items()} == pytest.approx({k: float(v) for k, v in one.items()}, rel=1e-4)
    images = [finish(loop(problem, space, 3, rows=rows, **options)) for rows in (None, 4)]
    assert (images[0].int() - images[1].int()).abs().float().mean() < 0.05
    assert not torch.equal(images[0], problem["start"])


def test_bf16_losses_are_those_of_fp32(problem: dict[str, Any], space: FeatureSpace) -> None:
    records = [list(loop(problem, space, 20, bf16=bf16)) for bf16 in (False, True)]
    for full, low in zip(*records, strict=True):
        for name in ("atoms", "batch_norm", "cross_entropy"):
            assert low[name].item() == pytest.approx(full[name].item(), rel=0.03), name


class Waits(TorchDispatchMode):
    """Names of the operations whose results the host needs, which would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits() -> Iterator[Waits]:
    with Waits() as mode:
        yield mode


@pytest.mark.parametrize("form", ["normalised", "published"])
def test_no_step_waits_for_the_device(problem: dict[str, Any], space: FeatureSpace, waits: Waits, form: Any) -> None:
    region = PixelRegion(size=4, blend_every=2)
    steps = loop(problem, space, 4, objective=RefineObjective(batch_norm_form=form), region=region)
    next(steps)
    waits.found.clear()  # what is prepared before the first step may
    record = next(steps)
    next(steps)
    assert waits.found == []
    assert record["atoms"].item() > 0
    assert waits.found == ["_local_scalar_dense"]  # the reader waits, and this test sees it
