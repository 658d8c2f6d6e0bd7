"""Distill stage: real data -> surrogate sets by a distiller that needs no generator. For now the coresets."""

from __future__ import annotations

import time
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
    prepare_output,
    read_data,
    stage_folder,
    stage_settings,
    versions,
)
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


def main(command: DistillCommand) -> None:
    runtime.check_processes(1)
    prepare_output(command)
    data = read_data(command.data)
    config = section(command, DistillConfig)
    settings = stage_settings(config, command.seed, data=data.fingerprint())
    if finished(command.output_dir, "distill", settings):
        return
    with stage_folder(command.output_dir, "distill", settings) as folder:
        for ipc in track(sizes(config.ipc), config.method):
            distill(data, config.method, ipc, seed=command.seed).save(folder.path / f"ipc-{ipc}")
