"""The commands that read what others made: export, verify, show and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from gendistill import runtime
from gendistill.config import DataConfig, GeneratorExport, as_tuple
from gendistill.config.commands import ExportCommand, ReportCommand, ShowCommand, VerifyCommand
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError, GendistillError
from gendistill.evaluation.inputs import recorded_data
from gendistill.generator.generator import Generator
from gendistill.generator.publishing import export_generator
from gendistill.io import write_json
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_images import real_images
from gendistill.report.nearest import copy_line
from gendistill.report.page import NUMBERS, REPORT, TABLE, write_report_files
from gendistill.report.run_folder import read_runs
from gendistill.report.sets import find_data, gather, set_names
from gendistill.report.show import SHOW_PAGE, SHOW_RECORD, check_sets, show
from gendistill.report.terminal import export_line, verify_text
from gendistill.report.verdicts import headline, left_out, verdicts
from gendistill.stages import Outcome
from gendistill.stages.folder import read_record as read_stage
from gendistill.stages.folder import training_time, with_added
from gendistill.stages.output import plain_output, writable_place
from gendistill.surrogate.export import export_folders
from gendistill.surrogate.hub_datasets import check_push, find_surrogate, push, without_local_paths
from gendistill.surrogate.manifest import command_line, versions
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.stored import FORMAT, RECORD, read_summary


def main_export(command: ExportCommand) -> Outcome:
    if isinstance(command.format, GeneratorExport):
        return _export_generator(command, command.format)
    if command.push_to_hub is not None:
        check_push(command.push_to_hub)
    if command.evaluation is not None:
        read_summary(command.evaluation)  # refused before any work
    given = as_tuple(command.surrogate)
    paths, target = [find_surrogate(path) for path in given], command.output_dir
    with plain_output(target, command.overwrite, RECORD, paths) as folder:
        sets = export_folders(paths, folder, command.format, command.evaluation, command.image_format)
    text = export_line(target, sets, command.format)
    data = {"output_dir": str(target), "format": command.format, "sets": {one.config: len(one.paths) for one in sets}}
    if command.push_to_hub is not None:
        pushed = push(target, command.push_to_hub, revision=command.revision, private=command.private)
        text, data = f"{text}\n{pushed}", {**data, "pushed": pushed}
    return Outcome(text, data)


def _export_generator(command: ExportCommand, config: GeneratorExport) -> Outcome:
    (source,), target = as_tuple(command.surrogate), command.output_dir
    generator, trained = Generator.from_pretrained(source), read_stage(source)
    generator.meta |= training_time(source)
    if trained and trained["stage"] == "finetune":
        generator.meta["recipe"] = with_added("finetune", cast("dict[str, Any]", trained["settings"]["options"]))
    with plain_output(target, command.overwrite, RECORD, [source] if source.is_dir() else []) as folder:
        export_generator(generator, folder, config, name=target.resolve().name)
        facts = without_local_paths({"command": command_line(), "versions": versions()})
        write_json(folder / RECORD, {"export": FORMAT, "format": config.kind, **facts})
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    text = f"{target}: {len(generator.classes)} classes in {config.dtype}, {len(files)} files, {size:,} bytes"
    return Outcome(text, {"output_dir": str(target), "format": config.kind, "dtype": config.dtype, "bytes": size})


def main_verify(command: VerifyCommand) -> Outcome:
    found = {str(path): verify_text(path) for path in as_tuple(command.surrogate)}
    sound, failed = ([text for good, text in found.values() if good is wanted] for wanted in (True, False))
    data = {"sets": {path: {"unchanged": good, "text": text} for path, (good, text) in found.items()}}
    return Outcome("\n".join(sound), data, problem="\n".join(failed))


def recorded(paths: Sequence[Path]) -> tuple[DataConfig | None, str]:
    """How to read the images that the sets were made from, as ``evaluate`` does, or why that is not known."""
    try:
        return recorded_data(paths), ""
    except GendistillError as error:
        return None, str(error)


def recorded_images(config: DataConfig, sets: Mapping[str, SurrogateSet]) -> tuple[RealData | None, str]:
    """The images that the sets were made from, or why they are not there any more."""
    try:
        data = real_images(config, None)[0]
        check_sets(sets, data)
    except GendistillError as error:
        return None, str(error)
    return data, ""


def main_show(command: ShowCommand) -> Outcome:
    runtime.require_one_process("`show`")
    paths = as_tuple(command.surrogate)
    names, target = set_names(paths), command.output_dir
    asked, problem = command.data, ""
    if asked is None and command.teacher is None:
        asked, problem = recorded(paths)
    inputs = [path for path in (*paths, command.teacher, asked and asked.folder) if path]
    with plain_output(target, command.overwrite, SHOW_RECORD, inputs) as folder:
        sets = {name: SurrogateSet.load(path) for name, path in zip(names, paths, strict=True)}
        teacher = Teacher.from_pretrained(command.teacher) if command.teacher else None
        data = None
        if command.data or command.teacher:
            data = real_images(asked, command.teacher)[0]
        elif asked:
            data, problem = recorded_images(asked, sets)
        if data is None and command.projection != "pca":
            reason = problem or "the manifest names none."
            raise ConfigError(
                f"projection is {command.projection!r}, but there are no real images to project: {reason} Give --data "
                "or --teacher, or leave projection out."
            )
        record = show(sets, folder, data=data, teacher=teacher, method=command.projection, seed=command.seed)
    lines = [f"{target / SHOW_PAGE}  everything on one page, for a browser; beside it:"]
    lines += [f"  {path.name}" for path in sorted(target.iterdir()) if path.name != SHOW_PAGE]
    if problem:
        lines.append(f"The real images are not shown, because those that the manifest names cannot be used: {problem}")
    if not data:
        lines.append("With --data or --teacher also the closest real images and the projection among them.")
    for name, found in record["sets"].items():
        lines.append(
            f"{name}: {copy_line(found['copies'])}" if data else f"{name}: {sum(found['counts'].values()):,} images"
        )
    return Outcome("\n".join(lines), {"output_dir": str(target), **record})


def main_report(command: ReportCommand) -> Outcome:
    paths = as_tuple(command.run)
    found = read_runs(paths)
    target = command.output_dir or writable_place(paths[0])
    place = plain_output(target, command.overwrite, NUMBERS, paths) if command.output_dir else nullcontext(target)
    with place as folder:  # entered first, so that a place that will not do is refused at once
        facts = gather(found, *find_data(found))
        write_report_files(facts, folder)
    missing = [f"{run.folder}: {sentence}" for run in facts.runs for sentence in run.missing]
    said = [f"The report is in {target / REPORT}; its numbers in {NUMBERS} and {TABLE} beside it."]
    data = {"output_dir": str(target), "report": str(target / REPORT), "missing": missing}
    return Outcome("\n".join([*missing, *said, headline(verdicts(facts.rows), left_out(facts.rows))]), data)
