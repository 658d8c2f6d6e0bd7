"""Images as PNGs inside the page, one by one and in tables of stages and classes."""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gendistill.data.class_positions import evenly_spaced
from gendistill.data.dataset import Split
from gendistill.data.mapped import Images
from gendistill.data.pixels import to_pil
from gendistill.report.formatting import CELL, LARGE_SIDE, PALETTE, PHOTO, SIDE
from gendistill.surrogate.set import SurrogateSet

MOST_CLASSES = 20


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
    picked = evenly_spaced(len(classes), MOST_CLASSES)
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


MOST_IMAGES = 10  # of a class
MOST_PIXELS = 16_000_000  # of the images on a sheet: 48 MB at worst, where no two pixels are alike
SHEET_SIDE, PAIR_SIDE = 48, 96  # what small images are enlarged to, from below
GAP, MARGIN, LINE, NAME = 2, 16, 18, 140
SHAPE = 1.3  # width to height that a sheet of many classes comes near to
PAPER, INK, SOFT = (PALETTE[name][0] for name in ("paper", "ink", "soft"))


def contact_sheet(
    split: Split, classes: Sequence[str], title: str, *, most_pixels: int = MOST_PIXELS, widest: int | None = None
) -> Image.Image:
    """A row a class with its name and its first images; many classes stand in several columns.

    What does not fit ``most_pixels`` is left out, images before classes, and the sheet says so. Columns end before
    ``widest``.
    """
    side, row = enlarged_side(split.images, SHEET_SIDE)
    font = ImageFont.load_default(13)
    counts = split.counts(len(classes))
    picked, shown = fit(counts, row, most_pixels)
    names = {label: name_on_sheet(classes[label], label, font) for label in picked}
    margin = round(max(map(font.getlength, names.values()))) + 8
    width = margin + shown * row + MARGIN - GAP
    most = len(picked) if widest is None else (widest - MARGIN) // width
    columns = max(1, min(most, round(math.sqrt(SHAPE * len(picked) * row / width))))
    rows = -(-len(picked) // columns)
    notes = [f"{len(picked):,} of {len(classes):,} classes"] * (len(picked) < len(classes))
    notes += [f"the first {shown} of {max(counts):,} images of a class"] * (shown < max(counts))
    heads = [title] + [f"Shown: {', '.join(notes)}."] * bool(notes)
    top = MARGIN + LINE * len(heads) + 8
    wide = max(columns * width, *(math.ceil(font.getlength(head)) + MARGIN for head in heads))
    sheet = blank_sheet(MARGIN + wide, top + rows * row + MARGIN)
    draw = ImageDraw.Draw(sheet)
    for i, head in enumerate(heads):
        draw.text((MARGIN, MARGIN + i * LINE), head, SOFT if i else INK, font)
    for i, label in enumerate(picked):
        x, y = MARGIN + i // rows * width, top + i % rows * row
        draw.text((x, y + side / 2), names[label], INK, font, anchor="lm")
        for k, at in enumerate(split.of_class(label)[:shown].tolist()):
            sheet.paste(enlarged_tile(split.images[at], side), (x + margin + k * row, y))
    return sheet


def fit(counts: Sequence[int], row: int, most_pixels: int) -> tuple[list[int], int]:
    """(classes, images of each) so that all their images, ``row`` wide and high, are ``most_pixels`` at most."""
    room = max(1, most_pixels // row**2)
    shown = max(1, min(max(counts), MOST_IMAGES, room // len(counts)))
    return evenly_spaced(len(counts), max(1, room // shown)), shown


def name_on_sheet(name: str, label: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The class's name, cut to ``NAME`` pixels; its number where Pillow's font, of plain Latin letters, lacks
    some."""
    return shorten(drawable_name(name, label), font, NAME)


def drawable_name(name: str, label: int) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", " ".join(name.split())) if not unicodedata.combining(c))
    return plain if plain and plain.isascii() and plain.isprintable() else f"class {label}"


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, or as much of it with three dots as ``width`` pixels hold."""
    if font.getlength(text) <= width:
        return text
    kept = int(len(text) * width / font.getlength(text)) + 3
    while kept and font.getlength(text[:kept] + "...") > width:
        kept -= 1
    return text[:kept].rstrip(" ,") + "..."


def enlarged_side(images: Images, side: int) -> tuple[int, int]:
    """(side of an image on the sheet, by a whole factor; from one image to the next)."""
    size = int(images.shape[-1])
    drawn = size * max(1, side // size)
    return drawn, drawn + GAP


def enlarged_tile(image: Tensor, side: int) -> Image.Image:
    return to_pil(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)


def blank_sheet(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)
