"""Labels that do not fit their images, by a classifier of the real images: swapped, shuffled or single ones.

Legend: K classes, N images; guesses (N,) are the classifier's, labels (N,) the set's. ``held_out`` (K,K) counts the
classifier's guesses (columns) on real images of each class (rows) that it was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from gendistill.data.crops import batch_indices
from gendistill.evaluation.checks import NOT_RECOGNISED, SHUFFLED, VALUE_RANGE, Finding, counted, list_names
from gendistill.evaluation.reference import DescribedSet, Predictions, RealReference, by_class
from gendistill.evaluation.set_metrics import shares
from gendistill.evaluation.summary import LabelNumbers, Measure
from gendistill.surrogate.set import SurrogateSet

ODDS = 1000.0  # to one: how much likelier a fault must be than no fault
SURE = 0.7  # share of the confidence on held-out images; below it the images may show none of the classes


def confusion(guesses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often images of each class (rows) were guessed to be of each class (columns), float64 (K,K)."""
    return torch.bincount(labels * classes + guesses, minlength=classes**2).view(classes, classes).double()


def permutation(counts: Tensor, held_out: Tensor) -> list[int] | None:
    """The class that images with label k really have, for each k, where ``counts`` (K,K) leave no doubt, else None.

    It is the likeliest permutation under P(guess | class) = held_out counts + 1/2, normalised. It must be ``ODDS``
    times as likely as the labels as they are, for each of the K (K - 1) / 2 swaps that chance could offer. The images
    of every class that it moves must be classified as the other class at least half as often as real images of that.
    """
    classes = len(counts)
    chances = (held_out + 0.5) / (held_out + 0.5).sum(1, keepdim=True)
    likelihood = counts @ chances.log().T  # (label, class) -> log P(guesses of that label's images | class)
    _, best = linear_sum_assignment(likelihood.numpy(), maximize=True)
    gains = likelihood.gather(1, torch.tensor(best)[:, None])[:, 0] - likelihood.diagonal()
    moved = [k for k in range(classes) if best[k] != k and counts[k].sum()]
    own, other = counts.diagonal(), counts.gather(1, torch.tensor(best)[:, None])[:, 0]
    usual = chances.diagonal()[torch.tensor(best)] * counts.sum(1)
    clear = all(other[k] > max(0.5 * usual[k], 1.5 * own[k]) for k in moved)
    wanted = math.log(ODDS) + math.log(max(1, classes * (classes - 1) / 2))
    return best.tolist() if moved and clear and float(gains.sum()) > wanted else None


def check_labels(subject: DescribedSet, real: RealReference) -> list[Finding]:
    """``label_findings`` of the measured images."""
    return label_findings(
        Predictions.of(subject.probabilities),
        subject.measured.labels,
        real.held_out,
        real.data.validation.labels,
        real.data.classes,
        subject.names(subject.position),
        Predictions.of(subject.inverted),
    )


def label_findings(
    seen: Predictions,
    labels: Tensor,
    real: Predictions,
    real_labels: Tensor,
    classes: Sequence[str],
    files: Sequence[str],
    inverted: Predictions | None = None,
) -> list[Finding]:
    """Swapped classes; else inverted images, shuffled labels; else single images that look like another class.

    ``real`` are the predictions for held-out images with ``real_labels``; where they are little better than chance
    there are no findings. ``inverted`` are those for 255 - image. ``files`` (N,) name the images.
    """
    total = len(classes)
    held_out = confusion(real.guesses, real_labels, total)
    right = float(held_out.diagonal().sum() / held_out.sum())
    if not len(labels) or right < 2 / total:
        return []
    counts = confusion(seen.guesses, labels, total)
    order = permutation(counts, held_out)
    if order:
        return [_permuted(order, classes, counts)]
    agreeing, chance = int(counts.diagonal().sum()), _independent(counts)
    below = _certainly_below(agreeing, len(labels), right)
    if below and inverted and _turned(int((inverted.guesses == labels).sum()), agreeing, len(labels)):
        return [_inverted(int((inverted.guesses == labels).sum()), agreeing, len(labels))]
    if below and not _certainly_above(agreeing, len(labels), chance):
        sure = float(seen.confidence.mean()) >= SURE * float(real.confidence.mean())
        return [_unrecognised(agreeing, len(labels), chance, right, shuffled=sure and _varied(counts))]
    return _single(seen, labels, real, real_labels, classes, files)


def _independent(counts: Tensor) -> float:
    """The expected share of right guesses if they were independent of the labels."""
    return float((counts.sum(0) * counts.sum(1)).sum() / counts.sum() ** 2)


def _certainly_below(count: int, total: int, share: float) -> bool:
    return bool(binom.cdf(count, total, share) < 1 / ODDS)


def _certainly_above(count: int, total: int, share: float) -> bool:
    return bool(binom.sf(count - 1, total, share) < 1 / ODDS)


def _varied(counts: Tensor) -> bool:
    """Whether the guesses cover the classes about as the labels do."""
    return float(torch.minimum(counts.sum(0), counts.sum(1)).sum() / counts.sum()) > 0.6


def _turned(after: int, before: int, total: int) -> bool:
    return after > 2 * before and _certainly_above(after, total, (before + 1) / (total + 1))


def _inverted(after: int, before: int, total: int) -> Finding:
    return Finding(
        VALUE_RANGE,
        f"The images look inverted (255 - value): a classifier of the real images agrees with {before} of "
        f"{counted(total, 'label')}, and with {after} once they are turned back; store them as they were.",
    )


def _permuted(order: list[int], classes: Sequence[str], counts: Tensor) -> Finding:
    moved = [k for k in range(len(order)) if order[k] != k and counts[k].sum()]
    agreed = int(sum(counts[k, order[k]] for k in moved))
    pairs = list_names([f"{classes[k]!r} look like {classes[order[k]]!r}" for k in moved], 10)
    return Finding(
        "class order",
        f"Classes swapped or in another order than the data's: {len(moved)} of {len(order)} ({agreed} of their "
        f"{counted(int(counts[moved].sum()), 'image')} show it); images labelled {pairs}; give the set the class names "
        "in the data's order, or make it again with the same --data.",
    )


def _unrecognised(agreeing: int, total: int, chance: float, right: float, *, shuffled: bool) -> Finding:
    numbers = (
        f"a classifier of the real images agrees with {agreeing} of {counted(total, 'label')} "
        f"({agreeing / total:.0%}; chance {chance:.0%}, held-out real images {right:.0%})"
    )
    if shuffled:
        return Finding(
            SHUFFLED,
            f"The labels look shuffled: {numbers} and is sure of what it sees; pair images and labels anew, most often "
            "two lists were sorted differently.",
            numbers=numbers,
        )
    return Finding(
        NOT_RECOGNISED,
        f"The images are not recognised: {numbers} and is not sure of what it sees; look at them (`gendistill show`) "
        "and check value range, normalisation and labels.",
        "warning",
        numbers=numbers,
    )


def unrecognised_samples(numbers: str) -> Finding:
    """Of a generator's images, which are rarely stored or labelled wrongly and often sampled too early."""
    return Finding(
        NOT_RECOGNISED,
        f"The generator's samples are not recognised: {numbers}; the usual remedy is a longer training of the "
        "generator (finetune.base_steps, finetune.minimax_steps). Look at them with `gendistill show`.",
        "warning",
    )


def _single(
    seen: Predictions,
    labels: Tensor,
    real: Predictions,
    real_labels: Tensor,
    classes: Sequence[str],
    files: Sequence[str],
) -> list[Finding]:
    """Images confidently classified as another class, where there are far more than among held-out real ones."""
    sure = 0.9
    wrong = (seen.guesses != labels) & (seen.confidence > sure)
    usual = float(((real.guesses != real_labels) & (real.confidence > sure)).float().mean())
    count = int(wrong.sum())
    if count < 2 or not _certainly_above(count, len(labels), min(1.0, 2 * usual + 0.02)):
        return []
    found = torch.nonzero(wrong).flatten()
    at = found[seen.confidence[found].argsort(descending=True, stable=True)].tolist()
    shown = list_names([f"{files[i]} (looks like {classes[int(seen.guesses[i])]!r})" for i in at])
    return [
        Finding(
            "other class",
            f"Images that look like another class than their label to a classifier over 90 % sure: {count:,} of "
            f"{len(labels):,} (of held-out real images {usual:.1%}), such as {shown}; look at them, and drop or "
            "relabel what is wrong.",
            "warning",
        )
    ]


STEPS = 20  # batches of stored soft labels that are checked
Soft = tuple[Tensor, Tensor]


def label_quality(
    subject: DescribedSet, real: RealReference, soft: Soft | None, classifier: str | None, seed: int
) -> LabelNumbers:
    """Agreement with the labels, and entropy, of the classifier's predictions and of stored soft labels.

    Random real images have soft labels to compare only where their teacher is the ``classifier`` (its hash).
    """
    classes, measured = len(real.data.classes), subject.measured
    pool = [_quality(p, k) for k, p in enumerate(real.probabilities)]
    hard = [_quality(p, k) for k, p in enumerate(by_class(subject.probabilities, measured.labels, classes))]
    right = (real.held_out.guesses == real.data.validation.labels).double().mean()
    found: LabelNumbers = {
        "hard": shares(pool, hard, seed=seed),
        "held_out_agreement": float(right),
        "soft": None,
        "soft_reason": None,
    }
    labels = subject.made.soft_labels
    if labels is None or soft is None:
        return {**found, "soft_reason": _why_none(subject.made)}
    values = [_quality(p, k) for k, p in enumerate(by_class(*soft, classes))]
    if classifier is not None and labels.teacher.get("hash") == classifier:
        pool = [_quality(_tempered(p, labels.temperature), k) for k, p in enumerate(real.probabilities)]
        return {**found, "soft": shares(pool, values, seed=seed), "soft_reason": None}
    alone: dict[str, Measure] = {k: {**v, "random": None} for k, v in shares(pool, values, seed=seed).items()}
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
