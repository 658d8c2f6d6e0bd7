"""What refinement tells of the distance to the real images, and of its gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gendistill.config import TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.networks.teacher_training import train_teacher
from gendistill.report.terminal import w2_lines
from gendistill.surrogate.manifest import Provenance
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"w2": {"before": 2.0, "after": 1.5}}, "W2^2 to the real images 2 -> 1.5."),
        ({"w2": {"before": 2.0, "after": 2.0}}, "W2^2 to the real images 2."),
        ({"w2": {"before": 2.0, "after": 2.5}}, "W2^2 to the real images 2 -> 2.5, farther than they began."),
        (
            {"w2": {"before": 2.0, "after": 1.5, "packed": 1.75, "matched": 1.625}},
            "W2^2 to the real images 2 -> 1.5, 1.75 once packed, 1.62 once matched.",
        ),
        (
            {"w2": {"before": 2, "after": 1}, "gate": {"images": 9, "kept": 7, "refused_classes": 2}},
            "W2^2 to the real images 2 -> 1; the gate kept 7 of 9 images and refused 2 classes.",
        ),
    ],
)  # fmt: skip
def test_a_line_says_what_became_of_w2(told: dict, line: str, tmp_path: Path) -> None:
    for ipc in (10, 2):
        images = torch.zeros(ipc, 1, 4, 4, dtype=torch.uint8)
        made = SurrogateSet(images, torch.zeros(ipc, dtype=torch.long), ("one",), Provenance(**told))
        made.save(tmp_path / f"ipc-{ipc}")
    assert list(w2_lines(tmp_path)) == [f"ipc-2: {line}", f"ipc-10: {line}"]


@pytest.mark.slow
def test_refine_and_wmdd_tell_it(digits: RealData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = train_teacher(digits, TeacherConfig(width=8, steps=30))
    teacher.meta["data_config"] = {}
    teacher.save_pretrained(tmp_path / "teacher")
    distill(digits, "random", 3, seed=1).save(tmp_path / "pool")
    given = ("--teacher", tmp_path / "teacher", "--ipc", "[1,2]")
    options = {
        "refine": ("--surrogate", tmp_path / "pool", "--steps", 4),
        "distill": ("--method", "wmdd", "--wmdd.steps", 4),
    }
    for command, own in options.items():
        assert gendistill(command, *given, *own, "--output_dir", tmp_path / command) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "W2^2" in line]
        for ipc, line in zip((1, 2), lines, strict=True):
            w2 = json.loads((tmp_path / command / f"ipc-{ipc}" / "manifest.json").read_text())["w2"]
            assert w2["after"] < w2["before"]
            assert line == f"ipc-{ipc}: W2^2 to the real images {w2['before']:.3g} -> {w2['after']:.3g}."
