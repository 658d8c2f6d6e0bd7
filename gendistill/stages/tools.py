"""Export: sets as one folder in a format of other tools, and from there to the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.config import Projection as Method
from gendistill.config.commands import ExportCommand, ReportCommand, ShowCommand, VerifyCommand
from gendistill.data.dataset import RealData, Split, check_origin
from gendistill.data.pixels import to_float
from gendistill.data.sources import read_data
from gendistill.environment import command_line, versions
from gendistill.errors import ArtifactError
from gendistill.evaluation.copies import FEATURES, PIXELS, Copies, Reference
from gendistill.evaluation.projection import Projection, pixels, project_sets
from gendistill.io import write_whole
from gendistill.networks.teacher import Teacher, teacher_data
from gendistill.progress import track
from gendistill.report.export import as_csv, as_json
from gendistill.report.nearest import MOST_PAIRS, closest, copy_line, pair_sheet
from gendistill.report.page import render
from gendistill.report.provenance import ReportFacts, RunFacts
from gendistill.report.run_folder import Finished, read_finished
from gendistill.report.sets import check_data, find_data, names_of, open_feature_extractor, project, set_names, sets_of
from gendistill.report.show import ShowFacts, ShownSet, facts_of, numbers, render_projection, render_show, sheets_of
from gendistill.report.terminal import row_label
from gendistill.stages.folder import plain_output
from gendistill.surrogate.card.entry import PAIRS
from gendistill.surrogate.export.formats import RECORD, check_fit, export
from gendistill.surrogate.export.push import check_push, push
from gendistill.surrogate.export.stored import StoredSet, evaluation_of, read_summary
from gendistill.surrogate.hub import find_surrogate
from gendistill.surrogate.manifest import read_manifest, verify
from gendistill.surrogate.set import SurrogateSet


def main_export(command: ExportCommand) -> None:
    if command.push_to_hub is not None:
        check_push(command.push_to_hub)
    summary = read_summary(command.evaluation) if command.evaluation is not None else None
    given = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    paths, target = [find_surrogate(path) for path in given], command.output_dir
    with plain_output(target, command.overwrite, RECORD, paths) as folder:
        sets = [StoredSet.open(path) for path in paths]
        check_fit(sets, command.format)
        evidence = {}
        if summary is not None:
            evidence = {stored.config: {"evaluation": evaluation_of(stored, summary)} for stored in sets}
        export(sets, folder, command.format, evidence, {"command": command_line(), "versions": versions()})
    print(_said(target, sets, command.format))
    if command.push_to_hub is not None:
        print(push(target, command.push_to_hub, revision=command.revision, private=command.private))


def _said(target: Path, sets: list[StoredSet], format: str) -> str:
    files = [path for path in target.rglob("*") if path.is_file()]
    images = sum(len(stored.paths) for stored in sets)
    configs = ", ".join(stored.config for stored in sets)
    size = sum(path.stat().st_size for path in files)
    return f"{target}: {configs} as {format}, {images} images, {len(files)} files, {size:,} bytes"


MOST = 10  # files named of each set


def main_verify(command: VerifyCommand) -> None:
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    failed = [said for said in map(verify_set, paths) if said]
    if failed:
        raise ArtifactError("\n".join(failed))


def verify_set(folder: Path) -> str:
    """Print what a sound set is, or return what is wrong with it."""
    try:
        manifest, problems = read_manifest(folder), list(verify(folder))
    except ArtifactError as error:  # the other sets want to be looked at as well
        return str(error)
    if problems:
        listed = [*problems[:MOST], *([f"and {len(problems) - MOST} more"] if len(problems) > MOST else [])]
        lines = [f"{folder} is not as it was made; {len(problems)} file(s):", *listed, _origin(manifest)]
        return "\n  ".join(lines)
    print(f"{folder}: complete and unchanged\n  {_contents(manifest)}\n  {_origin(manifest)}")
    return ""


def _contents(manifest: dict[str, Any]) -> str:
    size, decoded = manifest["image_size"], manifest["decoded_images"]
    views = f" decoded to {decoded}" if manifest["factor"] != 1 else ""
    return (
        f"{manifest['stored_images']} images{views}, {len(manifest['classes'])} classes, IPC {manifest['ipc']}, "
        f"{size}x{size} px; {manifest['bytes']['images']:,} bytes of images, {manifest['bytes']['labels']:,} of soft "
        f"labels; checksum {manifest['checksums']}"
    )


def _origin(manifest: dict[str, Any]) -> str:
    return f"made by: {manifest.get('command', 'unknown')}"


SHOW_RECORD, SHOW_PAGE, PROJECTION = "show.json", "show.html", "projection.svg"
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
        check_sets(sets, data, teacher)
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
    (folder / SHOW_PAGE).write_text(render_show(page), encoding="utf-8")
    record = {
        "sets": {name: numbers(made, checks.get(name)) for name, made in sets.items()},
        "projection": projection.summary() if projection else None,
        "data": data.describe() if data else None,
        "teacher_hash": teacher.hash() if teacher else None,
        "command": command_line(),
        "versions": versions(),
    }
    (folder / SHOW_RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def check_sets(sets: dict[str, SurrogateSet], data: RealData, teacher: Teacher | None) -> None:
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


def main_show(command: ShowCommand) -> None:
    runtime.check_processes(1)
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    names, target = set_names(paths), command.output_dir
    inputs = [path for path in (*paths, command.teacher, command.data and command.data.folder) if path]
    with plain_output(target, command.overwrite, SHOW_RECORD, inputs) as folder:
        sets = {name: SurrogateSet.load(path) for name, path in zip(names, paths, strict=True)}
        teacher = Teacher.from_pretrained(command.teacher) if command.teacher else None
        data = read_data(command.data) if command.data else None
        if command.teacher and not command.data:
            data = teacher_data(command.teacher)
        record = show(sets, folder, data=data, teacher=teacher, method=command.projection, seed=command.seed)
    for name, found in record["sets"].items():
        print(f"{name}: {copy_line(found['copies'])}" if data else f"{name}: {sum(found['counts'].values()):,} images")
    print(f"{target / SHOW_PAGE}  everything on one page, for a browser; beside it:")
    print("\n".join(f"  {path.name}" for path in sorted(target.iterdir()) if path.name != SHOW_PAGE))
    if not data:
        print("With --data.name or --teacher also the closest real images and the projection among them.")


REPORT, NUMBERS, TABLE = "report.html", "report.json", "report.csv"


def write_report(run: Path, data: RealData) -> Path:
    """Write ``run/report.html`` from the run's folders and the images it was made from, and its numbers beside it.

    Stages that the run left out are left out of the page.

    Raises:
        ArtifactError: the run is not finished, a file of it is damaged, or ``data`` are other images than the run's.
    """
    found = read_finished(run)
    check_data(found, data)
    return write_report_files(gather([found], data), run)


def gather(found: Sequence[Finished], data: RealData | None, reasons: Sequence[str] = ()) -> ReportFacts:
    """Everything that the page shows, of folders with the same ``data``; ``reasons`` say why there are none."""
    names = set_names([one.path for one in found])
    runs = [_facts(one, name, data, reasons) for one, name in zip(found, names, strict=True)]
    if data is None:
        return ReportFacts(runs=runs, data=None)
    seen = open_feature_extractor(found, data) if any(run.sets for run in runs) else None
    return ReportFacts(runs=runs, data=data, projection=project(runs, data, seen), look=seen)


def _facts(found: Finished, name: str, data: RealData | None, reasons: Sequence[str]) -> RunFacts:
    sets, lost = sets_of(found, data)
    rows = [{**row, "label": row_label(row)} for row in found.summary["rows"]]
    return RunFacts(
        name=name,
        folder=str(found.path),
        summary={**found.summary, "rows": rows},
        given=dict.fromkeys(found.hashes) if found.is_run else names_of(found),
        sets=sets,
        is_run=found.is_run,
        missing=[*lost, *reasons],
        records=found.records,
        config=found.config,
        date=found.date,
    )


def check_same_data(found: Sequence[Finished]) -> None:
    """Refuse folders whose numbers are of different images."""
    first = found[0]
    other = next((one for one in found if one.fingerprint != first.fingerprint), None)
    if other:
        a, b = ((one.path, one.summary["data"].get("name"), one.fingerprint) for one in (first, other))
        raise ArtifactError(
            f"{a[0]} and {b[0]} are of different data ({a[1]}, fingerprint {a[2]}, and {b[1]}, {b[2]}); expected "
            "runs of the same images and splits. Make a report of each."
        )


def write_report_files(facts: ReportFacts, folder: Path) -> Path:
    """The three files; returns the page's path."""
    numbers = {"command": command_line(), "versions": versions(), **as_json(facts)}
    write_whole(folder / REPORT, render(facts))
    write_whole(folder / NUMBERS, json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / TABLE, as_csv(facts.rows))
    return folder / REPORT


def main_report(command: ReportCommand) -> None:
    paths = command.run if isinstance(command.run, list) else [command.run]
    found = [read_finished(path) for path in paths]
    check_same_data(found)
    target = command.output_dir or paths[0]
    place = plain_output(target, command.overwrite, NUMBERS, paths) if command.output_dir else nullcontext(target)
    with place as folder:  # entered first, so that a place that will not do is refused at once
        data, reasons = find_data(found)
        facts = gather(found, data, reasons)
        write_report_files(facts, folder)
    for run in facts.runs:
        for sentence in run.missing:
            print(f"{run.folder}: {sentence}")
    print(f"The report is in {target / REPORT}; its numbers in {NUMBERS} and {TABLE} beside it.")
