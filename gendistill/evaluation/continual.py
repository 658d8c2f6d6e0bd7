"""Class-incremental learning from a memory, as DM and DREAM (arXiv 2302.14416, section 4.5) apply their sets.

Classes arrive in steps. After each one a classifier is trained from scratch on the memory alone, a fixed number of
images of every class that has come (GDumb, Prabhu et al. 2020), and tested on the test images of these classes. That
training is ours, not the papers': equally many optimiser steps every time, tested once.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from gendistill import parallel, runtime
from gendistill.config import Continual, EvaluateConfig, to_dict
from gendistill.data.dataset import RealData, Split, mean_and_std
from gendistill.data.mapped import central
from gendistill.errors import ConfigError, DataError, require_type, require_types
from gendistill.evaluation.baselines import Baselines
from gendistill.evaluation.cache import RunLog
from gendistill.evaluation.entries import Entry, SoftTargets, pool_entry
from gendistill.evaluation.evaluator import (
    TrainingRun,
    check_entries,
    check_shapes,
    entry_name,
    naming_run,
    resolve_precision,
)
from gendistill.evaluation.inputs import by_counts, check_origins, pools, size_of
from gendistill.evaluation.intervals import paired_interval, verdict
from gendistill.evaluation.protocols import Settings, resolve_protocol
from gendistill.evaluation.result import ContinualEvaluation
from gendistill.evaluation.summary import ContinualRow, RunResult, Step, reference_of
from gendistill.hashing import hash_tensors
from gendistill.io import WorkFolder
from gendistill.progress import follow
from gendistill.seeding import torch_rng
from gendistill.surrogate.manifest import command_line, versions
from gendistill.surrogate.set import SurrogateSet


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


class ContinualRecord(TypedDict):
    """What ``continual`` yields after every training: ``key`` names it among all trainings of an evaluation."""

    key: str
    method: str
    set: str | None
    ipc: int | None
    run: int
    classes: int
    outcome: RunResult
    accuracy: float


def continual(
    entries: Sequence[Entry],
    test: Split,
    classes: tuple[str, ...],
    config: EvaluateConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    done: Mapping[str, RunResult] | None = None,
    normal: tuple[float, float] = (0.0, 0.5),
) -> Generator[ContinualRecord, None, list[ContinualRow]]:
    """Train a classifier for every entry, run and step.

    Run r of every entry has class order r, training seed r and draw r, so that entries are compared run by run. Several
    processes that call this alike share the trainings, and each gets all rows.

    Args:
        entries: What the memory holds.
        test: The test images.
        classes: Names of the classes, in index order.
        config: The protocol, the steps and the orders.
        seed: Of the class orders.
        device: Where to train.
        done: Results that need no training again, by record key.
        normal: Mean and standard deviation of the real training images, in [-1, 1].

    Yields:
        A record after every training; in the main process of several also of those done elsewhere.

    Returns:
        The rows.

    Raises:
        ConfigError: more steps than classes, a network that does not fit the images, or batch norm for batches of one.
        DataError: images of another shape than the test images, or none of the classes that a run starts with.
    """
    counts, settings = arrivals(len(classes), config.continual.steps), resolve_protocol(config)
    orders = class_orders(len(classes), entries, config, seed)
    for entry in entries:
        for run in range(entry.count(config.runs)):
            _check(entry, run, test, orders[run][: counts[0]], classes)
    test = Split(central(test.images, settings.test_crop), test.labels)
    training = TrainingRun(settings, test, len(classes), device, normal)
    training.check(settings.network[0], _sizes(entries, orders, counts, config))
    planned = [
        PlannedStep(entry, run, orders[run][:count])
        for entry in entries
        for run in range(entry.count(config.runs))
        for count in counts
    ]
    found: dict[int, RunResult] = {}
    for number in parallel.claimed(range(len(planned))):
        record = planned[number].record(training, done or {})
        found[number] = record["outcome"]
        yield record
    own, found = set(found), parallel.gathered(found)
    for number in sorted(found.keys() - own) if runtime.processes().is_main_process else ():
        yield planned[number].record(training, {}, found[number])
    rows, results = list[ContinualRow](), iter(found[number] for number in range(len(planned)))
    for entry in entries:
        runs = [list(islice(results, len(counts))) for _ in range(entry.count(config.runs))]
        rows.append(_row(entry, settings, runs))
    return [_compared(row, rows) for row in rows]


@dataclass(frozen=True)
class PlannedStep:
    """A step of a run: one training on the classes ``seen`` (k,), in the order in which they arrived."""

    entry: Entry
    run: int
    seen: Tensor

    def record(
        self, training: TrainingRun, done: Mapping[str, RunResult], found: RunResult | None = None
    ) -> ContinualRecord:
        """Of the outcome that was ``found`` elsewhere or is ``done``, else of this training."""
        memory, targets, key = _memory(self.entry, self.run, self.seen, training.classes)
        found = found or done.get(key)
        if found is None:
            start, count = time.perf_counter(), len(self.seen)
            shown = replace(training, test=arrived(training.test, self.seen, training.classes)[0], classes=count)
            with naming_run(self.entry, training.settings.network[0], self.run):
                accuracy = train_and_test(memory, targets, shown, self.run)
            found = {"accuracy": accuracy, "seconds": round(time.perf_counter() - start, 3)}
        return {
            "key": key,
            "method": self.entry.method,
            "set": self.entry.stage,
            "ipc": self.entry.ipc,
            "run": self.run,
            "classes": len(self.seen),
            "outcome": found,
            "accuracy": found["accuracy"],
        }


def _sizes(
    entries: Sequence[Entry], orders: Sequence[Tensor], counts: Sequence[int], config: EvaluateConfig
) -> dict[int, str]:
    """Images of every memory that is trained on, and whose it is; one class alone needs no training."""
    found = dict[int, str]()
    for entry in entries:
        for run in range(entry.count(config.runs)):
            images = torch.tensor(entry.run(run)[0].counts(len(orders[run])))[orders[run]].cumsum(0)
            found |= {int(images[n - 1]): f"{entry_name(entry)}, {n} classes" for n in counts if n > 1}
    return found


def class_orders(classes: int, entries: Sequence[Entry], config: EvaluateConfig, seed: int) -> list[Tensor]:
    """The class order of every run."""
    runs = max(entry.count(config.runs) for entry in entries)
    distinct = config.continual.orders or runs
    return [class_order(classes, run % distinct, seed) for run in range(runs)]


def arrived(split: Split, seen: Tensor, classes: int) -> tuple[Split, Tensor]:
    """(the images of the ``seen`` classes, numbered as they arrived; their positions in ``split``)."""
    numbers = torch.full((classes,), -1)
    numbers[seen] = torch.arange(len(seen))
    labels = numbers[split.labels]
    index = torch.nonzero(labels >= 0).flatten()
    return replace(split.take(index), labels=labels[index]), index


def _memory(entry: Entry, run: int, seen: Tensor, classes: int) -> tuple[Split, SoftTargets | None, str]:
    """(images of the ``seen`` classes, their targets where they have others than hard labels, key) of a run."""
    draw, targets = entry.run(run)
    memory, index = arrived(draw, seen, classes)
    content = hash_tensors({"images": memory.pixels, "labels": memory.labels, "seen": seen})
    key = "-".join([content, str(run), *([targets.key] if targets else [])])
    if targets is not None and targets.table is not None:
        targets = replace(targets, table=targets.table[index][:, seen])
    return memory, targets, key


def train_and_test(memory: Split, targets: SoftTargets | None, training: TrainingRun, run: int) -> float:
    """Test accuracy of one training; one class alone needs none."""
    if training.classes == 1:
        return 1.0
    (name,), (augment,) = training.settings.network, training.settings.augment
    return training.run(name, memory, targets, run, augment=augment)["accuracy"]


def _check(entry: Entry, run: int, test: Split, first: Tensor, classes: tuple[str, ...]) -> None:
    """Check the shape of the images, and that the ``first`` step has some to train and to test on."""
    check_shapes(entry, test)
    draw, _ = entry.run(run)
    for name, split in ((f"The {entry.method} set at IPC {entry.ipc}", draw), ("The test split", test)):
        if not torch.isin(split.labels, first).any():
            names = ", ".join(classes[c] for c in first)
            raise DataError(
                f"{name} has no image of {names}, which run {run} starts with; expected images of every class. Give a "
                "complete set, or fewer continual.steps."
            )


def _row(entry: Entry, settings: Settings, results: list[list[RunResult]]) -> ContinualRow:
    by_step = np.array([[result["accuracy"] for result in run] for run in results]).T  # (steps,runs)
    identity = entry.identity
    return {
        "method": entry.method,
        "stage": entry.stage,
        "space": entry.space,
        "ipc": entry.ipc,
        "counts": list(entry.counts) if entry.counts else None,
        "labels": entry.labels,
        "augment": settings.augment[0] and settings.augments,
        "network": settings.network[0],
        "set": list(identity) if isinstance(identity, tuple) else identity,
        "steps": [_step(accuracies) for accuracies in by_step],
        "average": _step(by_step.mean(0)),
        "seconds": round(sum(result.get("seconds", 0.0) for run in results for result in run), 2),
    }


def _step(accuracies: np.ndarray) -> Step:
    return {
        "accuracy": accuracies.tolist(),
        "mean": float(accuracies.mean()),
        "std": float(accuracies.std(ddof=1)),
    }


def _compared(row: ContinualRow, rows: Sequence[ContinualRow]) -> ContinualRow:
    """The row with its paired intervals against random images of the same counts, where there are any."""
    against = reference_of(row, rows)
    other = None if against is row else against

    def compare(ours: Step, theirs: Step | None) -> Step:
        interval = paired_interval(ours["accuracy"], theirs["accuracy"]) if theirs else None
        return {**ours, "ci95_vs_random": list(interval) if interval else None, "verdict": verdict(interval)}

    steps = [compare(step, other["steps"][i] if other else None) for i, step in enumerate(row["steps"])]
    return {**row, "steps": steps, "average": compare(row["average"], other["average"] if other else None)}


def evaluate_continual(
    data: RealData,
    surrogates: SurrogateSet | Sequence[SurrogateSet],
    config: EvaluateConfig | None = None,
    *,
    seed: int = 0,
    folder: WorkFolder | None = None,
) -> ContinualEvaluation:
    """Evaluate sets as the memory of class-incremental learning, beside random real images and k-means on pixels.

    Several processes that call this alike share the trainings; each returns the same.

    Args:
        data: The real images that the baselines and the test split come from.
        surrogates: A set, or sets of any IPC, with their hard labels.
        config: The protocol with one network and hard labels, the steps, and the orders of the classes.
        seed: Of the class orders, of the random draws and of k-means.
        folder: Keeps finished trainings, so that an interrupted evaluation goes on.

    Returns:
        The rows, and when which class arrives.

    Raises:
        ArtifactError: a set belongs to other data.
        ConfigError: soft labels or several networks, more steps than classes, or an option that does not fit.
        DataError: images of another shape than the test images, or none of the classes that a run starts with.
    """
    require_type("data", data, RealData)
    surrogates = require_types("surrogates", surrogates, SurrogateSet)
    config = require_type("config", config or EvaluateConfig(task=Continual()), EvaluateConfig)
    settings = resolve_protocol(config)
    if settings.labels == "soft" or len(settings.network) > 1:
        raise ConfigError(
            f"evaluate.protocol is {config.protocol!r} with {settings.labels} labels and {len(settings.network)} "
            "network(s); the continual task has hard labels and one network. Give --labels hard and --network."
        )
    check_origins(surrogates, data)
    counts = arrivals(len(data.classes), config.continual.steps)
    sets = [pool_entry([made]) for pool in pools(surrogates, labels=False) for made in pool]  # a row each
    check_entries(sets, TrainingRun(settings, data.test, len(data.classes)))  # before k-means
    config = resolve_precision(config, data)
    settings, device, runs = resolve_protocol(config), runtime.device(), RunLog(folder)
    entries = [*_baselines(data, surrogates, config, seed), *sets]
    normal = mean_and_std(data.train)
    loop = continual(entries, data.test, data.classes, config, seed=seed, device=device, done=runs.done, normal=normal)
    total = len(counts) * sum(entry.count(config.runs) for entry in entries)
    rows = follow(loop, "continual", total, log=runs.append, every=1, stage="evaluate")
    orders = class_orders(len(data.classes), entries, config, seed)
    return ContinualEvaluation(
        protocol=config.protocol,
        data=data.describe(),
        seed=seed,
        classes=counts,
        orders=[[data.classes[c] for c in order] for order in orders],
        rows=rows,
        command=command_line(),
        versions=versions(),
        device=str(device),
        settings={**settings.to_dict(), "continual": to_dict(config.continual)},
    )


def _baselines(data: RealData, sets: Sequence[SurrogateSet], config: EvaluateConfig, seed: int) -> list[Entry]:
    """Random images and k-means at every IPC of the sets: both choose the images of one class at a time."""
    wanted = EvaluateConfig(runs=config.runs, baselines=("random", "kmeans"), baseline_cache=config.baseline_cache)
    real, found = Baselines(data, wanted, seed), list[Entry]()
    for ipc in sorted({size_of(made) for made in sets}):
        found += real.beside(ipc, config.runs, [], by_counts(s for s in sets if size_of(s) == ipc))
    return found
