"""The copy check: copies of real images are found and named, and other images are not taken for copies."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendistill.data.class_positions import evenly_spaced, evenly_spaced_by_class
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_float
from gendistill.errors import DataError
from gendistill.evaluation.copies import Copies, CopyCheck, nearest
from gendistill.report.nearest import copies_sentence, copy_line, nearness_sentence


def copy_check(made: Tensor, data: RealData, **options: Any) -> Copies:
    return CopyCheck.of(data, **options).check(made)


def flat(values: list[list[int]]) -> Split:
    """Grey images of 1 x 2 pixels, all of one class."""
    return Split(torch.tensor(values, dtype=torch.uint8)[:, None, None, :], torch.zeros(len(values), dtype=torch.int64))


def least_squares(points: Tensor, others: Tensor) -> list[int]:
    """The smallest sum of squared differences of each point to any other, by a loop in whole numbers."""
    return [min(int((point - other).square().sum()) for other in others.long()) for point in points.long()]


def noisy_features(images: Tensor) -> Tensor:
    """Features that differ a little from call to call, as a network's do from batch to batch."""
    noise = torch.randn(len(images), 32, generator=torch.Generator().manual_seed(len(images)))
    return to_float(images).flatten(1)[:, :32] + 1e-6 * noise


def test_a_case_by_hand() -> None:
    data = RealData(
        "hand", ("only",), flat([[0, 0], [100, 0]]), flat([[0, 2], [90, 0], [100, 40]]), flat([[7, 1], [50, 50]])
    )
    made = flat([[0, 0], [3, 4], [7, 1], [90, 0], [60, 30]]).images
    found = copy_check(made, data)
    # squared distances to the closer of (0, 0) and (100, 0), over two pixels
    assert found.distances.tolist() == pytest.approx([math.sqrt(s / 2) for s in (0, 25, 50, 100, 40**2 + 30**2)])
    assert found.positions.tolist() == [0, 0, 0, 1, 1]
    assert found.held_out.tolist() == pytest.approx([math.sqrt(s / 2) for s in (4, 100, 1600)])
    first, second = math.sqrt(2), math.sqrt(50)
    assert found.threshold == pytest.approx(first + 0.02 * (second - first))  # 1 % of the way through three values
    assert found.near.tolist() == [True, False, False, False, False]
    assert found.counts == {"train": 1, "validation": 1, "test": 1}
    assert [(m.image, m.split, m.position, m.equal) for m in found.closest(4)] == [
        (2, "test", 0, True), (3, "validation", 1, True), (0, "train", 0, True), (1, "train", 0, False),
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([2, 256]),
    st.integers(0, 1 << 20),
)
def test_nearest_is_what_a_loop_finds(n: int, m: int, size: int, rows: int, levels: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    points, others = (
        torch.randint(0, levels, (count, size), generator=rng).mul(255 // (levels - 1)).to(torch.uint8)
        for count in (n, m)
    )
    distances, positions = nearest(points, others, rows)
    expected = least_squares(points, others)
    assert [round(d * d * size) for d in distances.tolist()] == expected
    assert [int((p.long() - others[at].long()).square().sum()) for p, at in zip(points, positions, strict=True)] == (
        expected
    )


def test_pixels_of_large_images_are_compared_to_the_last_grey_level() -> None:
    size = 9221  # products of more than 2^24 in all, and no multiple of a slice
    points = torch.randint(0, 255, (40, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    almost = points.clone()
    almost[:, 0] += 1
    distances, positions = nearest(points, torch.cat([almost, points]))
    assert positions.tolist() == list(range(40, 80))
    assert not distances.any()
    distances, positions = nearest(points, almost)
    assert positions.tolist() == list(range(40))
    assert distances.tolist() == pytest.approx([math.sqrt(1 / size)] * 40)


def test_what_is_as_close_as_the_threshold_is_near() -> None:
    data = RealData("hand", ("only",), flat([[0, 0]]), flat([[3, 4], [5, 0], [4, 3]]), flat([[9, 9]]))
    assert copy_check(flat([[0, 5], [4, 4]]).images, data).near.tolist() == [True, False]


def test_features_are_compared_as_a_loop_does() -> None:
    rng = torch.Generator().manual_seed(0)
    points, others = torch.randn(20, 50, generator=rng) + 10, torch.randn(30, 50, generator=rng) + 10
    others[7] = points[3]
    distances, positions = nearest(points, others, 8)
    table = (points.double()[:, None] - others.double()).square().mean(2).sqrt()
    torch.testing.assert_close(distances, table.min(1).values)
    assert torch.equal(positions, table.argmin(1))
    assert distances[3] == 0


@pytest.mark.parametrize("features", [None, noisy_features])
def test_a_real_subset_is_all_near_and_all_copies(digits: RealData, features) -> None:  # type: ignore[no-untyped-def]
    found = copy_check(digits.train.images[::7], digits, features=features)
    assert found.near.all()
    assert found.counts == {"train": found.images, "validation": 0, "test": 0}
    assert all(match.equal for match in found.closest(12))
    assert copies_sentence("the set", found).startswith(
        "173 of the 173 images of the set are copies of training images"
    )


def test_copies_are_near_where_the_held_out_images_are_copies_too(digits: RealData) -> None:
    data = replace(digits, validation=digits.train.take(torch.arange(0, 200)))
    found = copy_check(torch.cat([data.train.images[:5], digits.test.images[:5]]), data)
    assert found.threshold == 0
    assert found.near.tolist() == [True] * 5 + [False] * 5
    noisy = copy_check(data.train.images[:5], data, features=noisy_features)
    assert noisy.near.all()


@pytest.mark.parametrize("features", [None, noisy_features])
def test_about_one_in_a_hundred_held_out_images_is_near(digits: RealData, features) -> None:  # type: ignore[no-untyped-def]
    reference = CopyCheck.of(digits, features=features)
    same = reference.check(digits.validation.images)
    assert 1 <= int(same.near.sum()) <= 2  # of 136: those that set the threshold
    assert same.counts["train"] == 0
    others = reference.check(digits.test.images)
    assert int(others.near.sum()) <= 0.04 * len(digits.test)
    assert len(digits.test) == 450


@pytest.mark.slow
def test_held_out_photographs_are_not_taken_for_copies(cifar10: RealData) -> None:
    data = replace(cifar10, validation=cifar10.test.take(torch.arange(0, 1000)))
    found = copy_check(cifar10.test.images[1000:2000], data)
    assert found.counts == {"train": 0, "validation": 0, "test": 1000}
    assert int(found.near.sum()) <= 25


def test_few_held_out_images_are_said_to_be_few(digits: RealData) -> None:
    few = copy_check(digits.test.images[:50], replace(digits, validation=digits.validation.take(torch.arange(20))))
    assert "the closest 1 % of the 20 held-out real images" in nearness_sentence(few)
    assert "1 in 100" not in nearness_sentence(few)
    assert "1 in 100" in nearness_sentence(copy_check(digits.test.images[:50], digits))


def test_one_test_image_is_called_a_leak(digits: RealData) -> None:
    made = 255 - digits.train.images[:10]
    made[4] = digits.test.images[33]
    found = copy_check(made, digits)
    assert found.counts == {"train": 0, "validation": 0, "test": 1}
    match = found.closest(3)[0]
    assert (match.image, match.split, match.position, match.distance) == (4, "test", 33, 0.0)
    words = copies_sentence("the set", found)
    assert "0 of the 10 images of the set are copies of training images" in words
    assert "1 is a copy of a test image, which the set must not have seen" in words
    line = copy_line(found.summary())
    assert line.startswith("10 images: 0 are copies of training images, 1 of TEST images; ")


def test_most_bounds_what_is_measured_not_what_is_hashed(digits: RealData) -> None:
    found = copy_check(digits.train.images[:60], digits, most=10)
    assert found.counts["train"] == 60
    assert (len(found.measured), len(found.held_out), found.images) == (10, 10, 60)
    assert found.measured.tolist() == evenly_spaced(60, 10)
    assert int(found.near.sum()) == 10
    assert nearness_sentence(found).startswith("10 of the 10 of them that were measured are as close")
    assert "; 10 of 10 measured closer than" in copy_line(found.summary())


def test_summary_is_plain_and_complete(digits: RealData) -> None:
    summary = copy_check(digits.test.images[:20], digits).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert {"space", "images", "exact", "near", "median", "held_out_median"} <= summary.keys()
    assert summary["space"] == "pixels"
    assert copy_check(digits.test.images[:2], digits, features=noisy_features).summary()["space"] == "teacher features"


def test_one_reference_serves_many_sets(digits: RealData) -> None:
    reference = CopyCheck.of(digits)
    for made in (digits.train.images[:9], digits.test.images[:9]):
        assert reference.check(made).summary() == copy_check(made, digits).summary()


def test_what_cannot_be_compared_is_refused(digits: RealData) -> None:
    with pytest.raises(DataError, match=r"\(1, 9, 9\) \(C,H,W\); expected at least one, of \(1, 8, 8\)"):
        copy_check(torch.zeros(2, 1, 9, 9, dtype=torch.uint8), digits)
    with pytest.raises(DataError, match="got 0 images"):
        copy_check(digits.train.images[:0], digits)
    with pytest.raises(DataError, match="no held-out real images"):
        copy_check(digits.train.images, replace(digits, validation=digits.validation.take(torch.tensor([]).long())))


@given(st.integers(0, 50), st.integers(1, 60))
def test_spread_takes_the_ends_and_no_position_twice(count: int, most: int) -> None:
    found = evenly_spaced(count, most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found))
    assert not found or (found[0] == 0 and (most == 1 or found[-1] == count - 1))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 40))
def test_spread_by_class_takes_as_many_of_every_class(values: list[int], most: int) -> None:
    labels = torch.tensor(values)
    found = evenly_spaced_by_class(labels, 6, most)
    assert len(found) <= most
    assert found.tolist() == sorted(set(found.tolist()))
    if most >= 6:
        expected = [min(values.count(c), most // 6) for c in range(6)]
        assert torch.bincount(labels[found], minlength=6).tolist() == expected
