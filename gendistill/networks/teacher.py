"""Teacher: a trained classifier with its class statistics, as a folder of safetensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import torch
from torch import Tensor, nn

from gendistill import runtime
from gendistill.data.dataset import DataFacts
from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import read_json, read_tensors, write_json, write_tensors
from gendistill.networks.classifiers import ConvNet
from gendistill.networks.factories import batch_norm_layers, build_network
from gendistill.networks.pretrained import PretrainedRecord, rebuild_pretrained
from gendistill.networks.statistics import ClassStatistics
from gendistill.registry import NETWORKS
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


def time_of(teachers: Sequence[Teacher]) -> dict[str, float]:
    """Seconds of the training of all teachers, as ``teacher``; empty where one does not know its own."""
    spent = [teacher.meta.get("training_seconds", {}).get("teacher") for teacher in teachers]
    return {} if not spent or None in spent else {"teacher": round(sum(s for s in spent if s is not None), 2)}
