"""Report stage: finished folders of `run` and `evaluate` -> report.html, report.json and report.csv, for no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from gendistill.config.commands import ReportCommand
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError
from gendistill.evaluate.report import ReportFacts, RunFacts, as_csv, as_json, render
from gendistill.report.run_folder import Finished, read_finished
from gendistill.stages.folder import command_line, versions
from gendistill.stages.output import plain_output, write_whole
from gendistill.report.sets import check_data, find_data, look, names_of, project, sets_of
from gendistill.stages.show import set_names
from gendistill.report.terminal import row_label

REPORT, NUMBERS, TABLE = "report.html", "report.json", "report.csv"


def write_report(run: Path, data: RealData) -> Path:
    """Write ``run/report.html`` from the run's folders and the images it was made from, and its numbers beside it.

    Stages that the run left out are left out of the page.

    Raises:
        ArtifactError: the run is not finished, a file of it is damaged, or ``data`` are other images than the run's.
    """
    found = read_finished(run)
    check_data(found, data)
    return write(gather([found], data), run)


def gather(found: Sequence[Finished], data: RealData | None, reasons: Sequence[str] = ()) -> ReportFacts:
    """Everything that the page shows, of folders with the same ``data``; ``reasons`` say why there are none."""
    names = set_names([one.path for one in found])
    runs = [_facts(one, name, data, reasons) for one, name in zip(found, names, strict=True)]
    if data is None:
        return ReportFacts(runs=runs, data=None)
    seen = look(found, data) if any(run.sets for run in runs) else None
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


def write(facts: ReportFacts, folder: Path) -> Path:
    """The three files; returns the page's path."""
    numbers = {"command": command_line(), "versions": versions(), **as_json(facts)}
    write_whole(folder / REPORT, render(facts))
    write_whole(folder / NUMBERS, json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / TABLE, as_csv(facts.rows))
    return folder / REPORT


def main(command: ReportCommand) -> None:
    paths = command.run if isinstance(command.run, list) else [command.run]
    found = [read_finished(path) for path in paths]
    check_same_data(found)
    target = command.output_dir or paths[0]
    place = plain_output(target, command.overwrite, NUMBERS, paths) if command.output_dir else nullcontext(target)
    with place as folder:  # entered first, so that a place that will not do is refused at once
        data, reasons = find_data(found)
        facts = gather(found, data, reasons)
        write(facts, folder)
    for run in facts.runs:
        for sentence in run.missing:
            print(f"{run.folder}: {sentence}")
    print(f"The report is in {target / REPORT}; its numbers in {NUMBERS} and {TABLE} beside it.")
