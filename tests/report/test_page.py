"""The report of small run folders: its words, its pictures, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gendistill.config.commands import ReportCommand
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError
from gendistill.evaluation.baselines import Baselines
from gendistill.evaluation.copies import CopyCheck
from gendistill.networks.factories import build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.report.charts import ASIDE, chart, ticks
from gendistill.report.formatting import CELL
from gendistill.report.images import gallery
from gendistill.report.nearest import closest_of, product_of_run
from gendistill.report.page import write_evaluation_page, write_report
from gendistill.report.results import EvaluatedRun, merge_rows, order_rows
from gendistill.report.sets import load_sets
from gendistill.stages.evaluate import EvaluateConfig
from gendistill.stages.tools import main_report
from tests.report.summaries import make_data, make_run, make_set, make_summary, write_images


@pytest.fixture
def data() -> RealData:
    return make_data()


def text_of(run: Path, data: RealData) -> str:
    """The page, with runs of white space as one space and non-breaking hyphens as plain ones."""
    path = write_report(run, data)
    assert path == run / "report.html"
    assert not list(run.glob("*.partial"))
    return re.sub(r"\s+", " ", path.read_text(encoding="utf-8")).replace("‑", "-")


def test_page_is_complete_and_loads_nothing(tmp_path: Path, data: RealData) -> None:
    page = text_of(make_run(tmp_path / "run", data), data)
    assert "http:" not in page
    assert "https:" not in page
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert not re.search(r"url\(|@import|<script|<link", page)
    for expected in ("2023-11-1", "IPC 2", "1 min 01 s", "2 min 02 s", "−50.0 %", "87.5", "gendistill run",
                     "all real images"):  # fmt: skip
        assert expected in page, expected


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [
        (
            {"train": 1.0, "validation": 0.875},
            "recognises 87.5 % of the validation images and 100.0 % of the ",
        ),
        ({"train": 1.0}, "The teacher that guided it recognises 100.0 % of the training images."),
        ({}, ""),
    ],
)
def test_a_teacher_is_described_by_the_splits_it_was_scored_on(
    accuracy: dict[str, float], says: str, tmp_path: Path, data: RealData
) -> None:
    run = make_run(tmp_path / "run", data)
    place = run / "teacher" / "stage.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"accuracy": accuracy}))
    page = text_of(run, data).replace("&thinsp;", " ").replace("\u2009", " ")
    assert says in page
    assert ("that guided it" in page) == bool(accuracy)


def test_verdict_says_what_the_intervals_say(tmp_path: Path, data: RealData) -> None:
    page = text_of(make_run(tmp_path / "run", data), data)
    assert (
        "<h1>The refined set beats random real images at IPC 1, but not at IPC 2. It beats k-means at IPC 1, but not"
        in page
    )
    assert (
        "At IPC 1 the refined set beats random real images by 17.5 to 22.5 points and beats k-means on pixels" in page
    )
    assert "At IPC 2 the refined set is not better than random real images (−2.5 to +2.5 points)" in page


def test_verdict_says_worse(tmp_path: Path, data: RealData) -> None:
    page = text_of(make_run(tmp_path / "run", data, gain=-0.2, ipcs=(1,)), data)
    assert "<h1>The refined set is worse than random real images at IPC 1. It is worse than k-means at IPC 1." in page
    assert "is worse than random real images by 17.5 to 22.5 points" in page


def test_class_names_are_escaped(tmp_path: Path, data: RealData) -> None:
    page = text_of(make_run(tmp_path / "run", data), data)
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_absent_stages_are_left_out(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    assert "generator, before minimax" not in text_of(run, data)
    make_set(data, 2, "base").save(run / "samples" / "base" / "ipc-2")
    assert "generator, before minimax" in text_of(run, data)


def test_copies_of_training_images_are_counted_and_shown(tmp_path: Path, data: RealData) -> None:
    page = text_of(make_run(tmp_path / "run", data, copies=True), data)
    assert "4 of the 4 images of the refined set at IPC 2 are copies of training images, to the last pixel." in page
    assert "test split are too high" not in page
    (found,) = closest_of(
        product_of_run({2: {"+ refinement": make_set(data, 2, "refined", copies=True)}}), CopyCheck.of(data)
    )
    assert (found.median, found.measured) == (0.0, 4)
    assert [pair.distance for pair in found.pairs] == ["a copy"] * 4
    (clean,) = closest_of(product_of_run({2: {"+ refinement": make_set(data, 2, "refined")}}), CopyCheck.of(data))
    assert clean.copied.startswith("None of the 4 images")
    assert all(pair.distance.endswith(" apart") for pair in clean.pairs)


def test_copies_of_test_and_validation_images_are_named(data: RealData) -> None:
    made = make_set(data, 2, "refined")
    images = torch.cat([data.test.images[:1], data.validation.images[1:2], made.images[2:]])
    (found,) = closest_of(product_of_run({2: {"+ refinement": replace(made, images=images)}}), CopyCheck.of(data))
    assert "1 is a copy of a test image, which the set must not have seen: accuracies on this" in found.copied
    assert "1 is a copy of a validation image" in found.copied
    assert [pair.distance for pair in found.pairs[:2]] == ["a copy of a test image", "a copy of a validation image"]


def test_sets_are_drawn_among_the_real_images_of_the_teacher_s_features(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    assert "the pixels of those training images vary most (PCA)" in text_of(run, data)
    network = build_network("convnet_bn", channels=1, image_size=8, classes=2, width=4)
    spec = {"name": "convnet_bn", "channels": 1, "image_size": 8, "classes": 2, "width": 4}
    Teacher(network, collect_statistics(network, data.train, 2), data.classes, spec).save_pretrained(run / "teacher")
    page = text_of(run, data)
    assert "Among the real images" in page
    assert "Faint: 24 of the 24 training images." in page
    assert "the teacher features of those training images vary most (PCA)" in page
    assert page.count(": 4 images as dots among those of the real training images") == 3


def test_random_pictures_are_the_first_draw_that_was_judged(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    shown = load_sets(run, data, 2, 3)["random real images"]
    evaluated = Baselines(data, EvaluateConfig(baselines=("random",)), 3).beside(2, 3, [])[0].draws[0]
    assert torch.equal(shown.images, evaluated.images)


@pytest.mark.parametrize(("classes", "size", "channels", "ipc"), [(25, 8, 3, 2), (2, 96, 3, 6), (3, 28, 1, 12)])
def test_large_runs_show_a_sample_and_say_so(classes: int, size: int, channels: int, ipc: int) -> None:
    data = make_data(tuple(f"class {i}" for i in range(classes)), size, channels)
    shown = gallery(ipc, {"+ selection": make_set(data, ipc, "select")})
    expected = {25: "20 of 25 classes", 2: "the first 4 of 6 images of a class, reduced from 96 to 64 pixels",
                3: "the first 10 of 12 images of a class"}  # fmt: skip
    assert shown.notes == expected[classes]
    assert len(shown.rows) == min(classes, 20)
    assert all(p.width <= CELL and p.height <= CELL for _, cells in shown.rows for p in cells)


def test_chart_stays_in_its_frame(data: RealData) -> None:
    summary = make_summary(data, 0.2)
    rows = order_rows(
        merge_rows([EvaluatedRun("run", {**summary, "rows": [{**r, "label": r["method"]} for r in summary["rows"]]})])
    )
    drawn = chart(rows)
    assert drawn is not None
    points = [p for curve in drawn.curves for p in curve.points]
    assert len(points) == 6
    assert all(drawn.top <= p.top <= p.y <= p.bottom <= drawn.bottom for p in points)
    assert [len({p.x for p in curve.points}) for curve in drawn.curves] == [2, 2, 2]
    assert len({p.x for p in points}) == 2  # every curve passes through the true places
    assert max(abs(p.aside) for p in points) <= ASIDE
    assert len({curve.colour for curve in drawn.curves}) == len(drawn.curves)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.513, 0.52), (0.05, 0.93)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    steps = ticks(low, high)
    assert steps[0] <= low <= high <= steps[-1] <= 1
    assert 2 <= len(steps) <= 8


def test_command_reads_the_run_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", write_images(tmp_path / "images"))
    outcome = main_report(ReportCommand(run=run))
    assert str(run / "report.html") in outcome.text
    assert outcome.data["report"] == str(run / "report.html")
    assert (run / "report.html").is_file()


def test_unfinished_or_damaged_runs_are_refused(tmp_path: Path, data: RealData) -> None:
    with pytest.raises(ArtifactError, match=r"not a finished run: it has no config\.yaml"):
        main_report(ReportCommand(run=tmp_path / "nothing"))
    run = make_run(tmp_path / "run", data)
    (run / "evaluation" / "summary.json").unlink()
    with pytest.raises(ArtifactError, match=r"no evaluation/summary\.json.*resume_from_checkpoint"):
        main_report(ReportCommand(run=run))
    (run / "evaluation" / "summary.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        main_report(ReportCommand(run=run))
    (run / "config.yaml").write_text("data: {colour: red}")
    with pytest.raises(ArtifactError, match="does not say which data"):
        main_report(ReportCommand(run=run))


def test_other_images_are_refused(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    with pytest.raises(ArtifactError, match="not those that"):
        write_report(run, replace(data, train=data.test))


def test_the_page_of_an_evaluation_in_memory(tmp_path: Path, data: RealData) -> None:
    summary, made = make_summary(data, 0.2, (2,)), make_set(data, 2, "refined")
    summary["rows"][3]["set"] = made.content_hash()
    alone = write_evaluation_page(summary, tmp_path / "new" / "alone.html").read_text(encoding="utf-8")
    assert "The refined set beats random real images at IPC 2." in alone
    assert "The pictures" not in alone
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["alone.html"]
    page = write_evaluation_page(summary, tmp_path / "page.html", data=data, sets=[made]).read_text(encoding="utf-8")
    for expected in ("The pictures", "Among the real images", "4 images of the refined set at IPC 2"):
        assert expected in re.sub(r"\s+", " ", page), expected
    with pytest.raises(ArtifactError, match="are not those of the evaluation"):
        write_evaluation_page(summary, tmp_path / "other.html", data=replace(data, train=data.test))
    assert not (tmp_path / "other.html").exists()
