"""Export: sets as one folder in a format of other tools, and from there to the Hub."""

from __future__ import annotations

from pathlib import Path

from gendistill.config.commands import ExportCommand
from gendistill.stages.folder import command_line, versions
from gendistill.stages.output import plain_output
from gendistill.surrogate.export.evaluation import evaluation_of, read_summary
from gendistill.surrogate.export.push import check_push, push
from gendistill.surrogate.export.record import RECORD
from gendistill.surrogate.export.sets import check, export
from gendistill.surrogate.export.stored import StoredSet
from gendistill.surrogate.hub import find_surrogate


def main(command: ExportCommand) -> None:
    if command.push_to_hub is not None:
        check_push(command.push_to_hub)
    summary = read_summary(command.evaluation) if command.evaluation is not None else None
    given = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    paths, target = [find_surrogate(path) for path in given], command.output_dir
    with plain_output(target, command.overwrite, RECORD, paths) as folder:
        sets = [StoredSet.open(path) for path in paths]
        check(sets, command.format)
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
