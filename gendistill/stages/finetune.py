"""Finetune stage: real data -> generator folder, by plain diffusion and then the minimax criteria."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill import runtime
from gendistill.commands import FinetuneCommand
from gendistill.config import FinetuneConfig, section
from gendistill.data.real import RealData
from gendistill.errors import ArtifactError
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.training import train_generator
from gendistill.progress import follow
from gendistill.stages.folders import StageFolder, finished, read_data, stage_folder, stage_settings
from gendistill.stages.output import output


def finetune(
    data: RealData, config: FinetuneConfig | None = None, *, seed: int = 0, folder: StageFolder | None = None
) -> tuple[Generator, dict[str, Tensor]]:
    """Train a generator; returns it with the weights it had before the minimax phase.

    With ``folder`` every phase keeps checkpoints there and goes on from the newest one.
    """
    config = config or FinetuneConfig()
    generator = start_generator(data, config, seed)
    accelerator = runtime.make_accelerator(config.mixed_precision, config.gradient_accumulation_steps)
    saved = folder.path / "base.safetensors" if folder else None
    if saved is not None and saved.is_file():
        base = load_file(saved)
        generator.unet.load_state_dict(base)
    else:
        steps = 0 if config.pretrained else config.base_steps
        base = _phase(generator, data, config, "base", steps, accelerator, seed, folder)
        if saved is not None and accelerator.is_main_process:
            part = saved.with_suffix(".part")
            save_file(base, part)
            part.rename(saved)
    _phase(generator, data, config, "minimax", config.minimax_steps, accelerator, seed, folder)
    accelerator.wait_for_everyone()
    generator.meta |= {
        "adaptation": "full",
        "licence": "apache-2.0",
        "data": data.describe(),
        "steps": {"base": 0 if config.pretrained else config.base_steps, "minimax": config.minimax_steps},
    }
    return generator, base


def start_generator(data: RealData, config: FinetuneConfig, seed: int) -> Generator:
    """A fresh network, or the pretrained folder's if it fits the data."""
    if config.pretrained is None:
        return build_generator(config.model, data.classes, data.channels, data.image_size, seed)
    generator = Generator.from_pretrained(config.pretrained)
    wanted = (data.channels, data.image_size, data.image_size)
    if generator.image_shape != wanted or generator.classes != data.classes:
        raise ArtifactError(
            f"{config.pretrained} makes {generator.image_shape} images (C,H,W) of classes "
            f"{', '.join(generator.classes)}; "
            f"the data have {wanted} images of classes {', '.join(data.classes)}. Give matching --data.*, or another "
            "--pretrained."
        )
    return generator


def _phase(
    generator: Generator,
    data: RealData,
    config: FinetuneConfig,
    phase: str,
    steps: int,
    accelerator: Any,
    seed: int,
    folder: StageFolder | None,
) -> dict[str, Tensor]:
    if steps == 0:
        return {k: v.detach().cpu().clone() for k, v in generator.unet.state_dict().items()}
    checkpoints = None
    if folder is not None:
        checkpoints = runtime.Checkpoints(
            folder.path / "checkpoints" / phase, config.checkpointing_steps, config.checkpoints_total_limit
        )
    loop = train_generator(
        generator,
        data.train,
        config,
        accelerator=accelerator,
        criteria=config.minimax if phase == "minimax" else None,
        seed=seed,
        checkpoints=checkpoints,
    )
    done = checkpoints.steps() if checkpoints else []
    label = "generator" if phase == "base" else "minimax fine-tuning"
    log = folder.log if folder and accelerator.is_main_process else None
    return follow(
        loop, label, steps, start=done[-1] if done else 0, log=log, stage="finetune", shown=accelerator.is_main_process
    )


def run_stage(data: RealData, config: FinetuneConfig, target: Path, *, seed: int, log_path: Path | None = None) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    parent = Generator.from_pretrained(config.pretrained).hash() if config.pretrained else None
    settings = stage_settings(config, seed, data=data.fingerprint(), pretrained=parent)
    if finished(target, "finetune", settings):
        return target
    main_process = runtime.processes().is_main_process
    with stage_folder(
        target, "finetune", settings, keep_partial=True, log_path=log_path, main_process=main_process
    ) as folder:
        runtime.processes().wait_for_everyone()
        generator, base = finetune(data, config, seed=seed, folder=folder)
        if main_process:
            generator.meta["pretrained_hash"] = parent
            generator.save_pretrained(folder.path, base=base)
            folder.scaffold = ("checkpoints", "base.safetensors")
            folder.facts |= {"hash": generator.hash(), "processes": runtime.processes().num_processes}
    return target


def main(command: FinetuneCommand) -> None:
    runtime.check_processes(command.num_processes)
    state = runtime.processes()
    guard = output(command, command.data.folder, command.pretrained) if state.is_main_process else nullcontext()
    with guard:
        state.wait_for_everyone()
        data = read_data(command.data)
        run_stage(data, section(command, FinetuneConfig), command.output_dir, seed=command.seed)
