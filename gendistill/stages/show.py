"""Show: a look inside surrogate sets. Contact sheets; beside real images, a projection and the copies among them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.config.commands import ShowCommand
from gendistill.config import Projection as Method
from gendistill.data.pixels import to_float
from gendistill.data.dataset import RealData, Split
from gendistill.errors import ArtifactError
from gendistill.evaluation.copies import FEATURES, PIXELS, Copies, Reference
from gendistill.evaluation.projection import Projection, pixels, project_sets
from gendistill.evaluate.report import ShowFacts, ShownSet, render_projection, render_show
from gendistill.report.nearest import MOST_PAIRS, closest
from gendistill.evaluate.report.copied import copy_line
from gendistill.evaluate.report.sheets import pair_sheet
from gendistill.networks.teacher import Teacher
from gendistill.progress import track
from gendistill.stages.folder import check_origin, command_line, read_data, versions
from gendistill.stages.inside import facts_of, numbers, sheets_of
from gendistill.stages.output import plain_output
from gendistill.stages.teachers import teacher_data
from gendistill.surrogate.evidence import PAIRS
from gendistill.surrogate.set import SurrogateSet

RECORD, PAGE, PROJECTION = "show.json", "show.html", "projection.svg"
BATCH = 512


def show(
    sets: dict[str, SurrogateSet],
    folder: Path,
    *,
    data: RealData | None = None,
    teacher: Teacher | None = None,
    method: Method = "pca",
    seed: int = 0,
) -> dict[str, Any]:
    """Write everything about ``sets`` (by name) to ``folder``; returns the numbers, which are in show.json too.

    Without ``data`` that is the contact sheets. Distances are between the ``teacher``'s features, or else pixels.

    Raises:
        ArtifactError: a set, or the teacher, has other classes, sizes or splits than the data.
    """
    splits = {name: made.split for name, made in sets.items()}
    checks: dict[str, Copies] = {}
    projection = None
    if data:
        check(sets, data, teacher)
        checks, projection = compare(splits, data, teacher, method, seed)
        draw(checks, projection, splits, data, folder)
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
    (folder / PAGE).write_text(render_show(page), encoding="utf-8")
    record = {
        "sets": {name: numbers(made, checks.get(name)) for name, made in sets.items()},
        "projection": projection.summary() if projection else None,
        "data": data.describe() if data else None,
        "teacher_hash": teacher.hash() if teacher else None,
        "command": command_line(),
        "versions": versions(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def check(sets: dict[str, SurrogateSet], data: RealData, teacher: Teacher | None) -> None:
    """Refuse sets and a teacher that belong to other data."""
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


def compare(
    splits: dict[str, Split], data: RealData, teacher: Teacher | None, method: Method, seed: int
) -> tuple[dict[str, Copies], Projection]:
    """(the copy check of every set of decoded images, all of them among the real images)."""
    embed = teacher_features(teacher) if teacher else None
    reference = Reference.of(data, features=embed)
    checks = {name: reference.check(split.images) for name, split in splits.items()}
    space = FEATURES if teacher else PIXELS
    return checks, project_sets(data, splits, embed or pixels, space=space, method=method, seed=seed)


def draw(
    checks: dict[str, Copies], projection: Projection, splits: dict[str, Split], data: RealData, folder: Path
) -> None:
    """The projection and the closest pairs as files."""
    (folder / PROJECTION).write_text(render_projection(projection), encoding="utf-8")
    parts = [(name, found.closest(MOST_PAIRS), splits[name]) for name, found in checks.items()]
    pair_sheet(parts, data).save(folder / PAIRS)


def teacher_features(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """uint8 images (B,C,H,W) -> the teacher's features (B,D), on the CPU."""
    network, device = teacher.network.to(runtime.device()).eval(), runtime.device()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        batches = images.split(BATCH)
        shown = track(batches, "teacher features", len(batches))
        return torch.cat([network.features(to_float(x).to(device)).float().cpu() for x in shown])  # type: ignore[operator]

    return features


def set_names(paths: Sequence[Path]) -> list[str]:
    """A short name for every folder, fit for file names: its own, with as many parents' as tell all apart.

    Raises:
        ArtifactError: a folder is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    twice = [str(path) for i, path in enumerate(paths) if parts[i] in parts[:i]]
    if twice:
        raise ArtifactError(f"{twice[0]} is given twice; expected every surrogate set once.")
    for depth in range(1, max(map(len, parts)) + 1):
        names = [re.sub(r"[^\w.=+-]+", "_", "-".join(part[-depth:])) for part in parts]
        if len({name.casefold() for name in names}) == len(names):
            return names
    return [f"{i + 1}-{name}" for i, name in enumerate(names)]


def main(command: ShowCommand) -> None:
    runtime.check_processes(1)
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    names, target = set_names(paths), command.output_dir
    inputs = [path for path in (*paths, command.teacher, command.data and command.data.folder) if path]
    with plain_output(target, command.overwrite, RECORD, inputs) as folder:
        sets = {name: SurrogateSet.load(path) for name, path in zip(names, paths, strict=True)}
        teacher = Teacher.from_pretrained(command.teacher) if command.teacher else None
        data = read_data(command.data) if command.data else None
        if command.teacher and not command.data:
            data = teacher_data(command.teacher)
        record = show(sets, folder, data=data, teacher=teacher, method=command.projection, seed=command.seed)
    for name, found in record["sets"].items():
        print(f"{name}: {copy_line(found['copies'])}" if data else f"{name}: {sum(found['counts'].values()):,} images")
    print(f"{target / PAGE}  everything on one page, for a browser; beside it:")
    print("\n".join(f"  {path.name}" for path in sorted(target.iterdir()) if path.name != PAGE))
    if not data:
        print("With --data.name or --teacher also the closest real images and the projection among them.")
