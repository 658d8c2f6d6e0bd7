"""Photographs in the format that suits them best, in the bytes of a set: what the set has to beat.

A lossy format holds several times as many photographs as PNG in the same bytes. For every number of bytes the formats
and qualities of ``LADDER`` are compared on the validation images, with one training each on random photographs; the
best one is also tried with k-means. The best of all is trained and tested as every other row, so that the test images
choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import accumulate

import torch

from gendistill import runtime
from gendistill.config import Avif, ImageFormat, Jpeg, Webp
from gendistill.data.dataset import Split
from gendistill.errors import ConfigError
from gendistill.evaluation.baselines import RANDOM_DRAWS, Baselines, file_facts, random_draw, total_bytes_of
from gendistill.evaluation.cache import BaselineCache
from gendistill.evaluation.entries import Entry
from gendistill.evaluation.evaluator import PlannedRun, TrainingRun
from gendistill.evaluation.intervals import row_interval
from gendistill.evaluation.summary import CODED, NAMED, RANDOM, Row, RunResult
from gendistill.progress import track
from gendistill.surrogate.image_files import file_sizes, recode
from gendistill.surrogate.image_formats import PNG, Coding

QUALITIES = (20, 50, 80)
LADDER: tuple[ImageFormat, ...] = (
    "png",
    "webp_lossless",
    *(kind(quality=quality) for kind in (Webp, Jpeg, Avif) for quality in QUALITIES),
)
ALIKE = 1.05  # a factor between numbers of bytes, up to which sets share a row: that of the smaller number


@dataclass(frozen=True)
class Candidate:
    """Photographs of one method in one format, so many of a class that they fit, and their validation accuracy."""

    method: str
    coding: Coding
    ipc: int
    accuracy: float


def coded_rows(real: Baselines, ipc: int, totals: Iterable[int], runs: int, training: TrainingRun) -> list[Entry]:
    """An entry for every number of ``totals`` bytes, beside the sets of ``ipc`` images a class.

    Args:
        real: The baselines, whose random draws and k-means picks are coded.
        ipc: Images per class of the sets.
        totals: Bytes of the sets; numbers that differ by at most 5 % share an entry, of the smallest.
        runs: Runs of the row with the most.
        training: Trains on photographs and judges by the validation images, as its ``test``.

    Several processes call this alike; the main one trains.
    """
    draws = max(RANDOM_DRAWS, real.config.runs, runs)
    found: dict[tuple[str, Coding, int], Entry] = {}
    for total in shared_totals(totals):
        best = _chosen(real, ipc, total, training)
        key = best.method, best.coding, best.ipc
        if key not in found:
            found[key] = _entry(real, ipc, total, best, draws)
    return list(found.values())


def shared_totals(totals: Iterable[int]) -> list[int]:
    """Numbers of bytes, of which none is less than ``ALIKE`` times another."""
    found: list[int] = []
    for total in sorted(set(totals)):
        if not found or total > ALIKE * found[-1]:
            found.append(total)
    return found


def _chosen(real: Baselines, ipc: int, total: int, training: TrainingRun) -> Candidate:
    """The photographs that are best on the validation images."""
    judge = _judge(real, training)
    tried: list[Candidate] = []
    with closing(track(_codings(real.data.image_size), f"formats, ipc {ipc}")) as codings:
        for coding in codings:
            tried.append(_random_candidate(real, coding, ipc, total, judge))
    best = max(tried, key=lambda one: one.accuracy)
    if "kmeans" in real.config.baselines:
        other = _kmeans_candidate(real, best, total, judge)
        best = max(best, other, key=lambda one: one.accuracy)
    return best


def _codings(side: int) -> list[Coding]:
    """Those of the ladder that this Pillow has."""
    found = []
    for image_format in LADDER:
        with suppress(ConfigError):
            found.append(Coding.of(image_format, side))
    return found


def _judge(real: Baselines, training: TrainingRun) -> Callable[[str, Split], float]:
    """The validation accuracy of one training on photographs, of which each is trained on once."""
    cache = BaselineCache.of(real.data, real.config, torch.device(training.device))
    settings, seen = training.settings, dict[str, float]()

    def judge(method: str, split: Split) -> float:
        run = PlannedRun(Entry(method, None, None, (split,)), settings.network[0], settings.augment[0], 0)
        key = f"validation {run.key}"

        def outcome() -> RunResult:
            found: RunResult = cache.recall(key) or run.trained(training)
            cache.keep(key, found)
            return found

        if key not in seen:
            seen[key] = runtime.of_main_process(outcome)["accuracy"]
        return seen[key]

    return judge


def _random_candidate(
    real: Baselines, coding: Coding, ipc: int, total: int, judge: Callable[[str, Split], float]
) -> Candidate:
    count = _fitting(real, coding, total, 0, ipc)
    split, _ = as_stored(random_draw(real.data, real.even(count), real.seed, 0), coding)
    return Candidate(RANDOM, coding, count, judge(RANDOM, split))


def _kmeans_candidate(real: Baselines, best: Candidate, total: int, judge: Callable[[str, Split], float]) -> Candidate:
    """k-means in the coding that is best for random photographs."""
    split, count = _fitting_kmeans(real, best.coding, total, best.ipc)
    return Candidate("kmeans", best.coding, count, judge("kmeans", split))


def _fitting(real: Baselines, coding: Coding, total: int, draw: int, start: int) -> int:
    """The most images of a class of a random draw whose files take at most ``total`` bytes; at least 1."""
    most = min(real.data.train.counts(len(real.data.classes)))
    count = min(start, most)
    while True:  # a larger draw begins with the smaller one
        images = random_draw(real.data, real.even(count), real.seed, draw).pixels
        sizes = file_sizes(images, coding)
        steps = accumulate(sum(sizes[i::count]) for i in range(count))  # of one more image of every class
        fits = sum(size <= total for size in steps)
        if fits < count or count == most:
            return max(1, fits)
        count = min(2 * count, most)


def _fitting_kmeans(real: Baselines, coding: Coding, total: int, count: int) -> tuple[Split, int]:
    """Photographs that k-means on pixels picks, in at most ``total`` bytes, and how many of a class."""
    while True:
        split, size = as_stored(real.picked("kmeans", real.even(count), None), coding)
        if size <= total or count == 1:
            return split, count
        count = max(1, min(count - 1, int(count * total / size)))


def as_stored(split: Split, coding: Coding) -> tuple[Split, int]:
    """The images as they come back from their files, and the bytes of these."""
    if coding == PNG:
        return split, sum(file_sizes(split.pixels))
    decoded, files = recode(split.pixels, coding)
    return Split(decoded, split.labels), sum(map(len, files))


def _entry(real: Baselines, ipc: int, total: int, best: Candidate, draws: int) -> Entry:
    """The photographs to train on, so many of a class that every draw fits."""
    count, coding = best.ipc, best.coding
    if best.method == RANDOM:
        count = min(_fitting(real, coding, total, r, count) for r in range(draws))
        chosen = [random_draw(real.data, real.even(count), real.seed, r) for r in range(draws)]
    else:
        chosen = [real.picked(best.method, real.even(count), None)]
    stored = [as_stored(draw, coding) for draw in chosen]
    facts = file_facts(len(stored[0][0]), round(sum(size for _, size in stored) / len(stored)))
    facts["image_format"] = str(coding)
    return Entry(best.method, None, ipc, tuple(split for split, _ in stored), CODED, facts=facts)


def compare_with_coded(rows: Sequence[Row]) -> list[Row]:
    """The rows with ``ci95_vs_coded`` (see ``row_interval``) of sets; as they are where no photographs were coded.

    The comparison is with the photographs of the same network, IPC and, where there are any, augmentation that take the
    most bytes of those that take no more than the set, or else the fewest.
    """
    coded = sorted((r for r in rows if r["space"] == CODED), key=total_bytes_of)
    if not coded:
        return list(rows)
    found: list[Row] = []
    for row in rows:
        fits = [r for r in coded if row["set"] and (r["ipc"], r["network"]) == (row["ipc"], row["network"])]
        fits = [r for r in fits if r.get("augment") == row.get("augment")] or fits
        smaller = [r for r in fits if total_bytes_of(r) <= total_bytes_of(row)]
        against = smaller[-1] if smaller else fits[0] if fits else None
        interval = row_interval(row, against) if against else None
        compared: Row = {**row, "ci95_vs_coded": list(interval) if interval else None}
        if against and interval:
            compared["coded"] = f"{NAMED[against['method']]} stored as {against['image_format']}"
        found.append(compared)
    return found
