"""LRS and ARS by hand, their range and direction, and what is said when a row is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gendistill.evaluation.scores import augmentation_robust, label_robust, robust, scores
from gendistill.evaluation.summary import row_label
from gendistill.report.terminal import score_table

fractions = st.floats(0, 1)


def test_check_values() -> None:
    assert label_robust(full=0.86, hard=0.49, made=0.49, random=0.31) == pytest.approx(0.230, abs=5e-4)
    assert label_robust(full=0.60, hard=0.58, made=0.58, random=0.30) == pytest.approx(0.328, abs=5e-4)
    assert robust(0) == pytest.approx(0.269, abs=5e-4)
    assert augmentation_robust(0.5, 0.5, 0.7, 0.7) == robust(0)


def test_the_ends_of_the_range() -> None:
    assert label_robust(full=1, hard=0, made=0, random=1) == 0
    assert label_robust(full=0, hard=1, made=1, random=0) == pytest.approx(1)
    assert augmentation_robust(1, 0, 1, 0) == pytest.approx(1)
    assert augmentation_robust(0, 1, 0, 1) == 0


@given(fractions, fractions, fractions, fractions)
def test_scores_stay_between_0_and_1(a: float, b: float, c: float, d: float) -> None:
    for score in (label_robust, augmentation_robust):
        assert -1e-12 <= score(a, b, c, d) <= 1 + 1e-12


@given(fractions, fractions, fractions, fractions, st.floats(0, 1))
def test_scores_rise_with_the_set_and_fall_with_what_it_is_measured_by(
    a: float, b: float, c: float, d: float, more: float
) -> None:
    for score, directions in ((label_robust, (-1, 1, 1, -1)), (augmentation_robust, (1, -1, 1, -1))):
        values = [a, b, c, d]
        for i, direction in enumerate(directions):
            raised = [*values[:i], max(values[i], more), *values[i + 1 :]]
            assert direction * (score(*raised) - score(*values)) >= -1e-12


def test_per_cent_is_refused() -> None:
    with pytest.raises(ValueError, match="not per cent"):
        label_robust(86.0, 49.0, 49.0, 31.0)
    with pytest.raises(ValueError, match="not per cent"):
        augmentation_robust(0.5, 0.4, 0.5, math.nan)


def row(method: str, accuracy: list[float], labels: str = "hard", **others: Any) -> dict[str, Any]:
    return {
        "method": method, "stage": None, "ipc": 10, "labels": labels, "augment": False, "network": "convnet",
        "recipe": None if labels == "hard" else "one recipe", "space": None, "set": None,
        "accuracy": accuracy, "mean": float(np.mean(accuracy)), **others,
    }  # fmt: skip


FULL = row("full", [0.85, 0.87], ipc=None)
RANDOM = row("random", [0.30, 0.32, 0.9])
MADE = row("dm", [0.48, 0.50], set="a")
SOFT_RANDOM = row("random", [0.50, 0.52], "soft")
SOFT = row("dm", [0.60, 0.64], "soft", set="a")


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = scores(rows)
    return found


def test_a_hard_row_is_scored_by_its_means_and_its_paired_runs() -> None:
    random = row("random", [0.30, 0.32])
    lrs = only([FULL, random, MADE])["lrs"]
    assert lrs["score"] == pytest.approx(label_robust(0.86, 0.49, 0.49, 0.31))
    assert (lrs["hlr"], lrs["ior"]) == (pytest.approx(0.37), pytest.approx(0.18))
    runs = [label_robust(0.85, 0.48, 0.48, 0.30), label_robust(0.87, 0.50, 0.50, 0.32)]
    assert lrs["runs"] == pytest.approx(runs)
    assert lrs["std"] == pytest.approx(np.std(runs, ddof=1))
    unpaired = only([FULL, RANDOM, MADE])["lrs"]
    third = label_robust(0.85, 0.48, 0.48, 0.9)  # the other rows begin again
    assert unpaired["runs"] == pytest.approx([*runs, third])
    assert unpaired["ior"] == pytest.approx(0.49 - RANDOM["mean"])


def test_runs_are_paired_by_set_and_a_shorter_row_begins_again() -> None:
    full, random = row("full", [0.9], ipc=None), row("random", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    made = row("dm", [0.50, 0.60, 0.51, 0.61, 0.52], set=["a", "b"], synthesis_seeds=2)  # a b a b a
    beside = [0.50, 0.60, 0.51, 0.61, 0.52, 0.60]  # the sixth run is of b, which begins again
    wanted = [label_robust(0.9, m, m, r) for m, r in zip(beside, random["accuracy"], strict=True)]
    assert only([full, random, made])["lrs"]["runs"] == pytest.approx(wanted)


def test_a_soft_row_is_held_against_its_hard_row_and_random_images_with_the_same_labels() -> None:
    entries = scores([FULL, RANDOM, MADE, SOFT_RANDOM, SOFT])
    assert [e["labels"] for e in entries] == ["hard", "soft"]
    lrs = entries[1]["lrs"]
    assert lrs["score"] == pytest.approx(label_robust(0.86, 0.49, 0.62, 0.51))
    assert entries[1]["missing"] == ["ARS: no rows both with and without augmentation"]


def test_the_hard_row_is_that_of_the_same_set() -> None:
    other = row("dm", [0.1, 0.1], set="b")
    entries = {e["set"]: e for e in scores([FULL, RANDOM, other, MADE, SOFT_RANDOM, SOFT]) if e["labels"] == "soft"}
    assert entries["a"]["lrs"]["hlr"] == pytest.approx(0.86 - 0.49)
    relabelled = {**SOFT, "set": "c"}  # two sets have its name: neither is taken for it
    found = scores([FULL, RANDOM, other, MADE, SOFT_RANDOM, relabelled])[-1]
    assert found["lrs"]["hlr"] is None
    assert found["lrs"]["score"] is None
    assert found["lrs"]["ior"] == pytest.approx(0.11)
    alone = scores([FULL, RANDOM, MADE, SOFT_RANDOM, relabelled])[-1]
    assert alone["lrs"]["hlr"] == pytest.approx(0.37)


@pytest.mark.parametrize(
    ("rows", "reason", "known"),
    [
        ([RANDOM, MADE], "all real images", "ior"),
        ([FULL, MADE], "random real images", "hlr"),
        ([FULL, {**RANDOM, "space": "equal bytes"}, MADE], "random real images", "hlr"),
        ([FULL, {**RANDOM, "ipc": 1}, MADE], "random real images", "hlr"),
        ([{**FULL, "network": "resnet18"}, RANDOM, MADE], "all real images", "ior"),
        ([{**FULL, "augment": True}, RANDOM, MADE], "all real images", "ior"),
    ],
)
def test_a_missing_row_gives_null_and_a_reason(rows: list[dict[str, Any]], reason: str, known: str) -> None:
    found = only(rows)
    assert found["lrs"]["score"] is None
    assert found["lrs"]["std"] is None
    assert found["lrs"][known] is not None
    assert any(reason in sentence and sentence.startswith("LRS") for sentence in found["missing"])


def test_ars_needs_rows_with_and_without_augmentation() -> None:
    on = [{**r, "augment": True, "accuracy": [a + 0.05 for a in r["accuracy"]], "mean": r["mean"] + 0.05}
          for r in (FULL, row("random", [0.3, 0.3]), MADE)]  # fmt: skip
    off = [FULL, row("random", [0.25, 0.25]), MADE]
    found = only([*on, *off])
    assert found["ars"]["score"] == pytest.approx(augmentation_robust(0.54, 0.35, 0.49, 0.25))
    assert (found["ars"]["augmented"], found["ars"]["plain"]) == (pytest.approx(0.19), pytest.approx(0.24))
    assert len(found["ars"]["runs"]) == 2
    assert found["missing"] == []
    assert found["lrs"]["augment"] is False  # whatever their order
    assert found["lrs"]["score"] == pytest.approx(label_robust(0.86, 0.49, 0.49, 0.25))
    assert only(on)["ars"] is None
    assert only(on)["lrs"]["augment"] is True
    lacking = only([on[0], on[2], *off])
    assert lacking["ars"]["score"] is None
    assert any("augmentation on" in sentence for sentence in lacking["missing"])


def test_random_and_full_have_no_score_and_coresets_have_one_each() -> None:
    kmeans = [row("kmeans", [0.4, 0.42], space=space) for space in ("pixels", "teacher features")]
    assert [e["space"] for e in scores([FULL, RANDOM, *kmeans])] == ["pixels", "teacher features"]
    assert scores([FULL, RANDOM]) == []


def test_a_set_that_somebody_drew_at_random_is_a_set() -> None:
    drawn = row("random", [0.5, 0.6], set="a")
    (found,) = scores([drawn, FULL, RANDOM])
    assert found["lrs"]["ior"] == pytest.approx(0.55 - RANDOM["mean"])
    relabelled = scores([FULL, RANDOM, SOFT_RANDOM, drawn, row("random", [0.7, 0.8], "soft", set="b")])[1]
    assert relabelled["lrs"]["hlr"] == pytest.approx(0.86 - 0.55)


def test_the_table_is_shown_where_it_says_something_new() -> None:
    plain = [FULL, RANDOM, MADE]
    assert score_table({"scores": scores(plain)}) == ""
    text = score_table({"scores": scores([*plain, SOFT_RANDOM, SOFT])})
    assert "higher is better; 0.269 is alpha = 0" in text
    assert f"{label_robust(0.86, 0.49, 0.62, 0.51):.3f}" in text
    assert "one recipe" in text
    assert "no rows both with and without augmentation" in text
    assert score_table({}) == ""  # written before there were scores


def test_a_refined_coreset_is_not_called_by_its_start():
    rows = [{"method": "random", "stage": stage} for stage in (None, "select", "refined")]
    assert [row_label(row) for row in rows] == [
        "random real images",
        "random real images, selected",
        "random real images, refined",
    ]
