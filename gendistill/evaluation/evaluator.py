"""The evaluation itself: the same training for every set, tested once, after the last step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from gendistill import parallel, runtime
from gendistill.config import EvaluateConfig, require
from gendistill.data.augmentation import Augmentation
from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import central
from gendistill.errors import ConfigError, DataError, DivergenceError
from gendistill.evaluation.entries import Entry, SoftTargets
from gendistill.evaluation.intervals import by_set, calibration_error, paired_interval, row_interval, verdict
from gendistill.evaluation.protocols import Settings, resolve_protocol
from gendistill.evaluation.summary import FULL, Row, RunResult, reference_of, row_label
from gendistill.hashing import hash_tensors
from gendistill.networks.factories import build_network, takes_option
from gendistill.networks.training import (
    Batches,
    accuracy,
    augmented_batches,
    predicted,
    require_batch_of_two,
    train_classifier,
    training_flop,
    trains_batch_norm,
)
from gendistill.seeding import derive

LEGACY_TESTS = 20  # of a training without epochs
SHARED = 10  # trainings, at least, that share what is compiled: those of random images and of a set


@dataclass(frozen=True)
class TrainingRun:
    """One training of a classifier and its test; what all runs of an evaluation share.

    Attributes:
        settings: The protocol.
        test: The test images as networks see them, after ``Settings.test_crop``.
        classes: How many classes there are.
        device: Where to train.
        normal: Mean and standard deviation of the real training images, in [-1, 1].
    """

    settings: Settings
    test: Split
    classes: int
    device: torch.device | str = "cpu"
    normal: tuple[float, float] = (0.0, 0.5)

    def run(
        self,
        name: str,
        train: Split,
        targets: SoftTargets | None,
        number: int,
        *,
        augment: bool = True,
        full: bool = False,
    ) -> RunResult:
        """Train run ``number`` on ``train``, whose ``targets`` replace the hard labels, and test it.

        ``full`` data may train for a length of their own.
        """
        s, seed = self.settings, derive(number, "judge")  # not the seed of the teacher with the same number
        steps, per_epoch = s.length(len(train), self.classes, full=full)
        network = self.network(name, seed)
        loop = train_classifier(
            network,
            train,
            steps=steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            weight_decay_on=s.weight_decay_on,
            optimizer=s.optimizer,
            momentum=s.momentum,
            rate=s.rate(steps, per_epoch),
            device=self.device,
            batches=self.batches(train, targets, seed, augment),
            temperature=targets.temperature if targets else 1.0,
            **self._mode,
        )
        every = per_epoch if s.steps is None else max(1, steps // LEGACY_TESTS)
        best = 0.0
        for record in loop:
            if s.legacy_best and record["step"] % every == 0:
                best = max(best, accuracy(network.eval(), self.test, **self._mode))
                network.train()
        found = self._test(network.eval())
        if s.legacy_best:
            found["legacy_best"] = max(best, found["accuracy"])
        return found

    def network(self, name: str, seed: int = 0) -> nn.Module:
        """A new network for images like the test images.

        Raises:
            ConfigError: the network does not fit the images.
        """
        return build_network(
            name,
            channels=int(self.test.images.shape[1]),
            image_size=int(self.test.images.shape[-1]),
            classes=self.classes,
            width=self.settings.width,
            depth=self.settings.depth,
            seed=seed,
        )

    def check(self, name: str, images: Mapping[int, str]) -> None:
        """Check that the network can be trained on sets of these numbers of ``images``, which messages call so.

        Raises:
            ConfigError: the network does not fit the images, batch norm would get batches of one image, or a width or
                depth was given that no network takes.
        """
        for option in sorted({"width", "depth"} & set(self.settings.changed)):
            names, given = self.settings.network, getattr(self.settings, option)
            expected = f"null with network {', '.join(names)}; it is an option of convnet"
            require(any(takes_option(one, option) for one in names), f"evaluate.{option}", given, expected)
        network, size = self.network(name), self.settings.batch_size
        for count, row in images.items():
            require_batch_of_two(network, size, count, row)
            if self.settings.steps is None and count > size and count % size == 1 and trains_batch_norm(network):
                raise ConfigError(
                    f"evaluate.batch_size is {size}, which leaves 1 of the {count} images of {row} for the last batch "
                    f"of every epoch; batch norm in {name} needs at least 2. Give a batch_size that leaves none or "
                    "more, evaluate.steps instead of epochs, or a network without batch norm such as 'convnet'."
                )

    def batches(self, train: Split, targets: SoftTargets | None, seed: int, augment: bool) -> Batches:
        """What ``run`` trains on: the batches of ``targets``, or images of ``train`` augmented by the protocol."""
        if targets and targets.batches:
            return targets.batches
        augmentation = self.settings.augmentation(*self.normal) if augment else Augmentation()
        return augmented_batches(
            train.to(torch.device(self.device)),
            augmentation,
            batch_size=self.settings.batch_size,
            seed=seed,
            targets=targets.table if targets else None,
            classes=self.classes if augmentation.cutmix else None,
            whole_epochs=self.settings.steps is None,
        )

    @property
    def _mode(self) -> dict[str, Any]:
        s = self.settings
        return runtime.execution_mode(s.mixed_precision, s.compile, torch.device(self.device))._asdict()

    def _test(self, network: nn.Module) -> RunResult:
        guesses, confidence = predicted(network, self.test, **self._mode)
        right = guesses == self.test.labels
        correct = torch.bincount(self.test.labels[right], minlength=self.classes).tolist()
        return {
            "accuracy": sum(correct) / len(self.test),
            "correct": correct,
            "ece": calibration_error(confidence, right),
        }


class RunRecord(TypedDict):
    """What ``evaluate_entries`` yields after every run.

    ``key`` names the run among all runs of an evaluation; ``elsewhere`` says that another process trained it.
    """

    key: str
    method: str
    set: str | None
    ipc: int | None
    labels: str
    network: str
    run: int
    baseline: bool
    outcome: RunResult
    accuracy: float
    elsewhere: bool


@dataclass(frozen=True)
class PlannedRun:
    """Run ``number`` of a row."""

    entry: Entry
    network: str
    augment: bool
    number: int

    @cached_property
    def key(self) -> str:
        """Names the run among all runs of an evaluation."""
        draw, targets = self.entry.run(self.number)
        return _key(draw, targets, self.network, self.augment, self.number, full=self.full)

    @property
    def full(self) -> bool:
        return self.entry.method == FULL

    @property
    def baseline(self) -> bool:
        return self.entry.identity is None

    def trained(self, training: TrainingRun) -> RunResult:
        draw, targets = self.entry.run(self.number)
        start = time.perf_counter()
        with naming_run(self.entry, self.network, self.number):
            found = training.run(self.network, draw, targets, self.number, augment=self.augment, full=self.full)
        found["seconds"] = round(time.perf_counter() - start, 3)
        return found

    def record(self, outcome: RunResult, *, elsewhere: bool = False) -> RunRecord:
        return {
            "key": self.key,
            "method": self.entry.method,
            "set": self.entry.stage,
            "ipc": self.entry.ipc,
            "labels": self.entry.labels,
            "network": self.network,
            "run": self.number,
            "baseline": self.baseline,
            "outcome": outcome,
            "accuracy": outcome["accuracy"],
            "elsewhere": elsewhere,
        }


def planned_runs(entries: Sequence[Entry], settings: Settings) -> list[PlannedRun]:
    """All runs, row by row."""
    return [
        PlannedRun(entry, name, augment, number)
        for entry, name, augment in planned_rows(entries, settings)
        for number in range(entry.count(settings.runs))
    ]


def _by_length(runs: Sequence[PlannedRun], training: TrainingRun) -> list[list[PlannedRun]]:
    """Runs that are the same training together; of several processes the longest trainings come first."""
    same: dict[str, list[PlannedRun]] = {}
    for run in runs:
        same.setdefault(run.key, []).append(run)
    found = list(same.values())
    if parallel.world() > 1:
        settings, classes = training.settings, training.classes
        found.sort(key=lambda runs: -settings.length(len(runs[0].entry.run(0)[0]), classes, full=runs[0].full)[0])
    return found


def evaluate_entries(
    entries: Sequence[Entry],
    test: Split,
    classes: tuple[str, ...],
    config: EvaluateConfig,
    *,
    device: torch.device | str = "cpu",
    done: Mapping[str, RunResult] | None = None,
    recall: Callable[[str], RunResult | None] | None = None,
    normal: tuple[float, float] = (0.0, 0.5),
) -> Generator[RunRecord, None, list[Row]]:
    """Train ``config.runs`` classifiers for every row, at least as many as it has draws.

    Run r of every row has the same training seed, so that rows are compared run by run.

    Args:
        entries: What to train on.
        test: The test images.
        classes: Names of the classes, in index order.
        config: The protocol, and what was changed of it.
        device: Where to train.
        done: Results that need no training again, by record key.
        recall: Returns the result of a baseline's run by its key, or None.
        normal: Mean and standard deviation of the real training images, in [-1, 1].

    Several processes that call this alike share the trainings, and each gets all rows.

    Yields:
        A record after every run; in the main process of several also of the runs that were trained elsewhere.

    Returns:
        The rows, in the order of ``planned_rows``.

    Raises:
        ConfigError: a network does not fit the images, or batch norm would get batches of one image.
        DataError: images of another shape than the test images.
    """
    settings, done = resolve_protocol(config), done or {}
    test = Split(central(test.images, settings.test_crop), test.labels)
    training = TrainingRun(settings, test, len(classes), device, normal)
    check_entries(entries, training)
    planned, found = planned_runs(entries, settings), dict[str, RunResult]()
    for same in parallel.claimed(_by_length(planned, training)):
        key, baseline = same[0].key, same[0].baseline
        found[key] = done.get(key) or (recall(key) if recall and baseline else None) or same[0].trained(training)
        for run in same:
            yield run.record(found[key])
    own, found = set(found), parallel.gathered(found)
    for run in planned if runtime.processes().is_main_process else ():
        if run.key not in own:
            yield run.record(found[run.key], elsewhere=True)
    rows, results = list[Row](), iter(found[run.key] for run in planned)
    for entry, name, augment in planned_rows(entries, settings):
        shown = augment and _augmented(entry, settings)
        rows.append(_row(entry, name, shown, list(islice(results, entry.count(settings.runs))), test))
    return [with_verdict(row, rows) for row in rows]


def entry_name(entry: Entry) -> str:
    """What a message calls the entry."""
    label = row_label({"method": entry.method, "stage": entry.stage, "space": entry.space, **entry.facts})
    return label if entry.ipc is None else f"{label} at IPC {entry.ipc}"


@contextmanager
def naming_run(entry: Entry, network: str, run: int) -> Iterator[None]:
    """Let the error of a diverged training say whose it is."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"Run {run} of {entry_name(entry)}, network {network}: {error}") from error


def check_entries(entries: Sequence[Entry], training: TrainingRun) -> None:
    """Check that everything can be trained and tested, before anything is.

    Raises:
        ConfigError: a network that does not fit the test images, or batch norm for batches of one image.
        DataError: images of another shape than the test images.
    """
    for entry in entries:
        check_shapes(entry, training.test)
    sizes = {len(draw): entry_name(entry) for entry in reversed(entries) for draw in entry.draws}
    for name in training.settings.network:
        training.check(name, sizes)


def planned_rows(entries: Sequence[Entry], settings: Settings) -> list[tuple[Entry, str, bool]]:
    """(entry, network, augment) of each row; labels of augmented views have no row without augmentation."""
    return [
        (entry, name, augment)
        for name in settings.network
        for augment in settings.augment
        for entry in entries
        if augment or not entry.has_views
    ]


def _key(draw: Split, targets: SoftTargets | None, network: str, augment: bool, run: int, *, full: bool = False) -> str:
    """Differs for runs that train differently; ``full`` data may train for a length of their own."""
    hashes = torch.from_numpy(draw.hashes.copy())
    content = hash_tensors({"hashes": hashes, "labels": draw.labels, "shape": torch.tensor(draw.images.shape)})
    shown = ["augmented" if augment else "plain", *(["full"] if full else [])]
    return "-".join([content, network, *shown, str(run), *([targets.key] if targets else [])])


def _augmented(entry: Entry, settings: Settings) -> bool:
    if entry.has_views:
        return any(targets.augmented for targets in entry.targets)
    return settings.augments


def _row(entry: Entry, network: str, augment: bool, results: list[RunResult], test: Split) -> Row:
    accuracies = [result["accuracy"] for result in results]
    correct = np.mean([result["correct"] for result in results], axis=0).tolist()
    identity, seeds = entry.identity, entry.synthesis_seeds
    within, between = seed_spread(accuracies, seeds)
    row: Row = {
        "method": entry.method,
        "stage": entry.stage,
        "ipc": entry.ipc,
        "labels": entry.labels,
        "recipe": entry.recipe,
        "augment": augment,
        "network": network,
        "space": entry.space,
        "counts": list(entry.counts) if entry.counts else None,
        "accuracy": accuracies,
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies, ddof=1)),
        "per_class": [c / n if n else None for c, n in zip(correct, test.counts(len(correct)), strict=True)],
        "ece": [result["ece"] for result in results],
        "legacy_best": [result["legacy_best"] for result in results if "legacy_best" in result],
        "seconds": round(sum(result["seconds"] for result in results), 2),
        "set": list(identity) if isinstance(identity, tuple) else identity,
        "synthesis_seeds": seeds,
        "std_within": within,
        "std_between": between,
        "cached": sum(bool(result.get("cached")) for result in results),
        **entry.facts,
    }
    if not row["legacy_best"]:
        del row["legacy_best"]
    return row


def seed_spread(values: Sequence[float], sets: int) -> tuple[float | None, float | None]:
    """(deviation of the runs of one set, pooled over the sets; deviation of the sets' means), both with n - 1.

    Run r belongs to set r % sets. (None, None) for one set.
    """
    if sets < 2:
        return None, None
    within = [float(np.var(values[s::sets], ddof=1)) for s in range(sets)]
    return float(np.sqrt(np.mean(within))), float(np.std(by_set(values, sets), ddof=1))


def with_verdict(row: Row, rows: Sequence[Row]) -> Row:
    """The row with its paired interval against random images of the same counts and labels, where there are any.

    For several synthesis seeds each set's mean difference is one value of ``ci95_vs_random``, so that the interval
    covers new seeds; in ``ci95_these_sets`` every run is one value, so that it covers new trainings on these sets.
    """
    against, sets = reference_of(row, rows), row.get("synthesis_seeds", 1)
    interval = these = None
    if against is not None and row is not against:
        interval = row_interval(row, against)
        these = paired_interval(row["accuracy"], against["accuracy"]) if sets > 1 else None
    return {
        **row,
        "ci95_vs_random": list(interval) if interval else None,
        "ci95_these_sets": list(these) if these else None,
        "verdict": verdict(interval),
    }


def check_shapes(entry: Entry, test: Split) -> None:
    """Check that images to train on and test images have one shape.

    Raises:
        DataError: they do not.
    """
    wanted = tuple(test.images.shape[1:])
    for draw in entry.draws:
        if tuple(draw.images.shape[1:]) != wanted:
            c, h, w = draw.images.shape[1:]
            raise DataError(
                f"The {entry.method} set at IPC {entry.ipc} has {w}x{h} images with {c} channel(s), the test "
                f"images are {wanted[2]}x{wanted[1]} with {wanted[0]}. Evaluate it on the data it was made from, "
                "with the same --data.image_size."
            )


def resolve_precision(config: EvaluateConfig, data: RealData) -> EvaluateConfig:
    """The config with ``auto`` decided: by the longest training of the network that takes the most operations."""
    if "auto" not in (config.mixed_precision, config.compile):
        return config
    settings, classes = resolve_protocol(config), len(data.classes)
    training = TrainingRun(settings, data.test, classes)
    steps, _ = settings.length(len(data.train), classes, full=True)
    shape = data.channels, data.image_size, steps * settings.batch_size * SHARED

    def flop() -> float:
        return max(training_flop(training.network(name), *shape) for name in settings.network)

    mode = runtime.execution_mode(config.mixed_precision, config.compile, runtime.device(), flop)
    return replace(config, mixed_precision="bf16" if mode.bf16 else "no", compile=mode.compile)
