"""What every stage adds: the paired gain of each over the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gendistill.evaluation.intervals import row_interval
from gendistill.report.results import Row
from gendistill.report.formatting import NAMES, outcome

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


def ablations(rows: Sequence[Row]) -> list[Ablation]:
    """One for every run that judged at least two stages, from rows of one condition."""
    found = [_of_run(run, rows) for run in dict.fromkeys(run for r in rows for run in r["runs"])]
    unlike = {str((a.sizes, a.steps)): a for a in reversed(found) if a.steps}  # runs may share all their stages
    return list(reversed(unlike.values()))


def _of_run(run: str, rows: Sequence[Row]) -> Ablation:
    at: dict[int, dict[str, Row]] = {}
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


def _gain(stages: dict[str, Row], before: str, after: str) -> Gain | None:
    if before not in stages or after not in stages:
        return None
    interval = row_interval(stages[after], stages[before])
    return Gain(*interval) if interval else None
