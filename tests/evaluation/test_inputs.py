"""What an evaluation is given: which sets share a row, what they cost, and plain folders by the command line."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gendistill.evaluation.evaluate as evaluate_module
from gendistill.config import EvaluateConfig, LabelConfig, RefineConfig, TeacherConfig, WmddConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ArtifactError
from gendistill.evaluation.evaluate import all_entries, evaluate
from gendistill.evaluation.inputs import facts, pools, read_set, recorded_data, size_of
from gendistill.evaluation.intervals import paired_interval
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.refine.refiner import refine_set
from gendistill.refine.wmdd import wmdd
from gendistill.report.terminal import table
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill
from tests.surrogate.sets import make

QUICK = EvaluateConfig(runs=3, steps=4, width=8, baselines=("random", "bytes"), baseline_cache=None, describe=False)


@pytest.fixture(scope="module")
def seeds(digits: RealData) -> list[SurrogateSet]:
    return [distill(digits, "random", 2, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(steps=2, width=8))


def changed(made: SurrogateSet, **meta: object) -> SurrogateSet:
    return replace(made, meta={**made.meta, **meta})


def sizes(sets: list[SurrogateSet], labels: bool = False) -> list[int]:
    return [len(pool) for pool in pools(sets, labels=labels)]


# pools


def test_sets_that_differ_in_their_seed_alone_share_a_row(seeds) -> None:
    cost = [changed(made, seconds={"distill": i}, w2={"before": i}) for i, made in enumerate(seeds)]
    assert sizes(cost) == [3]
    assert sizes([*seeds, seeds[0]]) == [3]  # the same set twice is one


@pytest.mark.parametrize(
    "meta",
    [
        {"method": "dm"}, {"stage": "refined"}, {"space": "representative"}, {"iterations": 9}, {"seed": 0},
        {"stages": ["select"]}, {"teacher_hash": "x"}, {"generator_hash": "x"}, {"sampling": {"scheduler": "ddim"}},
        {"seed": None}, {"command": "gendistill distill --method random --ipc 2 --matching.width 9"},
    ],
    ids=str,
)  # fmt: skip
def test_sets_that_differ_in_more_do_not(seeds, meta) -> None:
    assert sizes([seeds[0], changed(seeds[1], **meta)]) == [1, 1]


@pytest.mark.parametrize("options", [{"steps": 2}, {"trust_region": 0.5}, {"batch_norm_weight": 0.0}], ids=str)
def test_sets_optimised_with_other_options_do_not(digits, seeds, teacher, options: dict[str, float]) -> None:
    """Also from Python, where one command makes them all; how many images a pass takes is no such option."""
    for made, usual, chosen in (
        (wmdd, WmddConfig(steps=1), WmddConfig(**{"steps": 1, **options})),
        (refined, RefineConfig(steps=1), RefineConfig(**{"steps": 1, **options})),
    ):
        first, second = (made(digits, teacher, 1, config, seed=i) for i, config in enumerate((usual, chosen)))
        assert sizes([first, second]) == [1, 1]
        assert sizes([first, made(digits, teacher, 1, replace(usual, batch_size=7), seed=1)]) == [2]


def refined(data: RealData, teacher: Teacher, ipc: int, config: RefineConfig, *, seed: int) -> SurrogateSet:
    return refine_set(distill(data, "random", 2, seed=seed), teacher, data, ipc, config, seed=seed)[1]


def test_sets_of_another_size_factor_or_weights_do_not(seeds) -> None:
    other = seeds[1]
    for made in (other.prefix(1), replace(other, factor=2), replace(other, weights=torch.ones(20))):
        assert sizes([seeds[0], made]) == [1, 1]


def test_commands_may_differ_in_seeds_and_places(seeds) -> None:
    command = "gendistill distill --ipc 2 --matching.width 9"
    varied = [changed(made, command=f"{command} --seed {i} --output_dir=x/{i}") for i, made in enumerate(seeds)]
    assert sizes(varied) == [3]
    run = "gendistill run --config digits.yaml --output_dir"
    whole = [changed(made, command=f"{run} {i}", generator_hash=str(i)) for i, made in enumerate(seeds)]
    assert sizes(whole) == [3]  # each with a generator of its own
    broken = [changed(made, command="it's") for made in seeds]
    assert sizes(broken) == [3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=12))
def test_every_set_is_in_one_pool_of_its_kind_with_each_seed_once(kinds: list[tuple[str, int]]) -> None:
    sets = []
    for number, (kind, seed) in enumerate(kinds):
        images = torch.full((1, 1, 8, 8), number, dtype=torch.uint8)
        sets.append(SurrogateSet(images, torch.zeros(1, dtype=torch.long), ("x",), {"method": kind, "seed": seed}))
    found = pools(sets, labels=False)
    assert sorted(int(made.images[0, 0, 0, 0]) for pool in found for made in pool) == list(range(len(sets)))
    for pool in found:
        assert len({made.meta["method"] for made in pool}) == 1
        assert len({made.meta["seed"] for made in pool}) == len(pool)
    most = max((kinds.count(pair) for pair in kinds), default=0)
    assert len(found) <= most * len({kind for kind, _ in kinds})


def test_labels_part_sets_only_where_labels_count(seeds, teacher) -> None:
    labelled = [label_set(made, teacher, LabelConfig(), seed=i) for i, made in enumerate(seeds)]
    hot = [label_set(made, teacher, LabelConfig(temperature=9)) for made in seeds]
    assert sizes(labelled, labels=True) == [3]
    assert sizes([*labelled, *hot], labels=True) == [3, 3]
    assert sizes([*labelled, *hot, *seeds], labels=False) == [3]


# a pooled row


def test_a_pooled_row_has_runs_of_every_set_and_as_many_random_draws(digits, seeds, tmp_path) -> None:
    entered = all_entries(digits, seeds, QUICK, 0, None)
    random, pooled = entered[0], entered[1]
    assert (pooled.synthesis_seeds, pooled.count(3), len(random.draws)) == (3, 9, 9)
    for run in range(9):
        assert torch.equal(pooled.run(run)[0].images, seeds[run % 3].images)
    summary = evaluate(digits, seeds, QUICK)
    against, row = summary["rows"][:2]
    assert row["set"] == [made.content_hash() for made in seeds]
    assert len(row["accuracy"]) == len(against["accuracy"]) == 9
    ours, theirs = (torch.tensor(r["accuracy"]).double().view(3, 3) for r in (row, against))  # (run, set)
    assert row["std_between"] == pytest.approx(ours.mean(0).std().item())
    assert row["std_within"] == pytest.approx(ours.var(0).mean().sqrt().item())
    assert row["ci95_vs_random"] == pytest.approx(paired_interval(ours.mean(0).tolist(), theirs.mean(0).tolist()))
    assert row["ci95_these_sets"] == pytest.approx(paired_interval(row["accuracy"], against["accuracy"]))
    assert "random real images x3" in table(summary)
    summary.save(tmp_path)
    line = list(csv.DictReader((tmp_path / "summary.csv").open()))[1]
    assert [float(line["low"]), float(line["high"])] == row["ci95_vs_random"]
    assert [float(line["these_sets_low"]), float(line["these_sets_high"])] == row["ci95_these_sets"]
    assert line["equal_bytes_low"] == ""
    replace(summary, rows=[{**row, "ci95_vs_equal_bytes": [0.25, 0.5]}]).save(tmp_path)
    (line,) = csv.DictReader((tmp_path / "summary.csv").open())
    assert (line["equal_bytes_low"], line["equal_bytes_high"]) == ("0.25", "0.5")


def test_pooled_soft_rows_train_each_set_with_its_own_labels(digits, seeds, teacher) -> None:
    labelled = [label_set(made, teacher, LabelConfig(), seed=0) for made in seeds]
    entered = all_entries(digits, labelled, replace(QUICK, labels="soft"), 0, teacher)
    soft = next(row for row in entered if row.labels == "soft" and row.identity)
    assert soft.synthesis_seeds == len(soft.targets) == len({targets.key for targets in soft.targets}) == 3
    equal = [row for row in entered if row.space == "equal bytes"]
    assert len(equal) == 1
    assert equal[0].facts["bytes"]["images"] >= sum(soft.facts["bytes"].values())
    beside = next(row for row in entered if row.labels == "soft" and not row.identity)
    assert beside.facts["bytes"]["labels"] == soft.facts["bytes"]["labels"] > 0


# what a set costs


def test_costs_are_those_of_the_manifest(digits, tmp_path) -> None:
    made = replace(distill(digits, "kmeans", 2), factor=2)
    made = changed(made, seconds={"distill": 5.0, "start": 1.0, "select": 2.0, "label": 9.0}, stages=["select"])
    made.save(tmp_path / "set")
    found = facts([read_set(tmp_path / "set", digits)], labels=False)
    stored = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert found["bytes"] == stored["bytes"]
    assert (found["stored_images"], found["decoded_images"]) == (20, 80)
    assert found["synthesis_seconds"] == 7  # "start" is a part of distill, and hard rows use no labels
    assert facts([made], labels=False) == found  # a set in memory, as it would be stored
    assert facts([make()], labels=False)["synthesis_seconds"] is None


def test_a_cache_of_baselines_that_is_a_file_is_refused_before_any_training(digits, tmp_path, monkeypatch) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setattr(evaluate_module, "make_feature_extractor", lambda *_: pytest.fail("trained before the check"))
    with pytest.raises(ArtifactError, match="is a file; expected a folder"):
        evaluate(digits, distill(digits, "kmeans", 1), EvaluateConfig(baseline_cache=tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_a_set_whose_manifest_is_no_file_is_no_plain_folder(digits, tmp_path, kind: str) -> None:
    distill(digits, "kmeans", 1).save(tmp_path / "set")
    manifest = tmp_path / "set" / "manifest.json"
    manifest.unlink()
    {"folder": manifest.mkdir, "pipe": lambda: os.mkfifo(manifest), "broken link": lambda: manifest.symlink_to("x")}[
        kind
    ]()
    for read in (lambda: read_set(tmp_path / "set", digits), lambda: recorded_data([tmp_path / "set"])):
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            read()


def test_everything_a_set_needed_is_counted_and_what_is_shared_is_named() -> None:
    spent = {"sample": 90.0, "select": 1.0, "label": 4.0}
    made = changed(make(), seconds=spent, stages=["finetune", "sample", "select"],
                   shared_seconds={"generator": 2202.0, "teacher": 33.0, "label_teacher": 33.0}, teacher_hash="a",
                   label_teacher_hash="a")  # fmt: skip
    shared = {"generator": 2202.0, "teacher": 33.0, "pool": 90.0}
    for labels, total in ((False, 2326.0), (True, 2330.0)):
        found = facts([made], labels=labels)
        assert (found["synthesis_seconds"], found["shared_seconds"]) == (total, shared)
    other = changed(made, label_teacher_hash="b")
    assert facts([other], labels=True)["synthesis_seconds"] == 2363.0  # by a teacher of its own
    assert facts([other], labels=False)["synthesis_seconds"] == 2326.0
    again = changed(other, seed=8, shared_seconds={"generator": 2190.0})
    assert len(pools([other, again], labels=False)) == 1


def test_the_size_of_an_uneven_set_is_rounded_up() -> None:
    made = make(ipc=3)
    assert size_of(made) == 3
    assert size_of(made.take(torch.arange(7))) == 3  # 7 images of 3 classes
    assert size_of(made.take(torch.arange(1))) == 1


# as many real images of each class


def test_an_uneven_set_stands_beside_real_images_of_its_own_numbers(digits, seeds) -> None:
    short = changed(seeds[0].take(torch.arange(11)), name="short")  # 2 images of five classes, 1 of one, 0 of four
    config = replace(QUICK, baselines=("random", "kmeans", "herding", "kcenter"))
    alone = all_entries(digits, [short], config, 0, None)
    assert [c.counts for c in alone] == [tuple(short.counts)] * 5
    assert all(draw.counts(10) == short.counts for c in alone for draw in c.draws)
    assert len(alone[0].draws) == 5
    both = all_entries(digits, [short, seeds[1]], config, 0, None)
    named = {(c.method, c.space): c for c in both if not c.identity}
    assert len(named) == 5
    assert named["random", None].counts is None
    assert named["random", "as short, 11 images"].counts == tuple(short.counts)
    rows = {str(row["set"] or row["space"]): row for row in evaluate(digits, [short, seeds[1]], QUICK)["rows"]}
    against = rows["as short, 11 images"]["accuracy"]
    interval = paired_interval(rows[short.content_hash()]["accuracy"], against)
    assert rows[short.content_hash()]["ci95_vs_random"] == pytest.approx(interval)
    assert rows[seeds[1].content_hash()]["ci95_vs_random"] == pytest.approx(
        paired_interval(rows[seeds[1].content_hash()]["accuracy"], rows["None"]["accuracy"])
    )


def test_a_set_with_more_images_than_there_are_real_ones_is_evaluated_with_a_finding() -> None:
    few = load_data(max_per_class=6)
    real = few.train.counts(10)
    every = tuple(str(digit) for digit in range(10))
    images, labels = few.train.images.repeat(2, 1, 1, 1), few.train.labels.repeat(2)
    twice = SurrogateSet(images, labels, every, {"method": "folder", "name": "twice"})
    config = replace(QUICK, steps=2, baselines=("random", "kmeans", "herding", "kcenter", "bytes"))
    entered = all_entries(few, [twice], config, 0, None)
    assert all(draw.counts(10) == real for c in entered if not c.identity for draw in c.draws)
    found = evaluate(few, [twice], config)
    (finding,) = (f for f in found["findings"] if f["kind"] == "fewer real images")
    assert f"0 has {real[0]} of {2 * real[0]}" in finding["text"]
    assert found["rows"][-1]["ci95_vs_random"] is not None


# plain folders by the command line


@pytest.fixture(scope="module")
def mine(digits: RealData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's folder: no manifest, numbered classes, one of them missing, one image broken."""
    root = tmp_path_factory.mktemp("mine")
    distill(digits, "random", 2).save(root / "set")
    train = (root / "set" / "train").rename(root / "somebodys")
    (train / "3" / "00000.png").write_bytes(b"no picture")
    for path in (train / "7").iterdir():
        path.unlink()
    return train


OPTIONS = ("--runs", 3, "--steps", 4, "--width", 8, "--baseline_cache", "null", "--baselines", '["random"]')


@pytest.mark.slow
def test_a_plain_folder_is_evaluated_and_its_faults_are_reported(mine, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert gendistill("evaluate", "--surrogate", mine, *OPTIONS, "--output_dir", out) == 0
    said = capsys.readouterr()
    assert "00000.png" in said.err
    assert "1 skipped; going on with 17 images" in said.err
    (error,) = (line for line in said.out.splitlines() if line.startswith("ERROR"))
    assert "2  somebodys: " in error
    summary = json.loads((out / "summary.json").read_text())
    random, row = summary["rows"]
    assert (row["name"], row["missing_classes"], row["stored_images"], row["ipc"]) == ("somebodys", ["7"], 17, 2)
    assert row["ci95_vs_random"] is not None
    assert random["stored_images"] == 17
    kinds = {(finding["kind"], finding["severity"]) for finding in summary["findings"]}
    assert kinds >= {("missing classes", "error"), ("unreadable images", "warning")}
    lines = list(csv.DictReader((out / "summary.csv").open()))
    assert [line["stored_images"] for line in lines] == ["17", "17"]
    assert lines[1]["bytes_images"] == str(row["bytes"]["images"])
    assert lines[0]["runs"] == "5"


def test_several_sets_may_follow_the_option_and_folders_of_other_classes_are_refused(mine, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    (other / "cat").mkdir(parents=True)
    (other / "cat" / "a.png").write_bytes((mine / "0" / "00000.png").read_bytes())
    assert gendistill("evaluate", "--surrogate", mine, other, *OPTIONS, "--output_dir", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"gendistill: {other} has folders of no class of the data: cat;")
    assert not (tmp_path / "out").exists()


# the table


def test_the_table_fits_100_columns_whatever_the_rows_say() -> None:
    row = {
        "method": "generative", "stage": "refined", "space": None, "ipc": 1000, "labels": "hard", "network": "convnet",
        "mean": 1.0, "std": 0.123, "ci95_vs_random": [-1.0, -0.999], "verdict": "not better than random",
        "stored_images": 123456, "decoded_images": 999949, "bytes": {"images": 10**12, "labels": 999_499},
        "synthesis_seeds": 12, "cached": 3, "accuracy": [0.5] * 3,
    }  # fmt: skip
    long = {**row, "method": "folder", "name": "x" * 90, "network": "timm:vit_tiny_patch16_224"}
    soft = {**row, "labels": "soft", "recipe": "per_view, T 4, top 10, crop 0.08, flip, CutMix 1", "ipc": None}
    text = table({"rows": [row, long, soft]})
    assert max(map(len, text.splitlines())) <= 100
    assert "labels per_view, T 4, top 10, crop 0.08, flip, CutMix 1" in text
    assert "9 of 9 runs" in text


def test_evaluate_reads_the_images_that_the_first_set_was_made_from(tmp_path: Path, capsys: Any) -> None:
    options = ("--data.split_seed", 1, "--data.max_per_class", 20)
    for name, extra in (("recorded", options), ("usual", ())):
        assert gendistill("distill", "--method", "random", "--ipc", 1, *extra, "--output_dir", tmp_path / name) == 0
    one = ("--steps", 1, "--width", 4, "--runs", 3, "--baselines", "[random]", "--describe", "false")
    made = tmp_path / "recorded" / "ipc-1"
    assert gendistill("evaluate", made, *one, "--output_dir", tmp_path / "a") == 0
    recorded = json.loads((tmp_path / "a" / "stage.json").read_text())["sources"]["data"]
    assert (recorded["split_seed"], recorded["max_per_class"]) == (1, 20)
    other = tmp_path / "usual" / "ipc-1"
    assert gendistill("evaluate", other, made, *one, "--output_dir", tmp_path / "b") == 2
    assert "--data.split_seed 1" in capsys.readouterr().err
