"""The run report: one HTML file with its pictures and curves inside, for any browser without a network.

Takes plain data (``RunFacts``, gathered by stages/report.py) and gives text. Accuracies are fractions here and per cent
on the page; differences are in points, that is per cent of the test images.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.data.images import to_pil
from gendistill.data.real import RealData, Split
from gendistill.evaluate.intervals import paired_interval, verdict
from gendistill.evaluate.judge import FULL, RANDOM
from gendistill.progress import track
from gendistill.surrogate.surrogate import SurrogateSet

KMEANS, RANDOM_LABEL = "kmeans", "random real images"
NAMES = {"refined": "refined set", "select": "selected set", "samples": "sampled set", "base": "set before minimax"}
COLOURS = {"refined": "blue", "select": "sky", "samples": "green", "base": "purple", RANDOM: "grey", FULL: "ink"}
SPARE = ("orange", "red", "yellow")
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
MOST_CLASSES, MOST_PAIRS, MOST_MEASURED = 20, 12, 500
CELL, SIDE, LARGE_SIDE, PHOTO = 184, 32, 64, 64  # pixels on the page; images above PHOTO are reduced to it


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the report shows.

    Attributes:
        data: The real images that the run was made from.
        summary: evaluation/summary.json, with a ``label`` for readers in every row.
        sets: By IPC, the sets of the stages in their order, by label; the last one is the run's product.
        records: stage.json of every stage that is there, in the order of the run.
        config: The text of config.yaml.
        date: When the run ended.
    """

    data: RealData
    summary: dict[str, Any]
    sets: dict[int, dict[str, SurrogateSet]]
    records: Sequence[dict[str, Any]]
    config: str
    date: str


def render(facts: RunFacts) -> str:
    """The page. Class names, paths and commands are escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "signed": signed, "duration": duration}
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    rows = ordered(facts.summary["rows"])
    data, records = facts.data, facts.records
    counts = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    return template.render(
        facts=facts,
        data=data,
        counts=counts,
        headline=headline(rows),
        verdicts=verdicts(rows),
        full=next((r for r in rows if r["method"] == FULL), None),
        table=table(rows),
        chart=chart(rows),
        galleries=[gallery(ipc, facts.sets[ipc]) for ipc in sorted(facts.sets, reverse=True)],
        closest=closest_of_run(facts),
        costs=costs(records),
        w2=w2(records),
        versions=merged_versions(records),
        teacher=next((r["accuracy"] for r in records if r["stage"] == "teacher" and "accuracy" in r), None),
        commands=list(dict.fromkeys(r["command"] for r in records if "command" in r)),
    )


# --- words ---------------------------------------------------------------------------------------------------------


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f}"


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
        verb = "is worse" if set(outcomes.values()) == {"worse"} else "is not better"
        return f"{verb} than {name} {alone or 'at any IPC'}"
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
        return f"At IPC {self.ipc} the {NAMES.get(self.row['stage'], self.row['label'])} {text}."


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


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """The verdict over all IPC, in one sentence or two."""
    found = verdicts(rows)
    if not found:
        return "The run has no generated set that was judged."
    name = NAMES.get(found[0].row["stage"])
    random = {v.ipc: outcome(v.against_random) for v in found if v.against_random}
    kmeans = {v.ipc: outcome(v.against_kmeans) for v in found if v.against_kmeans}
    said = [over_sizes(n, o) for n, o in ((RANDOM_LABEL, random), ("k-means", kmeans)) if o]
    return f"The {name} {'. It '.join(said)}." if said else f"The {name} was not compared with real images."


# --- table and curves ----------------------------------------------------------------------------------------------


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


def ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By IPC, full data last, each with its ``colour``; spare colours go to what has none."""
    labels = dict.fromkeys(r["label"] for r in rows if (r["stage"] or r["method"]) not in COLOURS)
    spare = {label: SPARE[i % len(SPARE)] for i, label in enumerate(labels)}
    found = [{**r, "colour": spare.get(r["label"]) or COLOURS[r["stage"] or r["method"]]} for r in rows]
    return sorted(found, key=lambda r: (r["ipc"] is None, r["ipc"] or 0))


def table(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows in groups of one IPC; compared rows have ``forest``, their interval's low, middle, high, zero in %."""
    ends = [v for r in rows for v in r["ci95_vs_random"] or ()]
    axis = Axis(min([0.0, *ends]), max([0.0, *ends]), 3, 97)
    groups: dict[int | None, list[dict[str, Any]]] = {}
    for row in rows:
        low, high = row["ci95_vs_random"] or (0.0, 0.0)
        forest = [axis(v) for v in (low, (low + high) / 2, high, 0.0)] if row["ci95_vs_random"] else None
        groups.setdefault(row["ipc"], []).append({**row, "forest": forest})
    return list(groups.values())


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
    full = next((r for r in rows if r["method"] == FULL), None)
    intervals = [mean_interval(r) for r in sized]
    steps = ticks(min(low for low, _ in intervals), max([high for _, high in intervals] + [full["mean"]] * bool(full)))
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
        left,
        right,
        top,
        bottom,
        right + 8,
        bottom + 52,
        [(x, f"{ipc}") for ipc, x in centres.items()],
        [(y(v), f"{100 * v:.0f}") for v in steps],
        sorted(curves, key=lambda c: -c.last),
        (y(full["mean"]), f"{full['label']}, {percent(full['mean'])} %") if full else None,
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


def ticks(low: float, high: float) -> list[float]:
    """At most seven round values in [0, 1] from below ``low`` to above ``high``."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1) if (high - low) / s <= 5), 0.2)
    most = round(1 / step)
    first = min(math.floor(low / step), most - 1)
    last = min(max(math.ceil(high / step), first + 1), most)
    return [round(i * step, 6) for i in range(first, last + 1)]


# --- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A PNG as data URI, with its size on the page; ``crisp`` where single pixels are to be seen."""

    source: str
    width: int
    height: int
    crisp: bool
    alt: str


def sprite(images: Tensor, alt: str, *, columns: int, side: int = SIDE) -> Picture:
    """Images (N,C,H,W) in rows of ``columns``, each enlarged by a whole factor to at most ``side`` page pixels."""
    size = int(images.shape[-1])
    size, factor = (size, max(1, side // size)) if size <= PHOTO else (PHOTO, 1)
    gap = 1 if factor > 1 else 3
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    mode = "LA" if images.shape[1] == 1 else "RGBA"
    sheet = Image.new(mode, (columns * (size + gap) - gap, rows * (size + gap) - gap))
    for i, image in enumerate(images):
        tile = to_pil(image).convert(mode).resize((size, size), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * (size + gap), i // columns * (size + gap)))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(source, sheet.width * factor, sheet.height * factor, factor > 1, alt)


@dataclass(frozen=True)
class Gallery:
    """A table of pictures; ``rows`` are (name, pictures) under ``columns``. ``notes`` says what was left out."""

    ipc: int
    columns: list[str]
    rows: list[tuple[str, list[Picture]]]
    wide: bool
    notes: str


def gallery(ipc: int, sets: dict[str, SurrogateSet]) -> Gallery:
    """Classes by stages; stages by classes where there are few images, which then are shown larger."""
    first = next(iter(sets.values()))
    size, classes = int(first.images.shape[-1]), first.classes
    picked = spread(len(classes), MOST_CLASSES)
    wide = ipc <= 2 and len(picked) <= 12
    columns = CELL // (min(size * max(1, SIDE // size), PHOTO) + 4)
    shown = min(ipc, 10 if columns >= 5 else 4)
    names = [classes[c] for c in picked]
    rows = [
        [
            sprite(
                made.of_class(c)[:shown],
                f"{classes[c]}, {label}",
                columns=1 if wide else columns,
                side=LARGE_SIDE if wide else SIDE,
            )
            for label, made in sets.items()
        ]
        for c in picked
    ]
    notes = [f"{len(picked)} of {len(classes)} classes"] * (len(picked) < len(classes))
    notes += [f"the first {shown} of {ipc} images of a class"] * (shown < ipc)
    notes += [f"reduced from {size} to {PHOTO} pixels"] * (size > PHOTO)
    if wide:
        by_stage = [(label, [row[i] for row in rows]) for i, label in enumerate(sets)]
        return Gallery(ipc, names, by_stage, wide, ", ".join(notes))
    return Gallery(ipc, list(sets), list(zip(names, rows, strict=True)), wide, ", ".join(notes))


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the positions 0 to count - 1, evenly spaced."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


# --- closest real images -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A generated image beside the training image closest to it."""

    made: Picture
    real: Picture
    name: str
    real_name: str
    distance: float


@dataclass(frozen=True)
class Closest:
    """Distances to the closest training image: of generated images, and of held-out real ones for scale.

    ``duplicates`` of ``total`` generated images are training images to the last pixel; ``suspects`` of the ``measured``
    are closer than 99 % of the held-out ones. Strokes are SVG paths on a scale of 0 to 1000.
    """

    name: str
    ipc: int
    total: int
    duplicates: int
    measured: int
    suspects: int
    median: float
    held_out: int
    held_out_median: float
    strokes: str
    held_out_strokes: str
    largest: float
    axis: Axis
    pairs: list[Pair]


def nearest(images: Tensor, real: Tensor, block: int = 1 << 22) -> tuple[Tensor, Tensor]:
    """(distances, positions) of the image of ``real`` (M,C,H,W) closest to each of ``images`` (N,C,H,W), all uint8.

    Distance: root mean square of the pixel differences in grey levels, L2 / sqrt(CHW). float64 holds these integer sums
    exactly, so that a copy is at 0. ``block`` bounds the numbers converted at once.
    """
    rows = max(1, block // images[0].numel())
    best = torch.full((len(images),), torch.inf, dtype=torch.float64)
    where = torch.zeros(len(images), dtype=torch.int64)
    starts = range(0, len(real), rows)
    for start in track(starts, "closest real images", len(starts)):
        theirs = real[start : start + rows].flatten(1).double()
        for at in range(0, len(images), rows):
            ours = images[at : at + rows].flatten(1).double()
            squares = ours.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * ours @ theirs.T
            low, position = squares.min(1)
            closer = low < best[at : at + rows]
            best[at : at + rows][closer] = low[closer]
            where[at : at + rows][closer] = position[closer] + start
    return (best / images[0].numel()).sqrt(), where


def count_duplicates(images: Tensor, real: Tensor) -> int:
    """How many of ``images`` are among ``real`` to the last pixel."""
    known = set(map(_digest, real))
    return sum(_digest(image) in known for image in images)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()


def closest_of_run(facts: RunFacts) -> Closest | None:
    """Of the run's product at its largest IPC."""
    ipc = max(facts.sets, default=None)
    if ipc is None:
        return None
    label, made = list(facts.sets[ipc].items())[-1]
    return closest(NAMES.get(made.meta.get("stage", ""), label), made, facts.data)


def closest(name: str, made: SurrogateSet, data: RealData) -> Closest:
    """Measure at most ``MOST_MEASURED`` images of the set and of the validation split, evenly spaced."""
    ours, held_out = (_sample(split) for split in (made.split, data.validation))
    distances, where = nearest(ours.images, data.train.images)
    theirs, _ = nearest(held_out.images, data.train.images)
    largest = max(float(distances.max()), float(theirs.max()))
    axis = Axis(0, largest, 0, 1000)
    order = torch.argsort(distances, stable=True)[:MOST_PAIRS].tolist()
    return Closest(
        label,
        made.ipc,
        len(made.labels),
        count_duplicates(made.images, data.train.images),
        len(ours),
        int((distances < theirs.quantile(0.01)).sum()),
        float(distances.median()),
        len(held_out),
        float(theirs.median()),
        strokes(distances, axis),
        strokes(theirs, axis),
        largest,
        axis,
        [_pair(ours.take(torch.tensor([i])), data, int(where[i]), float(distances[i])) for i in order],
    )


def strokes(distances: Tensor, axis: Axis) -> str:
    """One vertical stroke a distance, as an SVG path 20 units high."""
    return "".join(f"M{axis(d):g} 0v20" for d in distances.tolist())


def _sample(split: Split) -> Split:
    return split.take(torch.tensor(spread(len(split), MOST_MEASURED)))


def _pair(made: Split, data: RealData, position: int, distance: float) -> Pair:
    real = data.train.take(torch.tensor([position]))
    name, real_name = (data.classes[int(s.labels)] for s in (made, real))
    ours = sprite(made.images, f"{name}, generated", columns=1, side=LARGE_SIDE)
    return Pair(ours, sprite(real.images, f"{real_name}, real", columns=1, side=LARGE_SIDE), name, real_name, distance)


# --- costs and provenance ------------------------------------------------------------------------------------------


def costs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and peak memory by stage, with their ``share`` and ``memory_share`` of the largest in per cent."""
    done = [r for r in records if "seconds" in r]
    longest = max((r["seconds"] for r in done), default=0) or 1
    most = max((r.get("peak_memory_mib", 0) for r in done), default=0) or 1
    return [
        {
            "stage": r["stage"],
            "seconds": r["seconds"],
            "memory": r.get("peak_memory_mib", 0),
            "share": 100 * r["seconds"] / longest,
            "memory_share": 100 * r.get("peak_memory_mib", 0) / most,
        }
        for r in done
    ]


def w2(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Before and after refinement by IPC, with their shares of the largest in per cent."""
    found = next((r["w2"] for r in records if r.get("w2")), {})
    most = max((v for pair in found.values() for v in pair.values()), default=0) or 1
    return [
        {
            "ipc": int(ipc),
            **pair,
            "change": pair["after"] / pair["before"] - 1 if pair["before"] else 0.0,
            "share_before": 100 * pair["before"] / most,
            "share_after": 100 * pair["after"] / most,
        }
        for ipc, pair in sorted(found.items(), key=lambda item: int(item[0]))
    ]


def merged_versions(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The version of every library; several where the stages ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, number in record.get("versions", {}).items():
            found.setdefault(name, {})[number] = None
    return {name: ", ".join(numbers) for name, numbers in found.items()}
