"""k-means as the barycenter with free weights."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.transport.barycenter import assign, kmeans_atoms, wasserstein2
from gendistill.transport.kmeans import kmeans_centres, lloyd, without_empty
from tests.transport.clouds import SEED, cloud


def test_kmeans_atoms_are_the_means_of_separate_clusters():
    places = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    clusters = [cloud(i, 4 + i, 2) + p for i, p in enumerate(places)]
    found = kmeans_atoms(np.concatenate(clusters), 3)
    expected = np.array([c.mean(0) for c in clusters])
    np.testing.assert_allclose(found[assign(expected, found)], expected, atol=1e-9)


def test_kmeans_atoms_repeat_for_a_seed():
    points = cloud(0, 40)
    np.testing.assert_array_equal(kmeans_atoms(points, 5, seed=3), kmeans_atoms(points, 5, seed=3))


@settings(deadline=None, max_examples=10)
@given(SEED)
def test_one_centre_is_the_mean_by_mass(seed):
    points, mass = cloud(seed, 9), np.arange(9.0)
    np.testing.assert_allclose(kmeans_atoms(points, 1, mass=mass), [np.average(points, 0, mass)], atol=1e-9)


@pytest.mark.parametrize("count", [0, 5])
def test_a_number_of_centres_that_cannot_be_is_refused(count):
    with pytest.raises(ValueError, match=rf"{count} atoms for 4 points"):
        kmeans_atoms(cloud(0, 6), count, mass=[1, 1, 0, 1, 0, 1])


@settings(deadline=None, max_examples=20)
@given(SEED, st.integers(1, 6))
def test_lloyd_ends_where_every_atom_is_the_mean_of_the_points_nearest_to_it(seed, k):
    points, mass = cloud(seed, 12), np.full(12, 1 / 12)
    atoms, weights, w2, _ = lloyd(points, mass, cloud(seed + 1, k), 100, 0.0)
    nearest = ot.dist(points, atoms).argmin(1)
    np.testing.assert_allclose(atoms, [points[nearest == j].mean(0) for j in range(k)], atol=1e-9)
    np.testing.assert_allclose(weights, np.bincount(nearest, minlength=k) / 12)
    assert w2 == pytest.approx(wasserstein2(atoms, points, weights), abs=1e-9)


def test_an_empty_atom_moves_to_the_farthest_point():
    points = np.array([[0.0], [1.0], [9.0], [20.0]])
    atoms, weights, w2 = without_empty(points, np.full(4, 0.25), np.array([[0.5], [9.0], [1e6]]))
    np.testing.assert_array_equal(atoms, [[0.5], [9.0], [20.0]])
    np.testing.assert_array_equal(weights, [0.5, 0.25, 0.25])
    assert w2 == pytest.approx(0.125)


def test_more_atoms_than_places_share_the_mass_there():
    points, mass = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0.25, 0.75])
    atoms, weights, w2 = without_empty(points, mass, np.array([[0.0, 0.0], [1.0, 1.0], [7.0, 7.0], [8.0, 8.0]]))
    assert (weights > 0).all()
    assert w2 == 0
    for place, share in zip(points, mass, strict=True):
        assert weights[(atoms == place).all(1)].sum() == pytest.approx(share)


def test_centres_keep_the_dtype_of_the_points():
    points = cloud(3, 30).astype(np.float32)
    assert kmeans_centres(points, 4, 0, starts=1).dtype == np.float32
    assert np.array_equal(kmeans_atoms(points, 4), kmeans_centres(points.astype(np.float64), 4, 0, starts=4))
