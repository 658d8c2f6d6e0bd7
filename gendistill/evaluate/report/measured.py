"""Tables of what a summary holds beside accuracies: robust scores, measures of the sets, findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.evaluate.report.merge import Judged, hashes
from gendistill.evaluate.report.rows import Row

TITLES = {"kid": "KID (MMD²)", "vendi": "Vendi score", "representativeness": "represent\u00adativeness"}


@dataclass(frozen=True)
class Finding:
    """Something wrong with a set, or worth a warning, in one sentence; ``of`` names the set, or is empty."""

    error: bool
    of: str
    text: str


@dataclass(frozen=True)
class Score:
    """A set's robust scores: (score, std or None), and the two differences that LRS is made of, as fractions."""

    label: str
    ipc: int
    labels: str
    network: str
    lrs: tuple[float, float | None] | None
    ars: tuple[float, float | None] | None
    hlr: float | None
    ior: float | None


@dataclass(frozen=True)
class Measure:
    """A number of a set; ``random`` is that of random real sets of its size, ``std`` their deviation."""

    value: float
    random: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class Measures:
    """``groups`` are (IPC, lines), lines (label, one measure or None for each of ``names``)."""

    names: list[str]
    groups: list[tuple[Any, list[tuple[str, list[Measure | None]]]]]
    reasons: list[str]


def findings(runs: Sequence[Judged], rows: Sequence[Row]) -> list[Finding]:
    """Of all runs, each once, errors first."""
    found = {}
    for run in runs:
        for entry in run.summary.get("findings") or ():
            row = _row_of(entry.get("set"), rows)
            of = f"{row['label']}, IPC {row['ipc']}" if row else ""
            found[of, entry["text"]] = Finding(entry.get("severity") == "error", of, entry["text"])
    return sorted(found.values(), key=lambda f: not f.error)


def scores(runs: Sequence[Judged], rows: Sequence[Row]) -> tuple[list[tuple[tuple[str, str], list[Score]]], list[str]]:
    """(the scores of all runs, each once, by (labels, network), hard labels first; what could not be computed)."""
    found: dict[Score, bool] = {}
    missing: dict[str, None] = {}
    for run in runs:
        for entry in run.summary.get("scores") or ():
            score = _score(entry, run, rows)
            found[score] = score.labels != "hard"
            missing |= dict.fromkeys(entry.get("missing") or ())
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in sorted(found, key=lambda s: (found[s], s.ipc)):
        groups.setdefault((score.labels, score.network), []).append(score)
    return list(groups.items()), list(missing)


def _score(entry: Mapping[str, Any], run: Judged, rows: Sequence[Row]) -> Score:
    keys = ("method", "stage", "space", "ipc", "set")
    same = (r for r in rows if run.name in r["runs"] and all(k not in entry or r.get(k) == entry[k] for k in keys))
    row = next(same, None)
    lrs, ars = entry.get("lrs") or {}, entry.get("ars") or {}
    return Score(
        label=row["label"] if row else str(entry.get("stage") or entry["method"]),
        ipc=entry["ipc"],
        labels=entry.get("recipe") or entry["labels"],
        network=entry["network"],
        lrs=(lrs["score"], lrs.get("std")) if lrs.get("score") is not None else None,
        ars=(ars["score"], ars.get("std")) if ars.get("score") is not None else None,
        hlr=lrs.get("hlr"),
        ior=lrs.get("ior"),
    )


def measures(runs: Sequence[Judged], rows: Sequence[Row]) -> Measures | None:
    """Every set that was measured, each once, in the order of the rows."""
    told: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for content, entry in (run.summary.get("sets") or {}).items():
            told.setdefault(content, entry)
    flat = {content: dict(_flat(entry)) for content, entry in told.items()}
    names = list(dict.fromkeys(name for found in flat.values() for name in found))
    if not names:
        return None
    order = list(dict.fromkeys(h for r in rows for h in hashes(r)))
    place = {content: i for i, content in enumerate(order)}
    groups: dict[Any, list[tuple[str, list[Measure | None]]]] = {}
    for content in sorted(flat, key=lambda h: place.get(h, len(order))):
        row = _row_of(content, rows)
        label, ipc = (row["label"], row["ipc"]) if row else (f"set {content[:8]}", "")
        groups.setdefault(ipc, []).append((label, [flat[content].get(name) for name in names]))
    reasons = dict.fromkeys(reason for entry in told.values() for reason in _reasons(entry))
    return Measures([TITLES.get(name, name.replace("_", " ")) for name in names], list(groups.items()), list(reasons))


def _flat(entry: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Measure]]:
    """(name, measure) of every number in nested objects; {"mean", "random": {"mean", "std"}} is one measure."""
    for key, value in entry.items():
        name = key if isinstance(value, Mapping) and "random" in value else " ".join((*path, key))
        if isinstance(value, Mapping) and isinstance(value.get("random"), Mapping):
            if isinstance(value.get("mean"), int | float):
                random = value["random"]
                yield name, Measure(value["mean"], random.get("mean"), random.get("std"))
        elif isinstance(value, Mapping):
            yield from _flat(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, Measure(value)


def _reasons(entry: Mapping[str, Any]) -> Iterator[str]:
    for key, value in entry.items():
        if key == "reason" and isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _reasons(value)


def _row_of(content: str | None, rows: Sequence[Row]) -> Row | None:
    return next((r for r in rows if content is not None and content in hashes(r)), None)
