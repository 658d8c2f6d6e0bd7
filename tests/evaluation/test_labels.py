"""Labels that are not their images': found where they are, and not where a classifier merely errs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendistill.evaluation.checks.labels import confusion, label_findings, permutation
from gendistill.evaluation.reference import Predictions
from gendistill.seeding import torch_rng

NAMES = [f"class {k}" for k in range(10)]


def looked_at(truth: Tensor, right: float, seed: int = 0, sure: float = 0.95) -> Predictions:
    """A classifier that is right so often, and guesses evenly among the others else."""
    rng = torch_rng(seed, "looked at")
    errs = torch.rand(len(truth), generator=rng) > right
    other = (truth + torch.randint(1, 10, truth.shape, generator=rng)) % 10
    confidence = torch.full(truth.shape, sure)
    return Predictions(torch.where(errs, other, truth), torch.where(errs, confidence * 0.6, confidence))


def evenly(count: int) -> Tensor:
    return torch.arange(10).repeat_interleave(count)


def found(truth: Tensor, labels: Tensor, right: float = 0.9, **options: object) -> list[tuple[str, str]]:
    real = looked_at(evenly(30), right, 99)
    seen = options.pop("seen", None) or looked_at(truth, right, 1)
    files = [f"{i}.png" for i in range(len(labels))]
    findings = label_findings(seen, labels, real, evenly(30), NAMES, files, **options)  # type: ignore[arg-type]
    return [(f.kind, f.severity) for f in findings]


def test_confusion_counts_labels_by_row() -> None:
    counts = confusion(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]), 2)
    assert counts.tolist() == [[0, 2], [1, 0]]


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(10)), st.integers(0, 1 << 20))
def test_any_permutation_is_found_and_only_that(order: list[int], seed: int) -> None:
    held_out = confusion(looked_at(evenly(30), 0.9, seed).guesses, evenly(30), 10)
    truth = torch.tensor(order).repeat_interleave(10)
    counts = confusion(looked_at(truth, 0.9, seed + 1).guesses, evenly(10), 10)
    assume(all(counts[label, own] >= 6 for label, own in enumerate(order)))  # of ten; fewer leave doubt
    assert permutation(counts, held_out) == (None if order == sorted(order) else order)


@pytest.mark.parametrize("right", [0.5, 0.7, 0.95])
@pytest.mark.parametrize("ipc", [1, 2, 5, 10, 50])
def test_right_labels_raise_no_finding(right: float, ipc: int) -> None:
    for seed in range(20):
        seen = looked_at(evenly(ipc), right, seed)
        assert found(evenly(ipc), evenly(ipc), right, seen=seen) == []


@pytest.mark.parametrize(("right", "ipc"), [(0.95, 5), (0.7, 10), (0.55, 50)])
def test_two_swapped_classes_are_named(right: float, ipc: int) -> None:
    labels = evenly(ipc)
    truth = torch.where(labels == 3, 5, torch.where(labels == 5, 3, labels))
    assert found(truth, labels, right) == [("class order", "error")]
    real, seen = looked_at(evenly(30), right, 99), looked_at(truth, right, 1)
    text = label_findings(seen, labels, real, evenly(30), NAMES, [""] * len(labels))[0].text
    assert text.startswith("Classes swapped or in another order than the data's: 2 of 10")
    assert "labelled 'class 3' look like 'class 5', 'class 5' look like 'class 3';" in text


def test_shuffled_labels_are_told_from_images_that_nobody_recognises() -> None:
    labels = evenly(10)
    truth = labels[torch.randperm(100, generator=torch_rng(0, "shuffle"))]
    assert found(truth, labels) == [("shuffled labels", "error")]
    unsure = looked_at(truth, 0.9, sure=0.4)
    assert found(truth, labels, seen=unsure) == [("not recognised", "warning")]
    heap = Predictions(torch.full((100,), 8), torch.full((100,), 0.9))
    assert found(truth, labels, seen=heap) == [("not recognised", "warning")]


def test_single_wrong_labels_are_named_with_their_files() -> None:
    labels, truth = evenly(10), evenly(10)
    truth[[3, 17, 42, 55, 68, 71, 93, 99]] += 1
    truth %= 10
    seen = Predictions(truth, torch.full((100,), 0.99))
    assert found(truth, labels, 0.98, seen=seen) == [("other class", "warning")]
    real = looked_at(evenly(30), 0.98)
    text = label_findings(seen, labels, real, evenly(30), NAMES, [f"{i}.png" for i in range(100)])[0].text
    assert "8 of 100 (of held-out real images" in text
    assert (
        "3.png (looks like 'class 1'), 17.png (looks like 'class 2'), 42.png (looks like 'class 5') and 5 more" in text
    )


def test_inverted_images_are_called_that() -> None:
    labels = evenly(10)
    lost = looked_at(torch.randint(0, 10, (100,), generator=torch_rng(0, "lost")), 0.9, sure=0.5)
    assert found(labels, labels, seen=lost, inverted=looked_at(labels, 0.85)) == [("value range", "error")]
    assert found(labels, labels, seen=lost, inverted=lost) == [("not recognised", "warning")]


def test_a_classifier_no_better_than_chance_says_nothing() -> None:
    labels = evenly(10)
    assert found(labels.flip(0), labels, right=0.12) == []


def test_a_class_without_images_is_not_called_swapped() -> None:
    labels = evenly(10)
    labels, truth = labels[labels != 4], labels[labels != 4]
    assert found(truth, labels) == []
