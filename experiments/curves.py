"""Curves with their spread as a plain SVG: panels in a grid, one legend.

Measures nothing and has no command: ``experiments.matching``, ``experiments.picks`` and ``experiments.image_bytes``
draw with it. Machine, time and result are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

PAPER, INK, SOFT, RULE = "#fdfdfb", "#1d2126", "#5c636b", "#e3e1da"
STYLES = (  # colour, and mark around (0, 0): curves differ without colour too
    ("#0067a8", "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"),
    ("#d08a00", "M0-5.4L5.4 0L0 5.4L-5.4 0z"),
    ("#00875f", "M0-5.2L5 4H-5z"),
    ("#c9500b", "M-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z"),
    ("#bd6a9c", "M0 5.2L5-4H-5z"),
    ("#45a3dc", "M-4-4h8v8h-8z"),
    ("#7d828a", "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z"),
    ("#a89c14", "M-5-2.4h10v4.8h-10z"),
)
WIDTH, HEIGHT, LEFT, TOP, BELOW = 440, 270, 58, 34, 52  # of a panel; around its axes


@dataclass(frozen=True)
class Axis:
    """Linear map of the values [low, high] to the positions [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return round(self.start + (self.end - self.start) * share, 2)


@dataclass(frozen=True)
class Line:
    """``points`` are (x, mean, spread); ``style`` has the numbers of its colour and of its mark, if not the label's."""

    label: str
    points: Sequence[tuple[float, float, float]]
    style: tuple[int, int] | None = None


@dataclass(frozen=True)
class Panel:
    """``levels`` are (label, value), dashed lines across it."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values from below ``low`` to above ``high``, about ``most`` of them."""
    span = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / most))
    step = next(unit * k for k in (1, 2, 5, 10, 20) if span / (unit * k) <= most)
    return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def svg(panels: Sequence[Panel], columns: int) -> str:
    """The whole picture; a label has one colour and mark in all panels."""
    drawn = {line.label: line.style for panel in panels for line in panel.lines}
    styles = {label: style or (i, i) for i, (label, style) in enumerate(drawn.items())}
    rows, foot = -(-len(panels) // columns), 22 * (-(-len(styles) // columns)) + 12
    width, height = columns * WIDTH, rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + foot}" width="{width}" '
        f'height="{height + foot}" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    for i, panel in enumerate(panels):
        inside = "".join(_panel(panel, styles))
        parts.append(f'<g transform="translate({i % columns * WIDTH} {i // columns * HEIGHT})">{inside}</g>')
    for i, (label, style) in enumerate(styles.items()):
        x, y = LEFT + i % columns * WIDTH, height + 12 + 22 * (i // columns)
        parts.append(f'<g transform="translate({x} {y})">{_mark(*style)}<text x="12" y="4">{escape(label)}</text></g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, styles: Mapping[str, tuple[int, int]]) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    levels = [value for _, value in panel.levels]
    across = ticks(min(p[0] for p in points), max(p[0] for p in points))
    up = ticks(min([p[1] - p[2] for p in points] + levels), max([p[1] + p[2] for p in points] + levels))
    x = Axis(across[0], across[-1], LEFT, WIDTH - 14)
    y = Axis(up[0], up[-1], HEIGHT - BELOW, TOP)
    found = [f'<text x="{LEFT}" y="18" font-weight="600">{escape(panel.title)}</text>']
    for value in up:
        found.append(_rule(LEFT, y(value), WIDTH - 14, RULE))
        found.append(f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    found += [f'<text x="{x(v)}" y="{HEIGHT - BELOW + 17}" text-anchor="middle">{v:g}</text>' for v in across]
    found.append(f'<text x="{(LEFT + WIDTH - 14) / 2}" y="{HEIGHT - 16}" text-anchor="middle">{escape(panel.x)}</text>')
    middle = (TOP + HEIGHT - BELOW) / 2
    found.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(panel.y)}</text>')
    for i, (label, value) in enumerate(panel.levels):  # words right and left in turn: levels may be close
        found.append(_rule(LEFT, y(value), WIDTH - 14, SOFT, ' stroke-dasharray="5 4"'))
        place = f'x="{LEFT + 4}"' if i % 2 else f'x="{WIDTH - 16}" text-anchor="end"'
        found.append(f'<text {place} y="{y(value) - 4}">{escape(label)}</text>')
    for line in panel.lines:
        found += _line(line, styles[line.label], x, y)
    return found


def _line(line: Line, style: tuple[int, int], x: Axis, y: Axis) -> list[str]:
    colour, _ = STYLES[style[0] % len(STYLES)]
    path = "L".join(f"{x(a)} {y(b)}" for a, b, _ in line.points)
    found = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>']
    for a, b, spread in line.points:
        found.append(f'<path d="M{x(a)} {y(b - spread)}V{y(b + spread)}" stroke="{colour}" stroke-opacity="0.5"/>')
        title = escape(f"{line.label}: {b:.4g} ± {spread:.2g} at {a:.6g}")
        found.append(f'<g transform="translate({x(a)} {y(b)})"><title>{title}</title>{_mark(*style)}</g>')
    return found


def _rule(start: float, height: float, end: float, colour: str, more: str = "") -> str:
    return f'<path d="M{start} {height}H{end}" stroke="{colour}"{more}/>'


def _mark(colour_number: int, mark_number: int) -> str:
    colour, mark = STYLES[colour_number % len(STYLES)][0], STYLES[mark_number % len(STYLES)][1]
    return f'<path d="{mark}" fill="{colour}"/>'
