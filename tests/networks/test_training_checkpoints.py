"""A teacher whose training is cut short goes on from its newest checkpoint to the same bytes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gendistill.config import Pretrained, TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError
from gendistill.io import WorkFolder, read_tensors, write_tensors
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.networks.training_checkpoints import CHECKPOINTS
from gendistill.stages.folder import read_record
from tests.helpers import files, gendistill
from tests.networks.classifier_folders import timm_folder
from tests.processes import start

QUICK = TeacherConfig(width=8, depth=2, steps=25, batch_size=16, shift=1, checkpointing_steps=4)


class Cut(Exception):
    """What stops a training in the middle."""


class CutFolder(WorkFolder):
    """Stops the training that logs its twentieth step, of which no checkpoint is there yet."""

    def log(self, record: Mapping[str, object]) -> None:
        super().log(record)
        if record.get("step") == 20:
            raise Cut


class Dropping(nn.Module):
    """Draws a mask at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(nn.functional.dropout(self.body(images).flatten(1), 0.5, self.training))


@pytest.fixture(scope="module")
def few() -> RealData:
    return load_data(max_per_class=12)


def dropping() -> Dropping:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dropping()


def assert_same(one: Teacher, other: Teacher) -> None:
    assert one.hash() == other.hash()
    found, expected = one.statistics.tensors(), other.statistics.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert one.meta["accuracy"] == other.meta["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["registered", "dropout", "all", "head"])
def test_a_training_cut_short_goes_on_to_the_same_bytes(kind: str, few: RealData, tmp_path: Path) -> None:
    def train(folder: WorkFolder | None) -> Teacher:
        given: dict[str, Any] = {"network": dropping()} if kind == "dropout" else {}
        if kind in ("all", "head"):
            source = str(timm_folder(tmp_path / "published", model_args={"drop_rate": 0.4}))
            given = {"pretrained": Pretrained(source=source, head="new", tune=kind, input_size=32)}  # type: ignore[arg-type]
        return train_teacher(few, QUICK, folder=folder, **given)

    whole, (path, log) = train(None), (tmp_path / "work", tmp_path / "work" / "log.jsonl")
    path.mkdir()
    with pytest.raises(Cut):
        train(CutFolder(path, log))
    assert [one.name for one in (path / CHECKPOINTS).iterdir()] == ["step-000016"]
    assert_same(train(WorkFolder(path, log)), whole)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r.get("step", r.get("resumed_at")) for r in records] == [10, 20, 16, 20, 25]
    assert_same(train(CutFolder(path, log)), whole)  # after the last step nothing is trained again


def test_a_checkpoint_of_another_training_is_refused(digits: RealData, tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    train_teacher(digits, QUICK, folder=folder)
    assert train_teacher(digits, replace(QUICK, checkpointing_steps=None), folder=folder)
    for changed in (replace(QUICK, learning_rate=1e-3), replace(QUICK, steps=26)):
        with pytest.raises(ArtifactError, match="belongs to another training"):
            train_teacher(digits, changed, folder=folder)
    with pytest.raises(ArtifactError, match="belongs to another training"):
        train_teacher(digits, QUICK, seed=1, folder=folder)


def test_a_checkpoint_that_lacks_something_is_one_message(digits: RealData, tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    train_teacher(digits, QUICK, folder=folder)
    (path,) = tmp_path.rglob("state.safetensors")
    state, identity = read_tensors(path, fix="")
    for part in ("network", "optimizer.0", "seconds"):
        name = next(name for name in state if name.startswith(part))
        write_tensors(path, {k: v for k, v in state.items() if k != name}, identity)
        with pytest.raises(ArtifactError, match="does not hold the state of this training"):
            train_teacher(digits, QUICK, folder=folder)


@pytest.mark.slow
def test_a_killed_teacher_is_resumed(tmp_path: Path) -> None:
    """By the command line, also with other steps between checkpoints; other options are refused."""

    def command(name: str, *more: object) -> tuple[object, ...]:
        options = ("--data.max_per_class", 40, "--width", 8, "--steps", 120, "--batch_size", 16)
        return ("teacher", *options, *more, "--output_dir", tmp_path / name)

    assert gendistill(*command("whole")) == 0
    process, saved = start(*command("cut", "--checkpointing_steps", 3)), tmp_path / "cut.partial" / CHECKPOINTS
    deadline = time.time() + 120
    while process.poll() is None and not list(saved.glob("step-*")) and time.time() < deadline:
        time.sleep(0.005)
    assert process.kill().returncode == -signal.SIGKILL
    done = max(int(path.name.removeprefix("step-")) for path in saved.glob("step-*"))
    assert 0 < done < 120
    resume = ("--checkpointing_steps", 50, "--resume_from_checkpoint", "latest")
    assert gendistill(*command("cut")) == 2  # not without asking for it
    assert gendistill(*command("cut", "--learning_rate", 0.1, *resume)) == 2
    assert gendistill(*command("cut", *resume)) == 0
    for pattern in ("*.safetensors", "teacher.json"):
        assert files(tmp_path / "cut", pattern) == files(tmp_path / "whole", pattern)
    records = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [r["resumed_at"] for r in records if "resumed_at" in r] == [done]
    record = read_record(tmp_path / "cut")
    assert record is not None
    assert record["resumed"]
    assert not (tmp_path / "cut" / CHECKPOINTS).exists()
