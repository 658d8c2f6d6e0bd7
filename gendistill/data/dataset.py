"""RealData: the labelled collection with its three splits, held as uint8 in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, DataError
from gendistill.seeding import torch_rng


@dataclass(frozen=True)
class Split:
    """Images uint8 (N,C,H,W) with labels int64 (N,) that index the class names."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])

    def of_class(self, label: int) -> Tensor:
        """Positions of one class, in storage order."""
        return torch.nonzero(self.labels == label).flatten()

    def counts(self, classes: int) -> list[int]:
        return torch.bincount(self.labels, minlength=classes).tolist()


def mean_and_std(split: Split) -> tuple[float, float]:
    """Of the pixels of about 2000 images, in [-1, 1]."""
    images = to_float(split.images[:: max(1, len(split) // 2000)])
    return float(images.mean()), float(images.std())


@dataclass(frozen=True)
class RealData:
    """The real images: ``train`` teaches, ``validation`` is held out, ``test`` is read once.

    ``classes`` are names in index order; ``problems`` lists what was skipped or altered while reading; ``licence`` is
    None where nobody said it.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    problems: tuple[str, ...] = field(default=())
    licence: str | None = None

    @property
    def image_size(self) -> int:
        return int(self.train.images.shape[-1])

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    def fingerprint(self) -> str:
        """BLAKE2b over class names, pixels and labels of all splits: equal data, equal fingerprint. Read once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._digest(self.train, self.validation, self.test)

    @cached_property
    def test_fingerprint(self) -> str:
        """The same of the test split alone: what was made beside the same one has not seen it."""
        return self._digest(self.test)

    def _digest(self, *splits: Split) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(self.classes).encode())
        for split in splits:
            digest.update(repr(tuple(split.images.shape)).encode())
            digest.update(split.images.numpy().tobytes())
            digest.update(split.labels.numpy().tobytes())
        return digest.hexdigest()

    def for_classes(self, classes: tuple[str, ...]) -> RealData:
        """The same splits with these of its classes alone, in this order."""
        if classes == self.classes:
            return self
        positions = [self.classes.index(name) for name in classes]
        renumbered = torch.full((len(self.classes),), -1)
        renumbered[positions] = torch.arange(len(positions))

        def chosen(split: Split) -> Split:
            labels = renumbered[split.labels]
            kept = torch.nonzero(labels >= 0).flatten()
            return Split(split.images[kept], labels[kept])

        return replace(
            self,
            classes=classes,
            train=chosen(self.train),
            validation=chosen(self.validation),
            test=chosen(self.test),
        )

    def describe(self) -> dict[str, object]:
        """The manifest's ``data`` entry."""
        n = len(self.classes)
        counts = {k: getattr(self, k).counts(n) for k in ("train", "validation", "test")}
        told = {} if self.licence is None else {"licence": self.licence}
        prints = {"fingerprint": self.fingerprint(), "test_fingerprint": self.test_fingerprint}
        return {"name": self.name, **prints, "counts": counts, **told}


def stratified_split(
    split: Split, fraction: float, classes: tuple[str, ...], seed: int, purpose: str
) -> tuple[Split, Split]:
    """(rest, held out): ``fraction`` of every class, rounded, at least one image and leaving at least one.

    Raises:
        DataError: a class has fewer than two images.
    """
    held = []
    for label, name in enumerate(classes):
        index = split.of_class(label)
        if len(index) < 2:
            raise DataError(
                f"Class {name!r} has {len(index)} usable image(s), too few to hold out a {purpose} split; "
                "every class needs at least 4 images. Add images or remove the class."
            )
        order = torch.randperm(len(index), generator=torch_rng(seed, "split", purpose, label))
        count = min(max(1, round(fraction * len(index))), len(index) - 1)
        held.append(index[order[:count]])
    mask = torch.zeros(len(split), dtype=torch.bool)
    mask[torch.cat(held)] = True
    return split.take(torch.nonzero(~mask).flatten()), split.take(torch.nonzero(mask).flatten())


def check_classes(what: str, classes: tuple[str, ...], data: RealData) -> None:
    """Refuse other classes than the data's, or another order."""
    if classes != data.classes:
        raise ArtifactError(
            f"{what} has classes {', '.join(classes)}, the data {', '.join(data.classes)}; "
            "expected the same in the same order."
        )


def same_test(meta: Mapping[str, Any], data: RealData) -> bool:
    """Whether a manifest tells nothing of its data, or of these, or of others beside the same test images."""
    told = meta.get("data", {})
    same = told.get("test_fingerprint") == data.test_fingerprint
    return same or told.get("fingerprint") in (None, data.fingerprint())


def check_origin(what: str, classes: tuple[str, ...], meta: Mapping[str, Any], data: RealData) -> None:
    """Refuse what was made from other classes, or from a split whose training images may be test images here."""
    check_classes(what, classes, data)
    if not same_test(meta, data):
        told = meta["data"]
        raise ArtifactError(
            f"{what} was made from other images or splits ({told.get('name')}, fingerprint {told['fingerprint']}) than "
            f"--data gives ({data.name}, {data.fingerprint()}), so test images may be among them. Give the --data "
            "options it was made with."
        )


def evenly_spaced(count: int, most: int | None) -> list[int]:
    """At most ``most`` of the positions 0 to count - 1, evenly spaced; all of them for None."""
    if most is None or count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def evenly_spaced_by_class(labels: Tensor, classes: int, most: int) -> Tensor:
    """Positions, ascending, of at most ``most`` of ``labels`` (N,): as many of every class, evenly spaced within it.

    Where there are more classes than ``most``, one of each of so many classes.
    """
    each = max(1, most // classes)
    found = [torch.nonzero(labels == c).flatten() for c in evenly_spaced(classes, most)]
    return torch.cat([index[evenly_spaced(len(index), each)] for index in found]).sort().values
