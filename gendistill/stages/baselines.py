"""What stands beside the sets: random draws, coresets, random images of equal bytes, and all real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gendistill.config import EvaluateConfig
from gendistill.coreset.coresets import choose, positions
from gendistill.data.images import to_float
from gendistill.data.real import RealData, Split
from gendistill.evaluate.intervals import paired_interval
from gendistill.evaluate.judge import FULL, RANDOM, Contestant
from gendistill.hashing import hash_tensors
from gendistill.networks.teacher import Teacher
from gendistill.seeding import derive
from gendistill.stages.baseline_cache import BaselineCache
from gendistill.surrogate.pixels import png_sizes

RANDOM_DRAWS = 5
EQUAL_BYTES = "equal bytes"  # the ``space`` of such random rows


@dataclass(frozen=True)
class Baselines:
    """The real rows of one evaluation. A ``seed`` gives the same picks in every evaluation of the same images."""

    data: RealData
    config: EvaluateConfig
    seed: int
    teacher: Teacher | None = None

    def beside(self, ipc: int, runs: int, totals: Sequence[int]) -> list[Contestant]:
        """At one IPC: ``runs`` random draws or more, the coresets, and random sets of ``totals`` bytes."""
        draws = max(RANDOM_DRAWS, self.config.runs, runs)
        found = [_row(RANDOM, ipc, tuple(self._random(ipc, r) for r in range(draws)))]
        found += [_row(method, ipc, (split,), space) for method, split, space in self._coresets(ipc)]
        if "bytes" in self.config.baselines:
            counts = {self._images_of(total, ipc, draws) for total in totals}
            found += [self._equal_bytes(ipc, count, draws) for count in sorted(counts) if count > ipc]
        return found

    def full(self) -> list[Contestant]:
        """All real images."""
        if "full" not in self.config.baselines:
            return []
        key = "bytes of all images"  # which take minutes to encode where there are a million
        found = self._cache.recall(key)
        if found is None:
            found = {"total": sum(png_sizes(self.data.train.images))}
            self._cache.keep(key, found)
        return [Contestant(FULL, None, None, (self.data.train,), facts=_facts(len(self.data.train), found["total"]))]

    def _random(self, ipc: int, draw: int) -> Split:
        nothing, seed = torch.empty(len(self.data.train), 0), derive(self.seed, "random draw", draw)
        return choose(RANDOM, self.data.train, nothing, self.data.classes, ipc, seed)

    def _coresets(self, ipc: int) -> Iterator[tuple[str, Split, str]]:
        """k-means on pixels and on a teacher's features; the others on features where there is a teacher."""
        features: Tensor | None = self.teacher.statistics.features if self.teacher else None
        spaces = {"kmeans": [None] if features is None else [None, features], "herding": [features]}
        spaces["kcenter"] = [features]
        for method in (name for name in ("kmeans", "herding", "kcenter") if name in self.config.baselines):
            for space in spaces[method]:
                yield method, self._picked(method, ipc, space), "pixels" if space is None else "teacher features"

    def _picked(self, method: str, ipc: int, features: Tensor | None) -> Split:
        """What ``distill`` chooses, or what an earlier evaluation chose: k-means on pixels can take minutes."""
        data, space = self.data, "pixels" if features is None else hash_tensors({"features": features})
        key = f"picks {method} {ipc} {self.seed} {space}"
        found = self._cache.recall(key)
        if found is None:
            compared = to_float(data.train.images).flatten(1) if features is None else features
            index = positions(method, data.train, compared, data.classes, ipc, self.seed)
            found = {"index": index.tolist()}
            self._cache.keep(key, found)
        return data.train.take(torch.tensor(found["index"]))

    @cached_property
    def _cache(self) -> BaselineCache:
        return BaselineCache.of_picks(self.data, self.config)

    def _equal_bytes(self, ipc: int, count: int, draws: int) -> Contestant:
        return _row(RANDOM, ipc, tuple(self._random(count, r) for r in range(draws)), EQUAL_BYTES)

    def _images_of(self, total: int, ipc: int, draws: int) -> int:
        """The least number of images a class with which every draw takes ``total`` bytes; at most all of a class."""
        return max(self._images_of_draw(total, ipc, r) for r in range(draws))

    def _images_of_draw(self, total: int, ipc: int, draw: int) -> int:
        count, most = ipc, min(self.data.train.counts(len(self.data.classes)))
        while True:  # a larger draw begins with the smaller one
            sizes = png_sizes(self._random(count, draw).images)
            steps = [sum(sizes[i::count]) for i in range(count)]  # of one more image of every class
            enough = [n for n, size in enumerate(accumulate(steps), 1) if size >= total]
            if enough or count == most:
                return enough[0] if enough else most
            count = min(2 * count, most)


def _row(method: str, ipc: int, draws: tuple[Split, ...], space: str | None = None) -> Contestant:
    total = sum(sum(png_sizes(draw.images)) for draw in draws)
    return Contestant(method, None, ipc, draws, space, facts=_facts(len(draws[0]), round(total / len(draws))))


def _facts(images: int, total: int) -> dict[str, Any]:
    """Images and bytes of a draw as a set would hold it; nothing was made, so there are no seconds."""
    return {
        "stored_images": images,
        "decoded_images": images,
        "bytes": {"images": total, "labels": 0},
        "synthesis_seconds": None,
    }


def against_equal_bytes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; those of sets with soft labels or packed views have ``ci95_vs_equal_bytes``, paired by run, against the
    random row of the same network, IPC and, where there is one, augmentation that takes as many bytes, or the most."""
    equal = sorted((r for r in rows if r["space"] == EQUAL_BYTES), key=_total)
    found = []
    for row in rows:
        fits = [r for r in equal if (r["ipc"], r["network"]) == (row["ipc"], row["network"])] if _dear(row) else []
        fits = [r for r in fits if r.get("augment") == row.get("augment")] or fits
        against = next((r for r in fits if _total(r) >= _total(row)), fits[-1] if fits else None)
        interval = list(paired_interval(row["accuracy"], against["accuracy"])) if against else None
        found.append({**row, "ci95_vs_equal_bytes": interval})
    return found


def _dear(row: dict[str, Any]) -> bool:
    """Whether it is of a set that spends bytes on more than plain images."""
    return bool(row["set"]) and (row["labels"] != "hard" or row["decoded_images"] > row["stored_images"])


def _total(row: dict[str, Any]) -> int:
    return row["bytes"]["images"] + row["bytes"]["labels"]
