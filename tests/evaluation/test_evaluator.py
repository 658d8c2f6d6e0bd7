"""Training runs: rows by network and augmentation, results kept for resume, and the column that no verdict reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from gendistill.config import EvaluateConfig
from gendistill.data.dataset import RealData, Split
from gendistill.distillers import distill
from gendistill.errors import ArtifactError, ConfigError, DivergenceError
from gendistill.evaluation.cache import RUNS, RunLog
from gendistill.evaluation.entries import Entry, SoftTargets
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.evaluator import TrainingRun, evaluate_entries, planned_rows
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.summary import FULL, RANDOM
from gendistill.io import WorkFolder
from tests.evaluation.test_protocols import some_images

CLASSES = ("dark", "bright")
TEST = some_images(20, 11)


def entries():
    return [
        Entry(RANDOM, None, 2, tuple(some_images(4, seed) for seed in range(5))),
        Entry("made", None, 2, (some_images(4, 9),), identity="abc"),
        Entry(FULL, None, None, (some_images(30, 10),)),
    ]


def evaluated(test=TEST, made=None, done=None, **given):
    """(rows, records)."""
    config = EvaluateConfig(**{"runs": 3, "width": 8, "steps": 4, **given})
    loop, records = evaluate_entries(made or entries(), test, CLASSES, config, done=done), []
    while True:
        try:
            records.append(next(loop))
        except StopIteration as stop:
            return stop.value, records


def test_several_networks_have_a_row_each_and_a_random_row_of_their_own():
    rows, records = evaluated(network=("convnet", "convnet_bn"))
    assert [row["network"] for row in rows] == 3 * ["convnet"] + 3 * ["convnet_bn"]
    assert len(records) == 2 * (5 + 3 + 3)
    alone, _ = evaluated(network="convnet_bn")
    strip = ("seconds",)
    assert [{k: v for k, v in row.items() if k not in strip} for row in rows[3:]] == [
        {k: v for k, v in row.items() if k not in strip} for row in alone
    ]


def test_rows_with_and_without_augmentation_are_compared_with_their_own_random_row():
    rows, records = evaluated(shift=2, augment=(True, False))
    assert [row["augment"] for row in rows] == 3 * [True] + 3 * [False]
    plain, _ = evaluated()
    assert [row["accuracy"] for row in rows[3:]] == [row["accuracy"] for row in plain]
    assert [row["ci95_vs_random"] for row in rows[3:]] == [row["ci95_vs_random"] for row in plain]
    shifted, _ = evaluated(shift=2)
    assert [row["accuracy"] for row in rows[:3]] == [row["accuracy"] for row in shifted]
    assert len({record["key"] for record in records}) == len(records)


def test_augment_false_drops_all_of_a_protocols_augmentation():
    rows, _ = evaluated(protocol="idc", augment=False)
    assert not any(row["augment"] for row in rows)
    settings = resolve_protocol(EvaluateConfig(protocol="idc"))
    trial = TrainingRun(settings, TEST, 2)
    shown, targets = trial.batches(some_images(4, 0), None, 1, False)(0)
    assert shown.unique(dim=0).shape[0] == 4
    assert targets.dim() == 1
    assert all(any(torch.equal(s, i) for i in some_images(4, 0).images / 127.5 - 1) for s in shown)


def test_labels_of_views_have_no_row_without_augmentation():
    views = SoftTargets("views", 1.0, batches=lambda step: (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])))
    soft = Entry("made", None, 2, (some_images(4, 9),), labels="soft", recipe="per_view", targets=(views,))
    settings = resolve_protocol(EvaluateConfig(runs=3, shift=1, augment=(True, False)))
    found = planned_rows([*entries(), soft], settings)
    assert len(found) == 4 + 3
    assert sum(c.count(settings.runs) for c, *_ in found) == (5 + 3 + 3 + 3) + (5 + 3 + 3)


def test_results_that_are_known_are_not_trained_again():
    rows, records = evaluated(legacy_best=True)
    results = {record["key"]: record["outcome"] for record in records}
    again, _ = evaluated(done=results, legacy_best=True)
    keep = ("accuracy", "per_class", "ece", "legacy_best", "ci95_vs_random", "verdict")
    assert [[row[k] for k in keep] for row in again] == [[row[k] for k in keep] for row in rows]
    other = {key: {**value, "accuracy": 0.125} for key, value in results.items() if "-0" in key[-2:]}
    assert [row["accuracy"][0] for row in evaluated(done=other, legacy_best=True)[0]] == 3 * [0.125]


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"steps": 20}, {"protocol": "idc", "steps": None, "epochs": 6}])
def test_the_legacy_column_changes_nothing_else(given):
    chance = Split(TEST.images, TEST.labels[torch.randperm(20, generator=torch.Generator().manual_seed(0))])
    rows, _ = evaluated(test=chance, **given)
    legacy, _ = evaluated(test=chance, **given, legacy_best=True)
    best = [row.pop("legacy_best") for row in legacy]
    for row, other in zip(rows, legacy, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    for row, highest in zip(rows, best, strict=True):
        assert all(high >= last for high, last in zip(highest, row["accuracy"], strict=True))
    assert any(high > last for row, highest in zip(rows, best, strict=True)
               for high, last in zip(highest, row["accuracy"], strict=True))  # fmt: skip


def test_a_set_that_holds_all_real_images_is_trained_for_its_own_length_and_never_recalled():
    images, asked = some_images(6, 10), []
    config = EvaluateConfig(runs=3, width=8, steps=2)
    whole = [Entry(FULL, None, None, (images,)), Entry("made", None, 6, (images,), identity="abc")]
    records = list(evaluate_entries(whole, TEST, CLASSES, config, recall=asked.append))
    assert len({record["key"] for record in records}) == len(records) == 6
    assert asked == [record["key"] for record in records if record["baseline"]]


def test_accuracy_by_class_is_exact_and_none_without_test_images():
    rows, records = evaluated(test=Split(TEST.images[TEST.labels == 1], TEST.labels[TEST.labels == 1]))
    assert all(row["per_class"][0] is None for row in rows)
    assert all(row["per_class"][1] == pytest.approx(row["mean"]) for row in rows)
    assert all(record["outcome"]["correct"][0] == 0 for record in records)


def test_damaged_results_are_trained_again_and_named(tmp_path, caplog):
    good = {"accuracy": 0.5, "correct": [1, 2], "ece": 0.1, "seconds": 1.0}
    bad = [{**good, "accuracy": 5.0}, {**good, "correct": "all"}, {k: v for k, v in good.items() if k != "ece"}, 0.5]
    lines = [["good", good], *([f"bad {i}", one] for i, one in enumerate(bad)), 7, "text", [1, good]]
    (tmp_path / RUNS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = RunLog(WorkFolder(tmp_path, tmp_path / "log.jsonl"), ["accuracy", "correct", "ece", "seconds"])
    assert log.done == {"good": good}
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(": ", 2)[2].split(";")[0] for text in said] == [
        "accuracy is 5", "correct is 'all'", "it lacks ece"
    ]  # fmt: skip
    assert f"line 2 of {tmp_path / RUNS}" in said[0]


@pytest.mark.parametrize("text", [b"\xff\xfe", None])
def test_results_that_are_no_text_are_one_message(tmp_path, text):
    path = tmp_path / RUNS
    path.mkdir() if text is None else path.write_bytes(text)
    with pytest.raises(ArtifactError, match=r"runs\.jsonl cannot be read: .*\. Delete it and resume"):
        RunLog(WorkFolder(tmp_path, tmp_path / "log.jsonl"))


def test_a_line_of_lists_in_lists_counts_as_none(tmp_path):
    good = {"accuracy": 0.5, "seconds": 1.0}
    (tmp_path / RUNS).write_text("[" * 10**5 + "\n" + json.dumps(["good", good]) + "\n")
    assert RunLog(WorkFolder(tmp_path, tmp_path / "log.jsonl")).done == {"good": good}


def test_every_network_is_built_before_anything_is_trained():
    loop = evaluate_entries(entries(), TEST, CLASSES, EvaluateConfig(runs=3, steps=2, network=("convnet", "resnet99")))
    with pytest.raises(ConfigError, match="resnet99"):
        next(loop)
    one_left = [Entry("made", None, 2, (some_images(5, 9),))]
    config = EvaluateConfig(runs=3, epochs=1, batch_size=4, network=("convnet", "convnet_bn"))
    with pytest.raises(ConfigError, match="batch norm"):
        next(evaluate_entries(one_left, TEST, CLASSES, config))


def test_a_last_batch_of_one_image_names_its_row():
    sets = [Entry("made", None, 2, (some_images(4, 8),)), Entry("dm", None, 20, (some_images(40, 5),))]
    config = EvaluateConfig(runs=3, epochs=2, batch_size=39, network="convnet_bn")
    with pytest.raises(ConfigError, match="leaves 1 of the 40 images of dm at IPC 20 for the last batch"):
        next(evaluate_entries(sets, TEST, CLASSES, config))
    config = EvaluateConfig(runs=3, steps=4, batch_size=39, network="convnet_bn")  # whose batches cross epochs
    assert next(evaluate_entries(sets, TEST, CLASSES, config))


def test_a_diverged_training_is_called_so_with_row_run_and_remedy():
    config = EvaluateConfig(runs=3, steps=8, learning_rate=1e20, width=4)
    with pytest.raises(DivergenceError, match=r"Run 0 of made at IPC 2, network convnet: .* nan.* Lower learning_rate"):
        next(evaluate_entries([Entry("made", None, 2, (some_images(4, 8),))], TEST, CLASSES, config))


class FailingFolder(WorkFolder):
    """A folder whose disk is full after some records."""

    def log(self, record: Mapping[str, object]) -> None:
        if self.log_path.exists() and len(self.log_path.read_text().splitlines()) == 5:
            raise OSError("no space left")
        super().log(record)


def test_a_resumed_evaluation_has_the_rows_of_one_that_was_not_and_keeps_each_training_once(
    digits: RealData, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        runs=3, steps=2, width=4, baselines=("random", "kmeans"), baseline_cache=None, describe=False
    )
    made, log = distill(digits, "random", 1, seed=9), tmp_path / "log.jsonl"
    with pytest.raises(OSError, match="no space"):
        evaluate(digits, made, config, folder=FailingFolder(tmp_path, log))
    first = [json.loads(line) for line in (tmp_path / RUNS).read_text().splitlines()]
    assert len(first) == 5
    resumed = evaluate(digits, made, config, folder=WorkFolder(tmp_path, log))
    lines = [json.loads(line) for line in (tmp_path / RUNS).read_text().splitlines()]
    assert lines[:5] == first
    assert len({key for key, _ in lines}) == len(lines) == len(log.read_text().splitlines()) == 5 + 3 + 3
    taken = [sum(outcome["seconds"] for _, outcome in part) for part in (lines[:5], lines[5:8], lines[8:])]
    assert [row["seconds"] for row in resumed.rows] == pytest.approx(taken, abs=0.01)
    rows = [[{**row, "seconds": 0} for row in found.rows] for found in (resumed, evaluate(digits, made, config))]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("option", [{"width": 16}, {"depth": 2}], ids=str)
def test_an_option_that_no_network_takes_is_refused_before_any_training(option: dict[str, int]) -> None:
    def check(*networks: str) -> None:
        settings = resolve_protocol(EvaluateConfig(network=networks, runs=3, **option))
        TrainingRun(settings, TEST, len(CLASSES)).check("resnet10", {20: "a set"})

    with pytest.raises(
        ConfigError, match=rf"evaluate\.{next(iter(option))} is .*; expected null with network resnet10;"
    ):
        check("resnet10")
    check("resnet10", "convnet")
