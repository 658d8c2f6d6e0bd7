"""Counts, duplicates, leakage and soft labels: each fault is named with its files, and honest sets raise none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gendistill.data.dataset import RealData
from gendistill.data.mapped import image_hashes
from gendistill.evaluation.checks import Finding, counted, list_names
from gendistill.evaluation.checks.counts import (
    count_findings,
    data_findings,
    duplicate_findings,
    leak_findings,
    soft_findings,
)
from gendistill.evaluation.copies import LeakageCheck
from gendistill.seeding import torch_rng

NAMES = ("ant", "bee", "cat", "dog")
EVEN = torch.arange(4).repeat_interleave(25)


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.kind, f.severity) for f in findings]


@pytest.fixture(scope="module")
def leaks(digits: RealData) -> LeakageCheck:
    return LeakageCheck.of(digits)


def leaked(leaks: LeakageCheck, made: Tensor, data: RealData) -> list[Finding]:
    copies = leaks.reference.check(made)
    return leak_findings(copies, leaks.near(copies), leaks.usual, data, [f"{i}.png" for i in range(len(made))])


def test_words() -> None:
    assert (counted(1, "image"), counted(2000, "image"), counted(2, "class", "classes")) == (
        "1 image",
        "2,000 images",
        "2 classes",
    )
    assert list_names(["a", "b"]) == "a, b"
    assert list_names(list("abcde")) == "a, b, c and 2 more"


def test_even_classes_raise_nothing() -> None:
    assert count_findings(EVEN, EVEN, NAMES) == []
    assert count_findings(torch.arange(4), EVEN, NAMES) == []


def test_a_missing_class_is_named() -> None:
    found = count_findings(EVEN[EVEN != 2], EVEN, NAMES)
    assert kinds(found) == [("missing classes", "error")]
    assert found[0].text.startswith("Classes without any image: 1 of 4 (cat)")


def test_uneven_classes_are_named_unless_the_real_ones_are_so_too() -> None:
    uneven = EVEN[10:]  # 15 ants, 25 others: not yet twice
    assert count_findings(uneven, EVEN, NAMES) == []
    few = EVEN[15:]
    found = count_findings(few, EVEN, NAMES)
    assert kinds(found) == [("uneven classes", "warning")]
    assert "10 ('ant') to 25 ('bee') images" in found[0].text
    assert count_findings(few, few, NAMES) == []


def test_duplicates_are_counted_within_a_class_and_named_across() -> None:
    images = torch.randint(0, 256, (8, 1, 4, 4), generator=torch_rng(0, "images"), dtype=torch.uint8)
    labels, files = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), [f"{i}.png" for i in range(8)]
    assert duplicate_findings(list(map(bytes, image_hashes(images))), labels, NAMES, files) == []
    images[1] = images[0]
    images[7] = images[4]
    same, across = duplicate_findings(list(map(bytes, image_hashes(images))), labels, NAMES, files)
    assert (same.kind, same.severity) == ("duplicates", "warning")
    assert "1 of 8 (1.png = 0.png)" in same.text
    assert (across.kind, across.severity) == ("duplicates across classes", "error")
    assert "4.png = 7.png; classes cat, dog" in across.text


def test_training_images_and_new_images_are_no_leak(leaks: LeakageCheck, digits: RealData) -> None:
    assert leaked(leaks, digits.train.images[:100], digits) == []
    rng = torch_rng(0, "noise")
    noisy = digits.train.images[:200].int() + torch.randint(-40, 41, (200, 1, 8, 8), generator=rng)
    assert leaked(leaks, noisy.clamp(0, 255).byte(), digits) == []


def test_held_out_images_of_one_kind_are_no_near_copies_of_another(leaks: LeakageCheck, digits: RealData) -> None:
    found = leaked(leaks, digits.validation.images, digits)
    assert kinds(found) == [("validation leakage", "warning")]


def test_test_images_are_named_with_their_position_and_class(leaks: LeakageCheck, digits: RealData) -> None:
    made = digits.train.images[:50].clone()
    made[7] = digits.test.images[33]
    found = leaked(leaks, made, digits)
    assert kinds(found) == [("test leakage", "error")]
    name = digits.classes[int(digits.test.labels[33])]
    assert f"1 of 50 images (7.png is test image 33 ('{name}'))" in found[0].text


@pytest.mark.slow
@pytest.mark.parametrize("which", ["digits", "cifar10"])
def test_near_copies_of_test_images_are_found(which: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(which)
    images = data.test.images[:60].int()
    noise = torch.randint(-6, 7, images.shape, generator=torch_rng(0, "compression"))
    made = torch.cat([(images + noise).clamp(0, 255).byte(), data.train.images[:40]])
    found = leaked(LeakageCheck.of(data), made, data)
    assert kinds(found) == [("test leakage", "error")]
    assert int(found[0].text.removeprefix("Near copies of test images: ").split()[0]) > 30
    assert leaked(LeakageCheck.of(data), data.train.images[:40], data) == []


def test_overlapping_splits_are_the_datas_fault(digits: RealData) -> None:
    assert data_findings(digits) == []
    both = replace(digits, train=replace(digits.train, images=digits.train.images.clone()))
    both.train.images[5] = digits.test.images[9]
    found = data_findings(both)
    assert kinds(found) == [("overlapping splits", "warning")]
    assert f"test image 9 ('{digits.classes[int(digits.test.labels[9])]}')" in found[0].text
    made = both.train.images[:10]  # a coreset of such data leaks nothing by itself
    assert leaked(LeakageCheck.of(both), made, both) == []


def onehot(labels: Tensor, sharp: float = 5.0) -> Tensor:
    return (sharp * torch.nn.functional.one_hot(labels, 4)).float().softmax(1)


def test_soft_labels_of_their_classes_raise_nothing() -> None:
    assert soft_findings(onehot(EVEN), EVEN, NAMES, 0.9) == []
    wrong = EVEN.clone()
    wrong[::3] = (wrong[::3] + 1) % 4
    assert soft_findings(onehot(wrong), EVEN, NAMES, 0.6) == []  # as its teacher errs


def test_soft_labels_in_another_class_order_are_named() -> None:
    swapped = torch.where(EVEN == 0, 3, torch.where(EVEN == 3, 0, EVEN))
    found = soft_findings(onehot(swapped), EVEN, NAMES, 0.9)
    assert kinds(found) == [("soft label order", "error")]
    assert "'ant' as 'dog', 'dog' as 'ant'" in found[0].text


def test_soft_labels_of_other_images_and_uniform_ones_are_named() -> None:
    mixed = EVEN[torch.randperm(100, generator=torch_rng(1, "mixed"))]
    assert kinds(soft_findings(onehot(mixed), EVEN, NAMES, 0.9)) == [("soft labels", "error")]
    half = torch.where(torch.arange(100) % 2 == 0, EVEN, (EVEN + torch.arange(100) % 3 + 1) % 4)
    assert kinds(soft_findings(onehot(half), EVEN, NAMES, 0.9)) == [("soft labels", "warning")]
    assert "uniform" in soft_findings(torch.full((100, 4), 0.25), EVEN, NAMES, 0.9)[0].text
