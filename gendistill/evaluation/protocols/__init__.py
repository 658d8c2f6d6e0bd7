"""Protocols: named, pinned evaluations, one YAML each, whose header has its source and what we do differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from gendistill.config import Compile, EvaluateConfig, Labels, Precision, as_tuple
from gendistill.config.evaluate import Decayed
from gendistill.data.augmentation import Augmentation
from gendistill.data.siamese import Operation, Siamese
from gendistill.errors import ConfigError
from gendistill.networks.training import Optimizer, Rate, cosine, multi_step, warm_cosine

Epochs = int | Mapping[int, int]  # the same for every set, or from so many images of a class on
LENGTH = ("steps", "epochs", "epochs_100_classes", "full_epochs")
OWN = ("protocol", "runs", "augment", "legacy_best", "mixed_precision", "compile")  # options that no protocol has


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that an evaluation does: a protocol's values with the user's in their place.

    Either ``steps`` are equal for every row, or ``epochs`` make them out of a set's own size.

    Attributes:
        epochs_100_classes: epochs where there are exactly 100 classes.
        full_epochs: epochs on all real images.
        momentum: SGD's.
        milestones: multi_step: shares of the epochs after which the rate is multiplied by ``decay``.
        siamese: Groups of DSA's operations, one of each for a batch.
        cutmix: Probability that a batch is mixed.
        test_crop: Share of the side of test images that is tested.
        temperature: That the soft labels of a set must have, as the other options of its views; None takes any.
        changed: Fields of the protocol that the user gave other values.
    """

    protocol: str
    network: tuple[str, ...]
    width: int
    depth: int | None
    runs: int
    steps: int | None = None
    epochs: Epochs | None = None
    epochs_100_classes: Epochs | None = None
    full_epochs: int | None = None
    batch_size: int
    optimizer: Optimizer
    momentum: float = 0.0
    learning_rate: float
    weight_decay: float
    weight_decay_on: Decayed = "all"
    schedule: Literal["warm_cosine", "cosine", "multi_step"]
    milestones: tuple[float, ...] = ()
    decay: float = 1.0
    shift: int = 0
    flip: bool = False
    min_crop: float = 1.0
    jitter: float = 0.0
    lighting: float = 0.0
    siamese: tuple[tuple[Operation, ...], ...] = ()
    cutmix: float = 0.0
    test_crop: float = 1.0
    augment: tuple[bool, ...]
    labels: Labels
    temperature: float | None = None
    legacy_best: bool
    mixed_precision: Precision
    compile: Compile
    changed: tuple[str, ...] = ()

    @property
    def augments(self) -> bool:
        """Whether the augmentation changes images at all."""
        return self.augmentation() != Augmentation()

    def augmentation(self, mean: float = 0.0, std: float = 0.5) -> Augmentation:
        """For data of this mean and standard deviation, in [-1, 1]."""
        groups = [tuple(name for name in group if self.flip or name != "flip") for group in self.siamese]
        among = any("flip" in group for group in self.siamese)  # then it is one of a group, not of every image
        return Augmentation(
            shift=self.shift,
            flip=self.flip and not among,
            min_crop=self.min_crop,
            jitter=self.jitter,
            lighting=self.lighting,
            siamese=tuple(Siamese(operations=group, mean=mean, std=std) for group in groups if group),
            cutmix=self.cutmix,
        )

    def length(self, images: int, classes: int, *, full: bool = False) -> tuple[int, int]:
        """(optimiser steps, steps an epoch) on a set of so many decoded images; 1 step an epoch where steps are equal.

        An epoch shows every image once, in a last batch of what is left.
        """
        if self.steps is not None:
            return self.steps, 1
        table = self.epochs if classes != 100 or self.epochs_100_classes is None else self.epochs_100_classes
        epochs = self.full_epochs if full and self.full_epochs is not None else _at(table, -(-images // classes))
        per_epoch = -(-images // self.batch_size)
        return epochs * per_epoch, per_epoch

    def rate(self, steps: int, per_epoch: int) -> Rate:
        """The share of the learning rate at each of the ``steps``."""
        if self.schedule == "warm_cosine":
            return warm_cosine(steps)
        if self.schedule == "cosine":
            return cosine(steps, per_epoch)
        return multi_step(steps, self.milestones, self.decay, per_epoch)

    def to_dict(self) -> dict[str, object]:
        """Plain data for summary.json."""
        return asdict(self)


def resolve_protocol(config: EvaluateConfig) -> Settings:
    """The config with the protocol's value for everything left null.

    Raises:
        ConfigError: ``augment`` asks for rows with and without an augmentation that is none.
    """
    pinned = _pinned(config.protocol)
    names = {f.name for f in fields(Settings)} & {f.name for f in fields(config)}
    chosen = {name: value for name in names if (value := getattr(config, name)) is not None}
    chosen["network"] = as_tuple(chosen.get("network", pinned["network"]))
    chosen["augment"] = as_tuple(config.augment)
    kept = {k: v for k, v in pinned.items() if k not in LENGTH or not {"steps", "epochs"} & chosen.keys()}
    usual = {f.name: f.default for f in fields(Settings)} | pinned
    changed = tuple(k for k, v in sorted(chosen.items()) if k not in OWN and v != usual[k])
    settings = Settings(**{**kept, **chosen}, changed=changed)
    if len(settings.augment) > 1 and not settings.augments:
        raise ConfigError(
            f"evaluate.augment is {list(settings.augment)}, but protocol {settings.protocol} with shift "
            f"{settings.shift} and flip {str(settings.flip).lower()} augments nothing, so both rows would be the same. "
            "Give --shift or --flip true, or another --protocol."
        )
    return settings


@cache
def _pinned(name: str) -> dict[str, Any]:
    values = yaml.safe_load((files(__package__) / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: _frozen(value) for key, value in values.items()}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _at(table: Epochs | None, images: int) -> int:
    assert table is not None  # a protocol has steps or epochs
    return table if isinstance(table, int) else table[max(low for low in table if low <= max(images, min(table)))]
