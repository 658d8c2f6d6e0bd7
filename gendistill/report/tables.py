"""Tables of the page: accuracies by condition and class, scores, measures of the sets, gains of the stages, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from gendistill.evaluation.intervals import row_interval
from gendistill.evaluation.summary import Score, ScoreEntry
from gendistill.report.charts import (
    grouped_rows,
)
from gendistill.report.formatting import NAMES, listed, outcome
from gendistill.report.results import EvaluatedRun, ReportRow, hashes, ipc_of, mean, random_of

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
class FindingLine:
    """Something wrong with a set, or worth a warning, in one sentence; ``of`` names the set, or is empty."""

    error: bool
    of: str
    text: str


@dataclass(frozen=True)
class ScoreLine:
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
class MeasureCell:
    """A number of a set; ``random`` is that of random real sets of its size, ``std`` their deviation."""

    value: float
    random: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class MeasureTable:
    """``heads`` are (title, which way is better), ``groups`` (IPC, lines), lines (label, a measure or None a head)."""

    heads: list[tuple[str, str]]
    groups: list[tuple[Any, list[tuple[str, list[MeasureCell | None]]]]]
    reasons: list[str]


def findings(runs: Sequence[EvaluatedRun], rows: Sequence[ReportRow]) -> list[FindingLine]:
    """Of all runs, each once, errors first."""
    found = {}
    for run in runs:
        for entry in run.summary.get("findings") or ():
            row = _row_of(entry.get("set"), rows)
            of = f"{row['label']}, IPC {row['ipc']}" if row else ""
            found[of, entry["text"]] = FindingLine(entry.get("severity") == "error", of, entry["text"])
    return sorted(found.values(), key=lambda f: not f.error)


def scores(
    runs: Sequence[EvaluatedRun], rows: Sequence[ReportRow]
) -> tuple[list[tuple[tuple[str, str], list[ScoreLine]]], list[str]]:
    """(the scores of all runs, each once, by (labels, network), hard labels first; what could not be computed).

    Of hard labels without ARS there are none: LRS orders sets as their accuracies do.
    """
    found: dict[ScoreLine, bool] = {}
    missing: dict[str, None] = {}
    for run in runs:
        for entry in run.summary.get("scores") or ():
            score = _score(entry, run, rows)
            found[score] = score.labels != "hard"
            missing |= dict.fromkeys(entry.get("missing") or ())
    groups: dict[tuple[str, str], list[ScoreLine]] = {}
    for score in sorted(found, key=lambda s: (found[s], s.ipc)):
        groups.setdefault((score.labels, score.network), []).append(score)
    shown = [kind for kind, lines in groups.items() if kind[0] != "hard" or any(line.ars for line in lines)]
    return [(kind, groups[kind]) for kind in shown], list(missing)


def _score(entry: ScoreEntry, run: EvaluatedRun, rows: Sequence[ReportRow]) -> ScoreLine:
    keys = ("method", "stage", "space", "ipc", "set")
    wanted: Mapping[str, object] = {k: v for k, v in entry.items() if k in keys}
    same = (r for r in rows if run.name in r["runs"] and all(r.get(k) == v for k, v in wanted.items()))
    row, lrs = next(same, None), entry.get("lrs")
    return ScoreLine(
        label=row["label"] if row else str(entry.get("stage") or entry["method"]),
        ipc=ipc_of(entry),
        labels=entry.get("recipe") or entry["labels"],
        network=entry["network"],
        lrs=_with_std(lrs),
        ars=_with_std(entry.get("ars")),
        hlr=lrs.get("hlr") if lrs else None,
        ior=lrs.get("ior") if lrs else None,
    )


def _with_std(found: Score | None) -> tuple[float, float | None] | None:
    score = found.get("score") if found else None
    return (score, found.get("std")) if found and score is not None else None


def measures(runs: Sequence[EvaluatedRun], rows: Sequence[ReportRow]) -> MeasureTable | None:
    """What is ``SHOWN`` of every set that was measured, each once, in the order of the rows."""
    numbers: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for content, entry in (run.summary.get("sets") or {}).items():
            numbers.setdefault(content, entry)
    found = {content: [_measure(_at(entry, path)) for path, *_ in SHOWN] for content, entry in numbers.items()}
    shown = [i for i in range(len(SHOWN)) if any(values[i] for values in found.values())]
    if not shown:
        return None
    order = list(dict.fromkeys(h for r in rows for h in hashes(r)))
    place = {content: i for i, content in enumerate(order)}
    groups: dict[Any, list[tuple[str, list[MeasureCell | None]]]] = {}
    for content in sorted(found, key=lambda h: place.get(h, len(order))):
        row = _row_of(content, rows)
        label, ipc = (row["label"], row["ipc"]) if row else (f"set {content[:8]}", "")
        groups.setdefault(ipc, []).append((label, [found[content][i] for i in shown]))
    said = (_at(entry, SHOWN[i][0]).get("reason") for entry in numbers.values() for i in shown)
    heads = [(title, better) for _, title, better in (SHOWN[i] for i in shown)]
    return MeasureTable(heads, list(groups.items()), [reason for reason in dict.fromkeys(said) if reason])


def _at(entry: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        entry = entry.get(key) or {}
    return entry


def _measure(numbers: Mapping[str, Any]) -> MeasureCell | None:
    random = numbers.get("random") or {}
    return None if numbers.get("mean") is None else MeasureCell(numbers["mean"], random.get("mean"), random.get("std"))


def _row_of(content: str | None, rows: Sequence[ReportRow]) -> ReportRow | None:
    return next((r for r in rows if content is not None and content in hashes(r)), None)


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


def class_tables(shown: Sequence[ReportRow], rows: Sequence[ReportRow], classes: Sequence[str]) -> list[ClassTable]:
    """One for each of the ``shown`` rows that knows its accuracy by class, the largest IPC first."""
    known = [r for r in shown if r.get("per_class")]
    return [_table(r, random_of(r, rows), classes) for r in sorted(known, key=lambda r: -ipc_of(r))]


def _table(row: ReportRow, random: ReportRow | None, classes: Sequence[str]) -> ClassTable:
    theirs = (random.get("per_class") if random else None) or [None] * len(row["per_class"])
    names = classes if len(classes) == len(row["per_class"]) else [f"class {i}" for i in range(len(row["per_class"]))]
    found = [ClassRow(*entry) for entry in zip(names, row["per_class"], theirs, strict=True)]
    found.sort(key=lambda r: (r.accuracy is None, -(r.accuracy or 0.0)))
    if len(found) <= MOST:
        return ClassTable(row["label"], ipc_of(row), found, [], 0)
    tested = [r for r in found if r.accuracy is not None]
    best, worst = tested[:EXTREMES], tested[EXTREMES:][-EXTREMES:]
    return ClassTable(row["label"], ipc_of(row), best, worst, len(found) - len(best) - len(worst))


EXTRA = {
    "balanced": "balanced",
    "legacy": "legacy_best",
    "ece": "ece",
    "stored": "bytes",
}  # column: the key that some row has


@dataclass(frozen=True)
class MatrixLine:
    """A set under every condition; ``cells`` are its rows, None where it was not evaluated."""

    row: ReportRow
    cells: list[ReportRow | None]


@dataclass(frozen=True)
class Matrix:
    """Sets by network and augmentation: ``heads`` name the conditions, ``groups`` are (IPC, lines)."""

    heads: list[str]
    groups: list[tuple[int | None, list[MatrixLine]]]


@dataclass(frozen=True)
class Section:
    """Rows with one kind of labels, trained alike: in full for the first network, and those of all of them.

    ``title`` is empty for hard labels where all were trained alike; ``network`` is what the full table is of.
    """

    title: str
    network: str
    groups: list[list[ReportRow]]
    columns: set[str]
    matrix: Matrix | None


def sections(rows: Sequence[ReportRow]) -> list[Section]:
    """One for every recipe of labels and for every settings."""
    trainings = {r["settings_number"] for r in rows}
    kinds = list(dict.fromkeys(_kind(r) for r in rows if r["ipc"] is not None))
    kinds += dict.fromkeys(kind for r in rows if (kind := _kind(r)) not in kinds)  # of full data alone
    return [_section([r for r in rows if _kind(r) == kind], len(trainings) > 1) for kind in kinds]


def _kind(row: ReportRow) -> tuple[str, str | None, int]:
    return row["labels"], row.get("recipe"), row["settings_number"]


def _section(rows: Sequence[ReportRow], several: bool) -> Section:
    conditions = list(dict.fromkeys(_condition(r) for r in rows if r["ipc"] is not None)) or [_condition(rows[0])]
    main = [_with_means(r) for r in rows if _condition(r) == conditions[0]]
    labels, recipe, _ = _kind(rows[0])
    words = [recipe or f"{labels} labels"] * (labels != "hard")
    if several:
        runs = listed(dict.fromkeys(run for r in rows for run in r["runs"]))
        words.append(f"{'as' if words else 'As'} evaluated in {runs}")
    return Section(
        title=", ".join(words),
        network=_head(*conditions[0], len({c[1] for c in conditions}) > 1),
        groups=grouped_rows(main),
        columns={name for name, key in EXTRA.items() if any(r.get(key) for r in main)},
        matrix=_matrix(rows, conditions) if len(conditions) > 1 else None,
    )


def _condition(row: ReportRow) -> tuple[str, bool]:
    return row["network"], bool(row.get("augment"))


def _head(network: str, augment: bool, differs: bool) -> str:
    return f"{network}, augmented" if augment else f"{network}, not augmented" if differs else network


def _matrix(rows: Sequence[ReportRow], conditions: Sequence[tuple[str, bool]]) -> Matrix:
    found: dict[int | None, dict[str, dict[tuple[str, bool], ReportRow]]] = {}
    for row in rows:
        found.setdefault(row["ipc"], {}).setdefault(row["label"], {})[_condition(row)] = row
    differs = len({c[1] for c in conditions}) > 1
    groups = [
        (ipc, [MatrixLine(next(iter(by.values())), [by.get(c) for c in conditions]) for by in labels.values()])
        for ipc, labels in found.items()
    ]
    return Matrix([_head(*c, differs) for c in conditions], groups)


def _with_means(row: ReportRow) -> ReportRow:
    """With the means of ``legacy_best`` and ``ece``, and the bytes of images and labels together."""
    stored = row.get("bytes") or {}
    total = (stored.get("images") or 0) + (stored.get("labels") or 0) or None
    return {**row, "legacy": mean(row.get("legacy_best")), "calibration": mean(row.get("ece")), "stored": total}


ORDER = tuple(reversed(NAMES))
STEPS = {
    ("base", "samples"): "minimax fine-tuning of the generator",
    ("samples", "select"): "selection",
    ("select", "refined"): "refinement",
}


@dataclass(frozen=True)
class Gain:
    """The paired 95 % interval of a step's gain at one IPC (see ``row_interval``), and its middle; fractions."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def word(self) -> str:
        return outcome((self.low, self.high))


@dataclass(frozen=True)
class Ablation:
    """Of one run: ``steps`` are (name, one gain or None for each of ``sizes``)."""

    run: str
    sizes: list[int]
    steps: list[tuple[str, list[Gain | None]]]


def ablations(rows: Sequence[ReportRow]) -> list[Ablation]:
    """One for every run that evaluated at least two stages, from rows of one condition."""
    found = [_of_run(run, rows) for run in dict.fromkeys(run for r in rows for run in r["runs"])]
    unlike = {str((a.sizes, a.steps)): a for a in reversed(found) if a.steps}  # runs may share all their stages
    return list(reversed(unlike.values()))


def _of_run(run: str, rows: Sequence[ReportRow]) -> Ablation:
    at: dict[int, dict[str, ReportRow]] = {}
    for row in rows:
        if run in row["runs"] and row["stage"] in NAMES and row["ipc"] is not None:
            at.setdefault(row["ipc"], {}).setdefault(row["stage"], row)
    there = [stage for stage in ORDER if any(stage in stages for stages in at.values())]
    sizes = sorted(ipc for ipc, stages in at.items() if len(stages) > 1)
    pairs = list(pairwise(there))
    if len(pairs) > 1:
        pairs.append((there[0], there[-1]))
    steps = [(_name(pair, there), [_gain(at[ipc], *pair) for ipc in sizes]) for pair in pairs]
    return Ablation(run, sizes, [step for step in steps if any(step[1])])


def _name(pair: tuple[str, str], there: Sequence[str]) -> str:
    if pair in STEPS:
        return STEPS[pair]
    whole = pair == (there[0], there[-1]) and len(there) > 2
    return f"all of it, {NAMES[pair[0]]} to {NAMES[pair[1]]}" if whole else f"{NAMES[pair[0]]} to {NAMES[pair[1]]}"


def _gain(stages: dict[str, ReportRow], before: str, after: str) -> Gain | None:
    if before not in stages or after not in stages:
        return None
    interval = row_interval(stages[after], stages[before])
    return Gain(*interval) if interval else None


class Cost(NamedTuple):
    """Seconds and peak memory (MiB) of a stage, and their shares of the largest in per cent."""

    stage: str
    seconds: float
    memory: int
    share: float
    memory_share: float


def costs(records: Sequence[Mapping[str, Any]]) -> list[Cost]:
    """What every stage took that recorded its time."""
    done = [(r["stage"], r["seconds"], r.get("peak_memory_mib", 0)) for r in records if "seconds" in r]
    longest = max((seconds for _, seconds, _ in done), default=0) or 1
    most = max((memory for _, _, memory in done), default=0) or 1
    return [Cost(name, time, memory, 100 * time / longest, 100 * memory / most) for name, time, memory in done]


class Distance(NamedTuple):
    """Squared W2 to the real images before and after refinement, the relative change, and shares of the largest in per
    cent."""

    ipc: int
    before: float
    after: float
    change: float
    share_before: float
    share_after: float


def w2(records: Sequence[Mapping[str, Any]]) -> list[Distance]:
    """One line for each IPC, of the first stage that recorded distances."""
    found: dict[str, dict[str, float]] = next((r["w2"] for r in records if r.get("w2")), {})
    most = max((v for pair in found.values() for v in pair.values()), default=0) or 1
    lines = []
    for ipc, pair in found.items():
        before, after = pair["before"], pair["after"]
        change = after / before - 1 if before else 0.0
        lines.append(Distance(int(ipc), before, after, change, 100 * before / most, 100 * after / most))
    return sorted(lines)
