"""Every stage in small on a GPU: like on the CPU, in bf16 and fp32, and without waits in the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gendistill as gd
from gendistill import runtime
from tests.gpu import work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
LOOPS: dict[str, Callable[[gd.RealData, gd.Teacher, int], Any]] = {
    "teacher": lambda data, _, steps: work.teacher(data, steps),
    "finetune": lambda data, _, steps: work.generator(data, steps),
    "dm": lambda data, _, steps: work.matched(data, "dm", steps),
    "refine": work.refined,
    "evaluate": lambda data, guide, steps: work.evaluated(data, work.refined(data, guide, 2), steps),
}


@pytest.fixture(scope="module")
def data() -> gd.RealData:
    return work.few_digits()


@pytest.fixture(scope="module")
def guide(data: gd.RealData) -> gd.Teacher:
    return work.teacher(data, 60)


@pytest.mark.parametrize("name", LOOPS)
def test_no_step_waits_for_the_device(data: gd.RealData, guide: gd.Teacher, name: str) -> None:
    assert work.syncs_of_a_step(lambda steps: LOOPS[name](data, guide, steps)) < 0.5


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_teacher_is_as_good_as_on_the_cpu(data: gd.RealData, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = work.teacher(data, 60, precision).meta["accuracy"]["validation"]
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    assert here == pytest.approx(work.teacher(data, 60, "no").meta["accuracy"]["validation"], abs=0.15)


@pytest.mark.parametrize("method", ["dm", "dc"])
def test_matching_in_fp32_is_that_of_the_cpu(data: gd.RealData, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = work.matched(data, method, 3, "no").images.int()
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    there = work.matched(data, method, 3, "no").images.int()
    assert float((here - there).abs().float().mean()) < 1  # of 255 levels


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_refinement_is_that_of_the_cpu(
    data: gd.RealData, guide: gd.Teacher, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = work.refined(data, guide, 5, precision).images.int()
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    there = work.refined(data, guide, 5, "no").images.int()
    assert float((here - there).abs().float().mean()) < (1 if precision == "no" else 4)


def test_large_collections_are_streamed_alike(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.data.folders import make

    folder = make(tmp_path / "images", count=40)
    config = gd.TeacherConfig(steps=20, width=8, mixed_precision="no")
    stored = gd.load_data(name=str(folder), cache=tmp_path / "cache", in_memory_gib=1e-9)
    whole = gd.load_data(name=str(folder), cache=None)
    a, b = (gd.train_teacher(one, config).network.state_dict() for one in (stored, whole))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
