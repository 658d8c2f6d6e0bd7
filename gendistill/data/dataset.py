"""RealData: the labelled collection with its three splits, as uint8 in memory or mapped from a store."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendistill.config import DataConfig
from gendistill.data.arrays import class_names, label_indices, read_samples, square, to_stored
from gendistill.data.class_positions import ClassIndex, hold_out
from gendistill.data.items import some
from gendistill.data.mapped import Images, MappedImages, as_bytes, block_of, image_hashes, on_device
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, DataError

STATISTICS_BYTES = 2**26  # of floats whose mean is taken at once: 64 MiB
OF_HASHES = "xxh3-"  # begins fingerprints that are made from the hashes of the images
Arrays = tuple[np.ndarray | Tensor, np.ndarray | Tensor | Sequence[int] | Sequence[str]]  # images, labels


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N,C,H,W) in [0, 255], in memory or mapped from a store.
        labels: int64 (N,), positions in the class names.
    """

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))})"

    @property
    def pixels(self) -> Tensor:
        """All images in memory."""
        return self.images[:] if isinstance(self.images, MappedImages) else self.images

    def take(self, index: Tensor) -> Split:
        """Some of these images; those of a store stay there."""
        images = self.images.take(index) if isinstance(self.images, MappedImages) else self.images[index]
        return Split(images, self.labels[index])

    def to(self, device: torch.device) -> Split:
        """With its labels on a device, and its images too, unless they lie in a file and do not fit there."""
        return Split(on_device(self.images, device), self.labels.to(device))

    def of_class(self, label: int) -> Tensor:
        """Positions of one class, in storage order."""
        return self._by_class.of(label)

    @cached_property
    def _by_class(self) -> ClassIndex:
        return ClassIndex(self.labels)

    @cached_property
    def hashes(self) -> np.ndarray:
        """Of the pixels of each image, uint8 (N,16)."""
        return image_hashes(self.images)

    def find(self, hashes: np.ndarray) -> Tensor:
        """The first position of an image with each of these ``hashes`` (M,16), int64 (M,); -1 where there is none."""
        known, first = self._by_hash
        if not len(known):
            return torch.full((len(hashes),), -1)
        wanted = as_bytes(hashes)
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return torch.from_numpy(np.where(known[at] == wanted, first[at], -1))

    @cached_property
    def _by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        """The different hashes, sorted, and the first position of each."""
        return np.unique(as_bytes(self.hashes), return_index=True)

    def counts(self, classes: int) -> list[int]:
        return torch.bincount(self.labels, minlength=classes).tolist()


def mean_and_std(split: Split) -> tuple[float, float]:
    """Of the pixels of every n-th image, in [-1, 1]: of all below 4000 images, of 2000 to 3000 of more.

    Where their floats would take more than ``STATISTICS_BYTES``, the grey levels are counted block by block, which
    gives exact sums.
    """
    chosen = torch.arange(0, len(split), max(1, len(split) // 2000))
    if 4 * len(chosen) * math.prod(split.images.shape[1:]) <= STATISTICS_BYTES:
        images = to_float(split.images[chosen])
        return float(images.mean()), float(images.std())
    counts = torch.zeros(256, dtype=torch.float64)
    for part in chosen.split(block_of(split.images)):
        counts += torch.bincount(split.images[part].flatten(), minlength=256)
    levels, total = to_float(torch.arange(256)).double(), counts.sum()
    mean = counts @ levels / total
    return float(mean), float((counts @ (levels - mean).square() / (total - 1)).sqrt())


class DataFacts(TypedDict, total=False):
    """What a manifest says of the real images.

    Attributes:
        name: As in ``DataConfig``.
        fingerprint: Of the classes and of all splits.
        test_fingerprint: Of the test images.
        counts: Images of each class, by split.
        licence: As the Hub spells it; missing where unknown.
        options: The fields of ``DataConfig`` that read them again, without those at their default; missing for images
            from memory and in older versions.
    """

    name: str
    fingerprint: str
    test_fingerprint: str
    counts: dict[str, list[int]]
    licence: str
    options: dict[str, Any]


@dataclass(frozen=True)
class RealData:
    """The real images in three splits. Made by ``load_data``, ``from_arrays`` or ``from_dataset``.

    Attributes:
        name: What manifests and reports call the data.
        classes: Names in index order.
        train: The images that sets are made from and teachers are trained on.
        validation: Images kept from every training and from the test.
        test: Images that evaluations alone read, once.
        problems: What was skipped or altered while reading.
        licence: Of the images, as the Hub spells it; None where it is unknown.
        reading: What ``load_data`` read for each split and what it left out, in one line; empty otherwise.
        options: The options of ``load_data`` that are not at their default; empty otherwise.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    problems: tuple[str, ...] = field(default=())
    licence: str | None = None
    reading: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | Sequence[int] | Sequence[str],
        classes: Sequence[str] | None = None,
        *,
        test: Arrays | None = None,
        validation: Arrays | None = None,
        test_fraction: float = 0.25,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        image_size: int | None = None,
        name: str = "arrays",
        licence: str | None = None,
    ) -> RealData:
        """Images in memory, split as ``load_data`` splits them: the same pixels have the same splits and fingerprint.

        Args:
            images: (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1 or 3; uint8 in [0, 255] or float in [0, 1].
            labels: N class names, or N integers that are positions in ``classes``.
            classes: Names in index order; None takes the distinct labels, sorted, as text.
            test: (images, labels) of the test split; None holds out ``test_fraction`` of each class.
            validation: The same of the validation split, with ``validation_fraction``.
            test_fraction: Between 0 and 0.9.
            validation_fraction: Between 0 and 0.9, of what the test split leaves.
            split_seed: Of both draws.
            image_size: Side in pixels to resize to, after a central square crop; None keeps square images as they are.
            name: What manifests and reports call the data.
            licence: Of the images, as the Hub spells it, for the cards of sets made from them.

        Returns:
            The data. Its images are copies.

        Raises:
            DataError: images of another shape, type or range; a label that is no class; a class with too few images.
            ConfigError: a fraction or ``image_size`` out of range.

        Example:
            >>> data = RealData.from_arrays(np.zeros((40, 8, 8), np.uint8), ["cat", "dog"] * 20)
            >>> data.classes
            ('cat', 'dog')
        """
        config = DataConfig(
            name=name,
            image_size=image_size,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            licence=licence,
        )
        names = class_names(labels, classes)

        def split(images: np.ndarray | Tensor, labels: Any) -> Split:
            return Split(square(to_stored(images), image_size), label_indices(labels, len(images), names, classes))

        held_out = [None if one is None else split(*one) for one in (test, validation)]
        return cls.from_splits(config, tuple(map(str, names)), split(images, labels), *held_out)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset[Any],
        *,
        test: Dataset[Any] | None = None,
        validation: Dataset[Any] | None = None,
        classes: Sequence[str] | None = None,
        image_size: int | None = None,
        name: str | None = None,
        **options: Any,
    ) -> RealData:
        """The samples of a PyTorch dataset, each read once: give it without random transforms or normalisation.

        Args:
            dataset: Its samples are (image, label): a Pillow image, or a tensor or array of one image as
                ``from_arrays`` takes them; a class name or an integer. Torchvision's classification datasets are such.
            test: A dataset of the test split; None holds out a share of each class.
            validation: The same of the validation split.
            classes: Names in index order; None takes ``dataset.classes``, or the distinct labels where it has none.
            image_size: Side in pixels to resize to, after a central square crop; None expects one square size.
            name: What manifests and reports call the data; None takes the name of the dataset's class.
            options: ``test_fraction``, ``validation_fraction``, ``split_seed`` and ``licence`` of ``from_arrays``.

        Raises:
            DataError: as in ``from_arrays``; images of different sizes without ``image_size``.

        Example:
            ``RealData.from_dataset(CIFAR10("data", train=True), test=CIFAR10("data", train=False))``
        """
        classes = getattr(dataset, "classes", None) if classes is None else classes
        images, labels = read_samples(dataset, image_size)
        options["test"] = None if test is None else read_samples(test, image_size)
        options["validation"] = None if validation is None else read_samples(validation, image_size)
        name = name or type(dataset).__name__
        return cls.from_arrays(images, labels, classes, image_size=image_size, name=name, **options)

    @classmethod
    def from_splits(
        cls,
        config: DataConfig,
        classes: tuple[str, ...],
        train: Split,
        test: Split | None,
        validation: Split | None = None,
        *,
        problems: Iterable[str] = (),
    ) -> RealData:
        """The data of these images, with a test and a validation split held out from ``train`` where none is given.

        Raises:
            DataError: there are fewer than two classes, a class has too few images, or the splits have images of
                different shapes.
        """
        require_classes(config.name, classes)
        counts = train.counts(len(classes))
        if empty := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
            raise DataError(f"Empty class in {config.name}: no readable training image of {some(empty)}.")
        need = 1 + (test is None) + (validation is None)
        if small := [(count, name) for name, count in zip(classes, counts, strict=True) if count < need]:
            count, name = min(small)
            held = " and ".join(n for n, one in (("test", test), ("validation", validation)) if one is None)
            raise DataError(
                f"Class {name!r} has {count} usable image(s), too few to hold out a {held} split; every class needs at "
                f"least {need}. Add images or remove the class."
            )
        shapes = [tuple(split.images.shape[1:]) for split in (train, test, validation) if split is not None]
        if len({*shapes}) > 1:
            raise DataError(
                f"The splits have images (C,H,W) of {', '.join(map(str, shapes))}; expected the same. Give "
                "image_size, and make all grey or all RGB."
            )
        if test is None:
            train, test = stratified_split(train, config.test_fraction, classes, config.split_seed, "test")
        if validation is None:
            train, validation = stratified_split(
                train, config.validation_fraction, classes, config.split_seed, "validation"
            )
        return cls(config.name, classes, train, validation, test, tuple(problems), config.licence)

    def __repr__(self) -> str:
        counts = "/".join(str(len(split)) for split in (self.train, self.validation, self.test))
        size = "x".join(map(str, self.train.images.shape[1:]))
        return (
            f"RealData({self.name!r}, {len(self.classes)} classes, {counts} images of {size}, "
            f"fingerprint {self.fingerprint()[:13]})"
        )

    @property
    def image_size(self) -> int:
        return int(self.train.images.shape[-1])

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    def fingerprint(self) -> str:
        """A hash of class names, pixels and labels of all splits: equal data, equal fingerprint."""
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
            digest.update(np.ascontiguousarray(split.hashes))
            digest.update(split.labels.numpy())
        return OF_HASHES + digest.hexdigest()

    def is_of(self, fingerprint: str | None) -> bool:
        """Whether these are the data of a recorded fingerprint, whichever version recorded it."""
        return self._is(fingerprint, self.fingerprint(), "fingerprint")

    def has_test_of(self, fingerprint: str | None) -> bool:
        """The same of ``test_fingerprint``."""
        return self._is(fingerprint, self.test_fingerprint, "test_fingerprint")

    def _is(self, recorded: str | None, own: str, kind: str) -> bool:
        old = recorded is not None and not recorded.startswith(OF_HASHES)
        return recorded == own or (old and recorded == self.old_fingerprints[kind])

    @cached_property
    def old_fingerprints(self) -> dict[str, str]:
        """Both fingerprints as earlier versions made them, from all pixels: takes as long as reading them."""
        splits = {"fingerprint": (self.train, self.validation, self.test), "test_fingerprint": (self.test,)}
        return {kind: self._pixel_digest(*ones) for kind, ones in splits.items()}

    def _pixel_digest(self, *splits: Split) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(self.classes).encode())
        for split in splits:
            digest.update(repr(tuple(split.images.shape)).encode())
            for part in split.images.split(4096):
                digest.update(part.contiguous().numpy())
            digest.update(split.labels.numpy())
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
            return replace(split.take(kept), labels=labels[kept])

        return replace(
            self,
            classes=classes,
            train=chosen(self.train),
            validation=chosen(self.validation),
            test=chosen(self.test),
        )

    def describe(self) -> DataFacts:
        """The manifest's ``data`` entry."""
        n = len(self.classes)
        counts = {k: getattr(self, k).counts(n) for k in ("train", "validation", "test")}
        found: DataFacts = {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "test_fingerprint": self.test_fingerprint,
            "counts": counts,
        }
        if self.licence is not None:
            found["licence"] = self.licence
        if self.options:
            found["options"] = dict(self.options)
        return found


def stratified_split(
    split: Split, fraction: float, classes: tuple[str, ...], seed: int, purpose: str
) -> tuple[Split, Split]:
    """(rest, held out), as ``hold_out`` draws them."""
    rest, held = hold_out(split.labels, fraction, classes, seed, purpose)
    return split.take(rest), split.take(held)


def require_classes(name: str, classes: Sequence[str]) -> None:
    """Refuse fewer than two classes.

    Raises:
        DataError: there are fewer.
    """
    if len(classes) < 2:
        names = f" ({some(classes)})" if classes else ""
        raise DataError(f"{name} has {len(classes)} class(es){names}; expected at least two classes.")


def check_classes(what: str, classes: tuple[str, ...], data: RealData) -> None:
    """Refuse other classes than the data's, or another order."""
    if classes != data.classes:
        raise ArtifactError(
            f"{what} has classes {', '.join(classes)}, the data {', '.join(data.classes)}; "
            "expected the same in the same order."
        )


def same_test(meta: Mapping[str, Any], data: RealData) -> bool:
    """Whether a manifest names no data, these data, or others with the same test images."""
    source = meta.get("data", {})
    fingerprint = source.get("fingerprint")
    return fingerprint is None or data.has_test_of(source.get("test_fingerprint")) or data.is_of(fingerprint)


def check_origin(what: str, classes: tuple[str, ...], meta: Mapping[str, Any], data: RealData) -> None:
    """Refuse what was made from other classes, or from a split whose training images may be test images here."""
    check_classes(what, classes, data)
    if not same_test(meta, data):
        source = meta["data"]
        name, fingerprint = source.get("name"), source["fingerprint"]
        raise ArtifactError(
            f"{what} was made from other images or splits ({name}, fingerprint {fingerprint}) than "
            f"--data gives ({data.name}, {data.fingerprint()}), so test images may be among them. Give the --data "
            f"options it was made with{f': {known}' if (known := data_arguments(source)) else ''}."
        )


def data_arguments(facts: DataFacts) -> str:
    """The options of the command line that read the images of a manifest again, as far as it has them."""
    options = facts.get("options") or ({"name": facts["name"]} if facts.get("name") else {})
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return shlex.join(word for name, value in values.items() for word in (f"--data.{name}", value))


def data_config_of(facts: DataFacts) -> DataConfig | None:
    """The options that read the images of a manifest's ``data`` again; None where it does not say them.

    Raises:
        ConfigError: an option has a value that this version refuses.
    """
    options = facts.get("options")
    return DataConfig(**options) if options else None
