"""The chart of accuracy against IPC, in the units of its SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.evaluate.intervals import paired_interval
from gendistill.evaluate.report.rows import full_row
from gendistill.evaluate.report.scales import Axis, ticks
from gendistill.evaluate.report.words import percent

MARKERS = {  # drawn around (0, 0), about 9 units wide, so that the curves differ without colour too
    "blue": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "sky": "M-4-4h8v8h-8z",
    "green": "M0-5.2L5 4H-5z",
    "purple": "M0 5.2L5-4H-5z",
    "grey": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "orange": "M0-5.4L5.4 0L0 5.4L-5.4 0z",
    "red": "M-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
    "yellow": "M-5-2.4h10v4.8h-10z",
}


@dataclass(frozen=True)
class Point:
    """A row on the chart: ``bottom`` and ``top`` are the ends of its interval, ``title`` the words for a pointer."""

    x: float
    y: float
    bottom: float
    top: float
    title: str


@dataclass(frozen=True)
class Curve:
    """One method over IPC; ``last`` is its mean at its largest IPC."""

    label: str
    colour: str
    marker: str
    points: list[Point]
    last: float


@dataclass(frozen=True)
class Chart:
    """Accuracy against IPC, in units of an SVG of ``width`` by ``height``; ticks are (position, words)."""

    left: float
    right: float
    top: float
    bottom: float
    width: float
    height: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]
    full: tuple[float, str] | None


def chart(rows: Sequence[dict[str, Any]]) -> Chart | None:
    """Every method's mean and its 95 % t interval over runs; methods stand side by side at each IPC."""
    sized = [r for r in rows if r["ipc"] is not None]
    if not sized:
        return None
    left, right, top, bottom = 48.0, 712.0, 52.0, 436.0
    full = full_row(rows)
    ends = [v for r in sized for v in mean_interval(r)] + ([full["mean"]] if full else [])
    steps = ticks(min(ends), max(ends))
    y = Axis(steps[0], steps[-1], bottom, top)
    sizes = sorted({r["ipc"] for r in sized})
    band = (right - left) / len(sizes)
    centres = {ipc: left + band * (i + 0.5) for i, ipc in enumerate(sizes)}
    groups = {label: [r for r in sized if r["label"] == label] for label in dict.fromkeys(r["label"] for r in sized)}
    gap = min(18.0, 0.72 * band / len(groups))
    curves = [
        curve(group, y, {ipc: x + gap * (i - (len(groups) - 1) / 2) for ipc, x in centres.items()})
        for i, group in enumerate(groups.values())
    ]
    return Chart(
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        width=right + 8,
        height=bottom + 52,
        x_ticks=[(x, f"{ipc}") for ipc, x in centres.items()],
        y_ticks=[(y(v), f"{100 * v:.0f}") for v in steps],
        curves=sorted(curves, key=lambda c: -c.last),
        full=(y(full["mean"]), f"{full['label']}, {percent(full['mean'])} %") if full else None,
    )


def curve(rows: Sequence[dict[str, Any]], y: Axis, x: dict[int, float]) -> Curve:
    """The points of one method's rows, ascending in IPC."""
    points = []
    for row in rows:
        low, high = mean_interval(row)
        title = f"{row['label']}, IPC {row['ipc']}: {percent(row['mean'])} % ({percent(low)} to {percent(high)})"
        points.append(Point(round(x[row["ipc"]], 2), y(row["mean"]), y(low), y(high), title))
    colour = rows[0]["colour"]
    return Curve(rows[0]["label"], colour, MARKERS[colour], points, rows[-1]["mean"])


def mean_interval(row: dict[str, Any]) -> tuple[float, float]:
    """95 % t interval of a row's mean over runs, kept within [0, 1]."""
    low, high = paired_interval(row["accuracy"], [0.0] * len(row["accuracy"]))
    return max(0.0, low), min(1.0, high)
