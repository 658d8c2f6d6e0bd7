"""The baselines: random draws, coresets, random images of equal bytes, and all real images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.config import BESIDE, EvaluateConfig
from gendistill.coreset.coresets import positions
from gendistill.data.class_positions import evenly_spaced
from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import block_of
from gendistill.evaluation.cache import BaselineCache, training_identity
from gendistill.evaluation.entries import Entry
from gendistill.evaluation.inputs import Counts
from gendistill.evaluation.intervals import row_interval
from gendistill.evaluation.summary import EQUAL_BYTES, FULL, RANDOM, Row, SetFacts
from gendistill.hashing import hash_json, hash_tensors
from gendistill.networks.teacher import Teacher
from gendistill.registry import DISTILLERS, resolve
from gendistill.runtime import of_main_process
from gendistill.seeding import derive
from gendistill.surrogate.image_files import file_sizes

RANDOM_DRAWS = 5
ENCODED = 100_000  # images whose files are measured


@dataclass(frozen=True)
class Baselines:
    """The baselines of one evaluation. A ``seed`` gives the same picks in every evaluation of the same images."""

    data: RealData
    config: EvaluateConfig
    seed: int
    teacher: Teacher | None = None

    def beside(
        self, ipc: int, runs: int, totals: Sequence[int], counts: Mapping[Counts, str] | None = None
    ) -> list[Entry]:
        """At one IPC: random draws, the coresets, and random sets of ``totals`` bytes.

        Args:
            ipc: Images per class.
            runs: Random draws, at least.
            totals: Bytes of sets that store more than plain images.
            counts: Images by class of the sets, with a set's name: each has random draws of its own, the first has the
                coresets. Of a class with fewer real images all are taken.
        """
        draws, even = max(RANDOM_DRAWS, self.config.runs, runs), self.even(ipc)
        first, *others = counts or {even: ""}
        wanted = {c: None if c == even else c for c in (first, *others)}
        found = [_row(RANDOM, ipc, self._draws(first, draws), counts=wanted[first])]
        for method, split, space in self._coresets(first):
            found.append(_row(method, ipc, (split,), space, wanted[first]))
        for other in others:
            space = f"as {(counts or {})[other]}, {sum(other):,} images"
            found.append(_row(RANDOM, ipc, self._draws(other, draws), space, wanted[other]))
        if "bytes" in self.config.baselines:
            sizes = {self._images_of(total, ipc, draws) for total in totals}
            fewest = min(sum(limited(c, self.data)) for c in wanted)
            larger = sorted(n for n in sizes if n * len(self.data.classes) > fewest)
            found += [_row(RANDOM, ipc, self._draws(self.even(n), draws), EQUAL_BYTES) for n in larger]
        return found

    def full(self) -> list[Entry]:
        """All real images."""
        if "full" not in self.config.baselines:
            return []
        key = "bytes of all images"  # encoding a million takes minutes

        def total() -> int:
            found = self._cache.recall(key)
            if found is None:
                found = {"total": total_size(self.data.train)}
                self._cache.keep(key, found)
            return int(found["total"])

        facts = file_facts(len(self.data.train), of_main_process(total))
        return [Entry(FULL, None, None, (self.data.train,), facts=facts)]

    def even(self, ipc: int) -> Counts:
        """The same number of images of every class."""
        return (ipc,) * len(self.data.classes)

    def _draws(self, counts: Counts, draws: int) -> tuple[Split, ...]:
        return tuple(random_draw(self.data, counts, self.seed, r) for r in range(draws))

    def _coresets(self, counts: Counts) -> Iterator[tuple[str, Split, str | None]]:
        """k-means on pixels and on a teacher's features; the others on features where there is a teacher."""
        features: Tensor | None = self.teacher.statistics.features if self.teacher else None
        chosen = set(self.config.baselines) - {RANDOM, *BESIDE}
        for method in (name for name in DISTILLERS.names() if name in chosen):
            if DISTILLERS[method].scores:
                yield method, self.picked(method, counts, None), None
                continue
            for space in [None, features] if method == "kmeans" and features is not None else [features]:
                yield method, self.picked(method, counts, space), "pixels" if space is None else "teacher features"

    def picked(self, method: str, counts: Counts, features: Tensor | None) -> Split:
        """What ``distill`` picks, or what an earlier evaluation picked: k-means on pixels can take minutes."""
        data, space = self.data, "pixels" if features is None else hash_tensors({"features": features})
        if DISTILLERS[method].scores:
            space = hash_json(training_identity(runtime.device()))
        wanted = limited(counts, self.data)
        size = wanted[0] if len(set(wanted)) == 1 else "-".join(map(str, wanted))
        key = f"picks {method} {size} {self.seed} {space}"

        def pick() -> list[int]:
            found = self._cache.recall(key)
            if found is None:
                compared = self._scores(method) if DISTILLERS[method].scores else features
                index = positions(method, data.train, compared, data.classes, wanted, self.seed)
                found = {"index": index.tolist()}
                self._cache.keep(key, found)
            return list(found["index"])

        return data.train.take(torch.tensor(of_main_process(pick)))

    def _scores(self, method: str) -> Tensor:
        """What a method compares that makes its own features, made once for all IPC."""
        if method not in self._made:
            self._made[method] = resolve(DISTILLERS[method].scores)(self.data, self.seed)
        return self._made[method]

    @cached_property
    def _made(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def _cache(self) -> BaselineCache:
        return BaselineCache.of_picks(self.data, self.config)

    def _images_of(self, total: int, ipc: int, draws: int) -> int:
        """The smallest IPC at which every draw takes ``total`` bytes; at most all images of the smallest class."""
        return max(self._images_of_draw(total, ipc, r) for r in range(draws))

    def _images_of_draw(self, total: int, ipc: int, draw: int) -> int:
        most = min(self.data.train.counts(len(self.data.classes)))
        count = min(ipc, most)
        while True:  # a larger draw begins with the smaller one
            sizes = sizes_of(random_draw(self.data, self.even(count), self.seed, draw))
            steps = [sum(sizes[i::count]) for i in range(count)]  # of one more image of every class
            enough = [n for n, size in enumerate(accumulate(steps), 1) if size >= total]
            if enough or count == most:
                return enough[0] if enough else most
            count = min(2 * count, most)


def limited(counts: Counts, data: RealData) -> Counts:
    """At most as many of each class as there are."""
    return tuple(map(min, counts, data.train.counts(len(data.classes))))


def random_draw(data: RealData, counts: Counts, seed: int, draw: int) -> Split:
    """Random draw number ``draw`` of an evaluation with this seed; all images of a class that has fewer."""
    nothing, own = torch.empty(len(data.train), 0), derive(seed, "random draw", draw)
    return data.train.take(positions(RANDOM, data.train, nothing, data.classes, limited(counts, data), own))


def sizes_of(split: Split) -> list[int]:
    """Bytes of each image as the file that a set would hold."""
    return [size for part in split.images.split(block_of(split.images)) for size in file_sizes(part)]


def total_size(split: Split) -> int:
    """Bytes of all images; of more than ``ENCODED`` they are estimated from so many, evenly spaced."""
    some = torch.tensor(evenly_spaced(len(split), ENCODED))
    measured = sum(sum(file_sizes(split.images[part])) for part in some.split(block_of(split.images)))
    return round(measured * len(split) / len(some))


def _row(
    method: str, ipc: int, draws: tuple[Split, ...], space: str | None = None, counts: Counts | None = None
) -> Entry:
    total = sum(sum(sizes_of(draw)) for draw in draws)
    facts = file_facts(len(draws[0]), round(total / len(draws)))
    return Entry(method, None, ipc, draws, space, counts=counts, facts=facts)


def file_facts(images: int, total: int) -> SetFacts:
    """Images and bytes of a draw as a set would hold it."""
    return {
        "stored_images": images,
        "decoded_images": images,
        "bytes": {"images": total, "labels": 0},
        "synthesis_seconds": None,
    }


def compare_with_equal_bytes(rows: Sequence[Row]) -> list[Row]:
    """The rows with ``ci95_vs_equal_bytes`` (see ``row_interval``), for sets with soft labels or packed views.

    The comparison is with the random row of the same network, IPC and, where there is one, augmentation that takes at
    least as many bytes, or the most; there is none where the row of as many images takes these bytes already.
    """
    hard = [r for r in rows if r["method"] == RANDOM and r["labels"] == "hard"]
    plain = [r for r in hard if r["space"] != EQUAL_BYTES]
    equal = sorted((r for r in hard if r["space"] == EQUAL_BYTES), key=total_bytes_of)
    found: list[Row] = []
    for row in rows:
        alike = [r for r in plain if r.get("counts") == row.get("counts")]
        enough = any(total_bytes_of(r) >= total_bytes_of(row) for r in _beside(row, alike))
        fits = _beside(row, equal) if _spends_more(row) and not enough else []
        against = next((r for r in fits if total_bytes_of(r) >= total_bytes_of(row)), fits[-1] if fits else None)
        interval = row_interval(row, against) if against else None
        found.append({**row, "ci95_vs_equal_bytes": list(interval) if interval else None})
    return found


def _beside(row: Row, others: Sequence[Row]) -> list[Row]:
    """Those of the row's IPC and network, and of its augmentation if there are any."""
    fits = [r for r in others if (r["ipc"], r["network"]) == (row["ipc"], row["network"])]
    return [r for r in fits if r.get("augment") == row.get("augment")] or fits


def _spends_more(row: Row) -> bool:
    """Whether the row is of a set that stores more than plain images."""
    return bool(row["set"]) and (row["labels"] != "hard" or row["decoded_images"] > row["stored_images"])


def total_bytes_of(row: Row) -> int:
    return row["bytes"]["images"] + row["bytes"]["labels"]
