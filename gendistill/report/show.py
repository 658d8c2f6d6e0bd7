"""The page of `gendistill show`: a look inside sets, put into show.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gendistill.data.dataset import RealData
from gendistill.evaluation.projection import Projection
from gendistill.report.nearest import Closest
from gendistill.report.images import Picture
from gendistill.evaluate.report.scatter import scatter
from gendistill.report.template import fill
from gendistill.report.formatting import listed


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
    return fill("show.html", facts=facts, names=listed(s.name for s in facts.sets), plot=plot)


def render_projection(projection: Projection) -> str:
    """The projection as an SVG file of its own, for light and dark viewers and for paper."""
    return fill("projection.html", plot=scatter(projection))
