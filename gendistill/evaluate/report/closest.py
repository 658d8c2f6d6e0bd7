"""The training images closest to the generated ones, and how many generated ones are copies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.data.real import RealData, Split
from gendistill.evaluate.report.pictures import LARGE_SIDE, Picture, spread, sprite
from gendistill.evaluate.report.scales import Axis
from gendistill.evaluate.report.words import NAMES
from gendistill.progress import track
from gendistill.surrogate.surrogate import SurrogateSet

MOST_PAIRS, MOST_MEASURED = 12, 500


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


def closest_of_run(sets: dict[int, dict[str, SurrogateSet]], data: RealData) -> Closest | None:
    """Of the run's product, the last of its sets, at its largest IPC."""
    if not sets:
        return None
    label, made = list(sets[max(sets)].items())[-1]
    return closest(NAMES.get(made.meta.get("stage", ""), label), made, data)


def closest(name: str, made: SurrogateSet, data: RealData) -> Closest:
    """Measure at most ``MOST_MEASURED`` images of the set and of the validation split, evenly spaced."""
    ours, held_out = (_sample(split) for split in (made.split, data.validation))
    distances, where = nearest(ours.images, data.train.images)
    theirs, _ = nearest(held_out.images, data.train.images)
    largest = max(float(distances.max()), float(theirs.max()))
    axis = Axis(0, largest, 0, 1000)
    order = torch.argsort(distances, stable=True)[:MOST_PAIRS].tolist()
    return Closest(
        name=name,
        ipc=made.ipc,
        total=len(made.labels),
        duplicates=count_duplicates(made.images, data.train.images),
        measured=len(ours),
        suspects=int((distances < theirs.quantile(0.01)).sum()),
        median=float(distances.median()),
        held_out=len(held_out),
        held_out_median=float(theirs.median()),
        strokes=strokes(distances, axis),
        held_out_strokes=strokes(theirs, axis),
        largest=largest,
        axis=axis,
        pairs=[_pair(ours.take(torch.tensor([i])), data, int(where[i]), float(distances[i])) for i in order],
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
