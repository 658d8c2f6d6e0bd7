"""Describe: surrogate sets themselves, class by class, beside random real sets of their size; and faults in them.

Legend: K classes; the pool is the real images of a class that a set is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendistill.data.real import RealData, Split
from gendistill.data.views import batch_indices
from gendistill.evaluate.copies import Copies, digests
from gendistill.evaluate.faults import (
    count_findings,
    data_findings,
    duplicate_findings,
    leak_findings,
    soft_findings,
)
from gendistill.evaluate.findings import Finding
from gendistill.evaluate.leaks import Leaks, space
from gendistill.evaluate.likeness import DRAWS, likeness, shares
from gendistill.evaluate.mislabelled import Sight, label_findings
from gendistill.evaluate.ranges import range_findings
from gendistill.evaluate.spread import spread, spread_by_class
from gendistill.progress import note, track
from gendistill.stages.inside import files_of
from gendistill.stages.lens import Lens
from gendistill.surrogate.surrogate import SurrogateSet

POOL, POOL_OF_CLASS = 5000, 20  # real images at most: in all, or of every class where that is more
PIXELS = 1000  # images whose grey levels are counted
CONTROL = 50  # real images that the copy check must all find
STEPS = 20  # batches of stored soft labels that are looked at
Look = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RealSide:
    """The real images as every set is compared with them, seen once.

    Attributes:
        images: Of the pool, uint8 (N,C,H,W).
        labels: Of the pool, (N,).
        features: By class (n,D).
        probabilities: By class (n,K).
        known: By class the positions in the pool by the hash of their pixels.
        held_out: What the classifier makes of the validation images.
        leaks: The test images.
        control: Share of real training images that the copy check calls copies; 1 where it works.
    """

    images: Tensor
    labels: Tensor
    features: list[Tensor]
    probabilities: list[Tensor]
    known: list[dict[bytes, int]]
    held_out: Sight
    leaks: Leaks
    control: float

    @classmethod
    def of(cls, data: RealData, embed: Look, classify: Look) -> RealSide:
        classes = len(data.classes)
        pool = data.train.take(spread_by_class(data.train.labels, classes, max(POOL, POOL_OF_CLASS * classes)))
        hashes = list(digests(pool.images))
        at = [pool.of_class(k).tolist() for k in range(classes)]
        leaks = Leaks.of(data)
        return cls(
            pool.images,
            pool.labels,
            _by_class(embed(pool.images), pool.labels, classes),
            _by_class(classify(pool.images), pool.labels, classes),
            [{hashes[i]: n for n, i in reversed(list(enumerate(index)))} for index in at],
            Sight.of(classify(data.validation.images)),
            leaks,
            float(leaks.reference.check(pool.images[spread(len(pool), CONTROL)]).near.float().mean()),
        )


def describe(
    data: RealData,
    sets: Mapping[str, SurrogateSet],
    embed: Look,
    classify: Look,
    *,
    space: str = "features",
    classifier: str | None = None,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """(what is measured of each set, faults found), by the content hash that ``sets`` has them under.

    ``embed`` gives features of uint8 images, which ``space`` names; ``classify`` the probabilities of a classifier of
    the real classes, ``classifier`` its hash where it is a teacher's. Of a class at most half as many images as the
    pool has are measured, evenly spaced. Sets of another size than the real images are left out.
    """
    fitting = {h: s for h, s in sets.items() if s.images.shape[1:] == data.train.images.shape[1:]}
    real = RealSide.of(data, embed, classify)
    found, findings = {}, data_findings(real.leaks.reference.known, data)
    for key, made in track(fitting.items(), "describe sets", len(fitting)):
        numbers, faults = _describe_one(made, data, real, embed, classify, classifier, seed)
        found[key] = {"features": space, **numbers}
        findings += [Finding(f.kind, f.text, f.severity, key) for f in faults]
    for finding in findings:
        if finding.severity == "error":
            note(f"{finding.kind}: {finding.text}")
    return found, [finding.to_dict() for finding in findings]


def _describe_one(
    made: SurrogateSet, data: RealData, real: RealSide, embed: Look, classify: Look, classifier: str | None, seed: int
) -> tuple[dict[str, Any], list[Finding]]:
    classes, views = len(data.classes), made.split
    position = _measured(views.labels, real.features)
    measured = views.take(position)
    features, probabilities = embed(measured.images), classify(measured.images)
    copies = real.leaks.reference.check(views.images)
    near = real.leaks.near(views.images, copies)
    files = _view_files(made)
    soft = _soft_targets(made)
    numbers = {
        "images": len(made.images),
        "views": len(views),
        "measured": len(measured),
        "measured_by_class": measured.counts(classes),
        "draws": DRAWS,
        "classes": list(data.classes),
        "measures": likeness(
            real.features, _by_class(features, measured.labels, classes), _held(measured, real, classes), seed=seed
        ),
        "labels": _label_quality(made, measured, probabilities, data, real, soft, classifier, seed),
        "copies": _copy_numbers(copies, near, data, real),
    }
    seen = Sight.of(probabilities)
    known = data.validation.labels
    named = [files[i] for i in position.tolist()]
    inverted = Sight.of(classify(255 - measured.images))
    faults = count_findings(made.labels, data.train.labels, data.classes)
    faults += label_findings(seen, measured.labels, real.held_out, known, data.classes, named, inverted)
    pick = spread(len(measured), PIXELS)
    faults += range_findings(
        measured.images[pick],
        real.images[spread(len(real.images), PIXELS)],
        [named[i] for i in pick],
        seed,
    )
    faults += duplicate_findings(made.images, made.labels, data.classes, files_of(made))
    faults += leak_findings(copies, near, real.leaks.usual, data, files)
    if soft and made.soft_labels:
        faults += soft_findings(soft[0], soft[1], data.classes, made.soft_labels.teacher.get("accuracy"))
    return numbers, _once(faults)


def _once(faults: Sequence[Finding]) -> list[Finding]:
    """Without a second one about the value range: pixels and the classifier may both have seen it."""
    kinds: set[str] = set()
    kept = []
    for fault in sorted(faults, key=lambda f: (f.severity != "error",)):
        if fault.kind != "value range" or fault.kind not in kinds:
            kept.append(fault)
        kinds.add(fault.kind)
    return kept


def _measured(labels: Tensor, pool: Sequence[Tensor]) -> Tensor:
    """Positions, ascending, of the views that are measured: of each class at most half as many as its pool has."""
    found = []
    for k, features in enumerate(pool):
        at = torch.nonzero(labels == k).flatten()
        found.append(at[spread(len(at), max(1, len(features) // 2))])
    return torch.cat(found).sort().values


def _held(measured: Split, real: RealSide, classes: int) -> list[Tensor]:
    """By class, the positions in the pool of images that the set holds too."""
    hashes = list(digests(measured.images))
    found = []
    for k in range(classes):
        at = {real.known[k].get(hashes[i]) for i in measured.of_class(k).tolist()} - {None}
        found.append(torch.tensor(sorted(a for a in at if a is not None), dtype=torch.int64))
    return found


def _by_class(values: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    return [values[labels == k] for k in range(classes)]


def _view_files(made: SurrogateSet) -> list[str]:
    """Of the decoded images, in their order; several views of one file are numbered."""
    files, views = files_of(made), made.factor**2
    return list(files) if views == 1 else [f"{file} (view {v})" for file in files for v in range(views)]


def _copy_numbers(copies: Copies, near: Tensor, data: RealData, real: RealSide) -> dict[str, Any]:
    return {**copies.summary(), "space": space(data), "near_test": len(near), "control": real.control}


def _quality(probabilities: Tensor, label: int) -> dict[str, Tensor]:
    """By image: whether the likeliest class is the label, and the entropy in nats."""
    return {
        "agreement": (probabilities.argmax(1) == label).double(),
        "entropy": torch.special.entr(probabilities.double()).sum(1),
    }


def _label_quality(
    made: SurrogateSet,
    measured: Split,
    probabilities: Tensor,
    data: RealData,
    real: RealSide,
    soft: tuple[Tensor, Tensor] | None,
    classifier: str | None,
    seed: int,
) -> dict[str, Any]:
    """Of the hard labels, as the classifier sees their images, and of the stored soft labels."""
    classes = len(data.classes)
    pool = [_quality(p, k) for k, p in enumerate(real.probabilities)]
    hard = [_quality(p, k) for k, p in enumerate(_by_class(probabilities, measured.labels, classes))]
    found: dict[str, Any] = {"hard": shares(pool, hard, seed=seed), "soft": None, "soft_reason": None}
    found["held_out_agreement"] = float((real.held_out.guesses == data.validation.labels).double().mean())
    if made.soft_labels is None or soft is None:
        found["soft_reason"] = _why_no_soft(made)
        return found
    values = [_quality(p, k) for k, p in enumerate(_by_class(soft[0], soft[1], classes))]
    same = classifier is not None and made.soft_labels.teacher.get("hash") == classifier
    heat = made.soft_labels.temperature
    tempered = [_quality(_tempered(p, heat), k) for k, p in enumerate(real.probabilities)] if same else pool
    sized = [
        {name: value[: len(p["entropy"]) // 2] for name, value in v.items()} for v, p in zip(values, pool, strict=True)
    ]
    found["soft"] = shares(tempered, sized, seed=seed)
    if not same:
        for value in found["soft"].values():
            value["random"] = None
        found["soft_reason"] = "random real images have no labels of this teacher; give it as --teacher"
    return found


def _tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) of softmax(logits)."""
    return (probabilities.double().clamp(min=1e-30).log() / temperature).softmax(1)


def _why_no_soft(made: SurrogateSet) -> str:
    if made.soft_labels is None:
        return "the set has none"
    return (
        "they are made during training" if made.soft_labels.mode == "online" else "CutMix joins images of two classes"
    )


def _soft_targets(made: SurrogateSet) -> tuple[Tensor, Tensor] | None:
    """(stored soft labels (M,K), hard labels (M,)) where each belongs to an image of one class, else None."""
    soft, labels = made.soft_labels, made.labels.repeat_interleave(made.factor**2)
    if soft is None or soft.mode == "online" or soft.views.cutmix:
        return None
    if soft.mode == "per_image":
        return soft.probabilities(torch.arange(len(labels))), labels
    steps = range(min(STEPS, soft.steps or 0))
    index = [batch_indices(len(labels), soft.views.batch_size, step, soft.views.seed) for step in steps]
    return torch.cat([soft.probabilities(step) for step in steps]), labels[torch.cat(index)]


def described(data: RealData, surrogates: Sequence[SurrogateSet], lens: Lens, seed: int) -> dict[str, Any]:
    """The entries ``sets`` and ``findings`` of a summary."""
    sets = {made.content_hash(): made for made in surrogates}
    found, findings = describe(
        data, sets, lens.embed, lens.classify, space=lens.space, classifier=lens.classifier, seed=seed
    )
    return {"sets": found, "findings": findings}
