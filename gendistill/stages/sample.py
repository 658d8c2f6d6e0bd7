"""Sample stage: generator folder -> surrogate sets ``ipc-K``, with ``pool`` and ``base/ipc-K`` where asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gendistill import runtime
from gendistill.commands import SampleCommand
from gendistill.config import SampleConfig, section, sizes
from gendistill.generator.generator import BASE, Generator
from gendistill.generator.sampler import requests_for, sample
from gendistill.progress import track
from gendistill.stages.folders import (
    StageFolder,
    command_line,
    finished,
    stage_folder,
    stage_settings,
    versions,
)
from gendistill.stages.output import output
from gendistill.surrogate.surrogate import SurrogateSet


def sample_set(
    generator: Generator, ipc: int, config: SampleConfig | None = None, *, seed: int = 0, label: str = "sample"
) -> SurrogateSet:
    """``ipc`` images of every class, by class and index; a smaller set with the same seed is its prefix."""
    config = config or SampleConfig()
    start = time.perf_counter()
    requests = requests_for(len(generator.classes), ipc)
    batches = sample(
        generator.to(runtime.device()),
        requests,
        seed=seed,
        num_inference_steps=config.num_inference_steps,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    count = -(-len(requests) // config.batch_size)
    images = torch.cat([images for _, images in track(batches, f"{label} x{ipc}", count)])
    labels = torch.tensor([r.label for r in requests])
    order = torch.argsort(labels, stable=True)
    meta = {
        "method": "generative",
        "stages": ["finetune", "sample"],
        "stage": "samples",
        "seed": seed,
        "generator_hash": generator.hash(),
        "licence": generator.meta.get("licence", "unknown"),
        "data": generator.meta.get("data", {}),
        "seconds": {"sample": round(time.perf_counter() - start, 2)},
        "command": command_line(),
        "versions": versions(),
    }
    return SurrogateSet(images[order], labels[order], generator.classes, meta)


def run_stage(
    generator_dir: Path, config: SampleConfig, target: Path, *, seed: int, log_path: Path | None = None
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    generator = Generator.from_pretrained(generator_dir)
    settings = stage_settings(config, seed, generator=generator.hash())
    if finished(target, "sample", settings):
        return target
    base = Generator.from_pretrained(generator_dir, variant=BASE) if config.base else None
    with stage_folder(target, "sample", settings, log_path=log_path) as folder:
        largest = max(*sizes(config.ipc), config.pool)
        _save_prefixes(sample_set(generator, largest, config, seed=seed), config, folder, folder.path, {})
        if base is not None:
            wanted = max(sizes(config.ipc))
            made = sample_set(base, wanted, config, seed=seed, label="sample (base)")
            _save_prefixes(made, config, folder, folder.path / "base", {"stage": "base", "stages": ["sample"]})
    return target


def _save_prefixes(
    made: SurrogateSet, config: SampleConfig, folder: StageFolder, path: Path, meta: dict[str, Any]
) -> None:
    made = SurrogateSet(made.images, made.labels, made.classes, {**made.meta, **meta})
    for ipc in sizes(config.ipc):
        made.prefix(ipc).save(path / f"ipc-{ipc}")
    if config.pool and made.meta["stage"] == "samples":
        made.prefix(config.pool).save(path / "pool")
    folder.log({"stage": "sample", "set": made.meta["stage"], **made.meta["seconds"]})


def main(command: SampleCommand) -> None:
    runtime.check_processes(1)
    with output(command, command.generator):
        run_stage(command.generator, section(command, SampleConfig), command.output_dir, seed=command.seed)
