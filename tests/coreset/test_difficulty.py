"""Difficulty of images: each score against a slow loop, and the set that is chosen by one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gendistill as gd
from gendistill.config import DifficultyConfig, EvaluateConfig
from gendistill.coreset import difficulty as module
from gendistill.coreset.difficulty import (
    SCORES,
    LearningCurves,
    answers,
    difficulty,
    el2n,
    forgetting_events,
    lack_of_confidence,
    measure_difficulty,
    outcomes,
    variability,
)
from gendistill.data.dataset import RealData, Split
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.baselines import Baselines
from gendistill.io import WorkFolder
from gendistill.networks.factories import build_network
from gendistill.networks.training import configured_training
from gendistill.seeding import derive
from tests.helpers import files, gendistill

QUICK = DifficultyConfig(network="convnet", width=8, depth=1, epochs=3, batch_size=16)
FLAGS = [f"--difficulty.{name}={value}" for name, value in
         {"network": "convnet", "width": 8, "depth": 1, "epochs": 3, "batch_size": 16}.items()]  # fmt: skip


@pytest.fixture(scope="module")
def few() -> RealData:
    return load_data(max_per_class=12)


@pytest.fixture(scope="module")
def curves(few: RealData) -> LearningCurves:
    return measure_difficulty(few, QUICK)


def drawn(epochs: int = 6, images: int = 20) -> Tensor:
    return torch.rand(epochs, images, generator=torch.Generator().manual_seed(3))


# scores


def test_outcomes_equal_a_slow_loop() -> None:
    logits = 3 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 4
    for found, row, label in zip(outcomes(logits, labels).tolist(), logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total for value in row]
        distance = math.sqrt(sum((p[k] - (k == label)) ** 2 for k in range(4)))
        assert found == pytest.approx([p[label], distance, float(row[label] == max(row))], abs=1e-5)


def test_the_distance_ends_at_the_diagonal_of_a_square() -> None:
    sure = outcomes(torch.tensor([[100.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(sure, torch.tensor([[1.0, 0.0, 1.0], [0.0, 2**0.5, 0.0]]))


def test_the_mean_and_the_spread_equal_slow_loops() -> None:
    probability = drawn()
    for image in range(20):
        values = probability[:, image].tolist()
        mean = sum(values) / 6
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 6)
        assert lack_of_confidence(probability)[image].item() == pytest.approx(1 - mean)
        assert variability(probability)[image].item() == pytest.approx(spread)
        assert el2n(probability)[image].item() == pytest.approx(mean)


def test_forgetting_events_equal_a_slow_loop() -> None:
    correct = (drawn(7, 200) > 0.7).float()
    expected = []
    for image in range(200):
        answers = correct[:, image].tolist()
        events = sum(before == 1 and after == 0 for before, after in pairwise(answers))
        expected.append(float(events) if 1 in answers else 7.0)
    assert 7.0 in expected
    assert max(value for value in expected if value < 7) == 3
    assert forgetting_events(correct).tolist() == expected


def test_a_score_is_the_mean_over_trainings() -> None:
    values = torch.rand(2, 5, 8, 3, generator=torch.Generator().manual_seed(1))
    curves = LearningCurves(values)
    for name in ("confidence", "el2n", "variability", "forgetting"):
        alone = [LearningCurves(values[r : r + 1]).score(name) for r in range(2)]
        torch.testing.assert_close(curves.score(name), (alone[0] + alone[1]) / 2)


def test_equal_scores_are_ordered_by_confidence() -> None:
    probability = torch.tensor([[0.9, 0.2, 0.6, 0.4]] * 2)
    curves = LearningCurves(torch.stack([probability, probability, torch.ones(2, 4)], -1)[None])
    assert difficulty(curves.ranking("forgetting").numpy(), 4, 0, "easy").tolist() == [0, 2, 3, 1]


# the choice


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_choice_equals_sorted_rows(columns: int) -> None:
    features = np.random.default_rng(0).integers(0, 3, (30, columns)).astype(float)
    order = sorted(range(30), key=lambda i: (*features[i], i))
    for count in (1, 4, 30):
        assert difficulty(features, count, 0, "easy").tolist() == order[:count]
        assert difficulty(features, count, 0, "hard").tolist() == order[::-1][:count]


# the measurement


def test_the_answers_after_each_epoch_are_those_of_the_network_then(few: RealData, curves: LearningCurves) -> None:
    size, seed = len(few.train), derive(0, "difficulty", 0)
    ends = [math.ceil(epoch * size / 16) for epoch in (1, 2, 3)]
    network = build_network("convnet", channels=1, image_size=8, classes=10, width=8, depth=1, seed=seed)
    found = []
    for record in configured_training(network, few.train, QUICK, steps=ends[-1], seed=seed):
        if record["step"] in ends:
            with torch.no_grad():
                found.append(network(few.train.images / 127.5 - 1).softmax(1)[torch.arange(size), few.train.labels])
    assert curves.values.shape == (1, 3, size, 3)
    torch.testing.assert_close(curves.values[0, :, :, 0], torch.stack(found))


def test_answers_do_not_depend_on_the_mode_or_on_batches() -> None:
    network = build_network("convnet_bn", channels=1, image_size=8, classes=3, width=4, depth=1)
    rng = torch.Generator().manual_seed(0)
    split = Split(torch.randint(0, 256, (70, 1, 8, 8), generator=rng).byte(), torch.arange(70) % 3)
    whole = answers(network.train(), split)
    assert not network.training
    some = torch.cat([answers(network.train(), split.take(part)) for part in torch.arange(70).split(9)])
    torch.testing.assert_close(whole, some)


def test_a_seed_repeats_its_values(few: RealData, curves: LearningCurves) -> None:
    assert torch.equal(measure_difficulty(few, QUICK).values, curves.values)
    assert not torch.equal(measure_difficulty(few, QUICK, seed=1).values, curves.values)


def test_the_first_of_several_trainings_is_the_only_one_of_one(few: RealData, curves: LearningCurves) -> None:
    both = measure_difficulty(few, replace(QUICK, trainings=2)).values
    assert torch.equal(both[0], curves.values[0])
    assert not torch.equal(both[1], curves.values[0])


def test_the_training_is_that_of_the_options(few: RealData, curves: LearningCurves) -> None:
    for change in ({"learning_rate": 1e-3}, {"shift": 1}, {"width": 4}, {"batch_size": 8}):
        assert not torch.equal(measure_difficulty(few, replace(QUICK, **change)).values, curves.values)


def test_mislabelled_images_are_harder(few: RealData) -> None:
    wrong = torch.arange(0, len(few.train), 10)
    labels = few.train.labels.clone()
    labels[wrong] = (labels[wrong] + 1) % 10
    data = replace(few, train=Split(few.train.images, labels))
    curves = measure_difficulty(data, replace(QUICK, width=32, epochs=20))
    others = torch.ones(len(labels), dtype=torch.bool)
    others[wrong] = False
    for name in ("confidence", "el2n", "forgetting"):
        scores = curves.score(name)
        assert scores[wrong].mean() > scores[others].mean()


class Cut(Exception):
    """What stops a training in the middle."""


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_measurement_that_was_cut_short_continues_to_the_same_bytes(
    cut: int, few: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, trainings=2, checkpointing_steps=4)
    expected = measure_difficulty(few, config).values
    folder, asked = WorkFolder(tmp_path, tmp_path / "log.jsonl"), []
    real = answers

    def cut_short(network: nn.Module, split: Split) -> Tensor:
        asked.append(network)
        if len(asked) == cut:
            raise Cut
        return real(network, split)

    monkeypatch.setattr(module, "answers", cut_short)
    with pytest.raises(Cut):
        measure_difficulty(few, config, folder=folder)
    assert torch.equal(measure_difficulty(few, config, folder=folder).values, expected)
    asked_then = len(asked)
    assert torch.equal(measure_difficulty(few, config, folder=folder).values, expected)
    assert len(asked) == asked_then  # all of it was kept


def test_checkpoints_of_other_options_are_refused(few: RealData, tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    measure_difficulty(few, QUICK, folder=folder)
    with pytest.raises(ArtifactError, match="belongs to another training"):
        measure_difficulty(few, replace(QUICK, learning_rate=0.1), folder=folder)


# the set


@pytest.mark.parametrize("prefer", ["easy", "hard"])
@pytest.mark.parametrize("score", SCORES)
def test_the_set_has_the_first_images_of_every_class(
    score: str, prefer: str, few: RealData, curves: LearningCurves
) -> None:
    options = replace(QUICK, score=score, prefer=prefer)
    made = gd.distill(few, "difficulty", 2, options=options)
    scores, places = curves.score(score), []
    for image in made.images:
        (place,) = (few.train.images == image).flatten(1).all(1).nonzero().flatten().tolist()[:1]
        places.append(place)
    for label in range(10):
        chosen, all_of_class = scores[places][made.labels == label], scores[few.train.of_class(label)]
        expected = all_of_class.sort(descending=prefer == "hard").values[:2]
        torch.testing.assert_close(chosen, expected)
    assert made.meta["space"] == f"{score}, {prefer}"
    assert made.meta["difficulty"]["epochs"] == 3
    assert made.meta["shared_seconds"]["difficulty"] >= 0


def test_a_smaller_set_is_a_part_of_a_larger_one(few: RealData) -> None:
    small, large = (gd.distill(few, "difficulty", n, options=replace(QUICK, prefer="hard")) for n in (1, 3))
    assert all(any(torch.equal(image, other) for other in large.images) for image in small.images)


def test_too_many_images_are_refused_before_the_training(few: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_difficulty", None)
    with pytest.raises(ConfigError, match="ipc is 100"):
        gd.distill(few, "difficulty", 100)


def test_options_of_difficulty_are_refused_with_another_method() -> None:
    with pytest.raises(ConfigError, match="expected none of them with method kmeans; they are options of difficulty"):
        gd.DistillConfig(method="kmeans", difficulty=QUICK)
    with pytest.raises(ConfigError, match=r"distill\.difficulty\.epochs is 1; expected"):
        DifficultyConfig(epochs=1)


def test_features_and_teachers_are_refused(few: RealData) -> None:
    with pytest.raises(ConfigError, match="features are given with method difficulty"):
        gd.distill(few, "difficulty", 1, features=torch.zeros(len(few.train), 2))


def test_the_command_writes_what_python_makes(few: RealData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("distill", "--data.max_per_class", 12, "--method", "difficulty", "--ipc", "1,2", *FLAGS)
    assert gendistill(*command, "--output_dir", out) == 0
    gd.distill(few, "difficulty", 2, options=QUICK).save(tmp_path / "python")
    assert files(out / "ipc-2") == files(tmp_path / "python")
    assert not (out / "checkpoints").exists()
    settings = json.loads((out / "stage.json").read_text())["settings"]
    assert "checkpointing_steps" not in json.dumps(settings)
    assert gendistill(*command, "--output_dir", out, "--resume_from_checkpoint", "latest") == 0


# the baseline


def test_a_baseline_is_the_set_of_the_default_options(few: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def quick(data: RealData, config: DifficultyConfig, *, seed: int) -> LearningCurves:
        asked.append(seed)
        return measure_difficulty(data, replace(config, width=8, depth=1, epochs=2), seed=seed)

    monkeypatch.setattr(module, "measure_difficulty", quick)
    config = EvaluateConfig(baselines=("random", "difficulty"))
    baselines = Baselines(few, config, seed=4)
    options = DifficultyConfig(width=8, depth=1, epochs=2)
    for ipc in (1, 2):
        entry = next(one for one in baselines.beside(ipc, 3, []) if one.method == "difficulty")
        monkeypatch.undo()
        expected = gd.distill(few, "difficulty", ipc, options=options, seed=4)
        monkeypatch.setattr(module, "measure_difficulty", quick)
        assert torch.equal(entry.draws[0].pixels, expected.images)
    assert asked == [4]  # one training serves every number of images
    again = Baselines(few, config, seed=4)
    next(one for one in again.beside(1, 3, []) if one.method == "difficulty")
    assert asked == [4]  # and another evaluation
