"""Results of evaluations: in memory, as files, as tables and as pages."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import gendistill as gd
from gendistill.config import Continual, EvaluateConfig
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError
from gendistill.evaluation.result import ContinualEvaluation, Evaluation
from gendistill.evaluation.summary import without_twins
from gendistill.surrogate.set import SurrogateSet

pytestmark = pytest.mark.usefixtures("short_reference")

QUICK: dict[str, Any] = {"runs": 3, "steps": 3, "width": 8, "baseline_cache": None}
LOADS = r"<script|<link|@import|url\(|(src|href)=\"https?:"


@pytest.fixture(scope="module")
def made(digits: RealData) -> SurrogateSet:
    return gd.distill(digits, "herding", 2)


@pytest.fixture(scope="module")
def result(digits: RealData, made: SurrogateSet) -> Evaluation:
    return gd.evaluate(digits, [made], EvaluateConfig(**QUICK, features="trained"))


@pytest.fixture(scope="module")
def continual(digits: RealData, made: SurrogateSet) -> ContinualEvaluation:
    return gd.evaluate_continual(digits, [made], EvaluateConfig(**QUICK, task=Continual(steps=2)))


@pytest.fixture(params=["result", "continual"])
def either(request: pytest.FixtureRequest) -> Evaluation | ContinualEvaluation:
    return request.getfixturevalue(request.param)


def test_a_record_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"no content of continual\.json: it lacks classes"):
        ContinualEvaluation.from_dict({"data": {}, "rows": []})


@pytest.mark.slow
def test_what_is_saved_loads_again_from_the_folder_or_the_file(
    either: Evaluation | ContinualEvaluation, tmp_path: Path
) -> None:
    path = either.save(tmp_path / "new" / "folder")
    for place in (path, path.parent, str(path)):
        assert json.dumps(type(either).load(place).to_dict()) == json.dumps(either.to_dict())
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([either.JSON, either.CSV])
    (tmp_path / "evaluation").mkdir()
    path.rename(tmp_path / "evaluation" / path.name)  # as in the folder of a run
    assert type(either).load(tmp_path).rows == either.rows


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not an evaluation: it has no summary\.json"):
        Evaluation.load(tmp_path)
    for text in ("{", "[]", "{}", '{"rows": 1, "data": {}}'):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(ArtifactError, match="evaluation"):
            Evaluation.load(tmp_path)


def test_a_summary_of_an_older_version_loads(result: Evaluation) -> None:
    old = {key: result[key] for key in ("protocol", "data", "rows")}
    found = Evaluation.from_dict({**old, "something": "else"})
    assert found.rows == result.rows
    assert (found.scores, found.sets, found.findings, found.seed) == ([], {}, [], 0)


def test_it_is_a_mapping_with_the_keys_of_the_file(result: Evaluation) -> None:
    assert list(result) == list(result.to_dict())
    assert result["rows"] is result.rows
    assert result.get("nothing") is None
    assert len(result) == 11
    assert "rows" in result


def test_the_pandas_table_has_the_lines_and_columns_of_the_csv_file(
    either: Evaluation | ContinualEvaluation, tmp_path: Path
) -> None:
    frame = either.to_pandas()
    with (either.save(tmp_path).parent / either.CSV).open(newline="") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    assert list(frame.columns) == reader.fieldnames == list(either.COLUMNS)
    assert len(frame) == len(lines)
    for name in ("mean", "std", "low", "high"):
        assert frame[name].dtype == float
        assert frame[name].tolist() == pytest.approx([float(line[name] or "nan") for line in lines], nan_ok=True)
    assert ["" if pd.isna(ipc) else str(ipc) for ipc in frame["ipc"]] == [line["ipc"] for line in lines]


def test_interval_ends_are_columns(result: Evaluation) -> None:
    frame = result.to_pandas()
    row = next(row for row in result.rows if row["set"])
    line = frame[frame["method"] == "herding"].iloc[-1]
    assert [line["low"], line["high"]] == row["ci95_vs_random"]
    assert line["runs"] == len(row["accuracy"]) == 3
    assert pd.isna(frame["low"][0])  # the reference


def test_a_set_that_a_baseline_repeats_is_shown_once(result: Evaluation) -> None:
    own = next(row for row in result.rows if row["set"])
    twin = {**own, "set": None, "verdict": "baseline"}
    found = replace(result, rows=[twin, *result.rows])
    assert gd.table(found) == gd.table(result)
    assert found._repr_html_() == result._repr_html_()
    assert found.to_pandas().shape[0] == result.to_pandas().shape[0] + 1  # the numbers are all there
    other = replace(result, rows=[{**twin, "accuracy": [0.5, 0.5, 0.5]}, *result.rows])
    assert gd.table(other) != gd.table(result)


def test_the_balanced_accuracy_stands_beside_where_test_classes_differ(result: Evaluation) -> None:
    assert "balanced" not in gd.table(result)
    assert "balanced" not in result._repr_html_()
    counts = {**result.data["counts"], "test": [60, 30]}
    rows = [{**row, "per_class": [1.0, 0.0], "mean": 2 / 3, "std": 0.0} for row in result.rows[:1]]
    found = replace(result, rows=rows, data={**result.data, "counts": counts})
    text = gd.table(found)
    assert re.search(r"accuracy %  balanced .*\n.* 66\.7 ±  0\.0 {6}50\.0 ", text)
    assert max(map(len, text.splitlines())) <= 100
    assert "<td>50.0</td>" in found._repr_html_()


def test_a_notebook_shows_a_table_and_names_are_escaped(result: Evaluation, continual: ContinualEvaluation) -> None:
    rows = [{**row, "name": "<script>alert(1)</script>"} for row in result.rows if row["set"]]
    page = replace(result, rows=rows, protocol="<b>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<p>Protocol &lt;b&gt; on digits, seed 0</p>" in page
    assert re.search(r"<td>\d+\.\d ± \d+\.\d</td>", page)
    assert re.search(r"<td>[+-]\d+\.\d to [+-]\d+\.\d</td>", page)
    page = result._repr_html_()
    assert page.count("<tr>") == len(without_twins(result.rows)) < len(result.rows)  # one baseline is the set itself
    assert "&lt;NA&gt;" not in page  # all real images have no IPC
    page = continual._repr_html_()
    assert "<th>5 classes</th>" in page
    assert "<td>k-means (pixels)</td>" in page


def test_the_repr_is_short(result: Evaluation, continual: ContinualEvaluation) -> None:
    assert repr(result) == f"Evaluation(protocol='gendistill', data='digits', seed=0, {len(result.rows)} rows)"
    assert repr(continual) == "ContinualEvaluation(protocol='gendistill', data='digits', seed=0, 3 rows)"


def test_a_page_is_written_with_or_without_images(
    result: Evaluation, digits: RealData, made: SurrogateSet, tmp_path: Path
) -> None:
    alone = result.report(tmp_path / "alone.html").read_text()
    assert not re.search(LOADS, alone)
    assert f"{100 * result.rows[-1]['mean']:.1f}" in alone
    shown = result.report(tmp_path / "shown.html", data=digits, sets=[made]).read_text()
    assert not re.search(LOADS, shown)
    assert shown.count("<img") > alone.count("<img")


def test_a_page_shows_the_steps(continual: ContinualEvaluation, tmp_path: Path) -> None:
    page = continual.report(tmp_path / "steps.html").read_text()
    assert not re.search(LOADS, page)
    assert "10 classes in 2 steps" in page


def test_the_table_for_a_terminal_takes_the_result(result: Evaluation) -> None:
    text = gd.table(result)
    assert all(f"{100 * row['mean']:5.1f} ± {100 * row['std']:4.1f}" in text for row in result.rows)
