"""Teacher stage: real data -> teacher folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config import DataConfig, TeacherConfig, stage_options, to_dict
from gendistill.config.commands import TeacherCommand
from gendistill.data.dataset import RealData
from gendistill.data.sources import read_data
from gendistill.errors import ConfigError
from gendistill.networks.registry import build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import accuracy, train_classifier, training_flop
from gendistill.progress import follow
from gendistill.seeding import derive
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings


def train_teacher(
    data: RealData, config: TeacherConfig | None = None, *, seed: int = 0, folder: StageFolder | None = None
) -> Teacher:
    """Train on ``data.train``, then collect features and batch-norm moments by class in one further pass."""
    config = config or TeacherConfig()
    spec: dict[str, Any] = {
        "name": config.network,
        "channels": data.channels,
        "image_size": data.image_size,
        "classes": len(data.classes),
        "width": config.width,
        "depth": config.depth,
    }
    network, images = build_network(**spec, seed=derive(seed, "teacher")), config.steps * config.batch_size
    flop = training_flop(network, data.channels, data.image_size, images)
    fast = runtime.execution_mode(config.mixed_precision, config.compile, runtime.device(), flop)
    loop = train_classifier(
        network,
        data.train,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        shift=config.shift,
        flip=config.flip,
        seed=derive(seed, "teacher"),
        device=runtime.device(),
        bf16=fast.bf16,
        compile=fast.compile,
    )
    network = follow(loop, "teacher", config.steps, log=folder.log if folder else None, stage="teacher")
    statistics = collect_statistics(network, data.train, len(data.classes))
    if not all(tensor.isfinite().all() for tensor in statistics.tensors().values()):
        raise ConfigError(
            f"The teacher's features are no finite numbers after training with learning_rate {config.learning_rate:g}; "
            "expected a network that has learned. Lower learning_rate."
        )
    scores = {"train": accuracy(network, data.train), "validation": accuracy(network, data.validation)}
    return Teacher(network, statistics, data.classes, spec, {"accuracy": scores, "data": data.describe()})


def run_stage(
    data: RealData,
    data_config: DataConfig,
    config: TeacherConfig,
    target: Path,
    *,
    seed: int,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    settings = stage_settings(config, seed, data=data.fingerprint())
    if finished(target, "teacher", settings):
        return target
    with stage_folder(target, "teacher", settings, log_path=log_path) as folder:
        teacher = train_teacher(data, config, seed=seed, folder=folder)
        teacher.meta["data_config"] = to_dict(data_config)
        teacher.save_pretrained(folder.path)
        folder.facts["accuracy"] = teacher.meta["accuracy"]
    return target


def main(command: TeacherCommand) -> None:
    runtime.check_processes(1)
    with output(command, command.data.folder):
        data = read_data(command.data)
        run_stage(data, command.data, stage_options(command, TeacherConfig), command.output_dir, seed=command.seed)
