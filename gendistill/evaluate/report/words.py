"""The verdicts of a run in sentences, and its numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.evaluate.intervals import paired_interval, verdict

KMEANS, RANDOM_LABEL = "kmeans", "random real images"
NAMES = {"refined": "refined set", "select": "selected set", "samples": "sampled set", "base": "set before minimax"}


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def signed(fraction: float) -> str:
    """A difference in points with its sign; two decimals where one would say zero."""
    points = 100 * fraction
    return f"{points:+.{1 if abs(points) >= 0.05 or not points else 2}f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def listed(items: Iterable[object]) -> str:
    """1, 5 and 10."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def brief(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def shortened(name: str, most: int) -> str:
    """A name of at most ``most`` characters on one line."""
    plain = " ".join(name.split())
    return plain if len(plain) <= most else plain[: most - 1].rstrip(" ,") + "…"


def outcome(interval: Sequence[float]) -> str:
    """``better``, ``not better`` or ``worse``."""
    return verdict((interval[0], interval[1])).removesuffix(" than random")


def comparison(name: str, interval: Sequence[float]) -> str:
    """A predicate: "beats random real images by 18.8 to 24.4 points"."""
    low, high = interval
    if outcome(interval) == "better":
        return f"beats {name} by {signed(low)[1:]} to {signed(high)[1:]} points"
    if outcome(interval) == "worse":
        return f"is worse than {name} by {signed(high)[1:]} to {signed(low)[1:]} points"
    return f"is not better than {name} ({signed(low)} to {signed(high)} points)"


def over_sizes(name: str, outcomes: dict[int, str]) -> str:
    """A predicate over all IPC: "beats k-means at IPC 1, but not at IPC 5 and 10"."""
    better = [ipc for ipc, found in outcomes.items() if found == "better"]
    others = [ipc for ipc in outcomes if ipc not in better]
    alone = f"at IPC {next(iter(outcomes))}" if len(outcomes) == 1 else None
    if not others:
        return f"beats {name} {alone or 'at every IPC'}"
    if not better:
        if set(outcomes.values()) == {"worse"}:
            return f"is worse than {name} {alone or 'at every IPC'}"
        return f"is not better than {name} {alone or 'at any IPC'}"
    return f"beats {name} at IPC {listed(better)}, but not at IPC {listed(others)}"


@dataclass(frozen=True)
class Verdict:
    """What is said of the product at one IPC; intervals are paired by run, None where there is no such row."""

    ipc: int
    row: dict[str, Any]
    against_random: Sequence[float] | None
    kmeans: str
    against_kmeans: Sequence[float] | None

    @property
    def name(self) -> str:
        return NAMES[self.row["stage"]]

    @property
    def good(self) -> bool:
        return self.against_random is not None and outcome(self.against_random) == "better"

    @property
    def sentence(self) -> str:
        pairs = [(RANDOM_LABEL, self.against_random), (self.kmeans, self.against_kmeans)]
        parts = [(comparison(name, found), outcome(found) == "better") for name, found in pairs if found]
        if not parts:
            return "There is no row of real images to compare with."
        same = len({good for _, good in parts}) == 1
        text = (" and " if same else ", but ").join(part for part, _ in parts)
        return f"At IPC {self.ipc} the {self.name} {text}."


def verdicts(rows: Sequence[dict[str, Any]]) -> list[Verdict]:
    """One for every IPC of the last stage that was judged."""
    stage = next((s for s in NAMES if any(r["stage"] == s for r in rows)), None)
    return [_verdict(row, rows) for row in rows if stage and row["stage"] == stage]


def _verdict(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Verdict:
    rivals = [r for r in rows if r["method"] == KMEANS and r["ipc"] == row["ipc"]]
    best = max(rivals, key=lambda r: r["mean"], default=None)
    return Verdict(
        row["ipc"],
        row,
        row["ci95_vs_random"],
        f"k-means on {best['space']}" if best else "",
        paired_interval(row["accuracy"], best["accuracy"]) if best else None,
    )


def headline(found: Sequence[Verdict]) -> str:
    """The verdict over all IPC, in one sentence or two."""
    if not found:
        return "The run has no generated set that was judged."
    name = found[0].name
    random = {v.ipc: outcome(v.against_random) for v in found if v.against_random}
    kmeans = {v.ipc: outcome(v.against_kmeans) for v in found if v.against_kmeans}
    said = [over_sizes(n, o) for n, o in ((RANDOM_LABEL, random), ("k-means", kmeans)) if o]
    return f"The {name} {'. It '.join(said)}." if said else f"The {name} was not compared with real images."
