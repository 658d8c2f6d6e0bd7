"""Barycenters against closed forms, POT called directly, and each other."""

import warnings

import numpy as np
import ot
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gendistill.errors import ConvergenceError
from gendistill.transport import barycenter as module
from gendistill.transport import plans
from gendistill.transport.barycenter import barycenter, kmeans_atoms, solve_barycenter, wasserstein2
from tests.transport.clouds import SEED, cloud, masses, problems

PLACES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
KINDS = [{}, {"weights": "free"}, {"solver": "sinkhorn", "reg": 1.0}]
IDS = ["fixed", "free", "sinkhorn"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=IDS)
exact_kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=IDS[:2])

# closed forms


@every_kind
@settings(deadline=None, max_examples=12)
@given(st.data(), SEED, st.integers(1, 12))
def test_one_atom_is_the_mean_by_mass(kind, data, seed, n):
    points, mass = cloud(seed, n), data.draw(masses(n))
    found = solve_barycenter(points, cloud(seed + 1, 1), mass=mass, **kind)
    mean = np.average(points, 0, mass)
    np.testing.assert_allclose(found.atoms, [mean], atol=1e-7)
    assert found.w2 == pytest.approx(np.average(np.square(points - mean).sum(1), weights=mass), abs=1e-7)


def test_two_points_and_one_atom_give_the_middle():
    found = solve_barycenter([[-3.0, 1.0], [3.0, 1.0]], [[5.0, 5.0]])
    np.testing.assert_allclose(found.atoms, [[0.0, 1.0]], atol=1e-12)
    assert found.w2 == pytest.approx(9)


@exact_kinds
@settings(deadline=None, max_examples=12)
@given(SEED, st.integers(1, 9))
def test_as_many_atoms_as_points_are_the_points(kind, seed, n):
    points = cloud(seed, n)
    start = points[np.random.default_rng(seed).permutation(n)]
    found = solve_barycenter(points, start, **kind)
    np.testing.assert_allclose(found.atoms, start, atol=1e-9)
    np.testing.assert_allclose(found.weights, 1 / n)
    assert found.w2 == pytest.approx(0, abs=1e-12)


@exact_kinds
def test_atoms_find_equally_heavy_diracs(kind):
    found = solve_barycenter(np.repeat(PLACES, 4, axis=0), PLACES + cloud(0, 3, 2), **kind)
    np.testing.assert_allclose(found.atoms, PLACES, atol=1e-9)


def test_free_weights_find_unequal_diracs_and_fixed_ones_cannot():
    points = np.repeat(PLACES, (1, 2, 5), axis=0)
    free = solve_barycenter(points, PLACES + cloud(0, 3, 2), weights="free")
    np.testing.assert_allclose(free.atoms, PLACES, atol=1e-9)
    np.testing.assert_allclose(free.weights, [1 / 8, 2 / 8, 5 / 8])
    assert free.w2 == pytest.approx(0, abs=1e-12)
    assert solve_barycenter(points, PLACES).w2 > 1


@settings(deadline=None, max_examples=20)
@given(SEED, st.integers(1, 5), st.integers(1, 5))
def test_on_a_line_atoms_are_the_means_of_equal_blocks_of_sorted_points(seed, k, m):
    points = np.sort(cloud(seed, k * m, 1), 0)
    assume(np.diff(points[:, 0]).min(initial=1) > 1e-6)
    blocks = points.reshape(k, m).mean(1, keepdims=True)
    start = np.random.default_rng(seed).permutation(blocks) * 2 + 1  # the order alone matters on a line
    found = solve_barycenter(points, start)
    np.testing.assert_allclose(np.sort(found.atoms, 0), blocks, atol=1e-9)
    np.testing.assert_array_equal(found.atoms[:, 0].argsort(), start[:, 0].argsort())
    assert found.w2 == pytest.approx(points.reshape(k, m).var(1).mean(), abs=1e-9)


# equivariance, order, masses


@every_kind
@settings(deadline=None, max_examples=12)
@given(problems(), st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.sampled_from([1e-6, 0.1, 1.0, 1e4]))
def test_barycenter_moves_and_grows_along_with_its_points(kind, problem, shift, scale):
    points, init = problem
    moved = solve_barycenter(points * scale + np.array(shift), init * scale + np.array(shift), **kind)
    still = solve_barycenter(points, init, **kind)
    np.testing.assert_allclose((moved.atoms - np.array(shift)) / scale, still.atoms, atol=1e-5)
    np.testing.assert_allclose(moved.weights, still.weights, atol=1e-9)
    assert moved.w2 / scale**2 == pytest.approx(still.w2, rel=1e-5, abs=1e-6)


@every_kind
def test_row_j_descends_from_row_j_of_the_start(kind):
    order = [2, 0, 1]
    start = PLACES[order] + 0.1
    found = solve_barycenter(np.repeat(PLACES, 2, axis=0), start, **kind | ({"reg": 0.01} if "reg" in kind else {}))
    np.testing.assert_allclose(found.atoms, PLACES[order], atol=1e-9)


@exact_kinds
def test_rows_in_another_order_give_the_same_atoms_in_that_order(kind):
    points, start, order = cloud(0, 60), cloud(1, 7), np.random.default_rng(2).permutation(7)
    plain, other = solve_barycenter(points, start, **kind), solve_barycenter(points, start[order], **kind)
    np.testing.assert_allclose(other.atoms, plain.atoms[order], atol=1e-9)
    np.testing.assert_allclose(other.weights, plain.weights[order])


@every_kind
@settings(deadline=None, max_examples=12)
@given(SEED, st.integers(2, 8))
def test_a_point_given_twice_is_a_point_of_double_mass(kind, seed, n):
    points, times = cloud(seed, n), np.random.default_rng(seed).integers(1, 4, n)
    start = cloud(seed + 1, 2)
    twice = solve_barycenter(np.repeat(points, times, 0), start, **kind)
    heavy = solve_barycenter(points, start, mass=times, **kind)
    np.testing.assert_allclose(heavy.atoms, twice.atoms, atol=1e-6)
    np.testing.assert_allclose(heavy.weights, twice.weights, atol=1e-9)
    assert heavy.w2 == pytest.approx(twice.w2, abs=1e-6)


@every_kind
def test_a_point_without_mass_is_not_there(kind):
    points, start = cloud(0, 9), cloud(1, 2)
    with_ghost = solve_barycenter(np.vstack([points, [[1e6] * 3]]), start, mass=[1] * 9 + [0], **kind)
    np.testing.assert_allclose(with_ghost.atoms, solve_barycenter(points, start, **kind).atoms, atol=1e-9)


# objective


@exact_kinds
@settings(deadline=None, max_examples=25)
@given(problems(), st.data())
def test_the_distance_never_rises_from_the_start(kind, problem, data):
    points, init = problem
    mass = data.draw(masses(len(points)))
    assume(len(init) <= np.count_nonzero(mass))
    found = solve_barycenter(points, init, mass=mass, **kind)
    assert found.w2 <= wasserstein2(init, points, None, mass) + 1e-9


@every_kind
@settings(deadline=None, max_examples=12)
@given(problems())
def test_w2_is_the_exact_distance_and_weights_are_a_probability(kind, problem):
    points, init = problem
    found = solve_barycenter(points, init, **kind)
    assert found.w2 == pytest.approx(wasserstein2(found.atoms, points, found.weights), abs=1e-9)
    assert found.weights.sum() == pytest.approx(1)
    assert (found.weights > 0).all()
    assert found.iterations >= 1


@settings(deadline=None, max_examples=40)
@given(problems())
def test_free_weights_are_never_worse_than_fixed_ones_from_the_same_start(problem):
    points, init = problem
    fixed, free = solve_barycenter(points, init), solve_barycenter(points, init, weights="free")
    assert free.w2 <= fixed.w2 + 1e-9


def test_kmeans_alone_can_end_above_fixed_weights_from_the_same_start():
    from sklearn.cluster import KMeans

    found = []
    for seed in range(60):
        points, init = cloud(seed, 10), 2 * cloud(seed + 1000, 4)
        alone = KMeans(4, init=init, n_init=1, tol=0).fit(points).inertia_ / 10
        found.append(alone - solve_barycenter(points, init).w2)
    assert max(found) > 1e-3, "then the second descent of free weights is needless"


def test_fewer_places_than_atoms_are_met_exactly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn tells of duplicates
        found = solve_barycenter(np.repeat(PLACES, 4, axis=0), 6, weights="free")
    assert found.w2 == pytest.approx(0, abs=1e-12)
    assert (found.weights > 0).all()


def test_points_in_one_place_are_their_own_barycenter():
    found = solve_barycenter(np.full((5, 2), 3.0), [[3.0, 3.0], [3.0, 3.0]])
    np.testing.assert_array_equal(found.atoms, np.full((2, 2), 3.0))
    assert found.w2 == 0


# against POT


@settings(deadline=None, max_examples=20)
@given(problems(), st.data())
def test_exact_atoms_of_fixed_weights_are_pots(problem, data):
    points, init = problem
    mass = data.draw(masses(len(points)))
    assume(len(init) <= np.count_nonzero(mass))
    expected = ot.lp.free_support_barycenter([points], [mass / mass.sum()], init, stopThr=1e-12)
    np.testing.assert_allclose(solve_barycenter(points, init, mass=mass).atoms, expected, atol=1e-6)


@settings(deadline=None, max_examples=12)
@given(problems())
def test_the_loop_for_large_classes_ends_where_pots_does(problem):
    points, init = problem
    expected = barycenter(points, init)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "POT_POINTS", 0)
        np.testing.assert_allclose(barycenter(points, init), expected, atol=1e-6)


@pytest.mark.parametrize("limit", [0, 10_000], ids=["own loop", "POT"])
def test_iterations_and_their_limit_count_alike_in_both_loops(monkeypatch, limit):
    monkeypatch.setattr(module, "POT_POINTS", limit)
    points, start = cloud(0, 200), cloud(1, 10)
    whole = solve_barycenter(points, start)
    assert whole.iterations > 3
    with pytest.warns(UserWarning, match="max_iterations = 2"):
        short = solve_barycenter(points, start, max_iterations=2)
    assert short.iterations == 2
    assert whole.w2 < short.w2 < wasserstein2(start, points)
    expected = start
    for _ in range(2):
        expected = 10 * ot.emd([], [], ot.dist(expected, points)) @ points
    np.testing.assert_allclose(short.atoms, expected, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The barycenter stopped")
@pytest.mark.parametrize("underflow", [0, 1e9], ids=["logarithms", "plain"])
def test_entropic_atoms_are_pots(monkeypatch, underflow):
    monkeypatch.setattr(plans, "UNDERFLOW", underflow)
    points, start, reg = cloud(0, 30), cloud(1, 3), 0.3
    variance = np.square(points - points.mean(0)).sum(1).mean()
    expected = ot.bregman.free_support_sinkhorn_barycenter(
        [points], [ot.unif(30)], start, reg * variance, method="sinkhorn_log", numItermax=5
    )
    found = solve_barycenter(points, start, solver="sinkhorn", reg=reg, max_iterations=5)
    np.testing.assert_allclose(found.atoms, expected, atol=1e-6)


def test_entropic_atoms_approach_exact_ones_and_start_at_the_mean():
    points = np.concatenate([cloud(i, 10, 2) + place for i, place in enumerate(PLACES)])
    exact = solve_barycenter(points, PLACES)
    gaps = [
        np.abs(solve_barycenter(points, PLACES, solver="sinkhorn", reg=reg).atoms - exact.atoms).max()
        for reg in (10.0, 0.3, 0.1, 0.01)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 5
    assert gaps[-1] < 1e-6
    blurred = solve_barycenter(points, PLACES, solver="sinkhorn", reg=10.0)
    np.testing.assert_allclose(blurred.atoms, np.tile(points.mean(0), (3, 1)), atol=0.05)


@pytest.mark.filterwarnings("ignore:The barycenter stopped")
def test_entropic_plans_that_do_not_converge_are_an_error():
    with pytest.raises(ConvergenceError, match=r"did not converge.*reg = 0\.0001"):
        solve_barycenter(cloud(0, 30), cloud(1, 4), solver="sinkhorn", reg=1e-4, max_iterations=1)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_entropy_too_small_for_numbers_is_an_error():
    with pytest.raises(ConvergenceError, match="did not converge"):
        solve_barycenter(cloud(0, 3), cloud(1, 2), solver="sinkhorn", reg=1e-320, max_iterations=1)


# start


def test_a_number_starts_from_kmeans_by_seed():
    points = cloud(0, 80)
    found = solve_barycenter(points, 5, seed=3)
    np.testing.assert_array_equal(found.atoms, solve_barycenter(points, np.int64(5), seed=3).atoms)
    assert found.atoms.shape == (5, 3)
    assert found.w2 == pytest.approx(solve_barycenter(points, kmeans_atoms(points, 5, seed=3)).w2, rel=1e-6)


def test_barycenter_takes_float32_and_leaves_its_arguments_alone():
    points, init = cloud(0, 8).astype(np.float32), cloud(1, 3).astype(np.float32)
    kept = points.copy(), init.copy()
    assert barycenter(points, init).dtype == np.float64
    np.testing.assert_array_equal(points, kept[0])
    np.testing.assert_array_equal(init, kept[1])


# what is refused


@pytest.mark.parametrize(
    ("points", "init"),
    [((5, 3), (2, 4)), ((5,), (2, 3)), ((5, 3), (3,)), ((5, 3), (6, 3)), ((5, 3), (0, 3))],
    ids=["other dimension", "flat points", "flat init", "more atoms than points", "no atom"],
)
def test_shapes_that_do_not_fit_are_refused(points, init):
    with pytest.raises(ValueError, match=r"expected"):
        barycenter(np.zeros(points), np.zeros(init))


def test_more_atoms_than_points_with_mass_are_refused():
    with pytest.raises(ValueError, match="3 atoms for 2 points"):
        solve_barycenter(cloud(0, 5), 3, mass=[1, 0, 1, 0, 0])


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e200])
def test_numbers_that_are_none_are_refused(number):
    points = cloud(0, 5)
    points[3, 1] = number
    for arguments in ((points, 2), (cloud(1, 6), points)):
        with pytest.raises(ValueError, match=r"1 of 5 rows, the first in row 3"):
            solve_barycenter(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "loose"}, "'fixed' or 'free'"),
        ({"solver": "emd"}, "'exact' or 'sinkhorn'"),
        ({"solver": "sinkhorn", "weights": "free"}, "Free weights"),
        ({"reg": 0.1}, "reg is 0.1 with solver='exact'"),
        ({"solver": "sinkhorn", "reg": 0.0}, "positive"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"tolerance": np.nan}, "tolerance nan"),
        ({"mass": [1.0]}, "mass"),
    ],
)
def test_options_that_cannot_work_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        solve_barycenter(cloud(0, 5), 2, **options)
