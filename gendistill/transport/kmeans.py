"""k-means: the exact barycenter of one measure when the atoms' weights are free as well as their places.

By scikit-learn. Coresets, prototypes, the starts of barycenters and the representative selection all use it.

Legend: points (n,d) of mass (n,), sum 1; atoms (k,d); float64 NumPy inside.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from gendistill.seeding import derive
from gendistill.transport.plans import as_mass, as_points, one_thread

TOLERANCE = 1e-4  # scikit-learn's
SAME = 1e-12  # squared distance in variances, above the rounding of squared distances


def kmeans_atoms(
    points: ArrayLike, count: int, seed: int = 0, mass: ArrayLike | None = None, *, dimensions: int | None = None
) -> np.ndarray:
    """Centres (k,d) of k-means, the best of four k-means++ starts: a good start for atoms of equal weight.

    Args:
        points: (n,d).
        count: k, 1 to the number of points with mass.
        seed: Of the starts.
        mass: (n,) of any positive sum; uniform where None.
        dimensions: As in ``kmeans_centres``.

    Raises:
        ValueError: inputs that are not a point cloud with masses, or more centres than points of positive mass.
    """
    points = as_points("points", points)
    weight = None if mass is None else as_mass("mass", mass, len(points))
    at_most(count, len(points) if weight is None else int(np.count_nonzero(weight)))
    return kmeans_centres(points, count, seed, starts=4, mass=weight, dimensions=dimensions)


def kmeans_centres(
    points: np.ndarray,
    count: int,
    seed: int,
    *,
    starts: int,
    mass: np.ndarray | None = None,
    dimensions: int | None = None,
) -> np.ndarray:
    """Centres (k,d) of the best of ``starts`` k-means++ starts, in the dtype of ``points`` (n,d), n >= k.

    A centre that lost its points moves to the farthest point. Where there are fewer different points than centres,
    centres coincide too. Points that stand for others of more ``dimensions`` with the same distances give the same
    clusters: scikit-learn's tolerance is relative to the variance of a coordinate, which is smaller in more of them.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    tolerance = TOLERANCE * (points.shape[1] / (dimensions or points.shape[1]))
    clusters = KMeans(count, n_init=starts, tol=tolerance, random_state=derive(seed, "kmeans") % 2**32)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than centres
        return clusters.fit(points, sample_weight=mass).cluster_centers_


def at_most(count: int, points: int) -> None:
    """Refuse no atom, and more atoms than points."""
    if not 1 <= count <= points:
        raise ValueError(f"{count} atoms for {points} points; expected 1 to as many atoms as points with mass.")


def lloyd(
    points: np.ndarray, mass: np.ndarray, init: np.ndarray, max_iterations: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Atoms, weights, W2^2 and iterations of Lloyd's algorithm from ``init``; centre j descends from init's row j.

    Atoms that start nearest to no point are placed first, since scikit-learn fills empty clusters in no fixed order.
    Atom j's weight is the mass nearest to it. Stops when the atoms' squared moves sum to at most ``tolerance``.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    spread = points.var(0).mean() or 1.0  # scikit-learn multiplies its tolerance by this
    init, _, _ = without_empty(points, mass, init)
    clusters = KMeans(len(init), init=init, n_init=1, max_iter=max_iterations, tol=tolerance / spread)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters.fit(points, sample_weight=mass)
    atoms, weights, w2 = without_empty(points, mass, clusters.cluster_centers_)
    return atoms, weights, w2, clusters.n_iter_


def without_empty(points: np.ndarray, mass: np.ndarray, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Atoms, their weights (all > 0) and W2^2, each point going to its nearest atom.

    An atom that no point is nearest to moves to the point farthest from its atom; where fewer places than atoms hold
    all the mass, it halves the heaviest atom.
    """
    import ot

    atoms = atoms.copy()
    for _ in range(len(atoms)):
        cost = ot.dist(points, atoms)
        nearest = cost.argmin(1)
        paid = cost[np.arange(len(points)), nearest]
        weights = np.bincount(nearest, mass, len(atoms))
        empty = np.flatnonzero(weights == 0)
        farthest = paid.argmax()
        if not len(empty) or np.square(points[farthest] - atoms[nearest[farthest]]).sum() < SAME:
            break
        atoms[empty[0]] = points[farthest]
    for j in empty:
        heaviest = weights.argmax()
        atoms[j] = atoms[heaviest]
        weights[[j, heaviest]] = weights[heaviest] / 2
    return atoms, weights, float(mass @ paid)
