"""`gendistill show`: what surrogate sets hold, on one page: contact sheets, a projection, copies of real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gendistill import runtime
from gendistill.config import Projection as Method
from gendistill.data.dataset import RealData, Split, check_origin
from gendistill.errors import ArtifactError, require_type, require_types
from gendistill.evaluation.copies import FEATURES, PIXELS, Copies, CopyCheck
from gendistill.evaluation.projection import Projection, pixels, project_sets
from gendistill.io import write_json, write_text
from gendistill.networks.feature_extractors import features_of
from gendistill.networks.teacher import Teacher
from gendistill.report.charts import scatter
from gendistill.report.formatting import listed, render_template
from gendistill.report.images import Picture, contact_sheet, picture
from gendistill.report.nearest import MOST_DISTANCES, MOST_MEASURED, MOST_PAIRS, Closest, closest, pair_sheet
from gendistill.surrogate.card.entry import PAIRS
from gendistill.surrogate.manifest import command_line, versions
from gendistill.surrogate.set import SurrogateSet, files_of

SHOW_RECORD, SHOW_PAGE, PROJECTION = "show.json", "show.html", "projection.svg"


def show(
    sets: SurrogateSet | Sequence[SurrogateSet] | Mapping[str, SurrogateSet],
    folder: Path | str,
    *,
    data: RealData | None = None,
    teacher: Teacher | None = None,
    method: Method = "pca",
    seed: int = 0,
) -> dict[str, Any]:
    """Write the page show.html, its pictures and its numbers to ``folder``.

    Without ``data`` the page has the contact sheets alone. With ``data`` it also compares every decoded image with the
    real ones: which images are copies, how far each is from its closest training image, and a projection of all.

    Args:
        sets: A set, several, or sets by name. The names stand on the page and in file names; without them a set has
            the name of its method and its IPC, such as ``kmeans-10``.
        folder: Is made if it is missing.
        data: The real images that the sets were made from.
        teacher: Distances are then between its features (B,D); without it they are between pixels.
        method: ``pca``, or ``tsne``, which shows groups but no distances.
        seed: Seed of t-SNE.

    Returns:
        The numbers that are in show.json too.

    Raises:
        ArtifactError: a set, or the teacher, has other classes, sizes or splits than the data.

    Example:
        >>> gd.show({"dm": gd.SurrogateSet.load("dm/ipc-10")}, "shown", data=gd.load_data(name="digits"))
    """
    sets = _by_name(sets)
    if data is not None:
        require_type("data", data, RealData)
    if teacher is not None:
        require_type("teacher", teacher, Teacher)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {name: made.split for name, made in sets.items()}
    checks: dict[str, Copies] = {}
    projection = None
    if data:
        check_sets(sets, data, teacher)
        checks, projection = _compare(splits, data, teacher, method, seed)
        write_text(folder / PROJECTION, render_projection(projection))
        parts = [(name, found.closest(MOST_PAIRS), splits[name]) for name, found in checks.items()]
        pair_sheet(parts, data).save(folder / PAIRS)
    shown = [
        ShownSet(
            name=name,
            facts=facts_of(made),
            sheets=sheets_of(name, made, splits[name], folder, alone=len(sets) == 1),
            closest=closest(name, checks[name], splits[name], data) if data else None,
        )
        for name, made in sets.items()
    ]
    page = ShowFacts(
        sets=shown, data=data, projection=projection, command=command_line(), date=date.today().isoformat()
    )
    write_text(folder / SHOW_PAGE, render_show(page))
    record = {
        "sets": {name: numbers(made, checks.get(name)) for name, made in sets.items()},
        "projection": projection.summary() if projection else None,
        "data": data.describe() if data else None,
        "teacher_hash": teacher.hash() if teacher else None,
        "command": command_line(),
        "versions": versions(),
    }
    write_json(folder / SHOW_RECORD, record)
    return record


def _by_name(sets: SurrogateSet | Sequence[SurrogateSet] | Mapping[str, SurrogateSet]) -> dict[str, SurrogateSet]:
    """The sets by the names that they have, or else by method and IPC, numbered where two are alike."""
    if isinstance(sets, Mapping):
        return {name: require_type(f"sets[{name!r}]", made, SurrogateSet) for name, made in sets.items()}
    made = require_types("sets", sets, SurrogateSet)
    names = [f"{one.meta.get('method', 'set')}-{one.ipc}" for one in made]
    unique = names if len(set(names)) == len(names) else [f"{i + 1}-{name}" for i, name in enumerate(names)]
    return dict(zip(unique, made, strict=True))


def check_sets(sets: Mapping[str, SurrogateSet], data: RealData, teacher: Teacher | None = None) -> None:
    """Refuse sets and a teacher that belong to other data.

    Raises:
        ArtifactError: one has other classes, sizes or splits than the data.
    """
    for name, made in sets.items():
        check_origin(f"the surrogate set {name}", made.classes, made.meta, data)
        shape, wanted = tuple(made.images.shape[1:]), tuple(data.train.images.shape[1:])
        if shape != wanted:
            raise ArtifactError(
                f"The images of the surrogate set {name} are {shape} (C,H,W), the real ones {wanted}; expected the "
                "same. Give the --data.image_size it was made with."
            )
    if teacher:
        check_origin("the teacher", teacher.classes, teacher.meta, data)


def _compare(
    splits: dict[str, Split], data: RealData, teacher: Teacher | None, method: Method, seed: int
) -> tuple[dict[str, Copies], Projection]:
    """(the copy check of every set of decoded images, all of them among the real images)."""
    embed = features_of(teacher.network.to(runtime.device()).eval()) if teacher else None
    distances = len(data.train) * (len(data.validation) + sum(map(len, splits.values())))
    most = None if distances <= MOST_DISTANCES else MOST_MEASURED
    reference = CopyCheck.of(data, features=embed, most=most)
    checks = dict(zip(splits, reference.check_all(split.pixels for split in splits.values()), strict=True))
    space = FEATURES if teacher else PIXELS
    return checks, project_sets(data, splits, embed or pixels, space=space, method=method, seed=seed)


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


def numbers(made: SurrogateSet, copies: Copies | None) -> Mapping[str, Any]:
    """Plain data; images are named by their files, real ones by split and position."""
    record: Mapping[str, Any] = {
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

    def row(image: int, split: str, position: int, distance: float) -> Mapping[str, object]:
        stored, view = divmod(image, made.views)
        return {"file": files[stored], "view": view, "split": split, "position": position, "distance": distance}

    leaks = [
        row(image, split, int(copies.exact[split][image]), 0.0)
        for split in ("validation", "test")
        for image in torch.nonzero(copies.exact[split] >= 0).flatten().tolist()
    ]
    pairs = [row(m.image, m.split, m.position, m.distance) for m in copies.closest(MOST_PAIRS)]
    return {**record, "copies_of_held_out": leaks, "closest": pairs}
