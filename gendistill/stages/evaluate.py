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
from gendistill.evaluation.cache import RUNS_OF_ALL
from gendistill.evaluation.continual import evaluate_continual
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.inputs import read_set, recorded_data
from gendistill.evaluation.result import ContinualEvaluation, Evaluation
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_images import real_images
from gendistill.report.terminal import format_continual, format_evaluation, verdict_sentence
from gendistill.stages import Outcome
from gendistill.stages.folder import StageFolder, finished, stage_folder, stage_settings
from gendistill.stages.output import output
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
    """Write ``target`` unless it was made with the same settings; returns the result. Processes share the trainings."""
    task = TASKS[kind_of(config.task)]
    sets = [read_set(path, data, revision) for path in surrogates]
    teacher = Teacher.from_pretrained(teacher_dir) if teacher_dir else None
    options = {name: value for name, value in to_dict(config).items() if name != "baseline_cache"}  # changes no result
    inputs: dict[str, object] = {"data": data.fingerprint(), "surrogates": [made.content_hash() for made in sets]}
    if task.uses_teacher:
        inputs["teacher"] = teacher.hash() if teacher else None
    settings = stage_settings(options, seed, **inputs)
    if finished(target, "evaluate", settings):
        return task.result.load(target)
    with stage_folder(target, "evaluate", settings, keep_partial=True, log_path=log_path) as folder:
        folder.facts |= {"sources": sources} if sources else {}
        made = task.make(data, sets, config, seed, teacher, folder)
        if runtime.processes().is_main_process:
            task.save(made, folder.path)
            folder.temporary = tuple(sorted(path.name for path in folder.path.glob(RUNS_OF_ALL)))
    return task.result.load(target) if runtime.processes().is_main_process else made


@dataclass(frozen=True)
class Task:
    """A task of ``evaluate``: its result, what makes, saves and prints that."""

    result: type[Evaluation | ContinualEvaluation]
    make: Callable[[RealData, list[SurrogateSet], EvaluateConfig, int, Teacher | None, StageFolder], Any]
    save: Callable[[Any, Path], object]
    format: Callable[[Any], str]
    uses_teacher: bool


def _classification(
    data: RealData,
    sets: list[SurrogateSet],
    config: EvaluateConfig,
    seed: int,
    teacher: Teacher | None,
    folder: StageFolder,
) -> Evaluation:
    return evaluate(data, sets, config, seed=seed, teacher=teacher, folder=folder)


def _continual(
    data: RealData, sets: list[SurrogateSet], config: EvaluateConfig, seed: int, _: Teacher | None, folder: StageFolder
) -> ContinualEvaluation:
    return evaluate_continual(data, sets, config, seed=seed, folder=folder)


def _save_continual(result: ContinualEvaluation, folder: Path) -> None:
    result.save(folder)
    result.report(folder / PAGE)


TASKS = {
    "classification": Task(Evaluation, _classification, Evaluation.save, format_evaluation, uses_teacher=True),
    "continual": Task(ContinualEvaluation, _continual, _save_continual, format_continual, uses_teacher=False),
}


def main(command: EvaluateCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
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
    if not runtime.processes().is_main_process:
        return Outcome("")
    lines = [TASKS[kind_of(config.task)].format(result), ""]
    if isinstance(result, ContinualEvaluation):
        lines.append(f"{target / PAGE}  the curves, for a browser")
    lines.append(f"{target / result.JSON}  every number")
    if isinstance(result, Evaluation):
        lines += ["", verdict_sentence(result)]
    return Outcome("\n".join(lines), {"output_dir": str(target), **result.to_dict()})
