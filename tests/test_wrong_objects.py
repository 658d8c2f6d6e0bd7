"""Public functions called with other objects than they take: one message, which says what makes the right one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gendistill as gd
from gendistill.errors import ConfigError


@pytest.fixture(scope="module")
def data() -> gd.RealData:
    images = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1).expand(12, 1, 8, 8).contiguous()
    return gd.RealData.from_arrays(images, torch.arange(12) % 2, classes=("a", "b"))


@pytest.fixture(scope="module")
def made(data: gd.RealData) -> gd.SurrogateSet:
    return gd.distill(data, "random", 1)


WRONG: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "distill": (lambda d, s: gd.distill("digits", "random", 1), "data is 'digits'; expected a RealData, which gd."),
    "method": (lambda d, s: gd.distill(d, 3, 1), "method is 3; expected a str."),
    "distill's teacher": (lambda d, s: gd.distill(d, "wmdd", 1, teacher="t"), "teacher is 't'; expected a Tea"),
    "pool": (lambda d, s: gd.refine_set(d, s, d, 1), "pool is a RealData; expected a SurrogateSet, which"),
    "teacher": (lambda d, s: gd.refine_set(s, 2, d, 1), "teacher is 2; expected a Teacher, which gd.train_"),
    "a teacher": (lambda d, s: gd.refine_set(s, [2], d, 1), "teacher[0] is 2; expected a Teacher"),
    "refine's data": (lambda d, s: gd.refine_set(s, [], None, 1), "data is None; expected a RealData"),
    "refine's config": (lambda d, s: gd.refine_set(s, [], d, 1, {"steps": 1}), "config is a dict; expected"),
    "sets": (lambda d, s: gd.evaluate(d, ["x"]), "surrogates[0] is 'x'; expected a SurrogateSet, which gd.dis"),
    "a set": (lambda d, s: gd.evaluate(d, 3), "surrogates is 3; expected a SurrogateSet"),
    "evaluate's data": (lambda d, s: gd.evaluate(s, [s]), "data is a SurrogateSet; expected a RealData"),
    "evaluate's teacher": (lambda d, s: gd.evaluate(d, s, teacher="t"), "teacher is 't'; expected a Teacher"),
    "continual": (lambda d, s: gd.evaluate_continual(d, [3]), "surrogates[0] is 3; expected a SurrogateSet"),
    "show": (lambda d, s: gd.show(["x"], "out"), "sets[0] is 'x'; expected a SurrogateSet"),
    "show by name": (lambda d, s: gd.show({"a": 3}, "out"), "sets['a'] is 3; expected a SurrogateSet"),
    "label": (lambda d, s: gd.label_set(s, "teacher"), "teacher is 'teacher'; expected a Teacher"),
    "sample": (lambda d, s: gd.sample_set("generator", 1), "generator is 'generator'; expected a Generator, which"),
    "finetune": (lambda d, s: gd.finetune("digits"), "data is 'digits'; expected a RealData"),
    "train": (lambda d, s: gd.train_teacher("digits"), "data is 'digits'; expected a RealData"),
    "train's config": (lambda d, s: gd.train_teacher(d, 3), "config is 3; expected a TeacherConfig."),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_another_object_is_refused_in_one_message(case: str, data: gd.RealData, made: gd.SurrogateSet) -> None:
    call, message = WRONG[case]
    with pytest.raises(ConfigError) as refused:
        call(data, made)
    assert str(refused.value).startswith(message)


def test_sets_are_shown_under_their_names(made: gd.SurrogateSet, tmp_path: Path) -> None:
    assert list(gd.show(made, tmp_path / "one")["sets"]) == ["random-1"]
    assert list(gd.show([made, made], tmp_path / "two")["sets"]) == ["1-random-1", "2-random-1"]
    assert list(gd.show({"mine": made}, tmp_path / "named")["sets"]) == ["mine"]
