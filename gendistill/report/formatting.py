"""Numbers and intervals in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from gendistill.evaluation.intervals import verdict

RANDOM_LABEL = "random real images"
ROUNDING = 1e-6  # a measure below it is zero but for rounding
NAMES = {"refined": "refined set", "select": "selected set", "samples": "sampled set", "base": "set before minimax"}


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def signed(fraction: float) -> str:
    """A difference in points with its sign; two decimals where one would say zero, none that is zero to both."""
    points = 100 * fraction if abs(fraction) >= 0.00005 else 0.0
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


def measure(value: float) -> str:
    """A number of any size in a narrow column: 0.0173, 0.912, 6.1."""
    if abs(value) < 0.00005:
        return "0"
    return (f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}").replace("-", "−")


def deviation(value: float) -> str:
    """Two digits; what only rounding leaves is 0."""
    return "0" if value < ROUNDING else f"{value:.2g}"


def code(text: str) -> Markup:
    """Text whose `backticks` become code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def unbroken(text: str) -> str:
    """With k-means on one line."""
    return text.replace("k-means", "k‑means")


def kilo(count: float) -> str:
    """Bytes with a unit: 12.8 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


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


PALETTE = {
    "paper": ("#fdfdfb", "#15181c", "#ffffff"),
    "raised": ("#f5f4f0", "#1e2227", "#f1f0ec"),
    "ink": ("#1d2126", "#e9e7e2", "#000000"),
    "soft": ("#5c636b", "#a2a7ae", "#444444"),
    "rule": ("#e3e1da", "#2d3238", "#cccccc"),
    "strong-rule": ("#bdbab1", "#525860", "#888888"),
    "blue": ("#0067a8", "#4aa8ec", "#0067a8"),
    "sky": ("#45a3dc", "#94d0f5", "#45a3dc"),
    "green": ("#00875f", "#2fbf92", "#00875f"),
    "purple": ("#bd6a9c", "#dd94bf", "#bd6a9c"),
    "grey": ("#7d828a", "#9096a0", "#777777"),
    "orange": ("#d08a00", "#eab04a", "#c98500"),
    "red": ("#c9500b", "#f07f45", "#c9500b"),
    "yellow": ("#a89c14", "#d8cd55", "#948a10"),
    "brown": ("#7a4a2b", "#b98a66", "#7a4a2b"),
    "violet": ("#5a4fc0", "#a49bf5", "#5a4fc0"),
}
MEDIA = ("all", "(prefers-color-scheme: dark)", "print")
CLASSES = ("blue", "orange", "green", "red", "violet", "sky", "yellow", "purple", "brown", "grey")  # of images


CELL, SIDE, LARGE_SIDE, PHOTO = 184, 32, 64, 64  # pixels on the page; images above PHOTO are reduced to it


def render_template(name: str, **values: Any) -> str:
    """The text of a template. Class names, paths and commands are escaped; a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        f.__name__: f for f in (brief, code, deviation, duration, kilo, measure, percent, signed, unbroken)
    }
    environment.globals |= {"palette": PALETTE, "media": MEDIA}
    return environment.get_template(name).render(**values)
