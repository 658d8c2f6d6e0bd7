"""`evaluate --task continual` by the command line: its files, its numbers, resume, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gendistill.config import Continual, EvaluateConfig
from gendistill.data.sources import load_data
from gendistill.evaluation.cache import RUNS
from gendistill.evaluation.continual import evaluate_continual
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.result import label_rows
from gendistill.io import WorkFolder
from gendistill.report.page import render_continual
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import TINY, gendistill, messages

COUNTS = [4, 7, 10]


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "herding"
    assert gendistill("distill", "--config", TINY, "--method", "herding", "--ipc", 2, "--output_dir", out) == 0
    return out / "ipc-2"


def command(surrogate: Path, out: Path, *others: object) -> tuple[object, ...]:
    steps = ("--task", "continual", "--continual.steps", 3, "--steps", 4, "--runs", 3)
    return ("evaluate", "--config", TINY, "--surrogate", surrogate, *steps, "--output_dir", out, *others)


@pytest.fixture(scope="module")
def evaluation(surrogate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("continual") / "evaluation"
    assert gendistill(*command(surrogate, out)) == 0
    return out


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "continual.json").read_text())


def rows_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in summary["rows"]]


def test_the_summary_has_the_set_beside_random_and_kmeans(evaluation: Path, surrogate: Path) -> None:
    summary = read(evaluation)
    assert summary["task"] == "continual"
    assert summary["classes"] == COUNTS
    assert [row["method"] for row in summary["rows"]] == ["random", "kmeans", "herding"]
    assert [len(row["average"]["accuracy"]) for row in summary["rows"]] == [5, 3, 3]
    assert summary["rows"][2]["set"] == SurrogateSet.load(surrogate).content_hash()
    assert all(len(row["steps"]) == 3 for row in summary["rows"])
    assert all(len(row["steps"][-1]["ci95_vs_random"]) == 2 for row in summary["rows"][1:])
    assert all(sorted(order) == [str(d) for d in range(10)] for order in summary["orders"])
    assert len({tuple(order) for order in summary["orders"]}) == 5
    assert not (evaluation / RUNS).exists()


def test_the_csv_has_a_line_of_every_step_and_of_their_mean(evaluation: Path) -> None:
    with (evaluation / "continual.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["step"] for line in lines] == ["1", "2", "3", "average"] * 3
    assert [line["classes"] for line in lines[:4]] == ["4", "7", "10", ""]
    row = read(evaluation)["rows"][2]
    assert [float(line["mean"]) for line in lines[8:]] == [s["mean"] for s in (*row["steps"], row["average"])]
    assert float(lines[10]["low"]) == row["steps"][2]["ci95_vs_random"][0]


def test_the_page_shows_every_number_and_loads_nothing(evaluation: Path) -> None:
    page = (evaluation / "continual.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    for row in read(evaluation)["rows"]:
        for found in (*row["steps"], row["average"]):
            assert f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}" in page
    assert re.search(r"<b>IPC 2\.</b> herding \(pixels\) (beats|is (not better|worse) than)", page)
    assert "10 classes in 3 steps" in page


def test_the_table_says_what_holds_after_the_last_step_and_on_average(
    evaluation: Path, surrogate: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (evaluation / "continual.json").read_bytes()
    again = ("--resume_from_checkpoint", "latest", "--baseline_cache", tmp_path)  # another folder changes no number
    assert gendistill(*command(surrogate, evaluation, *again)) == 0  # finished: printed only
    printed = capsys.readouterr().out
    last, average = printed.split("Mean over the steps:")
    assert "After the last of 3 steps, 10 classes:" in last
    for row in read(evaluation)["rows"]:
        assert f"{100 * row['steps'][-1]['mean']:5.1f}" in last
        assert f"{100 * row['average']['mean']:5.1f}" in average
    assert (evaluation / "continual.json").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_evaluation_keeps_its_finished_trainings(
    evaluation: Path, surrogate: Path, tmp_path: Path
) -> None:
    data = load_data(name="digits", max_per_class=20)
    config = EvaluateConfig(task=Continual(steps=3), runs=3, steps=4, width=4)  # as command() says
    made = SurrogateSet.load(surrogate)
    folder = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    whole = evaluate_continual(data, [made], config, folder=folder)
    assert rows_of(whole) == rows_of(read(evaluation))
    lines = (tmp_path / RUNS).read_text().splitlines()
    assert len(lines) == 3 * (5 + 3 + 3)
    kept = [json.dumps([json.loads(line)[0], {"accuracy": 0.125, "seconds": 50.0}]) for line in lines[:6]]
    (tmp_path / RUNS).write_text("\n".join([*kept, '["cut off']))
    resumed = evaluate_continual(data, [made], config, folder=folder)
    again = (tmp_path / RUNS).read_text().splitlines()
    assert again[:6] == kept
    assert [json.loads(line)[0] for line in again] == [json.loads(line)[0] for line in lines]  # each once
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2 * len(lines) - 6
    assert 300 < resumed.rows[0]["seconds"] < 400  # those before, and those of now
    first = resumed["rows"][0]["steps"]
    assert [[a == 0.125 for a in step["accuracy"]] for step in first] == [[True, True, False, False, False]] * 3
    assert rows_of(resumed)[1:][0]["steps"][0]["accuracy"] == whole["rows"][1]["steps"][0]["accuracy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--continual.steps", 11), ["evaluate.continual.steps is 11", "1 to 10"]),
        (("--continual.steps", 0), ["evaluate.continual.steps is 0", "from 1 to"]),
        (("--continual.orders", 0), ["evaluate.continual.orders is 0", "from 1 to"]),
        (("--labels", "soft"), ["evaluate.labels is 'soft'", "hard with task continual"]),
        (("--legacy_best", "true"), ["evaluate.legacy_best is True", "with task continual, which ignores it"]),
        (("--baselines", '["random"]'), ["evaluate.baselines", "with task continual, which ignores it"]),
        (("--features", "trained"), ["evaluate.features is 'trained'", "with task continual, which ignores it"]),
        (("--describe", "false"), ["evaluate.describe is False", "with task continual, which ignores it"]),
        (("--teacher", "somewhere"), ["teacher is 'somewhere'", "task continual"]),
        (("--task", "classification"), ["evaluate.continual", "it is used only with task continual"]),
        (("--task", "magic"), ["magic", "continual"]),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    surrogate: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: tuple[object, ...], words: list[str]
) -> None:
    assert gendistill(*command(surrogate, tmp_path / "out", *options)) == 2
    lines = messages(capsys.readouterr().err)
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines
    assert not list(tmp_path.iterdir())


def test_a_run_evaluates_classification_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gendistill("run", "--config", TINY, "--output_dir", tmp_path / "x", "--evaluate.task", "continual") == 2
    assert "classification in a run" in capsys.readouterr().err


def test_sets_of_one_name_are_numbered_and_drawn_apart(evaluation: Path) -> None:
    summary = read(evaluation)
    made = summary["rows"][2]
    rows = label_rows([*summary["rows"], made, {**made, "ipc": 5}])
    assert [r["label"] for r in rows[2:]] == ["herding (pixels)", "herding (pixels) (2)", "herding (pixels)"]
    page = render_continual({**summary, "rows": rows})
    assert "herding (pixels) (2)" in page
    assert page.count("<figure") == 2  # an IPC each


def test_the_page_names_the_network_and_says_how_long_it_trains(evaluation: Path) -> None:
    summary = read(evaluation)
    rows = label_rows(summary["rows"])

    def said(**settings: Any) -> str:
        page = render_continual({**summary, "rows": rows, "settings": {**summary["settings"], **settings}})
        return " ".join(page.split())

    assert "a fresh convnet is trained for 4 steps on the memory alone" in said()
    assert "is trained for 1,000 epochs on the" in said(**resolve_protocol(EvaluateConfig(protocol="idc")).to_dict())
    table = resolve_protocol(EvaluateConfig(protocol="minimax-hard", network="resnet18")).to_dict()
    assert "a fresh resnet18 is trained for 3,000 to 300 epochs, fewer the larger the IPC, on" in said(**table)


def test_the_page_of_a_summary_without_settings_leaves_out_how_long(evaluation: Path) -> None:
    summary = read(evaluation)
    rows = label_rows(summary["rows"])
    for settings in ({}, {"settings": {}}, {"settings": {"network": ["convnet"]}}):
        whole = {k: v for k, v in summary.items() if k != "settings"} | settings
        page = " ".join(render_continual({**whole, "rows": rows}).split())
        assert "a fresh convnet is trained on the memory alone" in page


def test_one_step_and_many_can_be_drawn(evaluation: Path) -> None:
    summary = read(evaluation)
    for counts in ([10], list(range(1, 101))):
        rows = [{**row, "steps": [row["steps"][-1]] * len(counts)} for row in label_rows(summary["rows"])]
        page = render_continual({**summary, "classes": counts, "rows": rows})
        assert f"{counts[-1]} classes in {len(counts)} step" in page
        assert page.count('text-anchor="middle"') <= 13  # at most 12 ticks and their name


def test_sets_of_other_data_are_refused(surrogate: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(surrogate, copy)
    assert gendistill(*command(copy, tmp_path / "out", "--data.split_seed", 1)) == 2
    assert "test images may be among them" in capsys.readouterr().err
