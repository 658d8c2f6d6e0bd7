"""Training of a teacher: its network, new or published, its checkpoints and its class statistics."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from gendistill import parallel, runtime
from gendistill.config import Pretrained, TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError, require_type
from gendistill.io import WorkFolder
from gendistill.networks.data_parallel import WholeBatchNorm, shared_accuracy
from gendistill.networks.factories import as_classifier, build_network
from gendistill.networks.pretrained import PretrainedClassifier, open_pretrained
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import NetworkSpec, Teacher, TeacherMeta
from gendistill.networks.training import accuracy, configured_training
from gendistill.networks.training_checkpoints import CHECKPOINTS, TrainingCheckpoints, checkpoints_in
from gendistill.progress import follow, note
from gendistill.seeding import derive


def teacher_network(
    config: TeacherConfig, *, classes: tuple[str, ...], channels: int, image_size: int, seed: int = 0
) -> tuple[nn.Module, NetworkSpec]:
    """The network that ``config`` names before its training, and how it is built."""
    spec: NetworkSpec = {
        "name": config.network,
        "channels": channels,
        "image_size": image_size,
        "classes": len(classes),
    }
    if config.pretrained is None:
        spec |= {"width": config.width, "depth": config.depth}
        return build_network(**spec, seed=seed), spec
    network = open_pretrained(config.pretrained, classes=classes, channels=channels, image_size=image_size)
    spec["name"] = f"{network.record['library']}:{network.record['architecture']}"
    return network, spec


def train_teacher(
    data: RealData,
    config: TeacherConfig | None = None,
    *,
    network: nn.Module | str | None = None,
    pretrained: Pretrained | str | None = None,
    seed: int = 0,
    folder: WorkFolder | None = None,
    shared: bool = False,
) -> Teacher:
    """Train a classifier on ``data.train``, or take a published one, and collect its class statistics in one pass.

    The optimiser is AdamW on the cross-entropy under a one-cycle cosine (``networks.training``).

    Args:
        data: The real images; ``validation`` is only scored, ``test`` is not read.
        config: Options; the default ones where None.
        network: A registered name, which replaces ``config.network``, or a module of your own, which is trained as it
            stands, on images (B,C,H,W) in [-1, 1]. A module without ``features`` and ``classify`` has to end with a
            linear layer named fc, classifier, head or heads.
        pretrained: A published classifier, which replaces ``config.pretrained``: its source, or all its options. It is
            trained only where its ``tune`` says so. A last layer without rows of these classes is fitted by logistic
            regression on the features of ``data.train``.
        seed: Of the initial weights (not a module's) and of the batches.
        folder: Where the log and the checkpoints of the training go; a training that was interrupted there goes on from
            its newest checkpoint. None writes nothing.
        shared: Several processes call this alike and share each batch and the passes over the images: the same teacher
            up to rounding, dropout apart, in every process. Networks with batch norm are then not compiled.

    Returns:
        The teacher, its network in eval mode on this process's device.

    Raises:
        ConfigError: the network does not take these images or gives no features.
        DivergenceError: training diverged.
        ArtifactError: the files of a published classifier cannot be used, or lack classes that they should have; or a
            checkpoint belongs to another training.

    Example:
        >>> teacher = gd.train_teacher(data, network=torchvision.models.resnet18(num_classes=10))
        >>> teacher = gd.train_teacher(data, pretrained="timm:resnet18.a1_in1k")
        >>> selected, refined = gd.refine_set(pool, teacher, data, ipc=10)
    """
    start = time.perf_counter()
    require_type("data", data, RealData)
    config, seed = require_type("config", config or TeacherConfig(), TeacherConfig), derive(seed, "teacher")
    config = _with_network(config, network, pretrained)
    student, spec = _untrained(data, config, network, seed)
    meta: TeacherMeta = {"data": data.describe()}
    checkpoints = _checkpoints(student, data, config, seed, folder) if config.trains and (shared or _alone()) else None
    statistics = None
    if isinstance(student, PretrainedClassifier):
        meta["pretrained"] = student.record
        if config.unused:
            how = "" if config.trains else ", which is not trained: teacher.pretrained.tune head or all trains it"
            note(f"The network is a published one{how}. These options are not used: {', '.join(config.unused)}.")
        if student.record["rows"] is None:
            statistics = collect_statistics(student.to(runtime.device()), data.train, len(data.classes), shared=shared)
            student.fit_head(statistics.features, statistics.labels)
    shared = shared and not _alone()
    trained = student.to(runtime.device()).eval()
    if config.trains:
        trained = _trained(student, data, config, seed, folder, shared, checkpoints)
    if statistics is None or (config.pretrained and config.pretrained.tune == "all"):
        statistics = collect_statistics(trained, data.train, len(data.classes), shared=shared)
    score = partial(shared_accuracy, accuracy) if shared else accuracy
    splits = {"train": data.train, "validation": data.validation}
    meta["accuracy"] = {name: score(trained, split) for name, split in splits.items() if len(split)}
    earlier = checkpoints.seconds if checkpoints else 0.0
    meta["training_seconds"] = {"teacher": round(time.perf_counter() - start + earlier, 2)}
    return Teacher(trained, statistics, data.classes, spec, meta, not isinstance(network, nn.Module))


def _alone() -> bool:
    """Whether no other process runs with this one."""
    return parallel.world() == 1


def _with_network(
    config: TeacherConfig, network: nn.Module | str | None, pretrained: Pretrained | str | None
) -> TeacherConfig:
    """The options with the network that an argument names in place of theirs."""
    if isinstance(pretrained, str):
        pretrained = Pretrained(source=pretrained)
    config = replace(config, pretrained=pretrained) if pretrained else config
    if config.pretrained and network is not None:
        raise ConfigError("network and pretrained are both given; expected one of them.")
    return replace(config, network=network) if isinstance(network, str) and network else config


def _untrained(
    data: RealData, config: TeacherConfig, network: nn.Module | str | None, seed: int
) -> tuple[nn.Module, NetworkSpec]:
    """The network before its training, a module of the caller's or the one of the options, and how it is built."""
    channels, side, classes = data.channels, data.image_size, len(data.classes)
    if not isinstance(network, nn.Module):
        return teacher_network(config, classes=data.classes, channels=channels, image_size=side, seed=seed)
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    spec: NetworkSpec = {"name": name, "channels": channels, "image_size": side, "classes": classes}
    return as_classifier(network, channels=channels, image_size=side, classes=classes), spec


def _checkpoints(
    student: nn.Module, data: RealData, config: TeacherConfig, seed: int, folder: WorkFolder | None
) -> TrainingCheckpoints | None:
    """Of this training, identified by its first weights, the images, the options and the seed."""
    return None if folder is None else checkpoints_in(folder.path / CHECKPOINTS, student, data, config, seed)


def _trained(
    student: nn.Module,
    data: RealData,
    config: TeacherConfig,
    seed: int,
    folder: WorkFolder | None,
    shared: bool,
    checkpoints: TrainingCheckpoints | None,
) -> nn.Module:
    main_process = runtime.processes().is_main_process
    loop = configured_training(
        student, data.train, config, steps=config.steps, seed=seed, shared=shared, checkpoints=checkpoints
    )
    log, done = folder.log if folder and main_process else None, checkpoints.done if checkpoints else 0
    if log and done:  # what follows replaces what the log has of later steps
        log({"stage": "teacher", "resumed_at": done})
    with torch.random.fork_rng(), WholeBatchNorm() if shared else nullcontext():
        torch.manual_seed(seed if main_process else derive(seed, runtime.processes().process_index))  # of dropout
        return follow(loop, "teacher", config.steps, start=done, log=log, stage="teacher")
