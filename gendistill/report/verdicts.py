"""What the intervals allow to say of the sets: by IPC, over all of them, and under other conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gendistill.evaluation.intervals import row_interval
from gendistill.evaluation.summary import NAMED, RANDOM, is_reference, is_sized_by_bytes
from gendistill.report.formatting import RANDOM_LABEL, comparison, listed, outcome, over_sizes, percent
from gendistill.report.results import (
    KMEANS,
    Condition,
    Interval,
    ReportRow,
    condition,
    ipc_of,
    primary,
    products,
    random_of,
    seeds_of,
    under,
)

EQUAL_BYTES = "random real images of equal bytes"
CODED = "photographs of the same bytes in the best image format"


@dataclass(frozen=True)
class Verdict:
    """What is said of the best set at one IPC, the best of ``among``; intervals are paired, see ``row_interval``.

    ``coreset``, ``equal_bytes`` and ``coded`` are (name, interval) of the best coreset of real images, of the random
    images that take as many bytes as this very row, and of the photographs in the best image format that take at most
    its bytes, as the evaluation found them; None where there are no such images.
    """

    row: ReportRow
    among: int
    against_random: Interval | None
    coreset: tuple[str, Interval] | None
    equal_bytes: tuple[str, Interval] | None
    coded: tuple[str, Interval] | None

    @property
    def ipc(self) -> int:
        return ipc_of(self.row)

    @property
    def good(self) -> bool:
        return self.against_random is not None and outcome(self.against_random) == "better"

    @property
    def sentence(self) -> str:
        random = (RANDOM_LABEL, self.against_random) if self.against_random else None
        pairs = [pair for pair in (random, self.coreset, self.equal_bytes, self.coded) if pair]
        if not pairs:
            return "There is no row of real images to compare with."
        parts = [(comparison(name, found), outcome(found) == "better") for name, found in pairs]
        text = parts[0][0]
        for (_, before), (part, good) in pairwise(parts):
            text += f"{' and ' if good == before else ', but '}{part}"
        seeds = f" ({seeds_of(self.row)} synthesis seeds)" if seeds_of(self.row) > 1 else ""
        return f"At IPC {self.ipc} the {self.row['noun']}{seeds} {text}."


def verdicts(rows: Sequence[ReportRow], wanted: Condition | None = None) -> list[Verdict]:
    """One for every IPC at which a set without a fault was evaluated, under one condition, else the ``primary`` one."""
    same = under(rows, wanted or primary(rows))
    made = [r for r in products(same) if not r["fault"]]
    sizes = sorted({ipc_of(r) for r in made})
    return [_verdict([r for r in made if r["ipc"] == ipc], same) for ipc in sizes]


def _verdict(made: Sequence[ReportRow], rows: Sequence[ReportRow]) -> Verdict:
    best = max(made, key=lambda r: r["mean"])
    random = random_of(best, rows)
    interval = best.get("ci95_vs_random") or (row_interval(best, random) if random else None)
    same = ("ipc", "counts")
    others = [r for r in rows if not r["given"] and all(r.get(k) == best.get(k) for k in same)]
    others = [r for r in others if not is_sized_by_bytes(r)]
    beside, coded = best.get("ci95_vs_equal_bytes"), best.get("ci95_vs_coded")
    return Verdict(
        best,
        len(made),
        (interval[0], interval[1]) if interval else None,
        _against(best, max((r for r in others if r["method"] != RANDOM), key=lambda r: r["mean"], default=None)),
        (EQUAL_BYTES, (beside[0], beside[1])) if beside else None,
        (f"{best['coded']} in the same bytes", (coded[0], coded[1])) if coded else None,
    )


def _against(row: ReportRow, rival: ReportRow | None) -> tuple[str, Interval] | None:
    interval = row_interval(row, rival) if rival else None
    return (_name(rival), interval) if rival and interval else None


def _name(row: ReportRow) -> str:
    name = NAMED.get(row["method"], row["method"])
    return f"{name} on {row['space']}" if row["method"] == KMEANS and row.get("space") else name


def left_out(rows: Sequence[ReportRow]) -> list[str]:
    """The sets that verdicts pass over because an error was found in them, a name each."""
    faulty = [r for r in products(under(rows, primary(rows))) if r["fault"]]
    return [f"{r['label']} (IPC {r['ipc']})" for r in faulty]


def headline(found: Sequence[Verdict], faulty: Sequence[str] = ()) -> str:
    """The verdict over all IPC, in one sentence or two."""
    if not found:
        return "Every evaluated set has a fault." if faulty else "No set was evaluated."
    nouns = {v.row["noun"] for v in found}
    name = f"The {nouns.pop()}" if len(nouns) == 1 else "The best set at each IPC"
    said = predicates(found)
    return f"{name} {'. It '.join(said)}." if said else f"{name} was not compared with real images."


def predicates(found: Sequence[Verdict]) -> list[str]:
    """Over all IPC against random, then against the best coreset and against photographs in the best image format."""
    random = {v.ipc: outcome(v.against_random) for v in found if v.against_random}
    coreset = {v.ipc: outcome(v.coreset[1]) for v in found if v.coreset}
    plain = all(v.coreset is None or v.coreset[0].startswith("k-means") for v in found)
    name = "k-means" if plain else "the best coreset of real images"
    coded = {v.ipc: outcome(v.coded[1]) for v in found if v.coded}
    return [over_sizes(n, o) for n, o in ((RANDOM_LABEL, random), (name, coreset), (CODED, coded)) if o]


def elsewhere(rows: Sequence[ReportRow]) -> list[str]:
    """One sentence for every other condition: other networks, augmentation, soft labels."""
    first = primary(rows)
    said = []
    for other in dict.fromkeys(condition(r) for r in rows):
        found = verdicts(rows, other) if first and other != first else []
        if first and found and predicates(found):
            nouns = {v.row["noun"] for v in found}
            name = f"the {nouns.pop()}" if len(nouns) == 1 else "the best set at each IPC"
            said.append(f"{where(other, first, rows)} {name} {' and '.join(predicates(found))}.")
    return said


def label_gains(rows: Sequence[ReportRow]) -> list[str]:
    """What soft labels alone do: the accuracy of the same random real images with either, one sentence a recipe."""
    found: dict[Condition, list[str]] = {}
    for row in rows:
        labels, _, *rest = condition(row)
        hard = random_of({**row, "labels": "hard", "recipe": None}, rows)
        if is_reference(row) and labels != "hard" and hard and rest == list(condition(hard)[2:]):
            words = f"from {percent(hard['mean'])} to {percent(row['mean'])}\u00a0% at IPC {row['ipc']}"
            found.setdefault(condition(row), []).append(words)
    several = len({c[2:4] for c in found}) > 1
    return [
        f"Labels alone ({c[1] or c[0]}{f', {c[2]}' if several else ''}) take random real images {listed(words)}."
        for c, words in found.items()
        if c[3] == next(iter(found))[3]
    ]


def where(other: Condition, first: Condition, rows: Sequence[ReportRow]) -> str:
    """In what a condition differs: "On resnet18, with augmentation,"."""
    labels, recipe, network, augment, settings = other
    parts = [f"on {network}"] * (network != first[2])
    parts += [f"with{'' if augment else 'out'} augmentation"] * (augment != first[3])
    parts += [f"with {labels} labels{f' ({recipe})' if recipe else ''}"] * ((labels, recipe) != first[:2])
    runs = dict.fromkeys(run for r in rows if r["settings_number"] == settings for run in r["runs"])
    parts += [f"with the settings of {', '.join(runs)}"] * (settings != first[4])
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]},"
