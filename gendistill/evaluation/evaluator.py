"""The judge: the same training for every set, the test split read once, at the last step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.config import EvaluateConfig
from gendistill.data.augmentation import Augmentation
from gendistill.data.dataset import Split
from gendistill.errors import DataError
from gendistill.evaluation.intervals import by_set, calibration_error, paired_interval, row_interval, verdict
from gendistill.evaluation.protocols import Settings, resolve_protocol
from gendistill.hashing import hash_tensors
from gendistill.networks.registry import build_network
from gendistill.networks.training import (
    Batches,
    accuracy,
    augmented_batches,
    predicted,
    require_batch_of_two,
    train_classifier,
)
from gendistill.seeding import derive

LEGACY_TESTS = 20  # of a training without epochs


@dataclass(frozen=True)
class TrainingRun:
    """What all runs share. ``normal`` is the mean and the standard deviation of the real images, in [-1, 1]."""

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
    ) -> dict[str, Any]:
        """{accuracy, correct (images by class), ece, and legacy_best where it is asked for} of run ``number``."""
        s, seed = self.settings, derive(number, "judge")  # apart from a teacher's of the same number
        steps, per_epoch = s.length(len(train), self.classes, full=full)
        network = self.network(name, seed)
        loop = train_classifier(
            network,
            train,
            steps=steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            optimizer=s.optimizer,
            momentum=s.momentum,
            rate=s.rate(steps, per_epoch),
            device=self.device,
            batches=self.batches(train, targets, seed, augment),
            temperature=targets.temperature if targets else 1.0,
            **self._fast,
        )
        every = per_epoch if s.steps is None else max(1, steps // LEGACY_TESTS)
        best = 0.0
        for record in loop:
            if s.legacy_best and record["step"] % every == 0:
                best = max(best, accuracy(network.eval(), self.test, **self._fast))
                network.train()
        found = self._tested(network.eval())
        return found | ({"legacy_best": max(best, found["accuracy"])} if s.legacy_best else {})

    def network(self, name: str, seed: int = 0) -> nn.Module:
        """A fresh one for the test images.

        Raises:
            ConfigError: it does not fit them.
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

    def check(self, name: str, images: set[int]) -> None:
        """Refuse a network that does not fit the images, or batch norm for batches of one of so many ``images``.

        Raises:
            ConfigError: for either.
        """
        network, size = self.network(name), self.settings.batch_size
        for count in images:
            last = count % size if self.settings.steps is None and count > size else 0
            require_batch_of_two(network, size, last or count)

    def batches(self, train: Split, targets: SoftTargets | None, seed: int, augment: bool) -> Batches:
        """What run trains on: the targets' own views, or the protocol's of ``train``, with hard or soft labels."""
        if targets and targets.batches:
            return targets.batches
        augmentation = self.settings.augmentation(*self.normal) if augment else Augmentation()
        table = targets.table if targets else None
        if table is None and augmentation.cutmix:
            table = F.one_hot(train.labels, self.classes).float()
        return augmented_batches(
            Split(train.images.to(self.device), train.labels.to(self.device)),
            augmentation,
            batch_size=self.settings.batch_size,
            seed=seed,
            targets=table,
            whole_epochs=self.settings.steps is None,
        )

    @property
    def _fast(self) -> dict[str, bool]:
        s = self.settings
        return runtime.execution_mode(s.mixed_precision, s.compile, torch.device(self.device))._asdict()

    def _tested(self, network: nn.Module) -> dict[str, Any]:
        """The test split, read once."""
        guesses, confidence = predicted(network, self.test, **self._fast)
        right = guesses == self.test.labels
        correct = torch.bincount(self.test.labels[right], minlength=self.classes).tolist()
        return {
            "accuracy": sum(correct) / len(self.test),
            "correct": correct,
            "ece": calibration_error(confidence, right),
        }


RANDOM, FULL = "random", "full"
EQUAL_BYTES = "equal bytes"  # the ``space`` of random rows that are as large as a set in bytes, not in images
RunResult = dict[str, Any]  # of one run: accuracy, seconds, and ``cached`` where another evaluation trained it


@dataclass(frozen=True)
class SoftTargets:
    """Soft targets of one draw: a table (N,K) for images augmented here, or batches that bring their own views.

    ``key`` tells them from others in a resumed evaluation; ``augmented`` says whether those views are augmented.
    """

    key: str
    temperature: float
    table: Tensor | None = None
    batches: Batches | None = None
    augmented: bool = True


@dataclass(frozen=True)
class Entry:
    """One row to be: run r trains on ``draws[r % len(draws)]``. ``ipc`` is None for full data.

    ``counts`` are the images by class of a set where they are not ``ipc`` of every class, or of the sets that a
    baseline stands beside.
    ``targets``, one a draw, replace the hard labels; ``recipe`` says how they were made, so that rows of one recipe are
    compared. ``identity`` is the content hash of a set, or those of several that differ in their synthesis seed alone,
    ``synthesis_seeds`` of them, each a draw. ``facts`` go into the row as they are.
    """

    method: str
    stage: str | None
    ipc: int | None
    draws: tuple[Split, ...]
    space: str | None = None
    labels: Literal["hard", "soft", "online"] = "hard"
    recipe: str | None = None
    targets: tuple[SoftTargets, ...] = ()
    identity: str | tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None
    synthesis_seeds: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)

    def count(self, runs: int) -> int:
        """Runs of this row: ``runs`` for every pooled set, else ``runs`` or one for every draw."""
        return runs * self.synthesis_seeds if self.synthesis_seeds > 1 else max(runs, len(self.draws))

    def run(self, number: int) -> tuple[Split, SoftTargets | None]:
        """What run ``number`` trains on."""
        which = number % len(self.draws)
        return self.draws[which], self.targets[which] if self.targets else None


def evaluate_entries(
    contestants: Sequence[Entry],
    test: Split,
    classes: tuple[str, ...],
    config: EvaluateConfig,
    *,
    device: torch.device | str = "cpu",
    done: Mapping[str, RunResult] | None = None,
    recall: Callable[[str], RunResult | None] | None = None,
    normal: tuple[float, float] = (0.0, 0.5),
) -> Generator[dict[str, Any], None, list[dict[str, Any]]]:
    """Train ``config.runs`` classifiers a row, at least as many as it has draws; yield a record a run, return the rows.

    A row for each of ``entries``: method, stage, ipc, counts, labels, recipe, augment, network, accuracy (fractions by
    run), mean, std (n - 1), per_class (fractions, mean over the runs; None for a class without test images), ece (by
    run), legacy_best (by run, where asked for), ci95_vs_random (paired by run against the random row that is alike in
    all else; null for random and full), verdict, seconds of training, set (content hash, or several), synthesis_seeds,
    std_within and std_between (see ``seed_spread``), cached (runs that were recalled), and the contestant's facts.
    ``done`` has outcomes by record key that need no training again; ``recall`` is asked for other baselines. ``normal``
    is the mean and the standard deviation of the real training images, in [-1, 1].
    """
    settings, rows, done = resolve_protocol(config), [], done or {}
    trial = TrainingRun(settings, test, len(classes), device, normal)
    check(contestants, trial)
    for contestant, name, augment in entries(contestants, settings):
        results: list[RunResult] = []
        for run in range(contestant.count(settings.runs)):
            draw, targets = contestant.run(run)
            full, baseline = contestant.method == FULL, contestant.identity is None
            key = _key(draw, targets, name, augment, run, full=full)
            found = done.get(key) or (recall(key) if recall and baseline else None)
            if found is None:
                start = time.perf_counter()
                found = trial.run(name, draw, targets, run, augment=augment, full=full)
                found["seconds"] = round(time.perf_counter() - start, 3)
            results.append(found)
            yield {
                "key": key,
                "method": contestant.method,
                "set": contestant.stage,
                "ipc": contestant.ipc,
                "labels": contestant.labels,
                "network": name,
                "run": run,
                "baseline": baseline,
                "outcome": found,
                "accuracy": found["accuracy"],
            }
        rows.append(_row(contestant, name, augment and _augmented(contestant, settings), results, test))
    return [with_verdict(row, rows) for row in rows]


def check(contestants: Sequence[Entry], trial: TrainingRun) -> None:
    """Refuse what could not be trained or tested.

    Raises:
        ConfigError: a network that does not fit the test images, or batch norm for batches of one image.
        DataError: images of another shape than the test images.
    """
    for contestant in contestants:
        _check_shapes(contestant, trial.test)
    sizes = {len(draw) for contestant in contestants for draw in contestant.draws}
    for name in trial.settings.network:
        trial.check(name, sizes)


def entries(contestants: Sequence[Entry], settings: Settings) -> list[tuple[Entry, str, bool]]:
    """(contestant, network, augment) of each row; labels of views belong to views as they are, so have no plain row."""
    return [
        (contestant, name, augment)
        for name in settings.network
        for augment in settings.augment
        for contestant in contestants
        if augment or not _has_views(contestant)
    ]


def _key(draw: Split, targets: SoftTargets | None, network: str, augment: bool, run: int, *, full: bool = False) -> str:
    """What tells a run from all others of an evaluation; ``full`` data may train for a length of their own."""
    content = hash_tensors({"images": draw.images, "labels": draw.labels})
    shown = ["augmented" if augment else "plain", *(["full"] if full else [])]
    return "-".join([content, network, *shown, str(run), *([targets.key] if targets else [])])


def _has_views(contestant: Entry) -> bool:
    return any(targets.batches is not None for targets in contestant.targets)


def _augmented(contestant: Entry, settings: Settings) -> bool:
    if _has_views(contestant):
        return any(targets.augmented for targets in contestant.targets)
    return settings.augments


def _row(
    contestant: Entry,
    network: str,
    augment: bool,
    results: list[RunResult],
    test: Split,
) -> dict[str, Any]:
    found = {name: [result[name] for result in results] for name in ("accuracy", "correct", "ece")}
    best = [result["legacy_best"] for result in results if "legacy_best" in result]
    correct, identity = np.mean(found["correct"], axis=0).tolist(), contestant.identity
    return {
        "method": contestant.method,
        "stage": contestant.stage,
        "ipc": contestant.ipc,
        "labels": contestant.labels,
        "recipe": contestant.recipe,
        "augment": augment,
        "network": network,
        "space": contestant.space,
        "counts": list(contestant.counts) if contestant.counts else None,
        "accuracy": found["accuracy"],
        "mean": float(np.mean(found["accuracy"])),
        "std": float(np.std(found["accuracy"], ddof=1)),
        "per_class": [c / n if n else None for c, n in zip(correct, test.counts(len(correct)), strict=True)],
        "ece": found["ece"],
        **({"legacy_best": best} if best else {}),
        "seconds": round(sum(result["seconds"] for result in results), 2),
        "set": list(identity) if isinstance(identity, tuple) else identity,
        "synthesis_seeds": contestant.synthesis_seeds,
        **seed_spread(found["accuracy"], contestant.synthesis_seeds),
        "cached": sum(bool(result.get("cached")) for result in results),
        **contestant.facts,
    }


def seed_spread(values: Sequence[float], sets: int) -> dict[str, float | None]:
    """``std_within``: deviation (n - 1) of the runs of one set, pooled over the sets; ``std_between``: of the sets'
    means. Run r belongs to set r % sets; null for one set."""
    if sets < 2:
        return {"std_within": None, "std_between": None}
    within = [float(np.var(values[s::sets], ddof=1)) for s in range(sets)]
    return {
        "std_within": float(np.sqrt(np.mean(within))),
        "std_between": float(np.std(by_set(values, sets), ddof=1)),
    }


def with_verdict(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with its paired interval against random images of the same numbers and labels, where there are such.

    Of several synthesis seeds, each set's mean difference is one value of ``ci95_vs_random``, so that it covers new
    seeds; ``ci95_these_sets`` takes every run as one, so that it covers new trainings on these sets.
    """
    same, sets = ("ipc", "counts", "labels", "recipe", "network", "augment"), row.get("synthesis_seeds", 1)
    plain = (r for r in rows if r["method"] == RANDOM and r.get("space") != EQUAL_BYTES and not r.get("set"))
    against = next((r for r in plain if all(r.get(k) == row.get(k) for k in same)), None)
    interval = these = None
    if against is not None and row is not against:
        interval = row_interval(row, against)
        these = paired_interval(row["accuracy"], against["accuracy"]) if sets > 1 else None
    told = {"ci95_these_sets": list(these) if these else None}
    return {**row, "ci95_vs_random": list(interval) if interval else None, **told, "verdict": verdict(interval)}


def _check_shapes(contestant: Entry, test: Split) -> None:
    wanted = tuple(test.images.shape[1:])
    for draw in contestant.draws:
        if tuple(draw.images.shape[1:]) != wanted:
            c, h, w = draw.images.shape[1:]
            raise DataError(
                f"The {contestant.method} set at IPC {contestant.ipc} has {w}x{h} images with {c} channel(s), the test "
                f"images are {wanted[2]}x{wanted[1]} with {wanted[0]}. Evaluate it on the data it was made from, "
                "with the same --data.image_size."
            )
