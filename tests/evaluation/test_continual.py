"""Class-incremental learning from a memory: against a plain loop, in any number of steps, resumed, paired."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gendistill.config import Continual, EvaluateConfig
from gendistill.data.dataset import Split
from gendistill.errors import ConfigError, DataError
from gendistill.evaluation.continual import arrivals, arrived, class_order, continual, train_and_test
from gendistill.evaluation.entries import Entry, SoftTargets
from gendistill.evaluation.evaluator import TrainingRun
from gendistill.evaluation.intervals import paired_interval
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.progress import finish

K = 7
CLASSES = tuple("abcdefg")


def pictures(count: int, seed: int, classes: int = K) -> Split:
    """``count`` noisy images of every class, a bright block in a place of its own."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(count)
    images = torch.randint(0, 60, (len(labels), 1, 8, 8), generator=rng, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, label // 4 * 4 : label // 4 * 4 + 3, label % 4 * 2 : label % 4 * 2 + 2] = 255
    return Split(images, labels)


TEST = pictures(5, seed=9)
RANDOM = Entry("random", None, 2, tuple(pictures(2, seed=s) for s in (1, 2, 3, 4)))
MADE = Entry("dm", None, 2, (pictures(2, seed=5),), identity="made")


def options(steps: int, orders: int | None = None, *, training_steps: int | None = 4, **others: Any) -> EvaluateConfig:
    wanted = {"width": 4, "steps": training_steps, "runs": 3, "batch_size": 8, **others}
    return EvaluateConfig(task=Continual(steps=steps, orders=orders), **wanted)


def learn(entries: list[Entry], config: EvaluateConfig, **others: Any) -> tuple[list[dict], list[dict]]:
    """(records, rows) of a continual evaluation, without what they took."""
    records, loop = [], continual(entries, TEST, CLASSES, config, **others)
    while True:
        try:
            records.append({k: v for k, v in next(loop).items() if k != "outcome"})
        except StopIteration as stop:
            return records, [{k: v for k, v in row.items() if k != "seconds"} for row in stop.value]


def test_a_last_batch_of_one_image_is_refused_for_batch_norm_before_any_training() -> None:
    """21 images of 7 classes in batches of 4 leave one, those of 4 classes none."""
    made = replace(MADE, draws=(pictures(3, seed=5),))
    settings = {"training_steps": None, "epochs": 1, "batch_size": 4, "network": "convnet_bn"}
    with pytest.raises(ConfigError, match="batch norm"):
        next(continual([made], TEST, CLASSES, options(2, **settings)))
    assert next(continual([made], TEST, CLASSES, options(2, **{**settings, "network": "convnet"})))


def by_hand(split: Split, order: list[int]) -> tuple[Split, list[int]]:
    """The images of the classes in ``order``, one by one, numbered by their place in it; their positions."""
    positions = [i for i in range(len(split)) if int(split.labels[i]) in order]
    labels = [order.index(int(split.labels[i])) for i in positions]
    return Split(torch.stack([split.images[i] for i in positions]), torch.tensor(labels)), positions


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "orders", "sizes"), [(3, None, [3, 5, 7]), (7, 2, [1, 2, 3, 4, 5, 6, 7])])
def test_the_same_as_a_plain_loop(steps: int, orders: int | None, sizes: list[int]) -> None:
    """Uneven steps; one class a step with two orders for three runs; weighted images."""
    config = options(steps, orders)
    weights = torch.linspace(0.5, 1.5, 2 * K)[:, None] * torch.nn.functional.one_hot(MADE.draws[0].labels, K)
    weighted = replace(MADE, targets=(SoftTargets("weights", 1.0, table=weights),))
    _, rows = learn([RANDOM, weighted], config, seed=3)
    for entry, row in zip((RANDOM, weighted), rows, strict=True):
        for run in range(max(3, len(entry.draws))):
            draw, _ = entry.run(run)
            order = class_order(K, run % (orders or 99), 3).tolist()
            for step, count in enumerate(sizes):
                seen = order[:count]
                (memory, positions), (test, _) = by_hand(draw, seen), by_hand(TEST, seen)
                table = torch.tensor([[weights[i, c] for c in seen] for i in positions])
                targets = SoftTargets("", 1.0, table=table) if entry.targets else None
                wanted = train_and_test(memory, targets, TrainingRun(resolve_protocol(config), test, len(seen)), run)
                assert row["steps"][step]["accuracy"][run] == wanted, (entry.method, run, step)


def test_what_is_learned_is_the_class_and_not_its_number() -> None:
    _, (row,) = learn([MADE], options(2, training_steps=25, width=16))
    assert all(step["mean"] > 0.75 for step in row["steps"])


def test_one_class_a_step_begins_with_a_class_that_nothing_is_told_from() -> None:
    """Also where one image a class would leave batch norm without spread."""
    ones = Entry("dm", None, 1, (pictures(1, seed=5),))
    _, (row,) = learn([ones], options(K, network="convnet_bn"))
    assert row["steps"][0]["accuracy"] == [1.0] * 3
    assert len(row["steps"]) == K


def test_one_step_is_all_classes_at_once() -> None:
    records, (row,) = learn([MADE], options(1))
    assert [r["classes"] for r in records] == [K] * 3
    assert row["average"]["accuracy"] == row["steps"][0]["accuracy"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rows_and_another_one_other_orders() -> None:
    config = options(3)
    one, again, other = (learn([RANDOM, MADE], config, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert {r["key"] for r in one[0]}.isdisjoint({r["key"] for r in other[0]})


def test_finished_trainings_are_taken_over_when_resumed() -> None:
    config = options(3)
    records, rows = learn([RANDOM, MADE], config)
    assert len({r["key"] for r in records}) == len(records) == 3 * (4 + 3)
    half = {r["key"]: {"accuracy": r["accuracy"]} for r in records[:11]}
    assert learn([RANDOM, MADE], config, done=half) == (records, rows)
    false = {r["key"]: {"accuracy": 0.125} for r in records[:11]}
    resumed, _ = learn([RANDOM, MADE], config, done=false)
    assert [r["accuracy"] for r in resumed[:11]] == [0.125] * 11
    assert resumed[11:] == records[11:]


def test_a_resumed_row_has_the_seconds_of_all_its_trainings() -> None:
    loop = continual([MADE], TEST, CLASSES, options(2))
    half = {record["key"]: {**record["outcome"], "seconds": 1000.0} for record in (next(loop), next(loop))}
    (row,) = finish(continual([MADE], TEST, CLASSES, options(2), done=half))
    assert 2000 < row["seconds"] < 2100  # of two trainings before, and of four now


def test_differences_are_paired_by_run_at_every_step_and_on_average() -> None:
    at_five = replace(MADE, ipc=5)
    _, (random, made, other) = learn([RANDOM, MADE, at_five], options(2, orders=1))
    assert random["average"]["ci95_vs_random"] is None
    assert random["average"]["verdict"] == "reference"
    assert other["average"]["ci95_vs_random"] is None  # no random images of its IPC
    for ours, theirs in [*zip(made["steps"], random["steps"], strict=True), (made["average"], random["average"])]:
        assert ours["ci95_vs_random"] == list(paired_interval(ours["accuracy"], theirs["accuracy"]))
    averages = [sum(step["accuracy"][run] for step in made["steps"]) / 2 for run in range(3)]
    assert made["average"]["accuracy"] == pytest.approx(averages)
    assert made["average"]["mean"] == pytest.approx(sum(averages) / 3)


def test_a_set_that_somebody_drew_at_random_is_compared_with_the_random_row() -> None:
    drawn = replace(MADE, method="random")
    _, (first, random) = learn([drawn, RANDOM], options(2))
    assert random["average"]["verdict"] == "reference"
    assert first["average"]["ci95_vs_random"] is not None


@given(st.integers(1, 300), st.data())
def test_steps_are_as_even_as_they_can_be(classes: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, classes))
    counts = arrivals(classes, steps)
    sizes = [b - a for a, b in zip([0, *counts], counts, strict=False)]
    assert len(counts) == steps
    assert counts[-1] == classes
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("steps", [0, K + 1])
def test_more_steps_than_classes_are_refused_before_any_training(steps: int) -> None:
    with pytest.raises(ConfigError, match=rf"continual.steps is {steps}; expected 1 to {K}"):
        arrivals(K, steps)
    if steps:
        with pytest.raises(ConfigError, match=r"continual\.steps"):
            next(continual([MADE], TEST, CLASSES, options(steps)))


def test_orders_are_permutations_that_depend_on_number_and_seed() -> None:
    orders = [tuple(class_order(50, number, seed).tolist()) for number in range(3) for seed in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_images_keep_their_order_and_get_the_number_of_their_arrival() -> None:
    split = Split(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.tensor([0, 2, 1, 2, 0]))
    found, index = arrived(split, torch.tensor([2, 0]), 3)
    assert index.tolist() == [0, 1, 3, 4]
    assert found.images.flatten().tolist() == [0, 1, 3, 4]
    assert found.labels.tolist() == [1, 0, 0, 1]


def without(split: Split, label: int) -> Split:
    return split.take(torch.nonzero(split.labels != label).flatten())


def test_a_class_that_is_missing_is_refused_only_where_nothing_could_be_learned() -> None:
    first = int(class_order(K, 0, 0)[0])
    incomplete = replace(MADE, draws=(without(MADE.draws[0], first),))
    with pytest.raises(DataError, match=f"The dm set at IPC 2 has no image of {CLASSES[first]}, which run 0 starts"):
        learn([incomplete], options(K))
    _, (row,) = learn([incomplete], options(2))
    assert len(row["steps"]) == 2
    with pytest.raises(DataError, match=f"The test split has no image of {CLASSES[first]}"):
        finish(continual([MADE], without(TEST, first), CLASSES, options(K)))


def test_images_of_another_size_are_refused() -> None:
    def larger(images: Tensor) -> Tensor:
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)

    draw = MADE.draws[0]
    with pytest.raises(DataError, match=r"16x16 images with 1 channel.*8x8 with 1.*image_size"):
        learn([replace(MADE, draws=(Split(larger(draw.images), draw.labels),))], options(2))
