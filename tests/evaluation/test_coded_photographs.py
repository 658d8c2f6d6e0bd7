"""Photographs in the best image format at the bytes of a set: how many fit, what chooses the format, what is said."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import gendistill as gd
from gendistill import runtime
from gendistill.data.dataset import RealData, Split
from gendistill.errors import ConfigError
from gendistill.evaluation import baselines
from gendistill.evaluation.baselines import Baselines, random_draw
from gendistill.evaluation.coded_photographs import (
    ALIKE,
    LADDER,
    as_stored,
    coded_rows,
    compare_with_coded,
    shared_totals,
)
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.result import Evaluation
from gendistill.evaluation.summary import CODED, RANDOM, Row, is_reference
from gendistill.surrogate.image_formats import Coding

QUICK = gd.EvaluateConfig(
    runs=3, steps=4, width=4, baselines=("random", "kmeans", "coded"), baseline_cache=None, describe=False
)


@pytest.fixture(scope="module")
def digits() -> RealData:
    return gd.load_data(max_per_class=40)


class Judge:
    """Stands for a training: its accuracies are by the number of photographs, or in turn."""

    def __init__(self, accuracy: Any) -> None:
        self.settings, self.device, self.accuracy = resolve_protocol(QUICK), "cpu", accuracy
        self.trained: list[Split] = []

    def run(self, _: str, train: Split, *__: Any, **___: Any) -> dict[str, Any]:
        self.trained.append(train)
        return {"accuracy": self.accuracy(len(self.trained), train), "correct": [], "ece": 0.0}


def real(data: RealData, **changes: Any) -> Baselines:
    return Baselines(data, replace(QUICK, **changes), seed=0)


@pytest.mark.parametrize("total", [5000, 20_000])
def test_as_many_photographs_fit_as_the_bytes_allow(digits: RealData, total: int) -> None:
    (row,) = coded_rows(real(digits, baselines=("random", "coded")), 2, [total], 3, Judge(lambda n, _: n))  # type: ignore[arg-type]
    assert (row.method, row.space, row.ipc) == (RANDOM, CODED, 2)
    coding = Coding.of(LADDER[-1])
    assert row.facts["image_format"] == str(coding) == "avif at quality 80"
    assert len(row.draws) == 5
    count = len(row.draws[0]) // 10
    sizes = []
    for number, draw in enumerate(row.draws):
        plain = random_draw(digits, (count,) * 10, 0, number)
        stored, size = as_stored(plain, coding)
        assert torch.equal(stored.pixels, draw.pixels)
        assert not torch.equal(plain.pixels, draw.pixels)
        sizes.append(size)
    assert max(sizes) <= total
    assert row.facts["bytes"] == {"images": round(sum(sizes) / 5), "labels": 0}
    more = [as_stored(random_draw(digits, (count + 1,) * 10, 0, r), coding)[1] for r in range(5)]
    full = min(digits.train.counts(10))
    assert count == full or max(more) > total


def test_there_is_at_least_one_photograph_of_each_class(digits: RealData) -> None:
    (row,) = coded_rows(real(digits), 1, [10], 3, Judge(lambda n, _: 0.5))  # type: ignore[arg-type]
    assert [len(draw) for draw in row.draws] == [10] * len(row.draws)


@pytest.mark.parametrize("best", [1, 4, len(LADDER) - 1])
def test_the_validation_images_choose_the_format(digits: RealData, best: int) -> None:
    judge = Judge(lambda n, _: float(n == best))
    (row,) = coded_rows(real(digits, baselines=("random", "coded")), 3, [6000], 3, judge)  # type: ignore[arg-type]
    assert len(judge.trained) in (len(LADDER), len(LADDER) - 1)  # PNG and lossless WebP may be the same photographs
    chosen, codings = judge.trained[best - 1], map(Coding.of, LADDER)
    plain = random_draw(digits, (len(chosen) // 10,) * 10, 0, 0)
    same = [str(one) for one in codings if torch.equal(as_stored(plain, one)[0].pixels, chosen.pixels)]
    assert row.facts["image_format"] in same


def test_k_means_takes_the_best_format_and_the_place_if_it_is_better(digits: RealData) -> None:
    judge = Judge(lambda n, train: 0.1 * n)  # the later the better
    (row,) = coded_rows(real(digits), 3, [6000], 3, judge)  # type: ignore[arg-type]
    assert row.method == "kmeans"
    assert row.facts["image_format"] == str(Coding.of(LADDER[-1]))
    assert row.facts["bytes"]["images"] <= 6000
    assert len(row.draws) == 1
    judge = Judge(lambda n, train: 0.1 * n)
    (row,) = coded_rows(real(digits, baselines=("random", "coded")), 3, [6000], 3, judge)  # type: ignore[arg-type]
    assert row.method == RANDOM


def test_a_format_that_pillow_lacks_is_left_out(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    judge = Judge(lambda n, _: 0.01 * n)
    (row,) = coded_rows(real(digits, baselines=("random", "coded")), 2, [5000], 3, judge)  # type: ignore[arg-type]
    assert row.facts["image_format"] == "jpeg at quality 80"


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_sets_of_like_bytes_share_the_row_of_the_smallest(totals: list[int]) -> None:
    found = shared_totals(totals)
    assert set(found) <= set(totals)
    assert min(found) == min(totals)
    assert all(b > ALIKE * a for a, b in pairwise(found))
    assert all(any(one <= total <= ALIKE * one for one in found) for total in totals)


def row(method: str, total: int, accuracy: list[float], space: str | None = None, **more: Any) -> Row:
    shown = None if space or method == RANDOM else f"hash of {method} {total}"
    found: Any = {
        "method": method, "space": space, "ipc": 1, "network": "convnet", "augment": True, "accuracy": accuracy,
        "bytes": {"images": total, "labels": 0}, "set": shown, "labels": "hard", **more,
    }  # fmt: skip
    return found


def test_a_set_is_compared_with_the_most_bytes_that_are_not_more_than_its_own() -> None:
    photographs = [
        row("random", 100, [0.5] * 3, CODED, image_format="webp at quality 20"),
        row("kmeans", 200, [0.75] * 3, CODED, image_format="avif at quality 50"),
    ]
    sets = [row("dm", total, [1.0] * 3) for total in (90, 100, 199, 200, 900)]
    other = row("dm", 150, [1.0] * 3, network="resnet18")
    baseline = row("random", 150, [0.25] * 3)
    found = compare_with_coded([*photographs, *sets, other, baseline])
    assert [r["ci95_vs_coded"] for r in found] == [
        None, None, *[[0.5, 0.5]] * 3, *[[0.25, 0.25]] * 2, None, None
    ]  # fmt: skip
    named = [r.get("coded") for r in found]
    assert named[2] == "random real images stored as webp at quality 20"
    assert named[5] == "k-means stored as avif at quality 50"
    assert compare_with_coded(sets) == sets
    assert not any(map(is_reference, photographs))
    assert is_reference(baseline)


def test_an_evaluation_has_the_row_and_says_how_the_set_compares(digits: RealData, tmp_path: Any) -> None:
    made = gd.distill(digits, "kmeans", 2)
    result = gd.evaluate(digits, made, QUICK)
    (coded,) = [r for r in result.rows if r["space"] == CODED]
    (own,) = [r for r in result.rows if r["set"]]
    assert coded["bytes"]["images"] <= own["bytes"]["images"]
    assert own["ci95_vs_coded"] is not None
    assert own["coded"].endswith(f"stored as {coded['image_format']}")
    assert f"against {own['coded']} in the same bytes: " in " ".join(gd.table(result).split())
    result.save(tmp_path / "evaluation")
    again = Evaluation.load(tmp_path / "evaluation")
    assert again.rows == result.rows
    frame = result.to_pandas()
    assert frame.loc[frame["method"] == "kmeans", "coded_low"].notna().sum() == 1
    assert gd.evaluate(digits, made, QUICK).rows[0]["accuracy"] == result.rows[0]["accuracy"]


def test_the_main_process_waits_for_no_other_while_it_trains(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes exchange is exchanged by all of them, one thing after another."""
    waiting: list[Any] = []

    def exchanged(make: Any) -> Any:
        assert not waiting
        waiting.append(make)
        found = make()
        waiting.clear()
        return found

    monkeypatch.setattr(runtime, "of_main_process", exchanged)
    monkeypatch.setattr(baselines, "of_main_process", exchanged)
    assert coded_rows(real(digits), 2, [5000, 9000], 3, Judge(lambda n, _: 0.01 * n))  # type: ignore[arg-type]


def test_validation_trainings_are_kept_for_other_evaluations(digits: RealData, tmp_path: Any) -> None:
    judge = Judge(lambda n, _: 0.01 * n)
    first = coded_rows(real(digits, baseline_cache=tmp_path), 2, [5000], 3, judge)  # type: ignore[arg-type]
    again = Judge(lambda n, _: 1.0)
    second = coded_rows(real(digits, baseline_cache=tmp_path), 2, [5000], 3, again)  # type: ignore[arg-type]
    assert again.trained == []
    assert [r.facts for r in second] == [r.facts for r in first]


def test_the_default_has_no_such_row() -> None:
    assert "coded" not in gd.EvaluateConfig().baselines
    with pytest.raises(ConfigError, match=r"some of .*coded"):
        gd.EvaluateConfig(baselines=("random", "codec"))
