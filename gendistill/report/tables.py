"""Tables of what a summary holds beside accuracies: robust scores, measures of the sets, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.evaluate.report.merge import Judged, hashes
from gendistill.report.results import Row

LOW, HIGH, ALIKE = "lower is better", "higher is better", "best as random"
SHOWN = (  # of what is measured: where it stands, its title, which way is better
    (("measures", "kid"), "KID (MMD²)", LOW),
    (("measures", "precision"), "precision", HIGH),
    (("measures", "recall"), "recall", HIGH),
    (("measures", "coverage"), "coverage", HIGH),
    (("measures", "representativeness"), "represent\u00adativeness", HIGH),
    (("measures", "vendi"), "Vendi score", HIGH),
    (("labels", "hard", "agreement"), "label agreement", ALIKE),
)


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
    """``heads`` are (title, which way is better), ``groups`` (IPC, lines), lines (label, a measure or None a head)."""

    heads: list[tuple[str, str]]
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
    """What is ``SHOWN`` of every set that was measured, each once, in the order of the rows."""
    told: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for content, entry in (run.summary.get("sets") or {}).items():
            told.setdefault(content, entry)
    found = {content: [_measure(_at(entry, path)) for path, *_ in SHOWN] for content, entry in told.items()}
    shown = [i for i in range(len(SHOWN)) if any(values[i] for values in found.values())]
    if not shown:
        return None
    order = list(dict.fromkeys(h for r in rows for h in hashes(r)))
    place = {content: i for i, content in enumerate(order)}
    groups: dict[Any, list[tuple[str, list[Measure | None]]]] = {}
    for content in sorted(found, key=lambda h: place.get(h, len(order))):
        row = _row_of(content, rows)
        label, ipc = (row["label"], row["ipc"]) if row else (f"set {content[:8]}", "")
        groups.setdefault(ipc, []).append((label, [found[content][i] for i in shown]))
    said = (_at(entry, SHOWN[i][0]).get("reason") for entry in told.values() for i in shown)
    heads = [(title, better) for _, title, better in (SHOWN[i] for i in shown)]
    return Measures(heads, list(groups.items()), [reason for reason in dict.fromkeys(said) if reason])


def _at(entry: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        entry = entry.get(key) or {}
    return entry


def _measure(told: Mapping[str, Any]) -> Measure | None:
    random = told.get("random") or {}
    return None if told.get("mean") is None else Measure(told["mean"], random.get("mean"), random.get("std"))


def _row_of(content: str | None, rows: Sequence[Row]) -> Row | None:
    return next((r for r in rows if content is not None and content in hashes(r)), None)
