"""Teacher: a trained classifier with its class statistics, as a folder of safetensors and JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn

from gendistill import parallel, runtime
from gendistill.config import DataConfig, Pretrained, TeacherConfig, to_dict
from gendistill.config.flat import unflatten
from gendistill.data.dataset import DataFacts, RealData, check_classes
from gendistill.data.sources import read_data
from gendistill.errors import ArtifactError, ConfigError, GendistillError, reason, require_type
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import WorkFolder, read_json, read_tensors, write_json, write_tensors
from gendistill.networks.classifiers import ConvNet
from gendistill.networks.data_parallel import WholeBatchNorm, shared_accuracy
from gendistill.networks.factories import as_classifier, batch_norm_layers, build_network
from gendistill.networks.pretrained import (
    PretrainedClassifier,
    PretrainedRecord,
    open_pretrained,
    rebuild_pretrained,
)
from gendistill.networks.statistics import ClassStatistics, cached_statistics, collect_statistics
from gendistill.networks.training import accuracy, train_classifier, training_flop
from gendistill.networks.training_checkpoints import CHECKPOINTS, TrainingCheckpoints
from gendistill.progress import follow, note
from gendistill.registry import NETWORKS
from gendistill.seeding import derive
from gendistill.surrogate.soft_labels import TeacherFacts

FILE, FORMAT = "teacher.json", 1
FIX, MADE_AGAIN = "Make one with `gendistill teacher`.", "Run `gendistill teacher` again."


class NetworkSpec(TypedDict, total=False):
    """Arguments of ``build_network``, as teacher.json stores them; ``name`` is LIBRARY:ARCHITECTURE if pretrained."""

    name: str
    channels: int
    image_size: int
    classes: int
    width: int
    depth: int | None


class TeacherMeta(TypedDict, total=False):
    """What else teacher.json says.

    Attributes:
        accuracy: Fractions of the training and validation images classified correctly; of a split without images none.
        data: ``RealData.describe()`` of the images it was trained on.
        data_config: The ``--data`` options that read them again.
        training_seconds: Of the training, as ``teacher``.
        pretrained: Where a published network comes from, and how it is built.
    """

    accuracy: dict[str, float]
    pretrained: PretrainedRecord
    training_seconds: dict[str, float]
    data: DataFacts
    data_config: dict[str, Any]


class TeacherRecord(TeacherMeta):
    """teacher.json."""

    format: Required[int]
    classes: Required[list[str]]
    network: Required[NetworkSpec]


@dataclass
class Teacher:
    """A trained classifier whose features and class statistics guide selection and refinement.

    Attributes:
        network: Maps images (B,C,H,W) in [-1, 1] to logits (B,K); also has ``features`` -> (B,D) and ``classify``.
        statistics: Features of the training images, and moments of every batch-norm input by class.
        classes: K names in index order.
        spec: Arguments of ``build_network`` that build the network again.
        meta: Accuracies, and the data it was trained on.
        registered: Whether ``spec`` builds the network again; False for a module that was passed to
            ``train_teacher``. Such a teacher cannot be saved.

    Example:
        >>> teacher = gd.train_teacher(data, gd.TeacherConfig(steps=200))
        >>> teacher.save_pretrained("teacher")
        >>> same = gd.Teacher.from_pretrained("teacher")
    """

    network: nn.Module
    statistics: ClassStatistics
    classes: tuple[str, ...]
    spec: NetworkSpec
    meta: TeacherMeta = field(default_factory=TeacherMeta)
    registered: bool = True

    def __repr__(self) -> str:
        scores = ", ".join(f"{split} {share:.3f}" for split, share in self.meta.get("accuracy", {}).items())
        return f"Teacher({self.spec['name']}, {len(self.classes)} classes{', accuracy ' + scores if scores else ''})"

    def hash(self) -> str:
        """Of the weights and, where the network is a published one, of how it prepares images."""
        weights = hash_tensors(self.network.state_dict())
        published = self.meta.get("pretrained")
        return hash_json([weights, published["preprocessing"]]) if published else weights

    def facts(self) -> TeacherFacts:
        """What soft labels record of their teacher; ``bytes`` is the size of its weights."""
        weights = self.network.state_dict().values()
        return {
            "hash": self.hash(),
            "network": self.spec["name"],
            "accuracy": self.meta.get("accuracy", {}).get("validation"),
            "bytes": sum(tensor.nbytes for tensor in weights),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, statistics and teacher.json into ``folder``, which ``from_pretrained`` reads.

        Raises:
            ConfigError: the network is a module without a registered name, which no other process could build.
        """
        if not self.registered:
            raise ConfigError(
                f"The teacher's network {self.spec['name']} has no registered name, so it could not be built again "
                "from a folder. Register a function that builds it with @gendistill.register_network(NAME), train "
                "with network=NAME, and save that teacher."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "model.safetensors", self.network.state_dict(), hashed=True)
        self.statistics.save(folder / "statistics.safetensors", hashed=True)
        record = {"format": FORMAT, "classes": list(self.classes), "network": self.spec, **self.meta}
        write_json(folder / FILE, record, hashed=True)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Teacher:
        """Read what ``save_pretrained`` wrote.

        Raises:
            ArtifactError: the folder is not a teacher's, is damaged, or its weights do not fit.
        """
        folder = Path(folder)
        record = read_record(folder)
        weights, _ = read_tensors(folder / "model.safetensors", fix="Train the teacher again.")
        runtime.require_finite_weights(str(folder / "model.safetensors"), weights)
        _check_spec(folder / FILE, record, weights)
        network = _with_weights(folder, record, weights)
        meta = {k: v for k, v in record.items() if k not in ("format", "classes", "network")}
        statistics = ClassStatistics.load(folder / "statistics.safetensors")
        _check_statistics(folder / "statistics.safetensors", statistics, network, len(record["classes"]))
        return cls(network.eval(), statistics, tuple(record["classes"]), record["network"], cast(TeacherMeta, meta))


def read_record(folder: Path) -> TeacherRecord:
    """What ``teacher.json`` says of the teacher in ``folder``.

    Raises:
        ArtifactError: the folder is not a teacher's, or the file is damaged.
    """
    record = read_json(folder / FILE, kind="a teacher folder", format=FORMAT, schema=TeacherRecord, fix=FIX)
    known, found = NetworkSpec.__annotations__.keys(), record["network"].keys()
    if not {"name", "channels", "image_size", "classes"} <= found <= known:
        raise ArtifactError(
            f"{folder / FILE} is damaged: network has {', '.join(found)}; expected {', '.join(known)}. {FIX}"
        )
    return cast(TeacherRecord, record)


LARGEST = 2**16  # side of an image in pixels: no JPEG is larger


def _check_spec(path: Path, record: TeacherRecord, weights: Mapping[str, Tensor]) -> None:
    """Compare the numbers of teacher.json with one another and with the weights, before a network takes memory.

    Raises:
        ArtifactError: one cannot be: no layer is wider than all weights are many.
    """
    spec, most = record["network"], sum(tensor.numel() for tensor in weights.values())
    classes, limits = len(record["classes"]), {"image_size": LARGEST, "width": max(most, LARGEST), "depth": 64}
    if spec["classes"] != classes:
        raise ArtifactError(f"{path} is damaged: network.classes is {spec['classes']}; expected {classes}. {FIX}")
    for name in ("channels", "image_size", "classes", "width", "depth"):
        value, limit = spec.get(name), limits.get(name, most)
        if isinstance(value, int) and not 1 <= value <= limit:
            raise ArtifactError(f"{path} is damaged: network.{name} is {value}; expected 1 to {limit}. {FIX}")
    for split, share in record.get("accuracy", {}).items():
        if share < 0 or share > 1:  # it is NaN without images
            raise ArtifactError(f"{path} is damaged: accuracy.{split} is {share}; expected 0 to 1. {FIX}")


def _with_weights(folder: Path, record: TeacherRecord, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of a teacher.json, with these weights; one of ours is compared with them before it takes memory.

    Raises:
        ArtifactError: they do not fit.
    """
    spec, network = record["network"], nn.Module()
    ours = "pretrained" not in record and ":" not in spec["name"] and not NETWORKS.is_added(spec["name"])
    for place in ("meta", "cpu") if ours else ("cpu",):
        with torch.device(place):
            if "pretrained" in record:
                network = rebuild_pretrained(record["pretrained"], len(record["classes"]))
            else:
                network = build_network(**spec)
            if isinstance(network, ConvNet) and weights.get("head.weight", torch.empty(0)).ndim == 2:
                network.fit_head(weights["head.weight"].shape[1])
            try:
                network.load_state_dict(weights, assign=place == "meta")
            except RuntimeError as error:
                path = folder / "model.safetensors"
                raise ArtifactError(f"{path} does not fit its {FILE}: {reason(error)}") from error
    return network


def _check_statistics(path: Path, statistics: ClassStatistics, network: nn.Module, classes: int) -> None:
    """Compare class statistics with the network that they are of.

    Raises:
        ArtifactError: layers that the network has not, or moments or labels of other classes.
    """
    layers, labels = batch_norm_layers(network), statistics.labels
    unknown = sorted(statistics.means.keys() - layers.keys())
    if unknown:
        raise ArtifactError(
            f"{path} has moments of layers that the network has not: {', '.join(unknown[:5])}. {MADE_AGAIN}"
        )
    for name, mean in statistics.means.items():
        found, wanted = tuple(mean.shape), (classes, layers[name].num_features)
        if not found == tuple(statistics.variances[name].shape) == wanted:
            raise ArtifactError(f"{path} has moments {found} of layer {name}; expected {wanted}. {MADE_AGAIN}")
        if statistics.variances[name].min() < 0:
            raise ArtifactError(f"{path} has a negative variance of layer {name}; expected 0 or more. {MADE_AGAIN}")
    if statistics.features.ndim != 2 or labels.shape != statistics.features.shape[:1]:
        shapes = f"features {tuple(statistics.features.shape)} and labels {tuple(labels.shape)}"
        raise ArtifactError(f"{path} has {shapes}; expected (N,D) and (N,). {MADE_AGAIN}")
    if labels.dtype != torch.int64 or not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ArtifactError(f"{path} has labels that are no classes; expected 0 to {classes - 1}. {MADE_AGAIN}")


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
    if folder is None:
        return None
    options = to_dict(replace(config, checkpointing_steps=None))
    identity = {"data": data.fingerprint(), "network": hash_tensors(student.state_dict())}
    identity["options"] = hash_json([options, seed])
    every = config.checkpointing_steps or config.steps
    return TrainingCheckpoints(runtime.Checkpoints(folder.path / CHECKPOINTS, every, 1, identity))


def _trained(
    student: nn.Module,
    data: RealData,
    config: TeacherConfig,
    seed: int,
    folder: WorkFolder | None,
    shared: bool,
    checkpoints: TrainingCheckpoints | None,
) -> nn.Module:
    flop = partial(training_flop, student, data.channels, data.image_size, config.steps * config.batch_size)
    compile = False if shared and batch_norm_layers(student) else config.compile
    mode = runtime.execution_mode(config.mixed_precision, compile, runtime.device(), flop)
    main_process = runtime.processes().is_main_process
    loop = train_classifier(
        student,
        data.train,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        shift=config.shift,
        flip=config.flip,
        seed=seed,
        device=runtime.device(),
        bf16=mode.bf16,
        compile=mode.compile,
        shared=shared,
        checkpoints=checkpoints,
    )
    log, done = folder.log if folder and main_process else None, checkpoints.done if checkpoints else 0
    if log and done:  # what follows replaces what the log has of later steps
        log({"stage": "teacher", "resumed_at": done})
    with torch.random.fork_rng(), WholeBatchNorm() if shared else nullcontext():
        torch.manual_seed(seed if main_process else derive(seed, runtime.processes().process_index))  # of dropout
        return follow(loop, "teacher", config.steps, start=done, log=log, stage="teacher")


def real_images(config: DataConfig | None, folder: Path | None) -> tuple[RealData, DataConfig]:
    """The real images and how they are read: by ``config``, or as those of the teacher in ``folder``, else digits.

    Raises:
        ArtifactError: the teacher does not say what it was trained on, or those images have changed.
    """
    if config is None and folder is not None:
        record, usual = read_record(folder), DataConfig()
        if "data_config" not in record and record.get("data", {}).get("name") == usual.name:
            data = read_data(usual)
            if not _is_of_others(record, data):
                return data, usual
        return _own_data(record, str(folder)), _data_config(record, str(folder))
    config = config or DataConfig()
    return read_data(config), config


def _own_data(meta: TeacherMeta, what: str) -> RealData:
    data = read_data(_data_config(meta, what))
    fingerprint = meta.get("data", {}).get("fingerprint")
    if fingerprint is None or not data.is_of(fingerprint):
        raise ArtifactError(
            f"The images at {data.name} changed since {what} was trained on them; run `gendistill teacher` again."
        )
    return data


def _data_config(meta: TeacherMeta, what: str) -> DataConfig:
    """The options that read the images of a teacher again.

    Raises:
        ArtifactError: it has none, or they cannot be.
    """
    if "data_config" not in meta:
        raise ArtifactError(
            f"{what} does not say how to read the images it was trained on. Give --data, or a teacher that `gendistill "
            "teacher` made."
        )
    try:
        return unflatten(DataConfig, meta["data_config"])
    except ConfigError as error:
        raise ArtifactError(f"{what} has a data_config in its {FILE} that cannot be: {error} {MADE_AGAIN}") from error


def time_of(teachers: Sequence[Teacher]) -> dict[str, float]:
    """Seconds of the training of all teachers, as ``teacher``; empty where one does not know its own."""
    spent = [teacher.meta.get("training_seconds", {}).get("teacher") for teacher in teachers]
    return {} if not spent or None in spent else {"teacher": round(sum(s for s in spent if s is not None), 2)}


def trained_elsewhere(teacher: Teacher, data: RealData) -> bool:
    """Whether it is known to be trained on other images or splits."""
    return _is_of_others(teacher.meta, data)


def _is_of_others(meta: TeacherMeta, data: RealData) -> bool:
    own = meta.get("data", {}).get("fingerprint")
    return own is not None and not data.is_of(own)


def check_teacher(what: str, teacher: Teacher, data: RealData) -> None:
    """Refuse a teacher that does not fit the data, or that was trained on their test images.

    The images of a teacher that was trained on others, or on other splits, are read again and compared with the test
    split pixel by pixel. Test images that are also in the data's own training split are not counted.

    Raises:
        ArtifactError: other classes, channels or image size; test images among those it was trained on; or those
            cannot be read again.
    """
    check_classes(what, teacher.classes, data)
    shape = teacher.spec.get("channels"), teacher.spec.get("image_size")
    if shape != (data.channels, data.image_size):
        raise ArtifactError(
            f"{what} takes images of {shape[0]} channel(s) and {shape[1]} px, the data have {data.channels} and "
            f"{data.image_size} px; expected the same. Give another --data.image_size or teacher."
        )
    if not trained_elsewhere(teacher, data):
        return
    advice = "Give the --data options it was made with, or a teacher that was trained without these test images."
    try:
        seen = _own_data(teacher.meta, what).train
    except GendistillError as error:
        raise ArtifactError(
            f"{what} was trained on other images or splits than these, and whether test images are among them is "
            f"unknown: {error} {advice}"
        ) from error
    in_its_own, here = seen.find(data.test.hashes) >= 0, data.train.find(data.test.hashes) >= 0
    leaks = len(np.unique(data.test.hashes[(in_its_own & ~here).numpy()], axis=0))
    if leaks:
        raise ArtifactError(
            f"{what} was trained on other splits than these: {leaks} of the {len(data.test)} test images are among its "
            f"training images. {advice}"
        )


def with_statistics_of(teacher: Teacher, data: RealData, cache: Path | None) -> Teacher:
    """The teacher with class statistics of ``data.train``: its own, or collected, where it was trained on others.

    ``cache`` keeps collected ones. Where several processes run, all call this and share the pass.
    """
    if not trained_elsewhere(teacher, data):
        return teacher
    if runtime.processes().is_main_process:
        note(
            "The teacher was trained on other images than these (compared with the test split); class statistics of "
            f"these {len(data.train)} are collected."
        )
    found = cached_statistics(teacher.hash(), teacher.network, data.train, len(data.classes), cache=cache, shared=True)
    return replace(teacher, statistics=found)
