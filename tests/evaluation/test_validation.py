"""The comparison of a new set with random images on validation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gendistill.data.dataset import RealData, Split
from gendistill.distillers import distill
from gendistill.evaluation import validation
from gendistill.evaluation.validation import validation_accuracies
from gendistill.refine.refiner import pack
from gendistill.surrogate.manifest import read_manifest
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "STEPS", 60)


def shuffled(made: SurrogateSet) -> SurrogateSet:
    """The same images, each with the label of another class."""
    return replace(made, labels=(made.labels + 3) % len(made.classes))


def test_a_set_with_wrong_labels_is_worse_than_random_images(digits: RealData, trained: None) -> None:
    made = distill(digits, "kmeans", 5)
    found = validation_accuracies(digits, {"set": shuffled(made), "start": made})
    assert found.keys() == {"set", "start", "random"}
    assert found["set"] < 0.2
    assert min(found["start"], found["random"]) > 0.5
    assert found == validation_accuracies(digits, {"set": shuffled(made), "start": made})


def test_packed_sets_are_compared_with_as_many_whole_images_as_they_store(digits: RealData) -> None:
    packed = pack(distill(digits, "random", 8), 2)
    whole = distill(digits, "kmeans", 2)
    assert len(packed.split) == 4 * len(whole.split)
    found = validation_accuracies(digits, {"packed": packed}), validation_accuracies(digits, {"whole": whole})
    assert found[0]["random"] == found[1]["random"]


def test_test_images_are_not_read_and_without_validation_images_nothing_is_compared(
    digits: RealData, trained: None
) -> None:
    made = distill(digits, "kmeans", 1)
    none = Split(digits.test.images[:0], digits.test.labels[:0])
    assert validation_accuracies(replace(digits, test=none), {"set": made}) == validation_accuracies(
        digits, {"set": made}
    )
    assert validation_accuracies(replace(digits, validation=none), {"set": made}) == {}


def test_many_validation_images_are_thinned_evenly(
    digits: RealData, monkeypatch: pytest.MonkeyPatch, trained: None
) -> None:
    made = distill(digits, "kmeans", 2)
    monkeypatch.setattr(validation, "MOST", 2)
    ends = torch.tensor([0, len(digits.validation) - 1])
    few = replace(digits, validation=digits.validation.take(ends))
    assert validation_accuracies(digits, {"set": made}) == validation_accuracies(few, {"set": made})


@pytest.mark.slow
def test_the_commands_say_when_a_set_is_worse_than_random_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: None
) -> None:
    assert gendistill("teacher", "--width", 16, "--steps", 100, "--output_dir", tmp_path / "teacher") == 0
    assert gendistill("distill", "--method", "random", "--ipc", 6, "--output_dir", tmp_path / "pool") == 0
    assert "validation images right" not in capsys.readouterr().out  # of real images
    teacher = ("--teacher", tmp_path / "teacher")
    noise = ("--method", "wmdd", "--wmdd.start", "noise", "--wmdd.steps", 1, "--ipc", 2)
    assert gendistill("distill", *noise, *teacher, "--output_dir", tmp_path / "noise") == 0
    said = capsys.readouterr().out
    assert "ipc-2: a ConvNet with instance norm, trained on it, gets" in said
    assert "Worse than random real images." in said
    pool = tmp_path / "pool" / "ipc-6"
    assert gendistill("refine", pool, *teacher, "--ipc", "2", "--steps", 3, "--output_dir", tmp_path / "refined") == 0
    assert "on its images before" in capsys.readouterr().out
    assert read_manifest(tmp_path / "refined" / "ipc-2")["validation"].keys() == {"set", "start", "random"}
    options = ("--ipc", "2", "--steps", 3, "--validate", "false", "--output_dir", tmp_path / "quiet")
    assert gendistill("refine", pool, *teacher, *options) == 0
    assert "validation images right" not in capsys.readouterr().out
    assert "validation" not in read_manifest(tmp_path / "quiet" / "ipc-2")
    again = ("--ipc", "1", "--steps", 3, "--validate", "false", "--output_dir", tmp_path / "again")
    assert gendistill("refine", tmp_path / "refined" / "ipc-2", *teacher, *again) == 0
    for name in ("ipc-1", "selected/ipc-1"):  # of other images than those that were compared
        assert "validation" not in read_manifest(tmp_path / "again" / name)
    same = [SurrogateSet.load(tmp_path / name / "ipc-2") for name in ("quiet", "refined")]
    assert torch.equal(same[0].images, same[1].images)
