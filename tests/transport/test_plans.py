"""Distances, plans and assignments against closed forms, POT and SciPy."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from gendistill.errors import ConvergenceError
from gendistill.transport.barycenter import assign, wasserstein2
from gendistill.transport.plans import EQUAL, entropic_plan, transport
from tests.transport.clouds import SEED, cloud, masses

# wasserstein2


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([[0], [1]], [[3], [2]], 4),
        ([[0]], [[1], [3]], 5),
        ([[0], [4]], [[4], [0]], 0),
        ([[0, 0], [0, 1]], [[3, 4]], 21.5),
    ],
)
def test_wasserstein2_by_hand(x, y, expected):
    assert wasserstein2(np.array(x), np.array(y)) == pytest.approx(expected, abs=1e-12)


def test_wasserstein2_with_masses_by_hand():
    assert wasserstein2([[0.0], [1.0]], [[0.0], [3.0]], [3, 1], [1, 1]) == pytest.approx((9 + 4) / 4)


@settings(deadline=None, max_examples=20)
@given(SEED, st.integers(1, 10))
def test_wasserstein2_on_a_line_pairs_sorted_points(seed, n):
    x, y = cloud(seed, n, 1), cloud(seed + 1, n, 1)
    expected = np.square(np.sort(x, 0) - np.sort(y, 0)).mean()
    assert wasserstein2(x, y) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.data(), SEED, st.integers(1, 8), st.integers(1, 8))
def test_wasserstein2_equals_pots(data, seed, n, m):
    x, y, a, b = cloud(seed, n), cloud(seed + 1, m) + 1, data.draw(masses(n)), data.draw(masses(m))
    expected = ot.emd2(a / a.sum(), b / b.sum(), ot.dist(x, y))
    assert wasserstein2(x, y, a, b) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(SEED, st.sampled_from([1e-9, 1e-3, 1.0, 1e6]), st.floats(-10, 10))
def test_wasserstein2_keeps_its_digits_at_any_scale_and_place(seed, scale, shift):
    x, y = cloud(seed, 30), cloud(seed + 1, 20)
    place = shift * scale * 1e3
    assert wasserstein2(x * scale + place, y * scale + place) / scale**2 == pytest.approx(wasserstein2(x, y), rel=1e-6)


def test_pots_own_distance_fails_on_a_small_scale():
    x, y = cloud(0, 200), cloud(1, 300)
    small = ot.emd2([], [], ot.dist(x * 1e-9, y * 1e-9)) * 1e18
    assert wasserstein2(x * 1e-9, y * 1e-9) * 1e18 == pytest.approx(wasserstein2(x, y), rel=1e-9)
    assert small > 2 * wasserstein2(x, y), "POT has changed: transport() need not scale its costs any more"


def test_distance_between_far_clouds_is_that_of_their_means_and_shapes():
    x, y = cloud(0, 20), cloud(1, 20)
    x, y = x - x.mean(0), y - y.mean(0)
    assert wasserstein2(x, y + np.array([1e7, 0, 0])) - 1e14 == pytest.approx(wasserstein2(x, y), abs=0.05)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_sampled_gaussians_approach_the_bures_formula(spread):
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0.4], [0.0, 0.7]])
    covariances, means = (np.eye(2), spread * root @ root.T), (np.zeros(2), np.array([2.0, 0.0]))
    expected = ot.gaussian.bures_wasserstein_distance(*means, *covariances) ** 2
    errors = []
    for n in (50, 800):
        x, y = (rng.multivariate_normal(m, c, n) for m, c in zip(means, covariances, strict=True))
        errors.append(abs(wasserstein2(x, y) / expected - 1))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


# transport


def test_an_unfinished_plan_is_an_error_and_never_a_result():
    cost = ot.dist(cloud(0, 20), cloud(1, 30))
    a, b = ot.unif(20), ot.unif(30)
    with pytest.warns(UserWarning, match="numItermax"), pytest.raises(RuntimeError, match=r"20 x 30 .* in 5 pivots"):
        transport(a, b, cost, pivots=5)
    plan, paid = transport(a, b, cost)
    np.testing.assert_allclose(plan.sum(1), a)
    np.testing.assert_allclose(plan.sum(0), b)
    assert paid == pytest.approx((plan * cost).sum())


# assign


@st.composite
def assignments(draw):
    """(targets (k,2), candidates (n,2)), sometimes on a coarse grid so that distances tie and points coincide."""
    n, seed = draw(st.integers(1, 14)), draw(SEED)
    k, scale = draw(st.integers(1, n)), draw(st.sampled_from([1.0, 100.0]))
    targets, candidates = cloud(seed, k, 2) * scale, cloud(seed + 1, n, 2) * scale
    return (np.round(targets), np.round(candidates)) if draw(st.booleans()) else (targets, candidates)


@settings(deadline=None, max_examples=80)
@given(assignments())
def test_assign_is_one_to_one_and_as_cheap_as_scipys(problem):
    targets, candidates = problem
    cost = ((targets[:, None] - candidates[None]) ** 2).sum(-1)
    found = assign(targets, candidates)
    assert len(set(found.tolist())) == len(targets)
    cheapest = cost[linear_sum_assignment(cost)].sum()
    assert cost[np.arange(len(targets)), found].sum() == pytest.approx(cheapest, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(SEED, st.integers(1, 12))
def test_assignment_of_as_many_is_pots_plan(seed, n):
    targets, candidates = cloud(seed, n), cloud(seed + 1, n)
    plan = ot.emd(np.ones(n), np.ones(n), ot.dist(targets, candidates))
    np.testing.assert_array_equal(assign(targets, candidates), plan.argmax(1))


def test_assign_gives_each_target_its_own_candidate():
    candidates = cloud(0, 10)
    order = np.array([7, 2, 9, 0])
    np.testing.assert_array_equal(assign(candidates[order] + 1e-3, candidates), order)


@settings(deadline=None, max_examples=30)
@given(SEED, st.sampled_from([0, 1e4, 1e8, 1e10]), st.sampled_from([0, 1e4, 1e8, 1e10]))
def test_assign_is_exact_on_whole_numbers_however_far(seed, both, targets_alone):
    rng = np.random.default_rng(seed)
    targets, candidates = rng.integers(-50, 50, (6, 3)), rng.integers(-50, 50, (15, 3))
    targets += np.array([int(targets_alone), 0, 0])
    cost = np.square(targets[:, None].astype(object) - candidates[None].astype(object)).sum(-1)  # no rounding
    rows = np.arange(len(targets))
    cheapest = cost[rows, linear_sum_assignment((cost - cost.min()).astype(float))[1]].sum()
    assert cost[rows, assign(targets + both, candidates + both)].sum() == cheapest


def test_fewer_candidates_than_targets_are_refused():
    with pytest.raises(ValueError, match=r"3 targets .* got 2"):
        assign(cloud(0, 3), cloud(1, 2))


# what is refused

BAD = {
    "ragged": ([[1.0, 2.0], [3.0]], "rows of one length"),
    "text": ([["a", "b"]], "numbers"),
    "flat": ([1.0, 2.0], r"shape \(2,\)"),
    "empty": (np.zeros((0, 2)), "at least 1"),
    "nan": ([[0.0, 0.0], [np.nan, 0.0]], "1 of 2 rows, the first in row 1"),
    "infinite": ([[0.0, np.inf]], "NaN, infinite"),
    "huge": ([[0.0, 1e200]], "huge"),
    "other dimension": ([[0.0, 0.0, 0.0]], "differ in dimension"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("call", [wasserstein2, assign])
def test_what_is_no_cloud_of_points_is_refused(call, bad, said):
    good = np.zeros((3, 2))
    with pytest.raises(ValueError, match=said):
        call(bad, good)
    with pytest.raises(ValueError, match=said):
        call(good[:1], bad)


@pytest.mark.parametrize("mass", [[1, 1], [1, -1, 1], [0, 0, 0], [1, np.nan, 1], [[1], [1], [1]]], ids=str)
def test_masses_that_are_none_are_refused(mass):
    with pytest.raises(ValueError, match="x_mass"):
        wasserstein2(np.zeros((3, 2)), np.zeros((1, 2)), mass)


def test_a_tie_above_rounding_is_decided_by_position() -> None:
    """0.1 + 0.2 is not 0.3: the middle of two points is nearer to one of them, by rounding alone."""
    for points in ([[0.1], [0.5], [9.0]], [[0.5], [0.1], [9.0]], [[0.1 + 2e-16], [0.5], [9.0]]):
        assert assign([[(points[0][0] + points[1][0]) / 2]], points, EQUAL).tolist() == [0]


# entropic plans


@settings(deadline=None, max_examples=20)
@given(st.data(), SEED, st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.05, 0.5, 5.0]))
def test_an_entropic_plan_has_its_masses_and_becomes_exact(data, seed, n, m, reg):
    cost, a, b = ot.dist(cloud(seed, n), cloud(seed + 1, m)), data.draw(masses(n)) + 0.1, data.draw(masses(m)) + 0.1
    cost = cost / (cost.max() or 1)
    plan = entropic_plan(a, b, cost, reg)
    np.testing.assert_allclose(plan.sum(0), b / b.sum(), atol=1e-3)
    np.testing.assert_allclose(plan.sum(1), a / a.sum(), atol=1e-3)
    least = transport(a / a.sum(), b / b.sum(), cost)[1]
    assert least - 1e-3 <= (plan * cost).sum() <= least + reg * np.log(n * m) + 1e-3


def test_costs_that_would_underflow_are_solved_in_the_log_domain():
    cost = np.array([[0.0, 2000.0], [2000.0, 0.0]])
    np.testing.assert_allclose(entropic_plan(None, None, cost, 1.0), np.eye(2) / 2, atol=1e-9)


def test_a_plan_that_is_no_plan_is_an_error_with_its_remedy():
    with pytest.raises(ConvergenceError, match=r"after 1 steps at reg = 0\.01\. Do other things\."):
        entropic_plan(None, None, ot.dist(cloud(0, 5), cloud(1, 7)), 0.01, steps=1, remedy="Do other things.")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_costs_that_are_not_finite_are_refused_at_once(value):
    with pytest.raises(ConvergenceError, match="infinite or NaN"):
        entropic_plan(None, None, np.full((2, 2), value), 1.0)
