"""The quality of a set's labels: whether a classifier of the real images agrees with them, and how sure it is.

Legend: N images, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gendistill.data.crops import batch_indices
from gendistill.evaluation.set_metrics import shares
from gendistill.evaluation.reference import RealSide, Subject, by_class
from gendistill.surrogate.set import SurrogateSet

STEPS = 20  # batches of stored soft labels that are looked at
Soft = tuple[Tensor, Tensor]


def label_quality(
    subject: Subject, real: RealSide, soft: Soft | None, classifier: str | None, seed: int
) -> dict[str, Any]:
    """``agreement`` (share) and ``entropy`` (nats) of the hard labels' images and of stored soft labels, by class.

    Random real images with soft labels are labelled by the same teacher, if that is the ``classifier`` (its hash).
    """
    classes, measured = len(real.data.classes), subject.measured
    pool = [_quality(p, k) for k, p in enumerate(real.probabilities)]
    hard = [_quality(p, k) for k, p in enumerate(by_class(subject.probabilities, measured.labels, classes))]
    right = (real.held_out.guesses == real.data.validation.labels).double().mean()
    found: dict[str, Any] = {"hard": shares(pool, hard, seed=seed), "held_out_agreement": float(right), "soft": None}
    labels = subject.made.soft_labels
    if labels is None or soft is None:
        return {**found, "soft_reason": _why_none(subject.made)}
    values = [_quality(p, k) for k, p in enumerate(by_class(*soft, classes))]
    if classifier is not None and labels.teacher.get("hash") == classifier:
        pool = [_quality(_tempered(p, labels.temperature), k) for k, p in enumerate(real.probabilities)]
        return {**found, "soft": shares(pool, values, seed=seed), "soft_reason": None}
    alone = {name: {**value, "random": None} for name, value in shares(pool, values, seed=seed).items()}
    reason = "random real images have no labels of that teacher; give it as --teacher"
    return {**found, "soft": alone, "soft_reason": reason}


def soft_targets(made: SurrogateSet) -> Soft | None:
    """(stored soft labels (N,K), hard labels (N,)) where each belongs to an image of one class, else None."""
    soft, labels = made.soft_labels, made.labels.repeat_interleave(made.views)
    if soft is None or soft.mode == "online" or soft.views.cutmix:
        return None
    if soft.mode == "per_image":
        return soft.probabilities(torch.arange(len(labels))), labels
    steps = range(min(STEPS, soft.steps or 0))
    index = [batch_indices(len(labels), soft.views.batch_size, step, soft.views.seed) for step in steps]
    return torch.cat([soft.probabilities(step) for step in steps]), labels[torch.cat(index)]


def _quality(probabilities: Tensor, label: int) -> dict[str, Tensor]:
    """By image: whether the likeliest class is the label, and the entropy in nats."""
    return {
        "agreement": (probabilities.argmax(1) == label).double(),
        "entropy": torch.special.entr(probabilities.double()).sum(1),
    }


def _tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) from softmax(logits)."""
    return (probabilities.double().clamp(min=1e-30).log() / temperature).softmax(1)


def _why_none(made: SurrogateSet) -> str:
    if made.soft_labels is None:
        return "the set has none"
    return "they are made in training" if made.soft_labels.mode == "online" else "CutMix joins images of two classes"
