"""Real images and sets as dots in one plane, in the units of an SVG: a panel a set, all with the same real images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.evaluation.projection import Cloud, Projection
from gendistill.evaluate.report.palette import CLASSES
from gendistill.evaluate.report.scales import Axis
from gendistill.report.formatting import percent, shortened
from gendistill.evaluate.spread import spread

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
    coloured = spread(len(classes), FEW) if few else list(range(len(classes)))
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
