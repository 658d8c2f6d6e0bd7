"""The rows of the summary as the table and the chart show them: in order, in their colours, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gendistill.evaluate.judge import FULL, RANDOM
from gendistill.evaluate.report.scales import Axis

COLOURS = {"refined": "blue", "select": "sky", "samples": "green", "base": "purple", RANDOM: "grey", FULL: "ink"}
SPARE = ("orange", "red", "yellow")


def ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By IPC, full data last, each with its ``colour``; spare colours go to what has none."""
    labels = dict.fromkeys(r["label"] for r in rows if (r["stage"] or r["method"]) not in COLOURS)
    spare = {label: SPARE[i % len(SPARE)] for i, label in enumerate(labels)}
    found = [{**r, "colour": spare.get(r["label"]) or COLOURS[r["stage"] or r["method"]]} for r in rows]
    return sorted(found, key=lambda r: (r["ipc"] is None, r["ipc"] or 0))


def full_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of all real images."""
    return next((r for r in rows if r["method"] == FULL), None)


def table(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows in groups of one IPC; compared rows have ``forest``, their interval's low, middle, high, zero in %."""
    ends = [v for r in rows for v in r["ci95_vs_random"] or ()]
    axis = Axis(min([0.0, *ends]), max([0.0, *ends]), 3, 97)
    groups: dict[int | None, list[dict[str, Any]]] = {}
    for row in rows:
        low, high = row["ci95_vs_random"] or (0.0, 0.0)
        forest = [axis(v) for v in (low, (low + high) / 2, high, 0.0)] if row["ci95_vs_random"] else None
        groups.setdefault(row["ipc"], []).append({**row, "forest": forest})
    return list(groups.values())
