"""Label-robust and augmentation-robust scores (DD-Ranking, Li et al. 2025, arXiv 2505.13300), on fractions.

HLR, hard-label recovery = acc(all real images, hard labels) - acc(set, hard labels); lower is better.
IOR, improvement over random = acc(set, its labels) - acc(random real images, labels of the same recipe).
LRS = robust((IOR - HLR) / 2); ARS = robust of the mean IOR with and without augmentation. The published package takes
per cent, trains each row in its own way and keeps the best epoch: its numbers are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gendistill.evaluation.summary import FULL, RANDOM, Row, Score, ScoreEntry, reference_of

WEIGHT = 0.5  # w and gamma
RECIPE = "random real images with labels of the same recipe"
NAME = ("method", "stage", "space", "ipc")
KEYS = (*NAME, "labels", "recipe", "network", "set")


def robust(gain: float) -> float:
    """(exp(gain) - exp(-1)) / (e - exp(-1)): gains in [-1, 1] to [0, 1], rising; a gain of 0 gives 0.269."""
    return (math.exp(gain) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(full: float, hard: float, made: float, random: float) -> float:
    """LRS of fractions: all real and the set, hard labels; the set and random images, labels of one recipe."""
    _check_fractions(full, hard, made, random)
    return robust(WEIGHT * (made - random) - (1 - WEIGHT) * (full - hard))


def augmentation_robust(augmented: float, random_augmented: float, plain: float, random_plain: float) -> float:
    """ARS of fractions: of the set and of random images with labels of one recipe, with and without augmentation."""
    _check_fractions(augmented, random_augmented, plain, random_plain)
    return robust(WEIGHT * (augmented - random_augmented) + (1 - WEIGHT) * (plain - random_plain))


def _check_fractions(*values: float) -> None:
    """Raises ValueError for per cent."""
    if not all(0 <= v <= 1 for v in values):
        raise ValueError(f"Accuracies are {values}; expected fractions from 0 to 1, not per cent.")


def scores(rows: Sequence[Row]) -> list[ScoreEntry]:
    """One entry for every set or coreset, kind of labels and network of a summary's rows.

    ``lrs`` is of the rows without augmentation where there are any. A score is that of the mean accuracies; its ``std``
    is the deviation of the scores by run: run r of every row is paired, by set where a row has several, and a row with
    fewer runs repeats them. What lacks a row is None, and ``missing`` says so.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] not in (RANDOM, FULL) or row.get("set"):
            groups.setdefault(repr([row.get(k) for k in KEYS]), []).append(row)
    return [_entry(group, rows) for group in groups.values()]


def _entry(group: Sequence[Row], rows: Sequence[Row]) -> ScoreEntry:
    own = {bool(row["augment"]): row for row in reversed(group)}
    random = {augment: reference_of(row, rows) for augment, row in own.items()}
    row, against = own[min(own)], random[min(own)]
    full = _nearest([r for r in rows if r["method"] == FULL and _same(r, row, "network")], row)
    hard = _hard(row, rows)
    lrs = _score(label_robust, full, hard, row, against)
    lrs |= {"hlr": _gain(full, hard), "ior": _gain(row, against), "augment": min(own)}
    needed = ((full, "all real images"), (hard, "the set itself with hard labels"), (against, RECIPE))
    missing = [f"LRS: no row of {name}" for found, name in needed if found is None]
    ars: Score | None = None
    if len(own) < 2:
        missing.append("ARS: no rows both with and without augmentation")
    else:
        ars = _score(augmentation_robust, own[True], random[True], own[False], random[False])
        ars |= {"augmented": _gain(own[True], random[True]), "plain": _gain(own[False], random[False])}
        absent = [augment for augment in own if random[augment] is None]
        missing += [f"ARS: no row of {RECIPE}, augmentation {'on' if augment else 'off'}" for augment in absent]
    first = group[0]
    return {
        "method": first["method"],
        "stage": first["stage"],
        "space": first.get("space"),
        "ipc": first["ipc"],
        "labels": first["labels"],
        "recipe": first.get("recipe"),
        "network": first["network"],
        "set": first.get("set"),
        "lrs": lrs,
        "ars": ars,
        "missing": missing,
    }


def _score(score: Callable[..., float], *rows: Row | None) -> Score:
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return {"score": None, "std": None, "runs": []}
    longest = max(len(row["accuracy"]) for row in found)
    runs = [score(*(_run(row, run) for row in found)) for run in range(longest)]
    std = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
    return {"score": score(*(row["mean"] for row in found)), "std": std, "runs": runs}


def _run(row: Row, run: int) -> float:
    """The accuracy of run ``run``, which is of set ``run`` mod the number of sets; fewer runs of a set are repeated."""
    accuracies, sets = row["accuracy"], row.get("synthesis_seeds") or 1
    sets = min(sets, len(accuracies))
    own = accuracies[run % sets :: sets]
    return own[run // sets % len(own)]


def _gain(better: Row | None, worse: Row | None) -> float | None:
    return better["mean"] - worse["mean"] if better and worse else None


def _hard(row: Row, rows: Sequence[Row]) -> Row | None:
    """The same images with hard labels, by content hash, or by name where no other set has that name."""
    hard = [r for r in rows if r["labels"] == "hard" and bool(r.get("set")) == bool(row.get("set"))]
    named = [r for r in hard if _same(r, row, *NAME, "network")]
    same = [r for r in named if _same(r, row, "set")]
    return _nearest(same or (named if len({repr(r.get("set")) for r in named}) == 1 else []), row)


def _nearest(found: Sequence[Row], row: Row) -> Row | None:
    """The one with augmentation where ``row`` has it; labels of views have, though hard ones may be without."""
    other = found[0] if found and row["labels"] != "hard" else None
    return next((r for r in found if _same(r, row, "augment")), other)


def _same(row: Row, other: Row, *keys: str) -> bool:
    return all(row.get(key) == other.get(key) for key in keys)
