"""Describe surrogate sets class by class beside random real sets of their size, and find their faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError
from gendistill.evaluation.checks import Finding
from gendistill.evaluation.checks.counts import data_findings
from gendistill.evaluation.checks.labels import label_quality, soft_targets
from gendistill.evaluation.copies import space as pixel_space
from gendistill.evaluation.reference import DescribedSet, RealReference, by_class
from gendistill.evaluation.set_metrics import DRAWS, likeness
from gendistill.evaluation.summary import FindingEntry, LabelNumbers, SetNumbers
from gendistill.networks.feature_extractors import FeatureExtractor
from gendistill.progress import note, track
from gendistill.registry import CHECKS
from gendistill.surrogate.set import SurrogateSet

RANGE = "value range"


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
    real = RealReference.of(data, extractor, seed)
    found, findings = dict[str, SetNumbers](), data_findings(real.leaks.reference.known, data)
    for key, made in track(fitting.items(), "describe sets", len(fitting)):
        subject = DescribedSet.of(made, real, extractor)
        quality = label_quality(subject, real, soft_targets(made), extractor.classifier, seed)
        found[key] = _numbers(subject, real, extractor.space, quality, seed)
        findings += [replace(finding, set=key) for finding in _faults(subject, real)]
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


def _faults(subject: DescribedSet, real: RealReference) -> list[Finding]:
    """What every registered check finds, one finding for one fault."""
    found = {name: run_check(name, subject, real) for name in CHECKS.names()}
    pixels, labels = found["pixel_values"], found["labels"]
    if any(f.kind == RANGE and f.severity == "error" for f in pixels):  # which is why images are not recognised
        found["labels"] = [f for f in labels if f.kind not in (RANGE, "not recognised")]
    elif any(f.kind == RANGE for f in labels):
        found["pixel_values"] = [f for f in pixels if f.kind != RANGE]
    return [*chain(*found.values())]


def run_check(name: str, subject: DescribedSet, real: RealReference) -> list[Finding]:
    """The findings of one check.

    Raises:
        ConfigError: it returns something else.
    """
    findings = list(CHECKS[name](subject, real))
    strange = [one for one in findings if not isinstance(one, Finding)]
    if strange:
        raise ConfigError(f"The check {name!r} returned {strange[0]!r}; expected Finding objects.")
    return findings
