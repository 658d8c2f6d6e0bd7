"""Precision, recall, density and coverage against hand numbers, slow loops and what must hold for any points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendistill.evaluation.set_metrics import prdc
from gendistill.seeding import torch_rng


def line(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def points(count: int, seed: int, shift: float = 0.0, dim: int = 3) -> Tensor:
    return torch.randn(count, dim, generator=torch_rng(seed, "balls", count)) + shift


def slow(real: Tensor, made: Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(p: int, side: Tensor) -> float:
        return sorted(float((side[p] - side[q]).norm()) for q in range(len(side)) if q != p)[k - 1]

    hits = [[float((r - m).norm()) <= radius(i, real) for i, r in enumerate(real)] for m in made]
    back = [any(float((r - m).norm()) <= radius(j, made) for j, m in enumerate(made)) for r in real]
    precision = sum(any(row) for row in hits) / len(made)
    density = sum(sum(row) for row in hits) / (k * len(made))
    coverage = sum(any(row[i] for row in hits) for i in range(len(real))) / len(real)
    return precision, sum(back) / len(real), density, coverage


def test_a_case_by_hand() -> None:
    # k = 1: real balls [0,2] -> radius 1 around 0 and 1, radius 3 around 4; made balls of radius 1, 1 and 9
    found = prdc(line(0, 1, 4), line(0.5, 1.5, 10.5), k=1)
    assert found.precision == pytest.approx(2 / 3)  # 10.5 lies in no real ball
    assert found.density == pytest.approx((2 + 2 + 0) / 3)  # 0.5 in those of 0 and 1, 1.5 in those of 1 and 4
    assert found.coverage == 1
    assert found.recall == 1  # 4 lies in the ball of 10.5, whose radius is 9


@settings(max_examples=40, deadline=None)
@given(st.integers(7, 15), st.integers(7, 12), st.integers(1, 5), st.integers(0, 1 << 20))
def test_a_loop_finds_the_same(n: int, m: int, k: int, seed: int) -> None:
    real, made = points(n, seed).double(), points(m, seed + 1, 0.5).double()
    found = prdc(real, made, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(slow(real, made, k))


def test_equal_sets_have_everything_and_distant_ones_nothing() -> None:
    same = prdc(points(20, 0), points(20, 0))
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = prdc(points(20, 0), points(20, 1, shift=100))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_a_set_around_one_mode_is_precise_and_covers_little() -> None:
    real = torch.cat([points(50, 0), points(50, 1, shift=20)])
    found = prdc(real, points(30, 2))
    assert found.precision > 0.8
    assert found.coverage <= 0.5
    assert found.recall <= 0.5


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 1 << 20))
def test_scale_and_place_do_not_matter(scale: float, place: float, seed: int) -> None:
    real, made = points(12, seed).double(), points(9, seed + 1).double()
    assert prdc(real, made) == prdc(real * scale + place, made * scale + place)


def test_fewer_than_seven_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 7 each"):
        prdc(points(20, 0), points(6, 1))
