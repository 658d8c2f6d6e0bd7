"""Describe surrogate sets class by class beside random real sets of their size, and find their faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from gendistill.data.dataset import RealData, evenly_spaced
from gendistill.evaluation.checks.counts import (
    count_findings,
    data_findings,
    duplicate_findings,
    leak_findings,
    soft_findings,
)
from gendistill.evaluation.checks.finding import Finding
from gendistill.evaluation.checks.labels import label_findings, label_quality, soft_targets
from gendistill.evaluation.checks.pixel_values import range_findings
from gendistill.evaluation.copies import space as pixel_space
from gendistill.evaluation.reference import DescribedSet, Predictions, RealReference, by_class
from gendistill.evaluation.set_metrics import DRAWS, likeness
from gendistill.evaluation.summary import FindingEntry, LabelNumbers, SetNumbers
from gendistill.networks.feature_extractors import FeatureExtractor
from gendistill.progress import note, track
from gendistill.surrogate.set import SurrogateSet, files_of

RANGE = "value range"
PIXELS = 1000  # images whose grey levels are counted


def describe(
    data: RealData, sets: Mapping[str, SurrogateSet], extractor: FeatureExtractor, *, seed: int = 0
) -> tuple[dict[str, SetNumbers], list[FindingEntry]]:
    """Measure every set, and look for faults.

    Of a class at most half as many images as its pool of real ones has are measured, evenly spaced. Sets of another
    image size than the real images are left out.

    Args:
        data: The real images.
        sets: The sets, by content hash.
        extractor: Computes features, and classifies images.
        seed: Of the random real sets.

    Returns:
        (numbers of each set by content hash, faults).
    """
    shape = data.train.images.shape[1:]
    fitting = {key: made for key, made in sets.items() if made.images.shape[1:] == shape and len(made.labels)}
    real = RealReference.of(data, extractor)
    found, findings = dict[str, SetNumbers](), data_findings(real.leaks.reference.known, data)
    for key, made in track(fitting.items(), "describe sets", len(fitting)):
        subject, soft = DescribedSet.of(made, real, extractor), soft_targets(made)
        quality = label_quality(subject, real, soft, extractor.classifier, seed)
        found[key] = _numbers(subject, real, extractor.space, quality, seed)
        inverted = extractor.classify(255 - subject.measured.images)
        faults = [*_faults(subject, real, inverted, seed), *_soft_faults(made, soft, data)]
        findings += [replace(finding, set=key) for finding in faults]
    for finding in findings:
        if finding.severity == "error":
            note(f"{finding.kind}: {finding.text}")
    return found, [finding.to_dict() for finding in findings]


def _numbers(subject: DescribedSet, real: RealReference, space: str, labels: LabelNumbers, seed: int) -> SetNumbers:
    measured, classes = subject.measured, len(real.data.classes)
    counts = measured.counts(classes)
    features = by_class(subject.features, measured.labels, classes)
    return {
        "features": space,
        "images": len(subject.made.images),
        "views": len(subject.views),
        "measured": len(measured),
        "measured_by_class": counts,
        "draws": DRAWS,
        "classes": list(real.data.classes),
        "measures": likeness(real.features, features, real.held(measured), real.random(counts, seed), seed=seed),
        "copies": {
            **subject.copies.summary(),
            "space": pixel_space(real.data),
            "near_test": len(subject.near),
            "control": real.control,
        },
        "labels": labels,
    }


def _faults(subject: DescribedSet, real: RealReference, inverted: Tensor, seed: int) -> list[Finding]:
    """``inverted`` are the probabilities (M,K) of 255 - image."""
    data, made, measured = real.data, subject.made, subject.measured
    pixels = _pixel_faults(subject, real, seed)
    labels = label_findings(
        Predictions.of(subject.probabilities),
        measured.labels,
        real.held_out,
        data.validation.labels,
        data.classes,
        subject.names(subject.position),
        Predictions.of(inverted),
    )
    return [
        *count_findings(made.labels, data.train.labels, data.classes),
        *_joined(pixels, labels),
        *duplicate_findings(made.images, made.labels, data.classes, files_of(made)),
        *leak_findings(subject.copies, subject.near, real.leaks.usual, data, subject.files),
    ]


def _joined(pixels: Sequence[Finding], labels: Sequence[Finding]) -> list[Finding]:
    """One finding for one fault: a wrong range of the pixels explains why images are not recognised."""
    if any(f.kind == RANGE and f.severity == "error" for f in pixels):
        return [*pixels, *(f for f in labels if f.kind not in (RANGE, "not recognised"))]
    turned = any(f.kind == RANGE for f in labels)
    return [*(f for f in pixels if not (turned and f.kind == RANGE)), *labels]


def _pixel_faults(subject: DescribedSet, real: RealReference, seed: int) -> list[Finding]:
    """Faults of images that are no copies of training images: copies have the right values, even an unusual choice."""
    new = subject.position[subject.copies.exact["train"][subject.position] < 0]
    pick = new[evenly_spaced(len(new), PIXELS)]
    if not len(pick):
        return []
    usual = real.images[evenly_spaced(len(real.images), PIXELS)]
    return range_findings(subject.views.images[pick], usual, subject.names(pick), seed)


def _soft_faults(made: SurrogateSet, soft: tuple[Tensor, Tensor] | None, data: RealData) -> list[Finding]:
    if soft is None or made.soft_labels is None:
        return []
    return soft_findings(*soft, data.classes, made.soft_labels.teacher.get("accuracy"))
