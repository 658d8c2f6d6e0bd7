"""The real images that all sets are compared with, prepared once; and a set prepared for the comparison.

Legend: K classes; the pool is the real images of a class that a set is compared with, (n,...).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gendistill.data.class_positions import evenly_spaced, evenly_spaced_by_class, positions_by_class
from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import Images, block_of
from gendistill.evaluation.copies import Copies, LeakageCheck
from gendistill.evaluation.set_metrics import Values, random_sets
from gendistill.networks.feature_extractors import FeatureExtractor
from gendistill.progress import show_progress, track
from gendistill.surrogate.set import SurrogateSet, files_of

POOL, POOL_OF_CLASS = 5000, 20  # real images at most: in all, or of every class where that is more
SHOWN = 1000  # images whose grey levels are counted
CONTROL = 50  # real images that the copy check must all find


@dataclass(frozen=True)
class RealReference:
    """The real images that sets are compared with.

    Attributes:
        data: The real images.
        images: Some of all pools, uint8 (N,C,H,W).
        features: Features of the pool of each class, (n,D).
        probabilities: What the classifier says of the pool of each class, (n,K).
        known: Positions in the pool of each class by the hash of the pixels.
        held_out: What the classifier says of the validation images.
        leaks: The copy check, and the test images.
        control: Share of real training images that the copy check calls copies; 1 where it works.
        seed: Seed of the random real sets.
    """

    data: RealData
    images: Tensor
    features: list[Tensor]
    probabilities: list[Tensor]
    known: list[dict[bytes, int]]
    held_out: Predictions
    leaks: LeakageCheck
    control: float
    seed: int = 0
    _random: dict[tuple[int, ...], list[list[Values]]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: RealData, extractor: FeatureExtractor, seed: int = 0) -> RealReference:
        classes = len(data.classes)
        position = evenly_spaced_by_class(data.train.labels, classes, max(POOL, POOL_OF_CLASS * classes))
        pool, leaks = data.train.take(position), LeakageCheck.of(data)
        hashes = list(map(bytes, data.train.hashes[position.numpy()]))
        return cls(
            data,
            pool.images[torch.tensor(evenly_spaced(len(pool), SHOWN))],
            by_class(extractor.embed(pool.images), pool.labels, classes),
            by_class(extractor.classify(pool.images), pool.labels, classes),
            [{hashes[i]: n for n, i in enumerate(pool.of_class(k).tolist())} for k in range(classes)],
            Predictions.of_images(extractor, data.validation.images),
            leaks,
            float(leaks.reference.check(pool.images[evenly_spaced(len(pool), CONTROL)]).near.float().mean()),
            seed,
        )

    def random(self, counts: Sequence[int], seed: int) -> list[list[Values]]:
        """The measures of random real sets with so many images of each class, drawn once for all sets of that size."""
        key = (*counts, seed)
        if key not in self._random:
            self._random[key] = random_sets(self.features, counts, seed=seed)
        return self._random[key]

    def held(self, subject: DescribedSet) -> list[Tensor]:
        """By class, the positions in the pool of images that are among the measured ones of a set."""
        found, labels, hashes = [], subject.views.labels[subject.position], subject.copies.hashes
        for known, own in zip(self.known, by_class(subject.position, labels, len(self.known)), strict=True):
            at = {known[d] for i in own.tolist() if (d := hashes[i]) in known}
            found.append(torch.tensor(sorted(at), dtype=torch.int64))
        return found


@dataclass(frozen=True)
class DescribedSet:
    """A set and what was computed of it.

    Attributes:
        made: The set.
        views: Its decoded images.
        position: Positions (M,) of the views that are measured.
        features: Their features, (M,D).
        probabilities: What the classifier says of them, (M,K).
        inverted: What it says of 255 - image, (M,K).
        copies: Copies of real images, among all views.
        near: Positions of views that are near copies of test images.
        files: A name for every view.
    """

    made: SurrogateSet
    views: Split
    position: Tensor
    features: Tensor
    probabilities: Tensor
    inverted: Tensor
    copies: Copies
    near: Tensor
    files: list[str]

    @classmethod
    def of(
        cls, made: SurrogateSet, real: RealReference, extractor: FeatureExtractor, copies: Copies | None = None
    ) -> DescribedSet:
        """Measure a set; ``copies`` is the result of its copy check, where there is one already."""
        views = made.split
        position = _measured(views.labels, real.features)
        images = views.images[position]
        copies = copies or real.leaks.reference.check(views.pixels)
        features, probabilities = extractor.embed(images), extractor.classify(images)
        inverted = extractor.classify(255 - images)
        return cls(
            made, views, position, features, probabilities, inverted, copies, real.leaks.near(copies), _view_files(made)
        )

    @property
    def measured(self) -> Split:
        return self.views.take(self.position)

    def names(self, position: Tensor) -> list[str]:
        return [self.files[i] for i in position.tolist()]


def by_class(values: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    return [values[index] for index in positions_by_class(labels, classes)]


def _measured(labels: Tensor, pool: Sequence[Tensor]) -> Tensor:
    """Positions, ascending: of each class at most half as many as its pool has, evenly spaced."""
    pairs = zip(positions_by_class(labels, len(pool)), pool, strict=True)
    return torch.cat([at[evenly_spaced(len(at), max(1, len(real) // 2))] for at, real in pairs]).sort().values


def _view_files(made: SurrogateSet) -> list[str]:
    """A name for every decoded image, in their order; several views of one file are numbered."""
    files, views = files_of(made), made.views
    return list(files) if views == 1 else [f"{file} (view {v})" for file in files for v in range(views)]


@dataclass(frozen=True)
class Predictions:
    """The likeliest class of each image by a classifier, and its probability, (N,) each."""

    guesses: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, probabilities: Tensor) -> Predictions:
        """Those of probabilities (N,K)."""
        confidence, guesses = probabilities.max(1)
        return cls(guesses, confidence)

    @classmethod
    def of_images(cls, extractor: FeatureExtractor, images: Images) -> Predictions:
        """Those for uint8 images (N,C,H,W)."""
        parts = []
        size = block_of(images)
        for part in track(images.split(size), "classes", -(-len(images) // size)):
            with show_progress(False):  # of one block
                parts.append(cls.of(extractor.classify(part)))
        return cls(torch.cat([part.guesses for part in parts]), torch.cat([part.confidence for part in parts]))
