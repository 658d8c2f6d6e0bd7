"""Faults made on purpose, from `gendistill evaluate` to the words of the report's page."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.seeding import torch_rng
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill

pytestmark = pytest.mark.slow

OPTIONS = ("--runs", 3, "--steps", 2, "--width", 4, "--baseline_cache", "null", "--baselines", '["random"]')


def faulty(data: RealData) -> dict[str, SurrogateSet]:
    """By name, sets of 10 images a class; the first is without fault."""
    drawn = distill(data, "random", 10, seed=4)
    images, labels = drawn.images, drawn.labels
    leaked = images.clone()
    leaked[30:35] = data.test.images[data.test.of_class(3)[:5]]
    shuffled = labels[torch.randperm(100, generator=torch_rng(0, "shuffled"))]
    contents = {
        "good": (images, labels),
        "missing": (images[labels != 4], labels[labels != 4]),
        "shuffled": (images, shuffled),
        "leaked": (leaked, labels),
    }
    return {
        name: SurrogateSet(x, y, data.classes, {"method": name, "stage": None, "stages": []})
        for name, (x, y) in contents.items()
    }


@pytest.fixture(scope="module")
def page(digits: RealData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of an evaluation of all of them, with runs of white space as one space."""
    folder = tmp_path_factory.mktemp("faults")
    for name, made in faulty(digits).items():
        made.save(folder / name)
    out = folder / "out"
    words = [str(w) for w in ("evaluate", "--surrogate", *(folder / n for n in faulty(digits)), *OPTIONS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gendistill", *words, "--output_dir", str(out)])  # which is recorded
        assert gendistill(*sys.argv[1:]) == 0
    assert gendistill("report", out) == 0
    return re.sub(r"\s+", " ", (out / "report.html").read_text(encoding="utf-8"))


def alerts(page: str, name: str) -> list[str]:
    return re.findall(rf'role="alert"><b>{name}, IPC \d+:</b> (.*?)</p>', page)


def test_a_missing_class_is_said_above_the_verdict_and_its_cells_are_empty(page: str) -> None:
    (said,) = alerts(page, "missing")
    assert said.startswith("Classes without any image: 1 of 10 (")
    assert page.index(said) < page.index("<h1>")
    assert 'alt="3, missing"' in page
    assert 'alt="4, missing"' not in page
    assert "no image</span>" in page


def test_shuffled_labels_are_said(page: str) -> None:
    (said,) = alerts(page, "shuffled")
    assert said.startswith("The labels look shuffled: a classifier of the real images agrees with ")


def test_leaked_test_images_are_said_and_shown(page: str) -> None:
    (said,) = alerts(page, "leaked")
    assert said.startswith("Copies of test images, ")
    assert "5 of 100 images" in said
    assert "5 are copies of test images, which the set must not have seen" in page
    assert page.count("a copy of a test image</b>") == 5


def test_nothing_is_said_of_a_set_without_fault(page: str) -> None:
    assert alerts(page, "good") == []


def test_the_network_that_the_evaluation_trained_looks_at_the_sets(page: str) -> None:
    assert "difference of the reference network features" in page
    assert "in which the reference network features of those training images vary most" in page
    assert page.count("The reference network was trained on the real images by the evaluation.") == 2
    for head in ("KID (MMD²)<small>lower is better", "coverage<small>higher is better", "label agreement<small>"):
        assert head in page, head
