"""Barycenters, assignments and distances against closed forms, POT and SciPy."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from gendistill.transport.barycenter import assign, barycenter, kmeans_atoms, wasserstein2


def cloud(seed, n, d=3):
    return np.random.default_rng(seed).normal(size=(n, d))


SEED = st.integers(0, 2**32)


@st.composite
def problems(draw):
    """(points (n,d), init (k,d)) with k <= n, not always a divisor of n."""
    n, seed = draw(st.integers(1, 12)), draw(SEED)
    k = draw(st.integers(1, n))
    return cloud(seed, n), cloud(seed + 1, k) * 2


# barycenter


@settings(deadline=None, max_examples=20)
@given(SEED, st.integers(1, 12))
def test_one_atom_is_the_mean(seed, n):
    points = cloud(seed, n)
    np.testing.assert_allclose(barycenter(points, cloud(seed + 1, 1)), points.mean(0, keepdims=True), atol=1e-9)


def test_atoms_find_equally_heavy_diracs():
    places = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.repeat(places, 4, axis=0)
    np.testing.assert_allclose(barycenter(points, places + cloud(0, 3, 2)), places, atol=1e-9)


def test_row_j_descends_from_row_j_of_the_start():
    places = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    order = [2, 0, 1]
    found = barycenter(np.repeat(places, 2, axis=0), places[order] + 0.1)
    np.testing.assert_allclose(found, places[order], atol=1e-9)


def test_atoms_started_at_all_points_stay():
    points = cloud(0, 9)
    np.testing.assert_allclose(barycenter(points, points), points, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(problems(), st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_barycenter_moves_along_with_its_points(problem, shift):
    points, init = problem
    moved = barycenter(points + np.array(shift), init + np.array(shift))
    np.testing.assert_allclose(moved, barycenter(points, init) + np.array(shift), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(problems())
def test_objective_is_not_above_the_start(problem):
    points, init = problem
    assert wasserstein2(barycenter(points, init), points) <= wasserstein2(init, points) + 1e-9


@settings(deadline=None, max_examples=15)
@given(problems())
def test_barycenter_equals_the_alternation_spelt_out_with_pots_plan(problem):
    points, init = problem
    atoms = init.copy()
    for _ in range(100):
        plan = ot.emd([], [], ot.dist(atoms, points))
        new = len(atoms) * plan @ points
        if np.square(new - atoms).sum() <= 1e-9:
            atoms = new
            break
        atoms = new
    np.testing.assert_allclose(barycenter(points, init), atoms, atol=1e-6)


def test_barycenter_takes_float32_and_leaves_its_arguments_alone():
    points, init = cloud(0, 8).astype(np.float32), cloud(1, 3).astype(np.float32)
    kept = points.copy(), init.copy()
    assert barycenter(points, init).dtype == np.float64
    np.testing.assert_array_equal(points, kept[0])
    np.testing.assert_array_equal(init, kept[1])


@pytest.mark.parametrize(
    ("points", "init"),
    [((5, 3), (2, 4)), ((5,), (2, 3)), ((5, 3), (3,)), ((5, 3), (6, 3))],
    ids=["other dimension", "flat points", "flat init", "more atoms than points"],
)
def test_shapes_that_do_not_fit_are_refused(points, init):
    with pytest.raises(ValueError, match="points"):
        barycenter(np.zeros(points), np.zeros(init))


# k-means


def test_kmeans_atoms_are_the_means_of_separate_clusters():
    places = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    clusters = [cloud(i, 4 + i, 2) + p for i, p in enumerate(places)]
    found = kmeans_atoms(np.concatenate(clusters), 3)
    expected = np.array([c.mean(0) for c in clusters])
    np.testing.assert_allclose(found[assign(expected, found)], expected, atol=1e-9)


def test_kmeans_atoms_repeat_for_a_seed():
    points = cloud(0, 40)
    np.testing.assert_array_equal(kmeans_atoms(points, 5, seed=3), kmeans_atoms(points, 5, seed=3))


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


@settings(deadline=None, max_examples=20)
@given(SEED, st.integers(1, 10))
def test_wasserstein2_on_a_line_pairs_sorted_points(seed, n):
    x, y = cloud(seed, n, 1), cloud(seed + 1, n, 1)
    expected = np.square(np.sort(x, 0) - np.sort(y, 0)).mean()
    assert wasserstein2(x, y) == pytest.approx(expected, abs=1e-9)


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


def test_assign_gives_each_target_its_own_candidate():
    candidates = cloud(0, 10)
    order = np.array([7, 2, 9, 0])
    np.testing.assert_array_equal(assign(candidates[order] + 1e-3, candidates), order)


def test_fewer_candidates_than_targets_are_refused():
    with pytest.raises(ValueError, match=r"3 targets .* got 2"):
        assign(cloud(0, 3), cloud(1, 2))
