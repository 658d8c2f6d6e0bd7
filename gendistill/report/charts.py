"""Charts of accuracy against IPC, seconds and bytes, in the units of their SVG, each with its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gendistill.data.class_positions import evenly_spaced
from gendistill.evaluation.intervals import row_interval
from gendistill.evaluation.projection import Cloud, Projection
from gendistill.evaluation.summary import is_reference
from gendistill.report.formatting import CLASSES, kilo, percent, shortened
from gendistill.report.results import ReportRow, full_row, ipc_of


@dataclass(frozen=True)
class Axis:
    """Linear map of the values [low, high] to the positions [start, end]."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return round(self.start + (self.end - self.start) * (value - self.low) / span, 2)


def ticks(low: float, high: float) -> list[float]:
    """At most seven round values in [0, 1] from below ``low`` to above ``high``."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1) if (high - low) / s <= 5), 0.2)
    most = round(1 / step)
    first = min(math.floor(low / step), most - 1)
    last = min(max(math.ceil(high / step), first + 1), most)
    return [round(i * step, 6) for i in range(first, last + 1)]


@dataclass(frozen=True)
class LogAxis:
    """Map of positive values, even by factors."""

    axis: Axis

    def __call__(self, value: float) -> float:
        return self.axis(math.log10(value))


def log_axis(low: float, high: float, start: float, end: float) -> LogAxis:
    """From below ``low`` to above ``high``, at least a factor of 2 apart."""
    first, last = math.log10(low), math.log10(high)
    spare = max(0.0, (math.log10(2) - (last - first)) / 2)
    return LogAxis(Axis(first - spare, last + spare, start, end))


def log_ticks(low: float, high: float) -> list[float]:
    """Two to nine round values between ``low`` and ``high``, or around them where there are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [d * 10.0**e for e in decades for d in digits if low * 0.999 <= d * 10.0**e <= high * 1.001]
        if len(found) >= 3:
            return found[:: -(-len(found) // 8)]
    return [low, high] if high > low else [low]


MARKERS = {  # drawn around (0, 0), about 9 units wide, so that the curves differ without colour too
    "blue": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "sky": "M-4-4h8v8h-8z",
    "green": "M0-5.2L5 4H-5z",
    "purple": "M0 5.2L5-4H-5z",
    "grey": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "orange": "M0-5.4L5.4 0L0 5.4L-5.4 0z",
    "red": "M-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
    "yellow": "M-5-2.4h10v4.8h-10z",
    "brown": "M-2.4-5h4.8v10h-4.8z",
    "violet": "M-4.6-4.6L0-1.8L4.6-4.6L1.8 0L4.6 4.6L0 1.8L-4.6 4.6L-1.8 0z",
}
LEFT, RIGHT, TOP, BOTTOM = 48.0, 712.0, 52.0, 436.0
LOW = 356.0  # bottom of the charts against a cost
ASIDE = 8.0  # the farthest an interval is drawn from its point
GLYPH, ROW, BESIDE = 11.5, 20.0, 10.0  # room of a letter of a line's name, of its height, of a letter beside a point
DIFFERENT = 1.5  # a factor between sets of one IPC, above which their bytes have a chart
SHARED = {
    "generator": "training of the generator",
    "teacher": "training of the teacher",
    "label_teacher": "training of the labels' teacher",
    "difficulty": "training of the classifier that scores images",
    "pool": "sampling of the pool",
    "start_set": "making the set that matching started from",
}  # the parts of ``shared_seconds``
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A row on the chart: ``bottom`` and ``top`` are the ends of its interval, ``title`` the words for a pointer,
    ``name`` what stands beside it. The interval is drawn ``aside`` units from x, so that several at one x are seen."""

    x: float
    y: float
    bottom: float
    top: float
    title: str
    name: str = ""
    aside: float = 0.0


@dataclass(frozen=True)
class Curve:
    """One method over IPC; ``last`` is its mean at its largest IPC. ``quiet``: its interval is the chart's band."""

    label: str
    colour: str
    marker: str
    points: list[Point]
    last: float
    quiet: bool = False


@dataclass(frozen=True)
class Line:
    """A level line; its name begins at (``x``, ``base``), where it covers least of what is drawn."""

    y: float
    name: str
    x: float
    base: float


@dataclass(frozen=True)
class Chart:
    """Curves in an SVG of ``width`` by ``height``; ticks are (position, words), ``band`` is a path, ``levels`` are
    of random real images, which cost nothing.

    ``of``, ``measured`` and ``last`` name the curves, the vertical axis and the legend's numbers.
    ``table`` are the same numbers: (set, IPC, what the chart is against, accuracy), in words.
    """

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]
    full: Line | None
    title: str = ""
    against: str = ""
    of: str = "Set"
    measured: str = "test accuracy, %"
    last: str = "%, at its largest IPC"
    band: str = ""
    levels: list[Line] = field(default_factory=list)
    table: list[tuple[str, str, str, str]] = field(default_factory=list)
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM
    width: float = RIGHT + 8
    height: float = BOTTOM + 52


def chart(rows: Sequence[ReportRow]) -> Chart | None:
    """Every method's mean over IPC and its 95 % t interval, see ``mean_interval``."""
    sized = [r for r in rows if r["ipc"] is not None]
    if not sized:
        return None
    y, y_ticks = _accuracy_axis(rows, BOTTOM)
    sizes = sorted({ipc_of(r) for r in sized})
    room = (RIGHT - LEFT) / len(sizes)
    centres = {ipc: LEFT + room * (i + 0.5) for i, ipc in enumerate(sizes)}
    groups = by_label(sized)
    curves = [curve(group, y, [centres[ipc_of(r)] for r in group]) for group in groups.values()]
    curves = side_by_side(curves)
    return Chart(
        title="Test accuracy by images per class",
        against="images per class (IPC)",
        x_ticks=[(round(x, 2), f"{ipc}") for ipc, x in centres.items()],
        y_ticks=y_ticks,
        curves=sorted(curves, key=lambda c: -c.last),
        full=_lines(rows, y, curves)[0],
        band=_band([r for r in sized if is_reference(r)], y, centres),
    )


def side_by_side(curves: Sequence[Curve]) -> list[Curve]:
    """The curves with the intervals of each at most ``ASIDE`` units beside its points."""
    gap = min(3.0, 2 * ASIDE / max(1, len(curves) - 1))
    places = [round(gap * (i - (len(curves) - 1) / 2), 2) for i in range(len(curves))]
    return [
        replace(c, points=[replace(p, aside=aside) for p in c.points]) for c, aside in zip(curves, places, strict=True)
    ]


def cost_charts(rows: Sequence[ReportRow]) -> list[Chart]:
    """Accuracy by seconds; and by bytes, where sets of one IPC differ in them by more than ``DIFFERENT`` times."""
    sizes: dict[int | None, list[float]] = {}
    for row in rows:
        if row["ipc"] is not None and (stored := cost(row, "bytes")):
            sizes.setdefault(row["ipc"], []).append(stored)
    apart = any(max(found) > DIFFERENT * min(found) for found in sizes.values())
    drawn = [cost_chart(rows, what) for what in ("seconds", *["bytes"] * apart)]
    return [one for one in drawn if one]


def shared_times(rows: Sequence[ReportRow]) -> tuple[list[str], bool]:
    """(what sets share, each part with its longest time; whether a generated set lacks the time of its generator)."""
    known = [row.get("shared_seconds") or {} for row in rows if cost(row, "seconds")]
    longest = {part: max((parts.get(part, 0.0) for parts in known), default=0.0) for part in SHARED}
    lacking = [r for r in rows if cost(r, "seconds") and r["method"] == "generative"]
    return (
        [f"{words} ({seconds_in_words(longest[part])})" for part, words in SHARED.items() if longest[part]],
        any("generator" not in (r.get("shared_seconds") or {}) for r in lacking),
    )


def cost_chart(rows: Sequence[ReportRow], what: str) -> Chart | None:
    """Accuracy against ``seconds`` of synthesis or stored ``bytes``, on a log axis; None without two such rows."""
    rows_with_cost = [(r, c) for r in rows if r["ipc"] is not None and (c := cost(r, what))]
    if len(rows_with_cost) < 2:
        return None
    words = seconds_in_words if what == "seconds" else kilo
    low, high = min(c for _, c in rows_with_cost), max(c for _, c in rows_with_cost)
    x = log_axis(low, high, LEFT + 14, RIGHT - 30)
    sizes = {r["ipc"] for r, _ in rows_with_cost}
    random = [r for r in rows if what == "seconds" and is_reference(r) and r["ipc"] in sizes]
    y, y_ticks = _accuracy_axis([r for r, _ in rows_with_cost] + random + [r for r in rows if r["ipc"] is None], LOW)
    costs = {id(r): c for r, c in rows_with_cost}
    groups = by_label([r for r, _ in rows_with_cost])
    curves = _named_apart([curve(group, y, [x(costs[id(r)]) for r in group], named=True) for group in groups.values()])
    full, levels = _lines(rows, y, curves, random)
    return Chart(
        title=f"Test accuracy by {'seconds of synthesis' if what == 'seconds' else 'stored bytes'}",
        against="seconds of synthesis, log axis" if what == "seconds" else "bytes of images and labels, log axis",
        x_ticks=[(x(v), words(v)) for v in log_ticks(low, high)],
        y_ticks=y_ticks,
        curves=sorted(curves, key=lambda c: -c.last),
        full=full,
        levels=levels,
        table=[_in_words(r, "none") for r in random] + [_in_words(r, words(c)) for r, c in rows_with_cost],
        bottom=LOW,
        height=LOW + 52,
    )


def cost(row: ReportRow, what: str) -> float | None:
    """Seconds of synthesis, or bytes of images and labels as stored; None where nothing positive is known."""
    if what == "seconds":
        return row.get("synthesis_seconds") or None
    stored = row.get("bytes") or {}
    return (stored.get("images") or 0) + (stored.get("labels") or 0) or None


def curve(rows: Sequence[ReportRow], y: Axis, x: Sequence[float], *, named: bool = False) -> Curve:
    """The points of one method's rows, ascending in IPC, at the positions ``x``; ``named`` by their IPC."""
    points = []
    for row, at in zip(rows, x, strict=True):
        low, high = mean_interval(row)
        title = f"{row['label']}, IPC {row['ipc']}: {percent(row['mean'])} % ({percent(low)} to {percent(high)})"
        points.append(Point(round(at, 2), y(row["mean"]), y(low), y(high), title, f"{row['ipc']}" if named else ""))
    colour, last = rows[0]["colour"], rows[-1]["mean"]
    return Curve(rows[0]["label"], colour, marker(colour, rows[0]["shape"]), points, last, is_reference(rows[0]))


def _named_apart(curves: Sequence[Curve]) -> list[Curve]:
    """Without the names that would lie on another name or point; the last curves, the sets, keep theirs first."""
    boxes = [_around(p) for c in curves for p in c.points]
    kept: dict[int, list[Point]] = {}
    for i in reversed(range(len(curves))):
        for p in curves[i].points:
            box = _beside(p)
            free = not any(_overlap(box, other) for other in boxes)
            boxes += [box] * free
            kept.setdefault(i, []).append(p if free else replace(p, name=""))
    return [replace(c, points=kept[i]) for i, c in enumerate(curves)]


def _around(p: Point) -> Box:
    return p.x - 7, p.y - 7, p.x + 7, p.y + 7


def _beside(p: Point) -> Box:
    return p.x + 7, p.y - 8, p.x + 11 + BESIDE * len(p.name), p.y + 8


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _drawn_boxes(curves: Sequence[Curve]) -> list[Box]:
    """What a line's name should not cover: points with their names and intervals, and the curves between them."""
    points = [p for c in curves for p in c.points]
    boxes = [_around(p) for p in points] + [_beside(p) for p in points if p.name]
    boxes += [(p.x + p.aside - 2, p.top, p.x + p.aside + 2, p.bottom) for p in points]
    for a, b in (pair for c in curves for pair in pairwise(c.points)):
        steps = max(1, round(max(abs(b.x - a.x), abs(b.y - a.y)) / 8))
        at = [(a.x + (b.x - a.x) * i / steps, a.y + (b.y - a.y) * i / steps) for i in range(steps + 1)]
        boxes += [(x - 1, y - 1, x + 1, y + 1) for x, y in at]
    return boxes


def marker(colour: str, shape: int) -> str:
    """The colour's own outline; where a colour returns, another's."""
    shapes = list(MARKERS.values())
    return shapes[(list(MARKERS).index(colour) + shape) % len(shapes)]


def by_label(rows: Sequence[ReportRow]) -> dict[str, list[ReportRow]]:
    return {label: [r for r in rows if r["label"] == label] for label in dict.fromkeys(r["label"] for r in rows)}


def mean_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """95 % t interval of a row's mean over runs, over the sets where it pools several, kept within [0, 1]; the mean
    alone where there is one run."""
    low, high = row_interval(row, {"accuracy": [0.0] * len(row["accuracy"])}) or (row["mean"], row["mean"])
    return max(0.0, low), min(1.0, high)


def seconds_in_words(seconds: float) -> str:
    """A tick or cell: 0.5 s, 20 s, 5 min, 3 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _accuracy_axis(rows: Sequence[ReportRow], bottom: float) -> tuple[Axis, list[tuple[float, str]]]:
    ends = [v for r in rows for v in (mean_interval(r) if r["ipc"] is not None else (r["mean"],))]
    steps = ticks(min(ends), max(ends))
    y = Axis(steps[0], steps[-1], bottom, TOP)
    return y, [(y(v), f"{100 * v:.0f}") for v in steps]


def _lines(
    rows: Sequence[ReportRow], y: Axis, curves: Sequence[Curve], random: Sequence[ReportRow] = ()
) -> tuple[Line | None, list[Line]]:
    """(the line of all real images, one for each of the ``random`` rows; those whose name has no room are nameless)."""
    full, ordered = full_row(rows), sorted(random, key=lambda r: -r["mean"])
    wanted = [] if full is None else [(y(full["mean"]), f"{full['label']}, {percent(full['mean'])} %")]
    wanted += [(y(row["mean"]), f"{row['label']}, IPC {row['ipc']}") for row in ordered]
    taken, found = _drawn_boxes(curves), list[Line]()
    for at, name in wanted:
        others = [(LEFT, other - 1, RIGHT, other + 1) for other, _ in wanted if other != at]
        covered, place, box = _place(at, name, [*taken, *others])
        shown = not covered or (full is not None and not found)
        found.append(Line(at, name if shown else "", *place))
        taken += [box] * shown
    return (None, found) if full is None else (found[0], found[1:])


def _place(at: float, name: str, taken: Sequence[Box]) -> tuple[int, tuple[float, float], Box]:
    """(how much of what is drawn a name at the line covers at least, the start of its base line, its box)."""
    width, found = GLYPH * len(name), []
    for x in dict.fromkeys([LEFT + 4, max(LEFT + 4, RIGHT - 4 - width), *range(72, int(RIGHT - width), 24)]):
        for base in (at - 8, at + 18):
            box = (x, base - ROW + 4, x + width, base + 4)
            found.append((sum(_overlap(box, other) for other in taken), (float(x), round(base, 2)), box))
    return min(found, key=lambda place: place[0])


def _in_words(row: ReportRow, cost: str) -> tuple[str, str, str, str]:
    return row["label"], f"{row['ipc']}", cost, f"{percent(row['mean'])} ± {percent(row['std'])}"


def _band(rows: Sequence[ReportRow], y: Axis, centres: dict[int, float]) -> str:
    """The interval of the random draws as an area, level beyond the first and last IPC."""
    if not rows or len({r["ipc"] for r in rows}) < len(rows):
        return ""  # draws of several runs: no one band
    at = [LEFT, *(centres[ipc_of(r)] for r in rows), RIGHT]
    ends = [mean_interval(r) for r in (rows[0], *rows, rows[-1])]
    upper = [f"{x:g} {y(high)}" for x, (_, high) in zip(at, ends, strict=True)]
    lower = [f"{x:g} {y(low)}" for x, (low, _) in zip(at, ends, strict=True)]
    return f"M{'L'.join([*upper, *reversed(lower)])}z"


WIDTH, LEAST_HEIGHT, MARGIN, GAP = 640, 360, 16, 32
LINE, LETTER = 40, 13  # of the text over and below the panels
MOST_COLOURED, FEW = 10, 8  # with more classes than MOST_COLOURED, FEW of them are coloured
OTHERS = "other classes"


@dataclass(frozen=True)
class Dots:
    """Points of one kind as an SVG path of strokes without length, to be drawn with round ends."""

    colour: str
    title: str
    path: str


@dataclass(frozen=True)
class Panel:
    """One set among the real images; ``x`` and ``y`` place it on the sheet of all panels."""

    name: str
    count: str
    dots: list[Dots]
    x: int
    y: int


@dataclass(frozen=True)
class Scatter:
    """All panels, of ``width`` by ``height`` each; ``sheet`` is (width, height) of the picture of them and the legend.

    ``plain`` are the real images that no colour tells apart; ``legend`` has (name, colour, x, y) on the sheet.
    """

    width: int
    height: int
    plain: Dots | None
    real: list[Dots]
    panels: list[Panel]
    legend: list[tuple[str, str, int, int]]
    sheet: tuple[int, int]
    caption: str


def scatter(projection: Projection) -> Scatter:
    """Every class in its colour; where they are many, a few of them, and the others in grey."""
    classes = projection.classes
    few = len(classes) > MOST_COLOURED
    coloured = evenly_spaced(len(classes), FEW) if few else list(range(len(classes)))
    colours = dict(zip(coloured, CLASSES, strict=False))
    x, y, height = _axes(torch.cat([c.points for c in (projection.real, *projection.sets.values())]))

    def dots(cloud: Cloud, what: str) -> list[Dots]:
        found = []
        for label in coloured:
            points = cloud.points[cloud.labels == label]
            if len(points):
                found.append(Dots(colours[label], f"{classes[label]}, {len(points)} {what}", _path(points, x, y)))
        return found

    def rest(cloud: Cloud, colour: str, what: str) -> Dots | None:
        points = cloud.points[~torch.isin(cloud.labels, torch.tensor(coloured))]
        return Dots(colour, f"{OTHERS}, {len(points)} {what}", _path(points, x, y)) if len(points) else None

    columns = min(2, len(projection.sets))
    panels = []
    for i, (name, cloud) in enumerate(projection.sets.items()):
        others = rest(cloud, "ink", f"of {name}")
        found = ([others] if others else []) + dots(cloud, f"of {name}")
        x_at, y_at = i % columns * (WIDTH + GAP), LINE + i // columns * (LINE + height + GAP)
        panels.append(Panel(name, _drawn(cloud), found, x_at, y_at))
    names = [(shortened(classes[c], 24), colours[c]) for c in coloured] + [(OTHERS, "ink")] * few
    wide = columns * (WIDTH + GAP) - GAP
    legend, bottom = _legend(names, wide, panels[-1].y + height + 3 * LINE // 2)
    plain, real = rest(projection.real, "grey", "real"), dots(projection.real, "real")
    return Scatter(WIDTH, height, plain, real, panels, legend, (wide, bottom), caption(projection))


def caption(projection: Projection) -> str:
    """What the picture shows, and what it does not."""
    real = projection.real
    said = f"Faint: {len(real.points):,} of the {real.total:,} training images. Strong: the set's images. "
    if len(projection.classes) > MOST_COLOURED:
        said += f"{FEW} of the {len(projection.classes):,} classes are in colour. "
    if projection.explained is None:
        return (
            f"{said}t-SNE of the {projection.space} of all of them together: dots that are neighbours are alike; the "
            "distances between groups and their sizes mean nothing."
        )
    first, second = map(percent, projection.explained)
    return (
        f"{said}The axes are the two directions in which the {projection.space} of those training images vary most "
        f"(PCA); they hold {first} % and {second} % of the variance, so that images far apart in others can lie close."
    )


def _drawn(cloud: Cloud) -> str:
    shown = len(cloud.points)
    return f"{shown:,} images" if shown == cloud.total else f"{shown:,} of {cloud.total:,} images"


def _axes(points: Tensor) -> tuple[Axis, Axis, int]:
    """(x, y, height of a panel): one scale for both axes, within the panel's margins."""
    low, high = points.min(0).values, points.max(0).values
    middle, half = ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
    room = WIDTH - 2 * MARGIN
    shape = min(1.0, max(half[1] / half[0], LEAST_HEIGHT / WIDTH)) if half[0] else 1.0
    height = round(room * shape) + 2 * MARGIN
    unit = max(half[0] / room, half[1] / (height - 2 * MARGIN)) or 1.0
    reach = (unit * room, unit * (height - 2 * MARGIN))
    x = Axis(middle[0] - reach[0], middle[0] + reach[0], MARGIN, WIDTH - MARGIN)
    return x, Axis(middle[1] - reach[1], middle[1] + reach[1], height - MARGIN, MARGIN), height


def _path(points: Tensor, x: Axis, y: Axis) -> str:
    return "".join(f"M{round(x(a))} {round(y(b))}h0" for a, b in points.tolist())


def _legend(names: list[tuple[str, str]], width: int, top: int) -> tuple[list[tuple[str, str, int, int]], int]:
    """((name, colour, x, y) in columns of one width, where they end)."""
    column = LETTER * max(len(name) for name, _ in names) + 2 * LINE
    columns = max(1, width // column)
    placed = [(*item, i % columns * column, top + i // columns * LINE) for i, item in enumerate(names)]
    return placed, placed[-1][3]


def grouped_rows(rows: Sequence[ReportRow]) -> list[list[ReportRow]]:
    """The rows in groups of one IPC; compared rows have ``forest``, their interval's low, middle, high, zero in %."""
    ends = [v for r in rows for v in r["ci95_vs_random"] or ()]
    axis = Axis(min([0.0, *ends]), max([0.0, *ends]), 3, 97)
    groups: dict[int | None, list[ReportRow]] = {}
    for row in rows:
        low, high = row["ci95_vs_random"] or (0.0, 0.0)
        forest = [axis(v) for v in (low, (low + high) / 2, high, 0.0)] if row["ci95_vs_random"] else None
        groups.setdefault(row["ipc"], []).append({**row, "forest": forest})
    return list(groups.values())
