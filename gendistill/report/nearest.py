"""The copy check as the page shows it: sentences, strips of distances, and the closest pairs as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gendistill.data.class_positions import evenly_spaced
from gendistill.data.dataset import RealData, Split
from gendistill.evaluation.copies import PIXELS, Copies, CopyCheck, Match
from gendistill.progress import track
from gendistill.report.charts import Axis
from gendistill.report.formatting import LARGE_SIDE, NAMES, RANDOM_LABEL, brief
from gendistill.report.images import (
    INK,
    LINE,
    MARGIN,
    NAME,
    PAIR_SIDE,
    SOFT,
    Picture,
    blank_sheet,
    drawable_name,
    enlarged_side,
    enlarged_tile,
    shorten,
    sprite,
)
from gendistill.surrogate.card.card import add_evidence
from gendistill.surrogate.card.entry import PAIRS, CopyEvidence
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.stored import StoredSet, evaluation_of

HARM = {
    "test": "accuracies on this test split are too high",
    "validation": "choices made on this validation split are too optimistic",
}


def copies_sentence(name: str, copies: Copies) -> str:
    """How many images of the set are real images, split by split."""
    counts, total = copies.counts, f"{copies.images:,}"
    if not any(counts.values()):
        return f"None of the {total} images of {name} is a copy of a real image to the last pixel."
    are = _are(counts["train"], "a copy of a training image", "copies of training images")
    found = [f"{counts['train']:,} of the {total} images of {name} {are}, to the last pixel."]
    for split, harm in HARM.items():
        are = _are(counts[split], f"a copy of a {split} image", f"copies of {split} images")
        found += [f"{counts[split]:,} {are}, which the set must not have seen: {harm}."] * (counts[split] > 0)
    return " ".join(found)


def nearness_sentence(copies: Copies) -> str:
    """How many are closer to a training image than real images usually are."""
    count, measured = int(copies.near.sum()), len(copies.measured)
    those = f"the {measured:,}" if measured == copies.images else f"the {measured:,} of them that were measured"
    close = _are(count, "as close to a training image", "as close to a training image")
    held_out = len(copies.held_out)
    usual = "; of real images, about 1 in 100 would be" * (held_out >= 100)  # of fewer the 1 % are a guess
    return f"{count:,} of {those} {close} as the closest 1 % of the {held_out:,} held-out real images are{usual}."


def copy_line(summary: Mapping[str, Any]) -> str:
    """``Copies.summary`` in one line for the terminal."""
    exact, measured = summary["exact"], summary["measured"]
    leaks = "".join(f", {exact[s]:,} of {s.upper()} images" for s in HARM if exact[s])
    of = f" of {measured:,} measured" if measured < summary["images"] else ""
    return (
        f"{summary['images']:,} images: {exact['train']:,} are copies of training images{leaks}; "
        f"{summary['near']:,}{of} closer than 99 % of held-out real images"
    )


def distance_unit(copies: Copies) -> str:
    """What the distances are between."""
    return "pixels, in grey levels of 0 to 255" if copies.space == PIXELS else copies.space


def _are(count: int, one: str, many: str) -> str:
    return f"is {one}" if count == 1 else f"are {many}"


MOST_PAIRS, MOST_STROKES = 12, 500
MOST_DISTANCES = 1_000_000_000  # that are computed to measure all images of sets, and all held-out ones
MOST_MEASURED = 500  # images of a set whose distances to the real ones are measured; all are compared by hash


@dataclass(frozen=True)
class Pair:
    """An image of the set beside a real one, with their class names and how far apart they are."""

    made: Picture
    real: Picture
    names: str
    distance: str


@dataclass(frozen=True)
class Closest:
    """Distances to the closest training image: of a set's images, and of held-out real ones for scale.

    ``copied`` and ``near`` are sentences. Strokes are SVG paths on a scale of 0 to 1000.
    """

    name: str
    title: str
    copied: str
    near: str
    unit: str
    measured: int
    median: float
    held_out: int
    held_out_median: float
    strokes: str
    held_out_strokes: str
    axis: Axis
    pairs: list[Pair]


@dataclass(frozen=True)
class CheckedSet:
    """A set whose copies the page shows, with its label, its IPC and, where there are several, the name of its run."""

    label: str
    made: SurrogateSet
    ipc: int
    run: str = ""

    @property
    def name(self) -> str:
        stage = NAMES.get(self.made.meta.get("stage") or "") or f"set {self.label}"
        return f"the {stage}{f' of {self.run}' if self.run else ''} at IPC {self.ipc}"


def product_of_run(sets: dict[int, dict[str, SurrogateSet]], run: str = "") -> list[CheckedSet]:
    """The run's product, the last of its sets, at its largest IPC; ``run`` names it among others."""
    if not sets:
        return []
    ipc = max(sets)
    label, made = list(sets[ipc].items())[-1]
    return [CheckedSet(label, made, ipc, run)]


def sets_of_evaluation(
    sets: dict[int, dict[str, SurrogateSet]], run: str = "", most: int | None = None
) -> list[CheckedSet]:
    """Every set that was evaluated, the smallest IPC first, ``most`` of them at most."""
    return [
        CheckedSet(label, made, ipc, run)
        for ipc in sorted(sets)
        for label, made in sets[ipc].items()
        if label != RANDOM_LABEL
    ][:most]


def closest_of(sets: Sequence[CheckedSet], reference: CopyCheck) -> list[Closest]:
    """The check of each of the sets, for which the real images are read once."""
    checks = reference.check_all(one.made.split.pixels for one in sets)
    return [closest(one.name, copies, one.made.split, reference.data) for one, copies in zip(sets, checks, strict=True)]


def closest(name: str, copies: Copies, made: Split, data: RealData) -> Closest:
    """The check of the set called ``name``, whose decoded images are ``made``."""
    axis = Axis(0, max(float(copies.distances.max()), float(copies.held_out.max())), 0, 1000)
    return Closest(
        name=name,
        title=name.removeprefix("the ").removeprefix("set "),
        copied=copies_sentence(name, copies),
        near=nearness_sentence(copies),
        unit=distance_unit(copies),
        measured=len(copies.measured),
        median=float(copies.distances.median()),
        held_out=len(copies.held_out),
        held_out_median=float(copies.held_out.median()),
        strokes=strokes(copies.distances, axis),
        held_out_strokes=strokes(copies.held_out, axis),
        axis=axis,
        pairs=[_pair(match, made, data) for match in copies.closest(MOST_PAIRS)],
    )


def strokes(distances: Tensor, axis: Axis) -> str:
    """One vertical stroke a distance, as an SVG path 20 units high; of many, evenly many from the smallest to the
    largest."""
    shown = distances.sort().values[evenly_spaced(len(distances), MOST_STROKES)]
    return "".join(f"M{axis(d):g} 0v20" for d in shown.tolist())


def matched(match: Match, made: Split, data: RealData) -> tuple[Split, Split, str, str]:
    """(the set's image, the real one, their class names, their distance in words)."""
    ours = made.take(torch.tensor([match.image]))
    theirs: Split = getattr(data, match.split).take(torch.tensor([match.position]))
    name, real = (data.classes[int(s.labels)] for s in (ours, theirs))
    names = name if name == real else f"{name}, real: {real}"
    of = "" if match.split == "train" else f" of a {match.split} image"
    return ours, theirs, names, f"a copy{of}" if match.equal else f"{brief(match.distance)} apart"


def _pair(match: Match, made: Split, data: RealData) -> Pair:
    ours, theirs, names, distance = matched(match, made, data)
    return Pair(
        made=sprite(ours.pixels, f"{data.classes[int(ours.labels)]}, of the set", columns=1, side=LARGE_SIDE),
        real=sprite(theirs.pixels, f"{data.classes[int(theirs.labels)]}, real", columns=1, side=LARGE_SIDE),
        names=names,
        distance=distance,
    )


PAIRS_ACROSS = 4


def pair_sheet(parts: Sequence[tuple[str, Sequence[Match], Split]], data: RealData) -> Image.Image:
    """The closest pairs of (name, matches, decoded images) of one set after the other: its image left, the real one
    right, and below how far apart they are."""
    side, row = enlarged_side(data.train.images, PAIR_SIDE)
    font = ImageFont.load_default(13)
    width, height = max(2 * row, NAME) + MARGIN, row + 2 * LINE + 12
    heights = [2 * LINE + height * -(-len(matches) // PAIRS_ACROSS) for _, matches, _ in parts]
    sheet = blank_sheet(MARGIN + PAIRS_ACROSS * width, MARGIN + sum(heights))
    draw = ImageDraw.Draw(sheet)
    for i, (name, matches, made) in enumerate(parts):
        top = MARGIN + sum(heights[:i])
        draw.text((MARGIN, top), f"{name}: the set's image left, the real one right", INK, font)
        for k, match in enumerate(matches):
            ours, theirs, names, distance = matched(match, made, data)
            x, y = MARGIN + k % PAIRS_ACROSS * width, top + LINE + 10 + k // PAIRS_ACROSS * height
            sheet.paste(enlarged_tile(ours.images[0], side), (x, y))
            sheet.paste(enlarged_tile(theirs.images[0], side), (x + row, y))
            draw.text((x, y + row + 2), distance, INK, font)
            draw.text(
                (x, y + row + 2 + LINE), shorten(drawable_name(names, int(ours.labels)), font, width - 8), SOFT, font
            )
    return sheet


def record_evidence(folders: Sequence[Path], summary: Mapping[str, Any], data: RealData) -> None:
    """Write evidence.json and the card of sets that ``summary`` has rows of."""
    reference = CopyCheck.of(data, most=MOST_MEASURED)
    checks = reference.check_all(SurrogateSet.load(folder).split.pixels for folder in folders)
    for folder, copies in track(zip(folders, checks, strict=True), "cards", len(folders)):
        made = SurrogateSet.load(folder)
        pair_sheet([(folder.name, copies.closest(MOST_PAIRS), made.split)], data).save(folder / PAIRS)
        evaluation = evaluation_of(StoredSet.open(folder), summary, made.content_hash())
        found = cast(CopyEvidence, {**copies.summary(), "pairs": True})
        add_evidence(folder, evaluation=evaluation, copies=found)
