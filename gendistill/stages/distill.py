"""Distill stage: real data -> surrogate sets by a registered distiller: coresets, WMDD, matching, your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gendistill import runtime
from gendistill.config import DistillConfig, as_tuple, stage_options, to_dict
from gendistill.config.commands import DistillCommand
from gendistill.data.dataset import RealData
from gendistill.distillers import distill_sets, read_inputs
from gendistill.evaluation.validation import validation_accuracies
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_images import real_images
from gendistill.registry import DISTILLERS
from gendistill.report.terminal import describe_sets
from gendistill.stages import Outcome
from gendistill.stages.folder import finished, stage_folder, stage_settings, training_time
from gendistill.stages.output import output


def run_stage(
    data: RealData,
    config: DistillConfig,
    target: Path,
    *,
    seed: int,
    teacher_dirs: Sequence[Path] = (),
    statistics_cache: Path | None = None,
    validate: bool = False,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; processes share a method's work.

    ``validate`` records what a small classifier learns from each set (``evaluation.validation``), if it is no coreset.

    Raises:
        ConfigError: a method without the teacher it needs, or with one that it does not.
        ArtifactError: the data's test images are among those a teacher was trained on, or the two do not fit.
    """
    method, teachers = DISTILLERS[config.method], [Teacher.from_pretrained(path) for path in teacher_dirs]
    for teacher, path in zip(teachers, teacher_dirs, strict=True):
        teacher.meta |= training_time(path)
    inputs = read_inputs(data, config)
    hashes = {name: given.content_hash() for name, given in inputs.items()}
    used = [teacher.hash() for teacher in teachers]
    settings = stage_settings(_deciding(config), seed, data=data.fingerprint(), teacher=used, **hashes)
    if finished(target, "distill", settings):
        return target
    with stage_folder(target, "distill", settings, keep_partial=method.resumable) as folder:
        for made in distill_sets(
            data, config, teachers=teachers, seed=seed, work=folder, statistics_cache=statistics_cache, inputs=inputs
        ):
            if validate and not method.coreset:
                made.meta["validation"] = validation_accuracies(data, {"set": made}, seed=seed)
            folder.save(made, f"ipc-{made.ipc}")
        folder.temporary = method.temporary
    return target


IMAGES = ("image_format", "image_quality", "compression_aware")


def _deciding(config: DistillConfig) -> Mapping[str, object]:
    """The options that decide the result: those of the method, but for how often a run is saved."""
    read, options = ("method", "ipc", *DISTILLERS[config.method].sections, *IMAGES), to_dict(config)
    found = {name: options[name] for name in options if name in read}
    found.get("matching", {}).pop("checkpoint_every", None)
    found.get("difficulty", {}).pop("checkpointing_steps", None)
    return found


def main(command: DistillCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
    if not DISTILLERS[command.method].parallel:
        runtime.require_one_process(f"method {command.method}")
    teachers = [path for path in as_tuple(command.teacher) if path is not None]
    start = command.matching.start if isinstance(command.matching.start, Path) else None
    inputs = (command.data.folder if command.data else None, *teachers, command.statistics_cache, start)
    with output(command, *inputs):
        run_stage(
            real_images(command.data, next(iter(teachers), None))[0],
            stage_options(command, DistillConfig),
            command.output_dir,
            seed=command.seed,
            teacher_dirs=teachers,
            statistics_cache=command.statistics_cache,
            validate=command.validate,
        )
    return Outcome(*describe_sets(command.output_dir)) if runtime.processes().is_main_process else Outcome("")
