"""Class-incremental learning from a memory, as DM and DREAM (arXiv 2302.14416, section 4.5) apply their sets.

Classes arrive in steps. After each one a classifier is trained from scratch on the memory alone, a fixed number of
images of every class that has come (GDumb, Prabhu et al. 2020), and tested on the test images of these classes. That
training is the judge's, not the papers': equally many optimiser steps every time, tested once.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendistill.config import EvaluateConfig
from gendistill.data.dataset import Split
from gendistill.errors import ConfigError, DataError
from gendistill.evaluation.evaluator import RANDOM, Entry, SoftTargets, TrainingRun
from gendistill.evaluation.intervals import paired_interval, verdict
from gendistill.evaluation.protocols import Settings, resolve_protocol
from gendistill.hashing import hash_tensors
from gendistill.seeding import torch_rng


def arrivals(classes: int, steps: int) -> list[int]:
    """How many classes have come after each step: even steps, the first ones with one more where need be.

    Raises:
        ConfigError: more steps than classes.
    """
    if not 1 <= steps <= classes:
        raise ConfigError(
            f"evaluate.continual.steps is {steps}; expected 1 to {classes}, the number of classes, so that every step "
            "brings one."
        )
    return np.cumsum([classes // steps + (step < classes % steps) for step in range(steps)]).tolist()


def class_order(classes: int, number: int, seed: int) -> Tensor:
    """Order ``number`` in which the classes arrive, a permutation (K,)."""
    return torch.randperm(classes, generator=torch_rng(seed, "class order", number))


def continual(
    contestants: Sequence[Entry],
    test: Split,
    classes: tuple[str, ...],
    config: EvaluateConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    done: Mapping[str, float] | None = None,
    normal: tuple[float, float] = (0.0, 0.5),
) -> Generator[dict[str, Any], None, list[dict[str, Any]]]:
    """Yield a record for every training, return the rows.

    Run r of every contestant has class order r, training seed r and draw r, so that runs pair. Row: what names it as in
    the judge's; ``steps``, one a step, and ``average`` over the steps: accuracy (fractions by run), mean, std (n - 1),
    ci95_vs_random (paired by run, at the same IPC; null for random) and verdict; seconds. ``done`` has accuracies by
    record key that need no training again.

    Raises:
        ConfigError: more steps than classes, a network that does not fit the images, or batch norm for batches of one.
        DataError: images of another shape than the test images, or none of the classes that a run starts with.
    """
    counts, settings = arrivals(len(classes), config.continual.steps), resolve_protocol(config)
    orders = class_orders(len(classes), contestants, config, seed)
    for contestant in contestants:
        for run in range(runs_of(contestant, config)):
            _check(contestant, run, test, orders[run][: counts[0]], classes)
    trial, rows = TrainingRun(settings, test, len(classes), device, normal), []
    trial.check(settings.network[0], _sizes(contestants, orders, counts, config))
    for contestant in contestants:
        start, results = time.perf_counter(), []
        for run in range(runs_of(contestant, config)):
            loop = _learn(contestant, run, trial, orders[run], counts, done or {})
            results.append((yield from loop))
        rows.append(_row(contestant, settings, results, time.perf_counter() - start))
    return [_compared(row, rows) for row in rows]


def _learn(
    contestant: Entry,
    run: int,
    trial: TrainingRun,
    order: Tensor,
    counts: Sequence[int],
    done: Mapping[str, float],
) -> Generator[dict[str, Any], None, list[float]]:
    """One run: a record after every step; returns the accuracies."""
    accuracies: list[float] = []
    for count in counts:
        seen = order[:count]
        memory, targets, key = _memory(contestant, run, seen, trial.classes)
        if key in done:
            accuracies.append(done[key])
        else:
            shown = arrived(trial.test, seen, trial.classes)[0]
            accuracies.append(train_and_test(memory, targets, replace(trial, test=shown, classes=count), run))
        named = {"method": contestant.method, "set": contestant.stage, "ipc": contestant.ipc}
        yield {"key": key, **named, "run": run, "classes": count, "accuracy": accuracies[-1]}
    return accuracies


def _sizes(
    contestants: Sequence[Entry], orders: Sequence[Tensor], counts: Sequence[int], config: EvaluateConfig
) -> set[int]:
    """Images of every memory that is trained on; one class alone needs no training."""
    found = set()
    for contestant in contestants:
        for run in range(runs_of(contestant, config)):
            images = torch.tensor(contestant.run(run)[0].counts(len(orders[run])))[orders[run]].cumsum(0)
            found |= {int(images[count - 1]) for count in counts if count > 1}
    return found


def runs_of(contestant: Entry, config: EvaluateConfig) -> int:
    """As many as the judge's: every draw is trained on."""
    return contestant.count(config.runs)


def class_orders(classes: int, contestants: Sequence[Entry], config: EvaluateConfig, seed: int) -> list[Tensor]:
    """The class order of every run."""
    runs = max(runs_of(contestant, config) for contestant in contestants)
    distinct = config.continual.orders or runs
    return [class_order(classes, run % distinct, seed) for run in range(runs)]


def arrived(split: Split, seen: Tensor, classes: int) -> tuple[Split, Tensor]:
    """(the images of the ``seen`` classes, numbered as they arrived; their positions in ``split``)."""
    numbers = torch.full((classes,), -1)
    numbers[seen] = torch.arange(len(seen))
    labels = numbers[split.labels]
    index = torch.nonzero(labels >= 0).flatten()
    return Split(split.images[index], labels[index]), index


def _memory(contestant: Entry, run: int, seen: Tensor, classes: int) -> tuple[Split, SoftTargets | None, str]:
    """(images of the ``seen`` classes, their targets where they have others than hard labels, key) of a run."""
    draw, targets = contestant.run(run)
    memory, index = arrived(draw, seen, classes)
    content = hash_tensors({"images": memory.images, "labels": memory.labels, "seen": seen})
    key = "-".join([content, str(run), *([targets.key] if targets else [])])
    if targets is not None and targets.table is not None:
        targets = replace(targets, table=targets.table[index][:, seen])
    return memory, targets, key


def train_and_test(memory: Split, targets: SoftTargets | None, trial: TrainingRun, run: int) -> float:
    """Test accuracy of the judge's training; one class alone needs none."""
    if trial.classes == 1:
        return 1.0
    (name,), (augment,) = trial.settings.network, trial.settings.augment
    return trial.run(name, memory, targets, run, augment=augment)["accuracy"]


def _check(contestant: Entry, run: int, test: Split, seen: Tensor, classes: tuple[str, ...]) -> None:
    """Refuse images of another shape than the test images, and a first step without any image."""
    draw, _ = contestant.run(run)
    what = f"The {contestant.method} set at IPC {contestant.ipc}"
    shape, wanted = tuple(draw.images.shape[1:]), tuple(test.images.shape[1:])
    if shape != wanted:
        raise DataError(
            f"{what} has images of {shape} (C,H,W), the test images are {wanted}. Evaluate it on the data it was made "
            "from, with the same --data.image_size."
        )
    for name, split in ((what, draw), ("The test split", test)):
        if not torch.isin(split.labels, seen).any():
            names = ", ".join(classes[c] for c in seen)
            raise DataError(
                f"{name} has no image of {names}, which run {run} starts with; expected images of every class. Give a "
                "complete set, or fewer continual.steps."
            )


def _row(contestant: Entry, settings: Settings, results: list[list[float]], seconds: float) -> dict[str, Any]:
    by_step = np.array(results).T  # (steps,runs)
    return {
        "method": contestant.method,
        "stage": contestant.stage,
        "space": contestant.space,
        "ipc": contestant.ipc,
        "counts": list(contestant.counts) if contestant.counts else None,
        "labels": contestant.labels,
        "augment": settings.augment[0] and settings.augments,
        "network": settings.network[0],
        "set": contestant.identity,
        "steps": [_summed(accuracies) for accuracies in by_step],
        "average": _summed(by_step.mean(0)),
        "seconds": round(seconds, 2),
    }


def _summed(accuracies: np.ndarray) -> dict[str, Any]:
    return {
        "accuracy": accuracies.tolist(),
        "mean": float(accuracies.mean()),
        "std": float(accuracies.std(ddof=1)),
    }


def _compared(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with its paired intervals against random images of the same numbers, where there are such."""
    drawn = (r for r in rows if r["method"] == RANDOM and not r["set"])  # not a set that somebody drew at random
    against = next((r for r in drawn if (r["ipc"], r["counts"]) == (row["ipc"], row["counts"])), None)

    def beside(ours: dict[str, Any], theirs: dict[str, Any] | None) -> dict[str, Any]:
        interval = paired_interval(ours["accuracy"], theirs["accuracy"]) if theirs else None
        return {**ours, "ci95_vs_random": list(interval) if interval else None, "verdict": verdict(interval)}

    other = None if against is row else against
    steps = [beside(step, other and other["steps"][i]) for i, step in enumerate(row["steps"])]
    return {**row, "steps": steps, "average": beside(row["average"], other and other["average"])}
