"""Faults of a set in its images, their counts and its soft labels; labels.py and pixel_values.py check the others.

Legend: N stored images, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from scipy.stats import binom
from torch import Tensor

from gendistill.data.dataset import RealData
from gendistill.data.mapped import image_hashes
from gendistill.evaluation.checks import Finding, list_names
from gendistill.evaluation.checks.labels import ODDS, confusion, permutation, soft_targets
from gendistill.evaluation.copies import Copies
from gendistill.evaluation.reference import DescribedSet, RealReference
from gendistill.evaluation.summary import Severity
from gendistill.surrogate.set import files_of

UNEVEN = 2.0  # times as many images as another class, beyond what the real images have


def check_counts(subject: DescribedSet, real: RealReference) -> list[Finding]:
    return count_findings(subject.made.labels, real.data.train.labels, real.data.classes)


def check_duplicates(subject: DescribedSet, real: RealReference) -> list[Finding]:
    made = subject.made
    hashes = subject.copies.hashes if made.factor == 1 else list(map(bytes, image_hashes(made.images)))
    return duplicate_findings(hashes, made.labels, real.data.classes, files_of(made))


def check_leaks(subject: DescribedSet, real: RealReference) -> list[Finding]:
    return leak_findings(subject.copies, subject.near, real.leaks.usual, real.data, subject.files)


def check_soft_targets(subject: DescribedSet, real: RealReference) -> list[Finding]:
    soft, labels = soft_targets(subject.made), subject.made.soft_labels
    if soft is None or labels is None:
        return []
    return soft_findings(*soft, real.data.classes, labels.teacher.get("accuracy"))


def count_findings(labels: Tensor, real_labels: Tensor, classes: Sequence[str]) -> list[Finding]:
    """Classes of ``labels`` (N,) without images, and numbers of images that differ more than the real ones do."""
    counts = torch.bincount(labels, minlength=len(classes))
    missing = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    found = []
    if missing:
        text = f"Classes without any image: {len(missing)} of {len(classes)} ({list_names(missing, 10)})"
        fix = "no classifier can learn them; add images, or evaluate on data of the other classes"
        found.append(Finding("missing classes", f"{text}: {fix}."))
    there = counts > 0
    share = counts.double() / torch.bincount(real_labels, minlength=len(classes)).clamp(min=1)
    if not there.any():
        return found
    low, high = int(counts[there].min()), int(counts.max())
    if high >= UNEVEN * low and float(share[there].max() / share[there].min()) >= UNEVEN:
        few, many = (classes[counts.tolist().index(n)] for n in (low, high))
        found.append(
            Finding(
                "uneven classes",
                f"The classes have {low} ({few!r}) to {high} ({many!r}) images, in other proportions than the real "
                "ones; the random images it is compared with have the same counts; balance the classes if this is not "
                "intended.",
                "warning",
            )
        )
    return found


def duplicate_findings(
    hashes: Sequence[bytes], labels: Tensor, classes: Sequence[str], files: Sequence[str]
) -> list[Finding]:
    """Images of equal ``hashes`` within a class, and under different ``labels`` (N,)."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(hashes):
        groups[digest].append(position)
    same: list[list[int]] = []
    different: list[list[int]] = []
    for group in groups.values():
        across = len({int(labels[i]) for i in group}) > 1
        if len(group) > 1:
            (different if across else same).append(group)
    found = []
    if same:
        surplus = sum(len(g) - 1 for g in same)
        shown = list_names([f"{files[g[1]]} = {files[g[0]]}" for g in same])
        text = f"Images that repeat another of their class pixel by pixel: {surplus:,} of {len(labels):,} ({shown})"
        found.append(Finding("duplicates", f"{text}; they add nothing: replace them.", "warning"))
    if different:
        shown = list_names([" = ".join(files[i] for i in g[:3]) for g in different])
        names = list_names([classes[k] for k in sorted({int(labels[i]) for g in different for i in g})], 10)
        text = f"Images under several labels: {len(different):,} ({shown}; classes {names})"
        found.append(Finding("duplicates across classes", f"{text}; at most one label is right: drop the others."))
    return found


def leak_findings(
    copies: Copies, near_test: Tensor, usual: float, data: RealData, files: Sequence[str]
) -> list[Finding]:
    """Copies of held-out images. ``files`` name the images that ``copies`` is about.

    ``near_test`` are positions of near copies of test images; ``usual`` is the share of held-out real images that the
    check would call so.
    """
    found = [
        _exact_leaks("test", "error", "so its accuracy means nothing", copies, data, files),
        _exact_leaks("validation", "warning", "which the set must not contain", copies, data, files),
    ]
    measured, near = len(copies.measured), near_test.tolist()
    if near and binom.sf(len(near) - 1, measured, usual) < 1 / ODDS:
        text = (
            f"Near copies of test images: {len(near):,} of {measured:,} measured are twice as close to one as to any "
            f"training image (by chance {usual:.1%} of real images are), such as {list_names([files[i] for i in near])}"
        )
        found.append(Finding("test leakage", f"{text}; make the set from the training split alone."))
    return [finding for finding in found if finding]


def _exact_leaks(
    split: str, severity: Severity, why: str, copies: Copies, data: RealData, files: Sequence[str]
) -> Finding | None:
    """Copies of images of ``split`` that the training split does not hold as well."""
    known, labels = copies.exact[split], getattr(data, split).labels
    at = torch.nonzero((known >= 0) & (copies.exact["train"] < 0)).flatten().tolist()
    if not at:
        return None
    shown = [f"{files[i]} is {split} image {int(known[i])} ({data.classes[int(labels[known[i]])]!r})" for i in at]
    text = f"Copies of {split} images, {why}: {len(at):,} of {copies.images:,} images ({list_names(shown)})"
    return Finding(f"{split} leakage", f"{text}; make the set from the training split alone.", severity)


def data_findings(data: RealData) -> list[Finding]:
    """Test images that are training images too."""
    there = data.train.find(data.test.hashes) >= 0
    both = data.test.find(data.test.hashes)[there].unique().tolist()
    if not both:
        return []
    shown = list_names([f"test image {i} ({data.classes[int(data.test.labels[i])]!r})" for i in both])
    text = f"Test images that are training images too: {len(both):,} of {len(data.test):,} ({shown})"
    fix = "every row gains from them; remove them from one of the two splits"
    return [Finding("overlapping splits", f"{text}; {fix}.", "warning")]


def soft_findings(
    targets: Tensor, labels: Tensor, classes: Sequence[str], teacher_accuracy: float | None
) -> list[Finding]:
    """Soft labels (N,K) that belong to other classes than the hard ``labels`` (N,), or say nothing."""
    total, again = len(classes), "label the set again with `gendistill label`"
    if float((targets.amax(1) - 1 / total).max()) < 1e-3:
        text = f"All {len(targets):,} soft labels are uniform and say nothing; {again} and a trained teacher."
        return [Finding("soft labels", text)]
    counts = confusion(targets.argmax(1), labels, total)
    order = permutation(counts, 20 * torch.eye(total, dtype=torch.float64))
    if order:
        pairs = [f"{classes[k]!r} as {classes[j]!r}" for k, j in enumerate(order) if j != k and counts[k].sum()]
        text = f"The soft labels are in another class order than the hard ones: they take {list_names(pairs, 10)}"
        return [Finding("soft label order", f"{text}; {again}, or put their columns in the data's order.")]
    other, usual = int(counts.sum() - counts.diagonal().sum()), min(0.9, 1.1 - (teacher_accuracy or 0.8))
    if other <= len(labels) * usual or binom.sf(other - 1, len(labels), usual) > 1 / ODDS:
        return []
    accuracy = f" (its teacher is right on {teacher_accuracy:.0%} of held-out images)" if teacher_accuracy else ""
    text = f"Soft labels that are highest for another class than the hard label: {other:,} of {len(labels):,}{accuracy}"
    severity: Severity = "error" if other / len(labels) > 1 - 2 / total else "warning"
    return [Finding("soft labels", f"{text}; they may belong to other images or another teacher: {again}.", severity)]
