"""Distill stage: real data -> surrogate sets by a distiller that needs no generator. For now the coresets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.commands import DistillCommand
from gendistill.config import DistillConfig, section, sizes
from gendistill.coreset.coresets import choose
from gendistill.data.images import to_float
from gendistill.data.real import RealData
from gendistill.progress import track
from gendistill.stages.folders import (
    command_line,
    finished,
    read_data,
    stage_folder,
    stage_settings,
    versions,
)
from gendistill.stages.output import output
from gendistill.surrogate.surrogate import SurrogateSet


def distill(data: RealData, method: str, ipc: int, *, seed: int = 0, features: Tensor | None = None) -> SurrogateSet:
    """``ipc`` images of every class by the named distiller; ``features`` (N,D) of data.train default to its pixels."""
    start = time.perf_counter()
    space = "teacher features" if features is not None else "pixels"
    if method == "random":  # looks at no pixel, so none is turned into a float
        features = torch.empty(len(data.train), 0)
    elif features is None:
        features = to_float(data.train.images).flatten(1)
    chosen = choose(method, data.train, features, data.classes, ipc, seed)
    meta: dict[str, Any] = {
        "method": method,
        "stages": [],
        "stage": None,
        "space": None if method == "random" else space,
        "seed": seed,
        "data": data.describe(),
        "licence": "as the data",
        "seconds": {"distill": round(time.perf_counter() - start, 2)},
        "command": command_line(),
        "versions": versions(),
    }
    return SurrogateSet(chosen.images, chosen.labels, data.classes, meta)


def run_stage(data: RealData, config: DistillConfig, target: Path, *, seed: int) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    settings = stage_settings(config, seed, data=data.fingerprint())
    if finished(target, "distill", settings):
        return target
    with stage_folder(target, "distill", settings) as folder:
        for ipc in track(sizes(config.ipc), config.method):
            distill(data, config.method, ipc, seed=seed).save(folder.path / f"ipc-{ipc}")
    return target


def main(command: DistillCommand) -> None:
    runtime.check_processes(1)
    with output(command, command.data.folder):
        run_stage(read_data(command.data), section(command, DistillConfig), command.output_dir, seed=command.seed)
