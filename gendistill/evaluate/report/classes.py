"""Which classes a set serves well, and which badly, beside random real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gendistill.report.results import Row, random_of

MOST, EXTREMES = 12, 6


@dataclass(frozen=True)
class ClassRow:
    """Accuracies in [0, 1], means over runs; None for a class without test images."""

    name: str
    accuracy: float | None
    random: float | None

    @property
    def gain(self) -> float | None:
        return None if self.accuracy is None or self.random is None else self.accuracy - self.random


@dataclass(frozen=True)
class ClassTable:
    """The classes of one set from best to worst, those without test images last; of many, ``EXTREMES`` at either end
    of those with, ``left_out`` others."""

    label: str
    ipc: int
    best: list[ClassRow]
    worst: list[ClassRow]
    left_out: int

    @property
    def rows(self) -> list[ClassRow]:
        return [*self.best, *self.worst]

    @property
    def largest(self) -> float:
        """The largest difference to random, either way."""
        return max((abs(r.gain) for r in self.rows if r.gain is not None), default=0.0) or 1.0


def class_tables(shown: Sequence[Row], rows: Sequence[Row], classes: Sequence[str]) -> list[ClassTable]:
    """One for each of the ``shown`` rows that knows its accuracy by class, the largest IPC first."""
    told = [r for r in shown if r.get("per_class")]
    return [_table(r, random_of(r, rows), classes) for r in sorted(told, key=lambda r: -r["ipc"])]


def _table(row: Row, random: Row | None, classes: Sequence[str]) -> ClassTable:
    theirs = (random or {}).get("per_class") or [None] * len(row["per_class"])
    names = classes if len(classes) == len(row["per_class"]) else [f"class {i}" for i in range(len(row["per_class"]))]
    found = [ClassRow(*entry) for entry in zip(names, row["per_class"], theirs, strict=True)]
    found.sort(key=lambda r: (r.accuracy is None, -(r.accuracy or 0.0)))
    if len(found) <= MOST:
        return ClassTable(row["label"], row["ipc"], found, [], 0)
    tested = [r for r in found if r.accuracy is not None]
    best, worst = tested[:EXTREMES], tested[EXTREMES:][-EXTREMES:]
    return ClassTable(row["label"], row["ipc"], best, worst, len(found) - len(best) - len(worst))
