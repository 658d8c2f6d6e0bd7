"""Report stage: a finished run folder -> report.html, one page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from gendistill.commands import ReportCommand
from gendistill.config import DataConfig
from gendistill.data.real import RealData
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError
from gendistill.evaluate.copies import FEATURES
from gendistill.evaluate.judge import RANDOM
from gendistill.evaluate.projection import Projection, project_sets
from gendistill.evaluate.report import RANDOM_LABEL, RunFacts, render
from gendistill.networks.teacher import FILE, Teacher
from gendistill.seeding import derive
from gendistill.stages.distill import distill
from gendistill.stages.output import CONFIG, LOG, RECORD, partial_of
from gendistill.stages.show import teacher_features
from gendistill.stages.table import LABELS, row_label
from gendistill.surrogate.surrogate import MANIFEST, SurrogateSet

REPORT = "report.html"
SUMMARY = Path("evaluation") / "summary.json"
TEACHER = "teacher"
STAGES = (TEACHER, "generator", "samples", "refined", "evaluation")
SETS = {
    "base": Path("samples") / "base",
    "samples": Path("samples"),
    "select": Path("refined") / "selected",
    "refined": Path("refined"),
}


def write_report(run: Path, data: RealData) -> Path:
    """Write ``run/report.html`` from the run's folders and the real images it was made from.

    Stages that the run left out are left out of the page.

    Raises:
        ArtifactError: the run is not finished, a file of it is damaged, or ``data`` are other images than the run's.
    """
    facts = gather(run, data)
    target = run / REPORT
    partial = partial_of(target)
    partial.write_text(render(facts), encoding="utf-8")
    partial.replace(target)
    return target


def gather(run: Path, data: RealData) -> RunFacts:
    """Everything that the page shows, read from the run's folders."""
    config = _read(run, Path(CONFIG), str)
    summary = _read(run, SUMMARY, json.loads)
    if summary["data"]["fingerprint"] != data.fingerprint():
        raise ArtifactError(
            f"The images at {data.name} are not those that {run} was made from (fingerprint {data.fingerprint()}, "
            f"expected {summary['data']['fingerprint']}). Put the old ones back, or make the run again."
        )
    records = [_read(run, Path(name) / RECORD, json.loads) for name in STAGES if (run / name / RECORD).is_file()]
    rows = [{**row, "label": row_label(row)} for row in summary["rows"]]
    sizes = sorted({row["ipc"] for row in rows if row["ipc"] is not None})
    sets = {ipc: found for ipc in sizes if (found := load_sets(run, data, ipc, summary["seed"]))}
    return RunFacts(
        data=data,
        summary={**summary, "rows": rows},
        records=records,
        config=config,
        date=_date(run),
        sets=sets,
        projection=projection(run, data, sets[max(sets)]) if sets else None,
    )


def load_sets(run: Path, data: RealData, ipc: int, seed: int) -> dict[str, SurrogateSet]:
    """The run's sets of one IPC by label, in the order of the stages, after the first random draw that was judged."""
    folders = {LABELS[stage]: run / path / f"ipc-{ipc}" for stage, path in SETS.items()}
    found = {label: SurrogateSet.load(path) for label, path in folders.items() if (path / MANIFEST).is_file()}
    if not found:
        return {}
    return {RANDOM_LABEL: distill(data, RANDOM, ipc, seed=derive(seed, "random draw", 0)), **found}


def projection(run: Path, data: RealData, sets: dict[str, SurrogateSet]) -> Projection | None:
    """The sets among the training images by PCA of the features of the run's teacher, where it is there."""
    if not (run / TEACHER / FILE).is_file():
        return None
    embed = teacher_features(Teacher.from_pretrained(run / TEACHER))
    return project_sets(data, {label: made.split for label, made in sets.items()}, embed, space=FEATURES)


def _read(run: Path, name: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse((run / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{run} is not a finished run: it has no {name}. Expected the output_dir of a finished `gendistill run`; "
            "finish it with its own options and --resume_from_checkpoint latest."
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ArtifactError(f"{run / name} is damaged: {error}. Copy the run again, or make it again.") from error


def _date(run: Path) -> str:
    """When the run wrote its last log record: unlike a file's date, it survives copying."""
    try:
        seconds = json.loads((run / LOG).read_text(encoding="utf-8").splitlines()[-1])["time"]
    except (OSError, ValueError, LookupError):
        seconds = (run / SUMMARY).stat().st_mtime
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def data_config(run: Path) -> DataConfig:
    """The ``data`` part of the run's config.yaml."""
    config = _read(run, Path(CONFIG), yaml.safe_load)
    try:
        return DataConfig(**config["data"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{run / CONFIG} does not say which data the run was made from ({error}); expected the `data` options of "
            "`gendistill run`. Copy the run again, or make it again."
        ) from error


def main(command: ReportCommand) -> None:
    config = data_config(command.run)
    _read(command.run, SUMMARY, json.loads)
    print(f"The report is in {write_report(command.run, load_data(config))}")
