"""Finetune stage: real data -> generator folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gendistill import runtime
from gendistill.config import FinetuneConfig, stage_options
from gendistill.config.commands import FinetuneCommand
from gendistill.data.dataset import RealData
from gendistill.data.sources import read_data
from gendistill.generator.finetuning import TEMPORARY, check_training, finetune, start_generator
from gendistill.stages import Outcome
from gendistill.stages.folder import finished, read_record, reopen, stage_folder, stage_settings, training_time
from gendistill.stages.output import output


def run_stage(
    data: RealData,
    config: FinetuneConfig,
    target: Path,
    *,
    seed: int,
    log_path: Path | None = None,
    train_on: bool = False,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings.

    With ``train_on`` a training there that its time ended goes on.
    """
    generator = start_generator(data, config, seed)
    parent = generator.hash() if config.pretrained else None
    generator.meta |= training_time(config.pretrained) if config.pretrained else {}
    check_training(generator, config)
    decisive = replace(config, latent_cache=None, report_to="none", checkpoint_minutes=1.0, max_minutes=None)
    settings = stage_settings(decisive, seed, data=data.fingerprint(), pretrained=parent, codec=generator.codec.hash())
    if finished(target, "finetune", settings) and not (train_on and reopen(target)):
        return target
    state = runtime.processes()
    with stage_folder(target, "finetune", settings, keep_partial=True, log_path=log_path) as folder:
        generator, base = finetune(data, config, seed=seed, folder=folder, generator=generator)
        folder.facts["training_seconds"] = generator.meta.pop("training_seconds")  # or no two files were alike
        if state.is_main_process:
            generator.meta["parents"] = {"pretrained": config.pretrained, "hash": parent, "codec": config.codec}
            changed = generator.meta["steps"]["minimax"] > 0
            generator.save_pretrained(folder.path, base=base.state if changed else None)
            stopped = generator.meta.get("stopped")
            folder.temporary = () if stopped else TEMPORARY
            folder.facts |= {"stopped": stopped} if stopped else {}
            folder.facts |= {"hash": generator.hash(), "processes": state.num_processes}
    return target


def main(command: FinetuneCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
    inputs = (command.data.folder, Path(command.pretrained) if command.pretrained else None, command.latent_cache)
    with output(command, *inputs):
        data = read_data(command.data)
        run_stage(data, stage_options(command, FinetuneConfig), command.output_dir, seed=command.seed, train_on=True)
    if not runtime.processes().is_main_process:
        return Outcome("")
    text = f"{command.output_dir}  a generator of {len(data.classes)} classes; sample from it with `gendistill sample`."
    record = read_record(command.output_dir)
    stopped = record.get("stopped") if record else None
    if stopped:
        text += (
            f"\nThe time was over after step {stopped['step']} of phase {stopped['phase']}: the same command with "
            "--resume_from_checkpoint latest trains on."
        )
    found = {"output_dir": str(command.output_dir), "classes": list(data.classes)}
    return Outcome(text, found | ({"stopped": stopped} if stopped else {}))
