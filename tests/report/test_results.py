"""What a report makes of rows: merged runs, verdicts, tables, charts and plain data, from hand-made summaries."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from scipy import stats

from gendistill.evaluation.evaluator import seed_spread, with_verdict
from gendistill.evaluation.intervals import row_interval
from gendistill.report import terminal
from gendistill.report.charts import (
    ASIDE,
    chart,
    cost_chart,
    cost_charts,
    log_ticks,
    mean_interval,
    shared_times,
    side_by_side,
)
from gendistill.report.formatting import code, deviation, measure, signed
from gendistill.report.page import as_csv
from gendistill.report.results import (
    EvaluatedRun,
    condition,
    merge_rows,
    order_rows,
    primary,
    products,
    random_of,
    under,
)
from gendistill.report.tables import (
    EXTREMES,
    MeasureCell,
    ablations,
    class_tables,
    findings,
    measures,
    scores,
    sections,
)
from gendistill.report.terminal import table
from gendistill.report.verdicts import elsewhere, headline, label_gains, left_out, verdicts
from tests.report.summaries import RANDOM, make_row

Row = dict[str, Any]
NAMES = {"random": "random real images", "full": "all real images", "kmeans": "k-means"}


def row(method: str, ipc: int | None, gain: float = 0.0, stage: str | None = None, **keys: Any) -> Row:
    """``gain`` above random in every run, give or take a little."""
    noise = (0.0, 0.0, 0.0) if method == "random" else (0.004, -0.004, 0.0)
    accuracy = keys.pop("accuracy", [a + gain + n for a, n in zip(RANDOM, noise, strict=True)])
    made = {**make_row(method, stage, ipc, accuracy, keys.pop("space", None)), "set": None, "recipe": None, **keys}
    name = stage if stage else NAMES.get(method, method)
    return {**made, "label": f"{name} ({made['space']})" if made["space"] else name}


def evaluated_run(name: str, rows: list[Row], given: dict[str, str | None] | None = None, **keys: Any) -> EvaluatedRun:
    labelled = [{**with_verdict(r, rows), "label": r["label"]} for r in rows]
    return EvaluatedRun(
        name, {"protocol": "gendistill", "settings": {"steps": 5}, "rows": labelled, **keys}, given or {}
    )


def rows_of(*runs: EvaluatedRun) -> list[Row]:
    return order_rows(merge_rows(runs))


def test_rows_that_runs_share_are_one_row_and_others_are_distinguished() -> None:
    shared = [row("random", 1), row("kmeans", 1, 0.1, space="pixels")]
    a = evaluated_run("a", [*shared, row("generative", 1, 0.2, "refined", set="x")])
    b = evaluated_run("b", [*shared, row("generative", 1, 0.1, "refined", set="y")])
    found = rows_of(a, b)
    assert [(r["label"], r["runs"]) for r in found] == [
        ("random real images", ["a", "b"]), ("k-means (pixels)", ["a", "b"]),
        ("refined, a", ["a"]), ("refined, b", ["b"]),
    ]  # fmt: skip
    assert [r["noun"] for r in found[2:]] == ["refined set of a", "refined set of b"]
    assert len({r["colour"] for r in found}) == 4


def test_the_same_trainings_and_more_of_them_are_one_row() -> None:
    longer = row("kmeans", 1, accuracy=[0.6, 0.62, 0.61, 0.63])
    found = rows_of(evaluated_run("a", [row("kmeans", 1, accuracy=[0.6, 0.62, 0.61])]), evaluated_run("b", [longer]))
    assert [(r["accuracy"], r["runs"]) for r in found] == [(longer["accuracy"], ["a", "b"])]
    other = row("kmeans", 1, accuracy=[0.6, 0.62, 0.5])
    assert len(rows_of(evaluated_run("a", [other]), evaluated_run("b", [longer]))) == 2


def test_runs_with_other_settings_share_nothing_and_are_not_compared() -> None:
    a = evaluated_run("a", [row("random", 1), row("dm", 1, 0.1)])
    b = evaluated_run("b", [row("random", 1), row("dm", 1, 0.3)], settings={"steps": 50})
    found = rows_of(a, b)
    assert {r["label"] for r in found} == {"random real images", "dm", "random real images, b", "dm, b"}
    assert [v.row["label"] for v in verdicts(found)] == ["dm"]
    assert elsewhere(found) == ["With the settings of b, the dm set b beats random real images at IPC 1."]
    assert [s.title for s in sections(found)] == ["As evaluated in a", "As evaluated in b"]
    runs = evaluated_run(
        "b", [row("random", 1), row("dm", 1, 0.3)], settings={"steps": 5, "runs": 9, "changed": ["runs"]}
    )
    assert {r["settings_number"] for r in rows_of(a, runs)} == {0}


def test_sets_of_one_name_are_distinguished_by_folder_or_hash() -> None:
    both = [row("random", 1), row("dm", 1, 0.1, set="aaaaaaaaaa"), row("dm", 1, 0.2, set="bbbbbbbbbb")]
    named = rows_of(evaluated_run("run", both, {"aaaaaaaaaa": "first", "bbbbbbbbbb": "second"}))
    assert [r["label"] for r in named[1:]] == ["dm, first", "dm, second"]
    assert [r["label"] for r in rows_of(evaluated_run("run", both))[1:]] == ["dm, aaaaaaaa, run", "dm, bbbbbbbb, run"]


def test_a_coreset_that_was_given_is_a_product_and_no_reference() -> None:
    given = row("random", 1, -0.1, set="mine")
    found = rows_of(evaluated_run("run", [row("random", 1), given], {"mine": "subset"}))
    assert [r["label"] for r in products(found)] == ["random real images, subset"]
    assert headline(verdicts(found)) == (
        "The set subset (random real images) is worse than random real images at IPC 1."
    )


def test_the_best_of_several_sets_is_named_and_said_to_be_chosen() -> None:
    rows = [row("random", 1), row("herding", 1, 0.15), row("kmeans", 1, 0.1), row("dm", 1, 0.1), row("idm", 1, 0.2)]
    (said,) = verdicts(rows_of(evaluated_run("run", rows)))
    assert (said.row["label"], said.among) == ("idm", 2)
    assert said.sentence.startswith(
        "At IPC 1 the idm set beats random real images by 19.0 to 21.0 points and beats herd"
    )
    assert headline([said]).endswith("It beats the best coreset of real images at IPC 1.")


def test_equal_bytes_are_those_of_the_very_row_as_the_evaluation_found_them() -> None:
    rows = [row("random", 1), row("random", 1, 0.1, space="equal bytes"), row("random", 1, 0.3, space="equal bytes"),
            row("dm", 1, 0.2), row("idc", 1, 0.24, ci95_vs_equal_bytes=[-0.06, -0.04])]  # fmt: skip
    (said,) = verdicts(rows_of(evaluated_run("run", rows)))
    assert "but is worse than random real images of equal bytes by 4.0 to 6.0 points." in said.sentence
    (plain,) = verdicts(rows_of(evaluated_run("run", rows[:4])))
    assert "equal bytes" not in plain.sentence


def test_photographs_in_the_best_format_are_in_the_verdict_and_in_the_headline() -> None:
    coded = {"space": "equal bytes, coded", "image_format": "webp at quality 20"}
    named = {"coded": "k-means stored as webp at quality 20"}
    rows = [row("random", 1), row("kmeans", 1, 0.05), row("kmeans", 1, 0.3, **coded), row("random", 1, 0.4, **coded),
            row("dm", 1, 0.2, ci95_vs_coded=[-0.2, -0.1], **named),
            row("random", 5), row("dm", 5, 0.2, ci95_vs_coded=[0.01, 0.02], **named)]  # fmt: skip
    found = rows_of(evaluated_run("run", rows))
    first, second = verdicts(found)
    assert first.coreset is not None
    assert first.coreset[0] == "k-means"  # of as many images, not of as many bytes
    assert first.sentence.endswith(
        "but is worse than k-means stored as webp at quality 20 in the same bytes by 10.0 to 20.0 points."
    )
    assert second.sentence.endswith(
        "beats k-means stored as webp at quality 20 in the same bytes by 1.0 to 2.0 points."
    )
    assert headline([first, second]).endswith(
        "It beats photographs of the same bytes in the best image format at IPC 5, but not at IPC 1."
    )
    assert random_of(found[-1], found) is found[-2]


def test_soft_rows_have_their_verdict_against_equal_bytes() -> None:
    soft: dict[str, Any] = {"labels": "soft", "recipe": "per_view, T 4"}
    rows = [row("random", 1), row("random", 1, 0.1, space="equal bytes"), row("random", 1, **soft),
            row("dm", 1, 0.2, **soft, ci95_vs_equal_bytes=[0.04, 0.06])]  # fmt: skip
    found = rows_of(evaluated_run("run", rows))
    (said,) = verdicts(found, condition(found[-1]))
    assert said.sentence.endswith("beats random real images of equal bytes by 4.0 to 6.0 points.")


def test_sets_of_uneven_classes_are_compared_with_random_images_of_the_same_numbers() -> None:
    rows = [row("random", 2), row("random", 2, 0.3, counts=[3, 1], space="as dm, 4 images"),
            row("kmeans", 2, 0.5), row("dm", 2, 0.1, counts=[3, 1])]  # fmt: skip
    found = rows_of(evaluated_run("run", rows))
    (said,) = verdicts(found)
    assert random_of(found[-1], found) is found[1]
    assert said.coreset is None


def test_the_best_sets_of_different_sizes_may_be_different_ones() -> None:
    rows = [row("random", 1), row("random", 5), row("dm", 1, 0.2), row("dm", 5), row("idm", 1), row("idm", 5, 0.1)]
    said = verdicts(rows_of(evaluated_run("run", rows)))
    assert [v.row["label"] for v in said] == ["dm", "idm"]
    assert headline(said) == "The best set at each IPC beats random real images at every IPC."


def conditions() -> list[Row]:
    """dm on two networks, with augmentation, and with soft labels."""
    pairs = [({}, 0.2), ({"network": "resnet18"}, 0.0), ({"augment": True}, 0.1)]
    pairs += [({"labels": "soft", "recipe": "per_image, T 4", "accuracy": None}, 0.0)]
    found = []
    for keys, gain in pairs:
        random = {**keys, "accuracy": [a + 0.3 for a in RANDOM]} if "labels" in keys else keys
        found += [row("random", 1, **random), row("dm", 1, gain, **(random if "labels" in keys else keys))]
    rows = [{**r, "label": r["label"]} for r in found]
    for r in rows:
        same = [x for x in rows if all(x[k] == r[k] for k in ("network", "augment", "labels"))]
        r |= {k: v for k, v in with_verdict(r, same).items() if k in ("ci95_vs_random", "verdict")}
    return rows


def run_of(rows: list[Row]) -> list[Row]:
    return rows_of(EvaluatedRun("run", {"rows": rows}))


def test_other_networks_augmentation_and_labels_have_a_sentence_each() -> None:
    rows = run_of(conditions())
    assert [v.row["network"] for v in verdicts(rows)] == ["convnet"]
    assert elsewhere(rows) == [
        "On resnet18, the dm set is not better than random real images at IPC 1.",
        "With augmentation, the dm set beats random real images at IPC 1.",
        "With soft labels (per_image, T 4), the dm set is not better than random real images at IPC 1.",
    ]
    assert label_gains(rows) == [
        "Labels alone (per_image, T 4) take random real images from 52.0 to 82.0\u00a0% at IPC 1."
    ]


def test_networks_stand_side_by_side_and_soft_labels_by_themselves() -> None:
    hard, soft = sections(run_of(conditions()))
    assert (hard.title, soft.title) == ("", "per_image, T 4")
    assert [len(group) for group in hard.groups] == [2]
    assert hard.matrix is not None
    assert hard.matrix.heads == ["convnet, not augmented", "resnet18, not augmented", "convnet, augmented"]
    ((ipc, lines),) = hard.matrix.groups
    assert (ipc, [len(line.cells) for line in lines]) == (1, [3, 3])
    assert lines[1].cells[1]["verdict"] == "not better than random"
    assert soft.matrix is None


def test_every_step_has_its_paired_gain() -> None:
    rows = [row("random", 1)] + [
        {**row("generative", 1, 0.0, stage), "accuracy": [a + gain + n for a, n in zip(RANDOM, noise, strict=True)]}
        for stage, gain, noise in (
            ("base", 0.0, (0, 0, 0)),
            ("samples", 0.1, (0.01, -0.01, 0)),
            ("refined", 0.3, (0, 0, 0)),
        )
    ]
    (found,) = ablations(rows_of(evaluated_run("run", rows)))
    names = [name for name, _ in found.steps]
    assert names[0] == "minimax fine-tuning of the generator"
    assert names[1:] == ["sampled set to refined set", "all of it, set before minimax to refined set"]
    (gain,) = found.steps[0][1]
    assert gain is not None
    half = 4.302652729911275 * 0.01 / 3**0.5  # t of 2 degrees of freedom, differences 0.11, 0.09, 0.10
    assert (gain.low, gain.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert [gains[0].middle for _, gains in found.steps if gains[0]] == pytest.approx([0.1, 0.2, 0.3])
    assert ablations(rows_of(evaluated_run("run", rows[:2]))) == []


def pooled(sets: list[float], stage: str | None = None, runs: int = 5) -> Row:
    """Of several synthesis seeds with these accuracies, whose trainings differ by a hundredth of a point."""
    accuracy = [sets[r % len(sets)] + 0.0001 * (r // len(sets)) for r in range(runs * len(sets))]
    within, between = seed_spread(accuracy, len(sets))
    spread = {"synthesis_seeds": len(sets), "std_within": within, "std_between": between}
    return row("dm", 1, stage=stage, accuracy=accuracy, set=["x"] * len(sets), **spread)


def test_sets_of_several_synthesis_seeds_are_pairs_and_their_runs_are_not() -> None:
    found, plain = pooled([0.5, 0.6, 0.7]), row("kmeans", 1, accuracy=[0.55] * 15, space="pixels")
    half = 4.302652729911275 * 0.1 / 3**0.5  # t of 2 degrees of freedom
    expected = pytest.approx((0.0502 - half, 0.0502 + half))
    assert row_interval(found, plain) == expected
    assert row_interval(plain, found) == pytest.approx((-0.0502 - half, -0.0502 + half))
    assert row_interval(found, pooled([0.4, 0.5, 0.6])) == pytest.approx((0.1, 0.1))
    assert mean_interval(found) == pytest.approx((0.6002 - half, 0.6002 + half))
    assert row_interval(found, {**plain, "accuracy": [0.55, 0.55]}) == expected  # which are gone round


def test_two_rows_of_unlike_many_synthesis_seeds_are_compared_unpaired() -> None:
    found = row_interval(pooled([0.5, 0.6, 0.7]), pooled([0.4, 0.5]))
    expected = stats.ttest_ind([0.5002, 0.6002, 0.7002], [0.4002, 0.5002], equal_var=False).confidence_interval()
    assert found == pytest.approx((expected.low, expected.high))
    assert row_interval(pooled([0.5] * 3), pooled([0.4] * 2)) == pytest.approx((0.1, 0.1))


def test_sentences_and_ablations_of_pooled_rows_are_by_set() -> None:
    rows = [row("random", 1, accuracy=[0.4] * 15), row("kmeans", 1, accuracy=[0.55] * 15, space="pixels"),
            pooled([0.5, 0.6, 0.7])]  # fmt: skip
    (said,) = verdicts(rows_of(evaluated_run("run", rows)))
    assert "the dm set (3 synthesis seeds) is not better than random" in said.sentence
    assert "is not better than k-means on pixels" in said.sentence
    steps = [{**pooled(sets, stage), "method": "generative"} for stage, sets in
             (("samples", [0.5, 0.5, 0.5]), ("refined", [0.5, 0.6, 0.7]))]  # fmt: skip
    ((_, (gain,)),) = ablations(rows_of(evaluated_run("run", [rows[0], *steps])))[0].steps
    assert gain is not None
    assert gain.word == "not better"
    assert gain.high - gain.low == pytest.approx(2 * 4.302652729911275 * 0.1 / 3**0.5)


def test_costs_are_drawn_in_their_order_and_written_as_a_table() -> None:
    rows = [row("random", 1)] + [
        row("dm", ipc, 0.1, synthesis_seconds=seconds, bytes={"images": 1000 * ipc, "labels": 24})
        for ipc, seconds in ((1, 2.0), (5, 20.0), (10, 200.0))
    ]
    found = rows_of(evaluated_run("run", rows))
    drawn = cost_chart(found, "seconds")
    assert drawn is not None
    x = [p.x for curve in drawn.curves for p in curve.points]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.05)
    assert drawn.left < x[0] < x[2] < drawn.right
    assert [(line.name, line.y) for line in drawn.levels] == [("random real images, IPC 1", drawn.levels[0].y)]
    assert drawn.top < drawn.levels[0].y < drawn.bottom
    assert drawn.table[0] == ("random real images", "1", "none", "52.0 ± 2.0")
    assert [line[:3] for line in drawn.table[1:]] == [("dm", "1", "2 s"), ("dm", "5", "20 s"), ("dm", "10", "3.33 min")]
    stored = cost_chart(found, "bytes")
    assert stored is not None
    assert [line[2] for line in stored.table] == ["1.02 kB", "5.02 kB", "10 kB"]
    assert cost_chart(rows_of(evaluated_run("run", rows[:1])), "seconds") is None


def test_bytes_have_a_chart_where_they_tell_more_than_the_images_per_class() -> None:
    rows = [row("random", 1, bytes={"images": 100, "labels": 0}), row("dm", 1, bytes={"images": 120, "labels": 0})]
    assert cost_charts(rows_of(evaluated_run("run", rows))) == []
    rows[1]["bytes"]["labels"] = 40
    (drawn,) = cost_charts(rows_of(evaluated_run("run", rows)))
    assert drawn.title == "Test accuracy by stored bytes"


def test_what_sets_share_is_named_with_its_time() -> None:
    shared = {"generator": 2202.0, "teacher": 33.0}
    rows = [
        row("generative", 1, stage="samples", synthesis_seconds=2300.0, shared_seconds={"generator": 2202.0}),
        row("generative", 1, stage="refined", synthesis_seconds=2400.0, shared_seconds={**shared, "pool": 90.0}),
    ]
    parts = ["training of the generator (36.7 min)", "training of the teacher (33 s)", "sampling of the pool (90 s)"]
    assert shared_times(rows_of(evaluated_run("run", rows))) == (parts, False)
    rows[0]["shared_seconds"] = {}  # of an older version
    assert shared_times(rows_of(evaluated_run("run", rows)))[1]


def test_names_of_lines_cover_no_point() -> None:
    rows = [row("random", ipc, accuracy=[mean] * 3) for ipc, mean in ((1, 0.5), (5, 0.6), (10, 0.64))]
    rows += [row("dm", ipc, accuracy=[mean] * 3, synthesis_seconds=seconds)
             for ipc, mean, seconds in ((1, 0.51, 1.0), (5, 0.61, 40.0), (10, 0.65, 100.0))]  # fmt: skip
    drawn = cost_chart(rows_of(evaluated_run("run", rows)), "seconds")
    assert drawn is not None
    points = [(p.x, p.y) for curve in drawn.curves for p in curve.points]
    named = [line for line in drawn.levels if line.name]
    assert named
    for line in named:
        ends = line.x + 7 * len(line.name)
        assert not any(line.x < x < ends and line.base - 14 < y < line.base + 3 for x, y in points), line


def test_intervals_stand_side_by_side_and_curves_do_not() -> None:
    rows = [row(f"method {i}", ipc, 0.01 * i) for ipc in (1, 5, 10) for i in range(9)]
    drawn = chart(rows_of(evaluated_run("run", rows)))
    assert drawn is not None
    assert {tuple(p.x for p in curve.points) for curve in drawn.curves} == {tuple(x for x, _ in drawn.x_ticks)}
    asides = [curve.points[0].aside for curve in drawn.curves]
    assert len(set(asides)) == 9
    assert max(map(abs, asides)) == ASIDE
    assert side_by_side([]) == []


def test_numbers_have_no_negative_zero_and_no_rounding_left() -> None:
    assert [signed(v) for v in (-0.00001, 0.0, -0.0004, 0.012)] == ["+0.0", "+0.0", "−0.04", "+1.2"]
    assert [measure(v) for v in (-0.00001, -0.0173, 1.0)] == ["0", "−0.0173", "1"]
    assert [deviation(v) for v in (1.6e-16, 0.0084)] == ["0", "0.0084"]
    assert [terminal._number(v, "±") for v in (1.6e-16, 0.0084, None)] == ["±0", "±0.0084", "-"]
    assert code("look (`gendistill show`) <b>") == "look (<code>gendistill show</code>) &lt;b&gt;"


def test_a_refined_set_in_the_folder_refined_is_called_so_once() -> None:
    rows = [row("random", 1)] + [row("generative", 1, 0.1 * i, "refined", set=name) for i, name in ((1, "a"), (2, "b"))]
    found = rows_of(evaluated_run("run", rows, {"a": "refined", "b": "other"}))
    assert [r["noun"] for r in found[1:]] == ["refined set", "refined set of other"]


def test_the_balanced_accuracy_and_no_twin_of_a_set_are_in_the_tables() -> None:
    own = row("kmeans", 1, 0.1, space="pixels", set="a", per_class=[1.0, 0.0])
    rows = [row("random", 1, per_class=[0.9, 0.2]), {**own, "set": None}, own]
    counts = {"data": {"counts": {"test": [60, 30]}}}
    found = rows_of(evaluated_run("run", rows, {"a": None}, **counts))
    assert [(r["method"], r["given"], r["balanced"]) for r in found] == [
        ("random", False, pytest.approx(0.55)), ("kmeans", True, 0.5)
    ]  # fmt: skip
    assert "balanced" in sections(found)[0].columns
    even = rows_of(evaluated_run("run", rows, {"a": None}, data={"counts": {"test": [60, 50]}}))
    assert "balanced" not in sections(even)[0].columns


def test_random_is_a_band_from_side_to_side() -> None:
    rows = [row("random", 1), row("random", 5), row("dm", 1, 0.1)]
    drawn = chart(rows_of(evaluated_run("run", rows)))
    assert drawn is not None
    assert drawn.band.startswith(f"M{drawn.left:g} ")
    assert f"L{drawn.right:g} " in drawn.band


@pytest.mark.parametrize(("low", "high"), [(0.2, 50.0), (1000.0, 1200.0), (3.0, 3.0), (1.0, 1e9)])
def test_log_ticks_lie_between_their_ends(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert 1 <= len(found) <= 9
    assert all(low * 0.99 <= v <= high * 1.01 for v in found)


def test_of_many_classes_the_best_and_worst_are_shown_beside_random() -> None:
    shares = [i / 100 for i in range(30)]
    rows = rows_of(evaluated_run("run", [row("random", 1, per_class=[0.1] * 30), row("dm", 1, per_class=shares)]))
    (found,) = class_tables(rows[1:], rows, [f"c{i}" for i in range(30)])
    assert [r.name for r in found.best] == [f"c{i}" for i in range(29, 29 - EXTREMES, -1)]
    assert [r.name for r in found.worst][-1] == "c0"
    assert found.left_out == 30 - 2 * EXTREMES
    assert found.worst[-1].gain == pytest.approx(-0.1)


def test_of_many_classes_those_without_test_images_are_neither_best_nor_worst() -> None:
    shares = [None if i % 3 == 0 else i / 100 for i in range(30)]
    rows = rows_of(evaluated_run("run", [row("random", 1, per_class=[0.1] * 30), row("dm", 1, per_class=shares)]))
    (found,) = class_tables(rows[1:], rows, [f"c{i}" for i in range(30)])
    assert [found.best[0].name, found.worst[-1].name, found.left_out] == ["c29", "c1", 18]


def test_measures_that_a_reader_needs_stand_beside_random_and_say_which_way_is_better() -> None:
    kid = {"mean": 0.9, "by_class": [0.9], "random": {"mean": 0.8, "std": 0.01, "by_class": [0.8]}, "reason": "few"}
    agreement = {"mean": 0.97, "random": {"mean": 0.9, "std": None}, "reason": None}
    crowding = {**kid, "reason": "not shown"}
    numbers = {
        "measures": {"kid": kid, "crowding": crowding},
        "labels": {"hard": {"agreement": agreement}},
        "images": 3,
    }
    rows = [row("random", 1), row("dm", 1, set="h")]
    run = evaluated_run("run", rows, sets={"h": numbers})
    found = measures([run], rows_of(run))
    assert found is not None
    assert found.heads == [("KID (MMD²)", "lower is better"), ("label agreement", "best as random")]
    ((ipc, ((label, (first, second)),)),) = found.groups
    assert (ipc, label, first, second) == (1, "dm", MeasureCell(0.9, 0.8, 0.01), MeasureCell(0.97, 0.9, None))
    assert found.reasons == ["few"]
    assert measures([evaluated_run("run", rows)], rows_of(run)) is None


def test_findings_come_once_errors_first_with_the_name_of_their_set() -> None:
    found = [{"set": None, "kind": "k", "text": "careful", "severity": "warning"},
            {"set": "h", "kind": "leak", "text": "leaked", "severity": "error"}]  # fmt: skip
    runs = [evaluated_run(name, [row("random", 1), row("dm", 1, set="h")], findings=found) for name in "ab"]
    found = findings(runs, rows_of(*runs))
    assert [(f.error, f.of, f.text) for f in found] == [(True, "dm, IPC 1", "leaked"), (False, "", "careful")]


def test_a_set_with_an_error_is_never_the_best_and_one_with_a_warning_may_be() -> None:
    rows = [row("random", 1), row("dm", 1, 0.1, set="fair"), row("idc", 1, 0.3, set="leaked")]
    for severity, best, aside in (("error", "dm", ["idc (IPC 1)"]), ("warning", "idc", [])):
        finding = {"set": "leaked", "kind": "leak", "text": "copies", "severity": severity}
        found = rows_of(evaluated_run("run", rows, findings=[finding]))
        assert [(v.row["label"], v.among) for v in verdicts(found)] == [(best, 1 if aside else 2)]
        assert left_out(found) == aside
    finding = {"set": "leaked", "kind": "leak", "text": "copies", "severity": "error"}
    alone = rows_of(evaluated_run("run", [rows[0], rows[2]], findings=[finding]))
    assert headline(verdicts(alone), left_out(alone)) == "Every evaluated set has a fault."
    assert [v["label"] for v in alone if v["fault"]] == ["idc"]


def test_scores_are_grouped_by_labels_and_network_hard_first() -> None:
    lrs = {"score": 0.3, "std": 0.01, "runs": [], "hlr": 0.2, "ior": 0.1, "augment": False}
    entry = {"method": "dm", "stage": None, "space": None, "ipc": 1, "set": "h", "network": "convnet"}
    entries = [{**entry, "labels": "soft", "recipe": "per_view", "lrs": lrs, "ars": None, "missing": ["ARS: no rows"]},
            {**entry, "labels": "hard", "recipe": None, "lrs": {**lrs, "score": None},
             "ars": {"score": 0.4, "std": None}}]  # fmt: skip
    run = evaluated_run("run", [row("random", 1), row("dm", 1, set="h")], scores=entries)
    groups, missing = scores([run], rows_of(run))
    assert [key for key, _ in groups] == [("hard", "convnet"), ("per_view", "convnet")]
    assert [(s.label, s.lrs, s.ars) for _, found in groups for s in found] == [
        ("dm", None, (0.4, None)),
        ("dm", (0.3, 0.01), None),
    ]
    assert missing == ["ARS: no rows"]


def test_rows_without_the_best_of_several_tests_leave_its_column_blank() -> None:
    rows = [row("random", 1), row("dm", 1, 0.2, legacy_best=[0.8, 0.9]), row("kmeans", 1, 0.1, legacy_best=[])]
    rows = [{**one, "verdict": "reference"} for one in rows]
    head, *lines = table({"rows": rows}).splitlines()[:4]
    assert "(best)" in head
    assert [line[head.index("(best)") :][:6] for line in lines] == [" " * 6, "(85.0)", " " * 6]
    assert "(best)" not in table({"rows": [rows[0], rows[2]]})


def test_the_table_of_rows_is_csv_with_a_line_a_row() -> None:
    rows = rows_of(evaluated_run("run", [row("random", 1), row("dm", 1, 0.2, legacy_best=[0.8, 0.9], set=["a", "b"])]))
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [line["label"] for line in lines] == ["random real images", "dm"]
    assert float(lines[1]["legacy_best"]) == pytest.approx(0.85)
    assert (lines[1]["set"], lines[1]["runs"], lines[1]["trainings"]) == ("a b", "run", "3")
    assert float(lines[1]["low"]) < 0.2 < float(lines[1]["high"])
    extra = {"ci95_vs_equal_bytes": [-0.1, 0.2], "ci95_these_sets": [0.1, 0.3], "std_within": 0.01, "std_between": 0.05}
    (line,) = csv.DictReader(io.StringIO(as_csv([{**rows[1], **extra}])))
    assert [line[f"{end}_{of}"] for of in ("equal_bytes", "these_sets") for end in ("low", "high")] == [
        "-0.1", "0.2", "0.1", "0.3"
    ]  # fmt: skip
    assert (line["std_within"], line["std_between"]) == ("0.01", "0.05")


def test_a_summary_without_any_set_still_has_rows() -> None:
    rows = rows_of(evaluated_run("run", [row("full", None, 0.4)]))
    assert primary(rows) is None
    assert under(rows, None) == []
    assert headline(verdicts(rows)) == "No set was evaluated."
    assert [len(s.groups) for s in sections(rows)] == [1]
