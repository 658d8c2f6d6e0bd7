"""`gendistill evaluate`: sets and real images -> a folder with the result of either task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config import EvaluateConfig, as_tuple, kind_of, stage_options, to_dict
from gendistill.config.commands import EvaluateCommand
from gendistill.data.dataset import RealData
from gendistill.evaluation.cache import RUNS
from gendistill.evaluation.continual import evaluate_continual
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.inputs import read_set, recorded_data
from gendistill.evaluation.result import ContinualEvaluation, Evaluation
from gendistill.networks.teacher import Teacher, real_images
from gendistill.report.terminal import format_continual, format_evaluation, verdict_sentence
from gendistill.stages import Outcome
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings
from gendistill.surrogate.set import SurrogateSet

PAGE = "continual.html"
SOURCES = ("output_dir", "surrogate", "teacher", "data")  # options that say where a report finds the images again


def run_stage(
    data: RealData,
    surrogates: Sequence[Path],
    config: EvaluateConfig,
    target: Path,
    *,
    seed: int,
    teacher_dir: Path | None = None,
    revision: str | None = None,
    log_path: Path | None = None,
    sources: Mapping[str, object] | None = None,
) -> Evaluation | ContinualEvaluation:
    """Write ``target`` unless it was made with the same settings; returns the result."""
    task = TASKS[kind_of(config.task)]
    sets = [read_set(path, data, revision) for path in surrogates]
    teacher = Teacher.from_pretrained(teacher_dir) if teacher_dir else None
    options = {name: value for name, value in to_dict(config).items() if name != "baseline_cache"}  # changes no result
    inputs: dict[str, object] = {"data": data.fingerprint(), "surrogates": [made.content_hash() for made in sets]}
    if task.uses_teacher:
        inputs["teacher"] = teacher.hash() if teacher else None
    settings = stage_settings(options, seed, **inputs)
    if not finished(target, "evaluate", settings):
        with stage_folder(target, "evaluate", settings, keep_partial=True, log_path=log_path) as folder:
            folder.temporary = (RUNS,)
            folder.facts |= {"sources": sources} if sources else {}
            task.write(data, sets, config, seed, teacher, folder)
    return task.result.load(target)


@dataclass(frozen=True)
class Task:
    """A task of ``evaluate``: its result, what writes that to a folder, and what prints it."""

    result: type[Evaluation | ContinualEvaluation]
    write: Callable[[RealData, list[SurrogateSet], EvaluateConfig, int, Teacher | None, StageFolder], None]
    format: Callable[[Any], str]
    uses_teacher: bool


def _write_classification(
    data: RealData,
    sets: list[SurrogateSet],
    config: EvaluateConfig,
    seed: int,
    teacher: Teacher | None,
    folder: StageFolder,
) -> None:
    evaluate(data, sets, config, seed=seed, teacher=teacher, folder=folder).save(folder.path)


def _write_continual(
    data: RealData, sets: list[SurrogateSet], config: EvaluateConfig, seed: int, _: Teacher | None, folder: StageFolder
) -> None:
    result = evaluate_continual(data, sets, config, seed=seed, folder=folder)
    result.save(folder.path)
    result.report(folder.path / PAGE)


TASKS = {
    "classification": Task(Evaluation, _write_classification, format_evaluation, uses_teacher=True),
    "continual": Task(ContinualEvaluation, _write_continual, format_continual, uses_teacher=False),
}


def main(command: EvaluateCommand) -> Outcome:
    runtime.check_processes(1)
    paths = as_tuple(command.surrogate)
    target, config = command.output_dir, stage_options(command, EvaluateConfig)
    cache = config.baseline_cache if isinstance(config.baseline_cache, Path) else None
    asked = command.data or (None if command.teacher else recorded_data(paths))
    with output(command, asked.folder if asked else None, command.teacher, cache, *paths):
        data, read = real_images(asked, command.teacher)
        options = to_dict(command) | {"data": to_dict(read)}
        result = run_stage(
            data,
            paths,
            config,
            target,
            seed=command.seed,
            teacher_dir=command.teacher,
            revision=command.revision,
            sources={name: options[name] for name in SOURCES},
        )
    lines = [TASKS[kind_of(config.task)].format(result), ""]
    if isinstance(result, ContinualEvaluation):
        lines.append(f"{target / PAGE}  the curves, for a browser")
    lines.append(f"{target / result.JSON}  every number")
    if isinstance(result, Evaluation):
        lines += ["", verdict_sentence(result)]
    return Outcome("\n".join(lines), {"output_dir": str(target), **result.to_dict()})
