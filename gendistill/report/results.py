"""The rows that the page shows: which are compared, which are products, and their colours, order and groups."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Required, TypeVar, cast

from gendistill.evaluation.summary import (
    FULL,
    RANDOM,
    Row,
    balanced_accuracy,
    has_uneven_test,
    is_reference,
    without_twins,
)
from gendistill.report.formatting import NAMES, listed

Condition = tuple[Any, ...]
Interval = tuple[float, float]
R = TypeVar("R", bound=Mapping[str, Any])  # a row of either task

KMEANS = "kmeans"
BASELINES = (RANDOM, KMEANS, "herding", "kcenter", "difficulty", FULL)
COLOURS = {"refined": "blue", "select": "sky", "samples": "green", "base": "purple", RANDOM: "grey", FULL: "ink"}
SPARE = ("orange", "red", "yellow", "brown", "violet", "blue", "green", "purple", "sky")


def condition(row: ReportRow) -> Condition:
    """What a row must share with another to be compared with it: labels, recipe, network, augmentation, settings."""
    return (row["labels"], row.get("recipe"), row["network"], bool(row.get("augment")), row["settings_number"])


def primary(rows: Sequence[ReportRow]) -> Condition | None:
    """The condition that the verdict speaks of: the first with hard labels that has sets."""
    sized = [r for r in rows if r["ipc"] is not None]
    first = next((r for r in sized if r["labels"] == "hard"), sized[0] if sized else None)
    return condition(first) if first else None


def under(rows: Sequence[ReportRow], wanted: Condition | None) -> list[ReportRow]:
    """The rows of one condition."""
    return [r for r in rows if condition(r) == wanted]


def random_of(row: ReportRow, rows: Sequence[ReportRow]) -> ReportRow | None:
    """The random draws that a row is compared with, of as many images of each class, of its own run where there are
    several."""
    sized = [r for r in rows if is_reference(r) and all(r.get(k) == row.get(k) for k in ("ipc", "counts"))]
    found = [r for r in sized if condition(r) == condition(row)]
    return next((r for r in found if set(r["runs"]) & set(row["runs"])), found[0] if found else None)


def products(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """The sets that were evaluated, of every run the last stage alone; coresets where there is nothing else."""
    sets = [r for r in rows if r["given"] and r["ipc"] is not None]
    made = [r for r in sets if r["method"] not in BASELINES] or sets
    last = {
        run: next((s for s in NAMES if any(r["stage"] == s and run in r["runs"] for r in made)), None)
        for run in dict.fromkeys(run for r in made for run in r["runs"])
    }
    return [r for r in made if r["stage"] not in NAMES or any(last[run] == r["stage"] for run in r["runs"])]


def seeds_of(row: ReportRow) -> int:
    """The sets of other synthesis seeds that the row pools; run r is of set r mod them."""
    return int(row.get("synthesis_seeds") or 1)


def mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def order_rows(rows: Sequence[R]) -> list[R]:
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
    found = [cast("R", {**r, "colour": inks[r["label"]][0], "shape": inks[r["label"]][1]}) for r in rows]
    return sorted(found, key=lambda r: (r["ipc"] is None, r["ipc"] or 0, bool(r.get("given")), not is_reference(r)))


def ipc_of(row: Mapping[str, Any]) -> int:
    """Its images per class; 0 of all real images."""
    return row["ipc"] or 0


def full_row(rows: Sequence[ReportRow]) -> ReportRow | None:
    """The row of all real images."""
    return next((r for r in rows if r["method"] == FULL), None)


class ReportRow(Row, total=False):
    """A row of a summary with what the report adds.

    Attributes:
        label: What a table calls it; no other row of its IPC and condition has the same.
        noun: What a sentence calls it.
        runs: Names of the runs that evaluated it.
        settings_number: A number for each different settings of the training: only rows with one number are compared.
        alike: The names of the runs with these settings, where they are not those of the first run.
        given: Whether it is a set that was to be evaluated, not a baseline.
        set_name: The short name of its folder.
        fault: Whether the evaluation found an error in the set.
        balanced: The mean accuracy over classes, in [0, 1], where classes differ much in their number of test images.
        colour: The colour of its label.
        shape: Counts the labels with that colour, whose markers differ.
        forest: Its interval against random images: low, middle, high and zero, in per cent of the column's width.
        legacy: Mean of ``legacy_best``.
        calibration: Mean of ``ece``.
        stored: Bytes of images and labels together.
    """

    label: Required[str]
    noun: str
    runs: list[str]
    settings_number: int
    alike: str
    given: bool
    set_name: str | None
    fault: bool
    balanced: float | None
    colour: str
    shape: int
    forest: list[float] | None
    legacy: float | None
    calibration: float | None
    stored: int | None


SAME = ("method", "stage", "space", "ipc", "counts", "labels", "recipe", "augment", "network", "set")
ASIDE = ("runs", "changed", "network", "networks", "augment", "labels", "legacy_best", "mixed_precision", "compile")


@dataclass(frozen=True)
class EvaluatedRun:
    """The summary of a run with its short ``name``, a ``label`` in every row, and by hash what its sets are called."""

    name: str
    summary: Mapping[str, Any]
    evaluated_sets: Mapping[str, str | None] = field(default_factory=dict)


def merge_rows(runs: Sequence[EvaluatedRun]) -> list[ReportRow]:
    """Every row once, with the keys of ``ReportRow`` but those of its colour; labels and nouns are unique.

    Of rows that differ in their number of trainings alone the one with more is kept.
    """
    found: dict[str, list[ReportRow]] = {}
    numbers = settings_numbers(runs)
    for run, number in zip(runs, numbers, strict=True):
        alike = [other.name for other, its in zip(runs, numbers, strict=True) if its == number]
        for row in without_twins(run.summary["rows"]):
            new = _row(row, run, number, listed(alike) if number else "")
            same = found.setdefault(json.dumps([number, *(row.get(name) for name in SAME)]), [])
            twin = next((r for r in same if _one_continues(r, row)), None)
            if twin is None:
                same.append(new)
                continue
            longer = max(twin, new, key=lambda r: len(r["accuracy"]))
            same[same.index(twin)] = {
                **longer,
                "given": twin["given"] or new["given"],
                "fault": twin["fault"] or new["fault"],
                "runs": [*twin["runs"], run.name],
            }
    return _with_unique_labels([row for same in found.values() for row in same])


def _row(row: ReportRow, run: EvaluatedRun, number: int, alike: str) -> ReportRow:
    names = [run.evaluated_sets[h] for h in hashes(row) if h in run.evaluated_sets]
    found: ReportRow = {
        "ci95_vs_random": None,
        **row,
        "runs": [run.name],
        "settings_number": number,
        "alike": alike,
        "given": bool(names) if run.evaluated_sets else row["method"] not in BASELINES,
        "set_name": next((name for name in names if name), None),
        "fault": bool(_with_errors(run) & set(hashes(row))),
    }
    if has_uneven_test(run.summary):
        found["balanced"] = balanced_accuracy(row)
    return found


def _with_errors(run: EvaluatedRun) -> set[str | None]:
    """The content hashes of the sets in which an error was found."""
    return {entry.get("set") for entry in run.summary.get("findings") or () if entry.get("severity") == "error"}


def _one_continues(row: ReportRow, other: ReportRow) -> bool:
    """Whether both are the same trainings, one of them maybe more."""
    return all(a == b for a, b in zip(row["accuracy"], other["accuracy"], strict=False))


def settings_numbers(runs: Sequence[EvaluatedRun]) -> list[int]:
    """One number a run, equal where their rows may be compared: the same protocol with the same training."""
    numbers: dict[str, int] = {}
    keys = []
    for run in runs:
        settings = {k: v for k, v in run.summary.get("settings", {}).items() if k not in ASIDE}
        keys.append(json.dumps([run.summary.get("protocol"), settings], sort_keys=True, default=str))
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def hashes(row: ReportRow) -> list[str]:
    """The content hashes of the sets that a row stands for."""
    found = row.get("set")
    return [found] if isinstance(found, str) else list(found or ())


def _with_unique_labels(rows: list[ReportRow]) -> list[ReportRow]:
    """Labels with the name of the set, the run, both, or the set's hash: the first that makes them unique."""
    found: dict[int, ReportRow] = {}
    for label in dict.fromkeys(r["label"] for r in rows):
        same = [r for r in rows if r["label"] == label]
        tag = next((t for t in TAGS if _unique(same, t)), HASH)
        for row in same:
            found[id(row)] = {**row, "label": _with(label, tag(row)), "noun": _noun(row, tag(row))}
    return [found[id(row)] for row in rows]


def _unique(rows: Sequence[ReportRow], tag: Callable[[ReportRow], str]) -> bool:
    keys = [(tag(r), r["ipc"], r["labels"], r.get("recipe"), r["network"], bool(r.get("augment"))) for r in rows]
    return len(set(keys)) == len(keys)


def _tag(*names: str) -> Callable[[ReportRow], str]:
    def tag(row: ReportRow) -> str:
        words = {"set": row["set_name"], "settings": row["alike"], "run": listed(row["runs"])}
        words["hash"] = " ".join(content[:8] for content in hashes(row))
        return ", ".join(word for name in names if (word := words[name]))

    return tag


TAGS = (_tag("settings"), _tag("set", "settings"), _tag("run"), _tag("set", "run"))
HASH = _tag("hash", "run")


def _with(label: str, tag: str) -> str:
    return f"{label}, {tag}" if tag else label


def _noun(row: ReportRow, tag: str) -> str:
    """What a sentence calls the row: "refined set of digits"."""
    if row["stage"] in NAMES:
        name, own = NAMES[row["stage"]], NAMES[row["stage"]].split()[0]
        return name if tag in ("", own) else f"{name} of {tag}"  # a folder is often called as its stage is
    if row["method"] in BASELINES and tag:
        return f"set {tag} ({row['label']})"
    return f"{row['label']} set {tag}".rstrip()
