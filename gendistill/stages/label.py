"""Label stage: surrogate set + teacher -> the same images with soft labels."""

from __future__ import annotations

import shutil
from pathlib import Path

from gendistill import runtime
from gendistill.config import LabelConfig, stage_options
from gendistill.config.commands import LabelCommand
from gendistill.networks.label_blocks import LABELS
from gendistill.networks.soft_labelling import check_teacher_fits, label_set
from gendistill.networks.teacher import Teacher
from gendistill.report.terminal import label_line
from gendistill.stages import Outcome
from gendistill.stages.folder import finished, stage_folder, stage_settings, training_time
from gendistill.stages.output import output
from gendistill.surrogate.hub_datasets import find_surrogate
from gendistill.surrogate.manifest import TRAIN, image_paths, read_manifest
from gendistill.surrogate.set import SurrogateSet, link


def run_stage(surrogate_dir: Path, teacher_dir: Path, config: LabelConfig, target: Path, *, seed: int) -> Path:
    """Write ``target``, a surrogate folder, unless it is there already, made with the same settings; processes share
    the batches."""
    surrogate, teacher = SurrogateSet.load(surrogate_dir), Teacher.from_pretrained(teacher_dir)
    teacher.meta |= training_time(teacher_dir)
    check_teacher_fits(surrogate, teacher, config)
    settings = stage_settings(config, seed, surrogate=surrogate.content_hash(), teacher=teacher.hash())
    if finished(target, "label", settings):
        return target
    with stage_folder(target, "label", settings, keep_partial=True) as folder:
        made = label_set(surrogate, teacher, config, seed=seed, folder=folder)
        if not runtime.processes().is_main_process:
            return target
        shutil.rmtree(folder.path / TRAIN, ignore_errors=True)  # links that an interrupted command left
        for path in (p for paths in image_paths(surrogate_dir, read_manifest(surrogate_dir)) for p in paths):
            linked = folder.path / path.relative_to(surrogate_dir)
            linked.parent.mkdir(parents=True, exist_ok=True)
            link(path, linked)
        folder.facts["bytes"] = made.finish(folder.path)["bytes"]
        folder.temporary = (LABELS,)
    return target


def main(command: LabelCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
    with output(command, command.surrogate, command.teacher):
        surrogate = find_surrogate(command.surrogate, command.revision)
        config = stage_options(command, LabelConfig)
        run_stage(surrogate, command.teacher, config, command.output_dir, seed=command.seed)
    if not runtime.processes().is_main_process:
        return Outcome("")
    data = {"output_dir": str(command.output_dir), "bytes": read_manifest(command.output_dir)["bytes"]}
    return Outcome(label_line(command.output_dir), data)
