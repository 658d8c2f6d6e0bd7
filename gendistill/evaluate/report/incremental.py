"""The page of a continual evaluation: accuracy against the classes that have come, one chart and table an IPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.config import as_tuple
from gendistill.report.charts import MARKERS, Chart, Curve, Point, mean_interval
from gendistill.report.results import ordered
from gendistill.evaluate.report.scales import Axis, ticks
from gendistill.report.template import fill
from gendistill.report.formatting import RANDOM_LABEL, comparison, percent
from gendistill.evaluate.spread import spread

LEFT, RIGHT, TOP, BOTTOM = 48.0, 712.0, 36.0, 436.0
MOST_TICKS, GAP = 12, 7.0


@dataclass(frozen=True)
class Panel:
    """One IPC: its rows with ``label`` and ``colour``, what is said of them, and their chart."""

    ipc: int
    rows: list[dict[str, Any]]
    sentences: list[str]
    chart: Chart


def render_continual(summary: dict[str, Any]) -> str:
    """The page of a summary whose rows have a ``label``."""
    counts = summary["classes"]
    rows = ordered(summary["rows"])
    groups = {ipc: [r for r in rows if r["ipc"] == ipc] for ipc in dict.fromkeys(r["ipc"] for r in rows)}
    panels = [
        Panel(
            ipc, group, [sentence(r) for r in group if r["average"]["ci95_vs_random"]], continual_chart(group, counts)
        )
        for ipc, group in groups.items()
    ]
    settings = summary["settings"]
    network = ", ".join(as_tuple(settings["network"]))
    return fill(
        "continual.html", summary=summary, counts=counts, panels=panels, network=network, length=length(settings)
    )


def length(settings: Mapping[str, Any]) -> str:
    """How long a training is, by a summary's settings."""
    epochs = settings["epochs"]
    if settings["steps"] is not None:
        return f"{settings['steps']:,} steps"
    if isinstance(epochs, Mapping):  # by images of a class
        return f"{max(epochs.values()):,} to {min(epochs.values()):,} epochs, fewer the larger the IPC,"
    return f"{epochs:,} epochs"


def sentence(row: dict[str, Any]) -> str:
    """What the intervals allow to say, after the last step and over all of them."""
    last, average = row["steps"][-1], row["average"]
    return (
        f"{row['label']} {comparison(RANDOM_LABEL, last['ci95_vs_random'])} after the last step, and "
        f"{comparison('them', average['ci95_vs_random'])} on average over the steps."
    )


def continual_chart(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> Chart:
    """Means and their 95 % t intervals over runs, against the number of classes."""
    ends = [value for row in rows for step in row["steps"] for value in mean_interval(step)]
    steps = ticks(min(ends), max(ends))
    x, y = Axis(counts[0], counts[-1], LEFT + 36, RIGHT - 36), Axis(steps[0], steps[-1], BOTTOM, TOP)
    curves = []
    for i, row in enumerate(rows):
        aside = GAP * (i - (len(rows) - 1) / 2)
        points = [_point(row["label"], n, step, x(n) + aside, y) for n, step in zip(counts, row["steps"], strict=True)]
        curves.append(Curve(row["label"], row["colour"], MARKERS[row["colour"]], points, row["steps"][-1]["mean"]))
    return Chart(
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        width=RIGHT + 8,
        height=BOTTOM + 60,
        x_ticks=[(x(counts[i]), f"{counts[i]}") for i in spread(len(counts), MOST_TICKS)],
        y_ticks=[(y(value), f"{100 * value:.0f}") for value in steps],
        curves=sorted(curves, key=lambda curve: -curve.last),
        full=None,
    )


def _point(label: str, classes: int, step: dict[str, Any], x: float, y: Axis) -> Point:
    low, high = mean_interval(step)
    title = f"{label}, {classes} classes: {percent(step['mean'])} % ({percent(low)} to {percent(high)})"
    return Point(round(x, 2), y(step["mean"]), y(low), y(high), title)
