"""Images as PNGs inside the page, one by one and in tables of stages and classes."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from gendistill.data.pixels import to_pil
from gendistill.evaluate.spread import spread
from gendistill.surrogate.set import SurrogateSet

MOST_CLASSES = 20
CELL, SIDE, LARGE_SIDE, PHOTO = 184, 32, 64, 64  # pixels on the page; images above PHOTO are reduced to it


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
    size, factor = scaled(int(images.shape[-1]), side)
    gap = 1 if factor > 1 else 2
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    mode = "LA" if images.shape[1] == 1 else "RGBA"
    sheet = Image.new(mode, (columns * (size + gap) - gap, rows * (size + gap) - gap))
    for i, image in enumerate(images):
        tile = to_pil(image).convert(mode).resize((size, size), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * (size + gap), i // columns * (size + gap)))
    return picture(sheet, alt, factor)


def picture(sheet: Image.Image, alt: str, factor: int = 1) -> Picture:
    """A Pillow image, to be shown ``factor`` times as large."""
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(source, sheet.width * factor, sheet.height * factor, factor > 1, alt)


def scaled(size: int, side: int = SIDE) -> tuple[int, int]:
    """(pixels of the PNG, whole factor to enlarge them by on the page) of an image's side of ``size`` pixels."""
    return (size, max(1, side // size)) if size <= PHOTO else (PHOTO, 1)


@dataclass(frozen=True)
class Gallery:
    """A table of pictures; ``rows`` are (name, pictures) under ``columns``, None where a set lacks the class.

    ``notes`` says what was left out.
    """

    ipc: int
    columns: list[str]
    rows: list[tuple[str, list[Picture | None]]]
    wide: bool
    notes: str


def gallery(ipc: int, sets: dict[str, SurrogateSet]) -> Gallery:
    """Classes by stages; stages by classes where there are few images, which then are shown larger."""
    first = next(iter(sets.values()))
    size, classes = int(first.images.shape[-1]), first.classes
    picked = spread(len(classes), MOST_CLASSES)
    most = max(max(made.counts) for made in sets.values())
    wide = most <= 2 and len(picked) <= 12
    columns = CELL // (math.prod(scaled(size)) + 4)
    shown = min(most, 10 if columns >= 5 else 4)
    names = [classes[c] for c in picked]
    rows = [
        [_cell(made.of_class(c)[:shown], f"{classes[c]}, {label}", columns, wide) for label, made in sets.items()]
        for c in picked
    ]
    notes = [f"{len(picked)} of {len(classes)} classes"] * (len(picked) < len(classes))
    notes += [f"the first {shown} of {most} images of a class"] * (shown < most)
    notes += [f"reduced from {size} to {PHOTO} pixels"] * (size > PHOTO)
    if wide:
        by_stage = [(label, [row[i] for row in rows]) for i, label in enumerate(sets)]
        return Gallery(ipc, names, by_stage, wide, ", ".join(notes))
    return Gallery(ipc, list(sets), list(zip(names, rows, strict=True)), wide, ", ".join(notes))


def _cell(images: Tensor, alt: str, columns: int, wide: bool) -> Picture | None:
    if not len(images):
        return None
    return sprite(images, alt, columns=1 if wide else columns, side=LARGE_SIDE if wide else SIDE)
