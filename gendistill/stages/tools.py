"""The commands that read what others made: export, verify, show and report."""

from __future__ import annotations

from contextlib import nullcontext

from gendistill import runtime
from gendistill.config import as_tuple
from gendistill.config.commands import ExportCommand, ReportCommand, ShowCommand, VerifyCommand
from gendistill.data.sources import read_data
from gendistill.errors import ArtifactError
from gendistill.networks.teacher import Teacher, teacher_data
from gendistill.report.nearest import copy_line
from gendistill.report.page import NUMBERS, REPORT, TABLE, write_report_files
from gendistill.report.run_folder import read_runs
from gendistill.report.sets import find_data, gather, set_names
from gendistill.report.show import SHOW_PAGE, SHOW_RECORD, show
from gendistill.report.terminal import export_line, verify_text
from gendistill.stages.folder import plain_output, writable_place
from gendistill.surrogate.export import export_folders
from gendistill.surrogate.hub_datasets import check_push, find_surrogate, push
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.stored import RECORD, read_summary


def main_export(command: ExportCommand) -> None:
    if command.push_to_hub is not None:
        check_push(command.push_to_hub)
    if command.evaluation is not None:
        read_summary(command.evaluation)  # refused before any work
    given = as_tuple(command.surrogate)
    paths, target = [find_surrogate(path) for path in given], command.output_dir
    with plain_output(target, command.overwrite, RECORD, paths) as folder:
        sets = export_folders(paths, folder, command.format, command.evaluation)
    print(export_line(target, sets, command.format))
    if command.push_to_hub is not None:
        print(push(target, command.push_to_hub, revision=command.revision, private=command.private))


def main_verify(command: VerifyCommand) -> None:
    paths = as_tuple(command.surrogate)
    failed = []
    for path in paths:
        sound, text = verify_text(path)
        if sound:
            print(text)
        else:
            failed.append(text)
    if failed:
        raise ArtifactError("\n".join(failed))


def main_show(command: ShowCommand) -> None:
    runtime.check_processes(1)
    paths = as_tuple(command.surrogate)
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


def main_report(command: ReportCommand) -> None:
    paths = as_tuple(command.run)
    found = read_runs(paths)
    target = command.output_dir or writable_place(paths[0])
    place = plain_output(target, command.overwrite, NUMBERS, paths) if command.output_dir else nullcontext(target)
    with place as folder:  # entered first, so that a place that will not do is refused at once
        facts = gather(found, *find_data(found))
        write_report_files(facts, folder)
    for run in facts.runs:
        for sentence in run.missing:
            print(f"{run.folder}: {sentence}")
    print(f"The report is in {target / REPORT}; its numbers in {NUMBERS} and {TABLE} beside it.")
