"""Wasserstein barycenters, assignments and distances; every optimal-transport solve is POT's.

Legend: points (n,d) a class's real features, each of mass 1/n; atoms (k,d) of mass 1/k; float64 NumPy inside.
"""

from __future__ import annotations

import numpy as np
import ot
from sklearn.cluster import KMeans

from gendistill.seeding import derive


def barycenter(points: np.ndarray, init: np.ndarray, max_iterations: int = 100, tolerance: float = 1e-9) -> np.ndarray:
    """The k atoms of mass 1/k nearest to the points in W2, from ``init`` (k,d); row j descends from init's row j.

    min over X of W2^2((1/k) sum_j delta_X_j, (1/n) sum_i delta_p_i), by alternating the exact plan with barycentric
    projection (Cuturi & Doucet 2014, algorithm 2 with fixed weights). WMDD (2311.18531) runs it in feature space.
    """
    points, init = np.asarray(points, np.float64), np.asarray(init, np.float64)
    if points.ndim != 2 or init.ndim != 2 or points.shape[1] != init.shape[1]:
        raise ValueError(f"points {points.shape} and init {init.shape} must be (n,d) and (k,d) with one d.")
    if len(init) > len(points):
        raise ValueError(f"{len(init)} atoms for {len(points)} points; expected at most as many atoms as points.")
    mass = np.full(len(points), 1 / len(points))
    return ot.lp.free_support_barycenter([points], [mass], init, numItermax=max_iterations, stopThr=tolerance)


def kmeans_atoms(points: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Centres (k,d) of k-means: the barycenter with free weights, and a good start for the one with equal weights."""
    clusters = KMeans(count, n_init=4, random_state=derive(seed, "kmeans") % 2**32)
    return clusters.fit(np.asarray(points, np.float64)).cluster_centers_


def wasserstein2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared 2-Wasserstein distance between two point clouds of uniform mass, exact."""
    cost = ot.dist(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return float(ot.emd2(ot.unif(len(x)), ot.unif(len(y)), cost))


def assign(targets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """For each target (k,d) its own candidate (n,d), n >= k: positions (k,) that minimise the total squared distance.

    One exact transport: a dummy target of mass n - k takes at no cost what nobody needs, so the plan is a 0-1 matrix.
    """
    k, n = len(targets), len(candidates)
    if n < k:
        raise ValueError(f"{k} targets need as many candidates; got {n}.")
    cost = ot.dist(np.asarray(targets, np.float64), np.asarray(candidates, np.float64))
    mass = np.ones(k)
    if n > k:
        cost, mass = np.vstack([cost, np.zeros((1, n))]), np.append(mass, float(n - k))
    plan = ot.emd(mass, np.ones(n), cost, numItermax=1_000_000)
    return plan[:k].argmax(1)
