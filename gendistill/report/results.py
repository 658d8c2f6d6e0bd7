"""The rows that the page shows: which are compared, which are products, and their colours, order and groups.

A row is one of a summary with what ``merge`` adds: ``label`` and ``noun`` for readers, ``runs``, ``judged`` and
``given``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gendistill.evaluation.evaluator import EQUAL_BYTES, FULL, RANDOM
from gendistill.evaluate.report.scales import Axis
from gendistill.report.formatting import NAMES

Row = dict[str, Any]
Condition = tuple[Any, ...]
Interval = tuple[float, float]

KMEANS, HERDING, KCENTER = "kmeans", "herding", "kcenter"
CORESETS = (KMEANS, HERDING, KCENTER)
BASELINES = (RANDOM, *CORESETS, FULL)
COLOURS = {"refined": "blue", "select": "sky", "samples": "green", "base": "purple", RANDOM: "grey", FULL: "ink"}
SPARE = ("orange", "red", "yellow", "brown", "violet", "blue", "green", "purple", "sky")


def condition(row: Row) -> Condition:
    """What a row must share with another to be compared with it: labels, recipe, network, augmentation, settings."""
    return (row["labels"], row.get("recipe"), row["network"], bool(row.get("augment")), row["judged"])


def primary(rows: Sequence[Row]) -> Condition | None:
    """The condition that the verdict speaks of: the first with hard labels that has sets."""
    sized = [r for r in rows if r["ipc"] is not None]
    first = next((r for r in sized if r["labels"] == "hard"), sized[0] if sized else None)
    return condition(first) if first else None


def under(rows: Sequence[Row], wanted: Condition | None) -> list[Row]:
    """The rows of one condition."""
    return [r for r in rows if condition(r) == wanted]


def is_random(row: Row) -> bool:
    """Whether it is the reference: draws as large as the sets, not the draw of equal bytes nor a set of the user's."""
    return row["method"] == RANDOM and row.get("space") != EQUAL_BYTES and not row.get("given")


def random_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The random draws that a row is compared with, of as many images of each class, of its own run where there are
    several."""
    sized = [r for r in rows if is_random(r) and all(r.get(k) == row.get(k) for k in ("ipc", "counts"))]
    found = [r for r in sized if condition(r) == condition(row)]
    return next((r for r in found if set(r["runs"]) & set(row["runs"])), found[0] if found else None)


def products(rows: Sequence[Row]) -> list[Row]:
    """The sets that were to be judged, of every run the last stage alone; coresets where there is nothing else."""
    given = [r for r in rows if r["given"] and r["ipc"] is not None]
    made = [r for r in given if r["method"] not in BASELINES] or given
    last = {
        run: next((s for s in NAMES if any(r["stage"] == s and run in r["runs"] for r in made)), None)
        for run in dict.fromkeys(run for r in made for run in r["runs"])
    }
    return [r for r in made if r["stage"] not in NAMES or any(last[run] == r["stage"] for run in r["runs"])]


def seeds_of(row: Row) -> int:
    """The sets of other synthesis seeds that the row pools; run r is of set r mod them."""
    return int(row.get("synthesis_seeds") or 1)


def mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By IPC, full data last, the baselines before the sets; each with its label's ``colour`` and ``shape``."""
    wanted = {r["label"]: COLOURS.get(r["stage"] or r["method"]) for r in rows}
    inks: dict[str, tuple[str, int]] = {}
    taken: list[str | None] = []
    for label, colour in wanted.items():
        if colour and colour not in taken:
            inks[label] = (colour, 0)
            taken.append(colour)
    free = [c for c in SPARE if c not in taken] + list(SPARE)
    others = [label for label in wanted if label not in inks]
    for i, label in enumerate(others):
        colour = free[i % len(free)]
        inks[label] = (colour, [c for c, _ in inks.values()].count(colour))
    found = [{**r, "colour": inks[r["label"]][0], "shape": inks[r["label"]][1]} for r in rows]
    return sorted(found, key=lambda r: (r["ipc"] is None, r["ipc"] or 0, bool(r.get("given")), not is_random(r)))


def full_row(rows: Sequence[Row]) -> Row | None:
    """The row of all real images."""
    return next((r for r in rows if r["method"] == FULL), None)


def table(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups of one IPC; compared rows have ``forest``, their interval's low, middle, high, zero in %."""
    ends = [v for r in rows for v in r["ci95_vs_random"] or ()]
    axis = Axis(min([0.0, *ends]), max([0.0, *ends]), 3, 97)
    groups: dict[int | None, list[Row]] = {}
    for row in rows:
        low, high = row["ci95_vs_random"] or (0.0, 0.0)
        forest = [axis(v) for v in (low, (low + high) / 2, high, 0.0)] if row["ci95_vs_random"] else None
        groups.setdefault(row["ipc"], []).append({**row, "forest": forest})
    return list(groups.values())
