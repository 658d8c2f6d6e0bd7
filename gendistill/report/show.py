"""The page of `gendistill show`: a look inside sets, put into show.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gendistill.data.dataset import RealData, Split
from gendistill.evaluation.copies import Copies
from gendistill.evaluation.projection import Projection
from gendistill.report.charts import scatter
from gendistill.report.formatting import listed
from gendistill.report.images import Picture, contact_sheet, picture
from gendistill.report.nearest import MOST_PAIRS, Closest
from gendistill.report.template import render_template
from gendistill.surrogate.set import SurrogateSet, files_of


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: what it shows, the file beside the page, and the same or a smaller one for the page."""

    title: str
    file: str
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class ShownSet:
    """A set on the page; ``facts`` are (name, value) to read, ``closest`` is there with real images alone."""

    name: str
    facts: list[tuple[str, str]]
    sheets: list[Sheet]
    closest: Closest | None


@dataclass(frozen=True, kw_only=True)
class ShowFacts:
    """What the page shows; without ``data`` it is the contact sheets, and how to see more."""

    sets: Sequence[ShownSet]
    data: RealData | None
    projection: Projection | None
    command: str
    date: str


def render_show(facts: ShowFacts) -> str:
    """The page."""
    plot = scatter(facts.projection) if facts.projection else None
    return render_template("show.html", facts=facts, names=listed(s.name for s in facts.sets), plot=plot)


def render_projection(projection: Projection) -> str:
    """The projection as an SVG file of its own, for light and dark viewers and for paper."""
    return render_template("projection.html", plot=scatter(projection))


PAGE_PIXELS, PAGE_WIDTH = 2_000_000, 1050  # of a contact sheet inside the page


def sheets_of(name: str, made: SurrogateSet, views: Split, folder: Path, *, alone: bool) -> list[Sheet]:
    """Write the contact sheet of the stored images, and of the decoded ones where they differ.

    The name is part of the files' names unless the set is ``alone``.
    """
    size, suffix = made.images.shape[-1], "" if alone else f"-{name}"
    kinds = [("contact_sheet", "images", Split(made.images, made.labels))]
    if made.factor != 1:
        kinds.append(("contact_sheet_views", "decoded views", views))
    found = []
    for stem, what, split in kinds:
        title = f"{name} ({origin_of(made)}): {len(split):,} {what} of {size}x{size} px"
        sheet = contact_sheet(split, made.classes, title)
        sheet.save(folder / f"{stem}{suffix}.png")
        if sheet.width > PAGE_WIDTH or sheet.width * sheet.height > PAGE_PIXELS:
            sheet = contact_sheet(split, made.classes, title, most_pixels=PAGE_PIXELS, widest=PAGE_WIDTH)
        found.append(Sheet(title, f"{stem}{suffix}.png", picture(sheet, f"{title}, by class")))
    return found


def facts_of(made: SurrogateSet) -> list[tuple[str, str]]:
    """What a reader wants to know of the set first."""
    low, high = min(made.counts), max(made.counts)
    views = f", decoded to {len(made.images) * made.views:,}" if made.factor != 1 else ""
    return [
        ("Method", origin_of(made)),
        ("Images", f"{len(made.images):,}{views}"),
        ("Classes", f"{len(made.classes):,}"),
        ("Images per class", f"{low}" if low == high else f"{low} to {high}"),
        ("Size", f"{made.images.shape[-1]} px, {'grey' if made.images.shape[1] == 1 else 'RGB'}"),
        ("Labels", f"soft, {made.soft_labels.mode.replace('_', ' ')}" if made.soft_labels else "hard"),
    ]


def origin_of(made: SurrogateSet) -> str:
    """Method and stage."""
    return ", ".join(str(made.meta[key]) for key in ("method", "stage") if made.meta.get(key)) or "unknown method"


def numbers(made: SurrogateSet, copies: Copies | None) -> dict[str, Any]:
    """Plain data; images are named by their files, real ones by split and position."""
    record: dict[str, Any] = {
        "method": made.meta.get("method"),
        "stage": made.meta.get("stage"),
        "counts": dict(zip(made.classes, made.counts, strict=True)),
        "factor": made.factor,
        "content_hash": made.content_hash(),
        "copies": copies.summary() if copies else None,
    }
    if copies is None:
        return record
    files = files_of(made)

    def row(image: int, split: str, position: int, distance: float) -> dict[str, Any]:
        stored, view = divmod(image, made.views)
        return {"file": files[stored], "view": view, "split": split, "position": position, "distance": distance}

    leaks = [
        row(image, split, int(copies.exact[split][image]), 0.0)
        for split in ("validation", "test")
        for image in torch.nonzero(copies.exact[split] >= 0).flatten().tolist()
    ]
    pairs = [row(m.image, m.split, m.position, m.distance) for m in copies.closest(MOST_PAIRS)]
    return {**record, "copies_of_held_out": leaks, "closest": pairs}
