"""The rows as tables: one of every kind of labels, and beside it one of networks and augmentation where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gendistill.report.results import Row, mean, table
from gendistill.report.formatting import listed

EXTRA = {"legacy": "legacy_best", "ece": "ece", "stored": "bytes"}  # column: the key that some row has


@dataclass(frozen=True)
class Line:
    """A set under every condition; ``cells`` are its rows, None where it was not judged."""

    row: Row
    cells: list[Row | None]


@dataclass(frozen=True)
class Matrix:
    """Sets by network and augmentation: ``heads`` name the conditions, ``groups`` are (IPC, lines)."""

    heads: list[str]
    groups: list[tuple[int | None, list[Line]]]


@dataclass(frozen=True)
class Section:
    """Rows with one kind of labels, trained alike: in full for the first network, and those of all of them.

    ``title`` is empty for hard labels where all were trained alike; ``network`` is what the full table is of.
    """

    title: str
    network: str
    groups: list[list[Row]]
    columns: set[str]
    matrix: Matrix | None


def sections(rows: Sequence[Row]) -> list[Section]:
    """One for every recipe of labels and for every settings."""
    trainings = {r["judged"] for r in rows}
    kinds = list(dict.fromkeys(_kind(r) for r in rows if r["ipc"] is not None))
    kinds += dict.fromkeys(kind for r in rows if (kind := _kind(r)) not in kinds)  # of full data alone
    return [_section([r for r in rows if _kind(r) == kind], len(trainings) > 1) for kind in kinds]


def _kind(row: Row) -> tuple[str, str | None, int]:
    return row["labels"], row.get("recipe"), row["judged"]


def _section(rows: Sequence[Row], several: bool) -> Section:
    conditions = list(dict.fromkeys(_condition(r) for r in rows if r["ipc"] is not None)) or [_condition(rows[0])]
    main = [_told(r) for r in rows if _condition(r) == conditions[0]]
    labels, recipe, _ = _kind(rows[0])
    words = [recipe or f"{labels} labels"] * (labels != "hard")
    if several:
        runs = listed(dict.fromkeys(run for r in rows for run in r["runs"]))
        words.append(f"{'as' if words else 'As'} judged in {runs}")
    return Section(
        title=", ".join(words),
        network=_head(*conditions[0], len({c[1] for c in conditions}) > 1),
        groups=table(main),
        columns={name for name, key in EXTRA.items() if any(r.get(key) for r in main)},
        matrix=_matrix(rows, conditions) if len(conditions) > 1 else None,
    )


def _condition(row: Row) -> tuple[str, bool]:
    return row["network"], bool(row.get("augment"))


def _head(network: str, augment: bool, told: bool) -> str:
    return f"{network}, augmented" if augment else f"{network}, not augmented" if told else network


def _matrix(rows: Sequence[Row], conditions: Sequence[tuple[str, bool]]) -> Matrix:
    found: dict[int | None, dict[str, dict[tuple[str, bool], Row]]] = {}
    for row in rows:
        found.setdefault(row["ipc"], {}).setdefault(row["label"], {})[_condition(row)] = row
    told = len({c[1] for c in conditions}) > 1
    groups = [
        (ipc, [Line(next(iter(by.values())), [by.get(c) for c in conditions]) for by in labels.values()])
        for ipc, labels in found.items()
    ]
    return Matrix([_head(*c, told) for c in conditions], groups)


def _told(row: Row) -> Row:
    """With the means of ``legacy_best`` and ``ece``, and the bytes of images and labels together."""
    stored = row.get("bytes") or {}
    total = (stored.get("images") or 0) + (stored.get("labels") or 0) or None
    return {**row, "legacy": mean(row.get("legacy_best")), "ece": mean(row.get("ece")), "stored": total}
