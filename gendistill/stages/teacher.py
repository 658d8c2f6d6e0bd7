"""Teacher stage: real data -> teacher folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gendistill import runtime
from gendistill.config import DataConfig, TeacherConfig, stage_options
from gendistill.config.commands import TeacherCommand
from gendistill.data.dataset import RealData
from gendistill.data.sources import options_from_anywhere, read_data
from gendistill.networks.published_classifiers import hash_source
from gendistill.networks.teacher import read_record
from gendistill.networks.teacher_training import train_teacher
from gendistill.networks.training_checkpoints import CHECKPOINTS
from gendistill.stages import Outcome
from gendistill.stages.folder import finished, stage_folder, stage_settings
from gendistill.stages.output import output


def run_stage(
    data: RealData,
    data_config: DataConfig,
    config: TeacherConfig,
    target: Path,
    *,
    seed: int,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; processes share each batch."""
    source = {"pretrained": hash_source(config.pretrained)} if config.pretrained else {}
    decisive = replace(config, checkpointing_steps=None)
    settings = stage_settings(decisive, seed, data=data.fingerprint(), **source)
    if finished(target, "teacher", settings):
        return target
    with stage_folder(target, "teacher", settings, keep_partial=True, log_path=log_path) as folder:
        teacher = train_teacher(data, config, seed=seed, folder=folder, shared=True)
        if not runtime.processes().is_main_process:
            return target
        teacher.meta["data_config"] = options_from_anywhere(data_config)
        folder.facts["training_seconds"] = teacher.meta.pop("training_seconds")  # or no two files were alike
        teacher.save_pretrained(folder.path)
        folder.facts["accuracy"] = teacher.meta["accuracy"]
        folder.temporary = (CHECKPOINTS,)
    return target


def main(command: TeacherCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
    source = Path(command.pretrained.source).expanduser() if command.pretrained else None
    with output(command, command.data.folder, source):
        data = read_data(command.data)
        run_stage(data, command.data, stage_options(command, TeacherConfig), command.output_dir, seed=command.seed)
    if not runtime.processes().is_main_process:
        return Outcome("")
    found = read_record(command.output_dir)["accuracy"]
    scores = ", ".join(f"{share:.1%} of the {split} images" for split, share in found.items())
    text = f"{command.output_dir}  a teacher: it recognises {scores}."
    return Outcome(text, {"output_dir": str(command.output_dir), "accuracy": found})
