"""Wasserstein barycenters of a class's points by POT: exact or entropic, with fixed or free weights.

Legend: points (n,d) a class's real features, of mass (n,), sum 1; atoms (k,d) of weights (k,), sum 1; plan (k,n);
float64 NumPy inside. For ONE measure the barycenter is its best k-point approximation,

    min over atoms (and weights) of W2^2(sum_j weights_j delta_atom_j, sum_i mass_i delta_point_i).

All solvers get the points shifted to mean 0 and scaled to variance 1 (mean squared distance to the mean), so the
location and unit of the features do not matter; ``tolerance`` and ``reg`` are in units of that variance.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from gendistill.progress import track
from gendistill.seeding import derive
from gendistill.threads import usual_threads
from gendistill.transport.kmeans import at_most, kmeans_atoms, lloyd
from gendistill.transport.plans import (
    SINKHORN_STEPS,
    as_mass,
    as_points,
    assign,
    entropic_plan,
    one_thread,
    same_dimension,
    sinkhorn_method,
    transport,
    wasserstein2,
)

__all__ = ["Barycenter", "assign", "barycenter", "kmeans_atoms", "solve_barycenter", "wasserstein2"]

POT_POINTS = 10_000  # POT's barycenter has a fixed limit of pivots, which larger classes exceed
ENTROPY = 0.03  # variances
TIE = 1e-9  # variances; rounding must not choose between equal descents


@dataclass(frozen=True)
class Barycenter:
    """``atoms`` (k,d), ``weights`` (k,) > 0 of sum 1, ``w2`` their exact W2^2 to the points, ``iterations`` taken."""

    atoms: np.ndarray
    weights: np.ndarray
    w2: float
    iterations: int


def solve_barycenter(
    points: ArrayLike,
    start: int | ArrayLike,
    *,
    weights: Literal["fixed", "free"] = "fixed",
    solver: Literal["exact", "sinkhorn"] = "exact",
    reg: float | None = None,
    mass: ArrayLike | None = None,
    seed: int = 0,
    max_iterations: int = 300,
    tolerance: float = 1e-7,
) -> Barycenter:
    """The Wasserstein barycenter of one point cloud: the k atoms of least W2^2 to it.

    With ``fixed`` weights 1/k it alternates the optimal plan P (k,n) and the barycentric projection

        atom_j <- k sum_i P_ji point_i

    (Cuturi & Doucet 2014, algorithm 2 without its weight step, which WMDD, arXiv 2311.18531, runs in feature space).
    ``free`` weights are optimised too. That is k-means, here the better of its descents from the start and from the
    atoms of fixed weights, so it never ends above those.

    Args:
        points: (n,d), finite.
        start: Initial atoms (k,d), row j of the result descending from row j; or k, for the centres of k-means.
        weights: ``fixed`` or ``free``.
        solver: ``exact`` plans, or entropic ones by ``sinkhorn`` (fixed weights only), which draw atoms to the mean.
        reg: Strength of the entropy in variances of the points, above 0; 0.03 where None.
        mass: (n,) of any positive sum, uniform where None; points without mass are left out.
        seed: Of the k-means start.
        max_iterations: At least 1; reaching it warns.
        tolerance: Stops when the atoms' squared moves sum to this, in variances.

    Returns:
        The atoms, their weights and the exact W2^2.

    Raises:
        ValueError: an option or input that cannot work, or more atoms than points with mass.
        ConvergenceError: a plan did not converge.

    Example:
        >>> solve_barycenter([[0.0], [1.0], [10.0], [11.0]], 2).atoms.ravel()
        array([ 0.5, 10.5])
    """
    _check(weights, solver, reg, max_iterations, tolerance)
    problem = _Problem.of(points, start, mass, seed)
    stop = max_iterations, tolerance
    if solver == "exact":
        atoms, w2, iterations = _exact(problem, *stop)
    else:
        atoms, w2, iterations = _entropic(problem, ENTROPY if reg is None else reg, *stop)
    share = problem.share
    if weights == "free":
        first, second = (lloyd(problem.points, problem.mass, begin, *stop) for begin in (problem.init, atoms))
        atoms, share, w2, iterations = second if second[2] < first[2] - TIE else first
    if iterations >= max_iterations:
        warnings.warn(f"The barycenter stopped at max_iterations = {max_iterations}; it may still move.", stacklevel=2)
    return Barycenter(atoms * problem.scale + problem.mean, share, w2 * problem.scale**2, iterations)


def barycenter(points: ArrayLike, init: ArrayLike, max_iterations: int = 100, tolerance: float = 1e-9) -> np.ndarray:
    """The atoms (k,d) of mass 1/k nearest to the points in W2, row j from init's row j (see ``solve_barycenter``)."""
    init = as_points("init", init)
    return solve_barycenter(points, init, max_iterations=max_iterations, tolerance=tolerance).atoms


@dataclass(frozen=True)
class _Problem:
    """``points`` of ``mass`` > 0 and the start ``init`` (k,d), both as (x - mean) / scale; ``share`` (k,) is 1/k."""

    points: np.ndarray
    mass: np.ndarray
    init: np.ndarray
    share: np.ndarray
    mean: np.ndarray
    scale: float

    @classmethod
    def of(cls, points: ArrayLike, start: int | ArrayLike, mass: ArrayLike | None, seed: int) -> _Problem:
        """Checked and scaled, with a start by k-means where only the number of atoms is known."""
        points = as_points("points", points)
        mass = as_mass("mass", mass, len(points))
        points, mass = points[mass > 0], mass[mass > 0]
        mean = mass @ points
        scale = float(np.sqrt(mass @ np.square(points - mean).sum(1))) or 1.0
        unit = (points - mean) / scale
        if isinstance(start, int | np.integer):
            init = kmeans_atoms(unit, int(start), seed, mass)
        else:
            atoms = as_points("init", start)
            same_dimension(points=points, init=atoms)
            at_most(len(atoms), len(points))
            init = (atoms - mean) / scale
        return cls(unit, mass, init, np.full(len(init), 1 / len(init)), mean, scale)


def _exact(p: _Problem, max_iterations: int, tolerance: float) -> tuple[np.ndarray, float, int]:
    """Atoms of fixed weights, W2^2 and iterations: exact plan and barycentric projection in turn.

    POT's alternation runs first. The loop after it does the same with plans that are known to be optimal: it confirms
    POT's atoms and measures them, or continues where POT's plans were not optimal.
    """
    import ot

    atoms, iterations = p.init, 0
    if len(p.points) <= POT_POINTS:
        atoms, log = ot.lp.free_support_barycenter(
            [p.points], [p.mass], p.init, p.share, numItermax=max_iterations, stopThr=tolerance, log=True
        )
        iterations = len(log["displacement_square_norms"])
    while True:
        plan, w2 = transport(p.share, p.mass, ot.dist(atoms, p.points))
        moved = plan @ p.points / p.share[:, None]
        if iterations >= max_iterations or np.square(moved - atoms).sum() <= tolerance:
            return atoms, w2, iterations
        atoms, iterations = moved, iterations + 1


def _entropic(p: _Problem, reg: float, max_iterations: int, tolerance: float) -> tuple[np.ndarray, float, int]:
    """The same with Sinkhorn's plans.

    Raises:
        ConvergenceError: the last plan misses its marginals, or is not finite.
    """
    import ot

    farthest = (np.linalg.norm(p.points, axis=1).max() + np.linalg.norm(p.init, axis=1).max()) ** 2
    atoms, log = ot.bregman.free_support_sinkhorn_barycenter(
        [p.points],
        [p.mass],
        p.init,
        reg,
        p.share,
        numItermax=max_iterations,
        numInnerItermax=SINKHORN_STEPS,
        stopThr=tolerance,
        log=True,
        method=sinkhorn_method(farthest, reg),
        warn=False,
    )
    cost = ot.dist(atoms, p.points)
    entropic_plan(p.share, p.mass, cost, reg, remedy='Take solver "exact", or in Python a larger reg.')
    return atoms, transport(p.share, p.mass, cost)[1], len(log["displacement_square_norms"])


def _check(weights: str, solver: str, reg: float | None, max_iterations: int, tolerance: float) -> None:
    """Refuse options that cannot work, naming the choices."""
    if weights not in ("fixed", "free"):
        raise ValueError(f"weights is {weights!r}; expected 'fixed' or 'free'.")
    if solver not in ("exact", "sinkhorn"):
        raise ValueError(f"solver is {solver!r}; expected 'exact' or 'sinkhorn'.")
    if solver == "sinkhorn" and weights == "free":
        raise ValueError("Free weights are solved by k-means, without entropy; expected solver='exact' with them.")
    if reg is not None and (solver != "sinkhorn" or not 0 < reg < np.inf):
        raise ValueError(f"reg is {reg} with solver={solver!r}; expected a positive number, with solver='sinkhorn'.")
    if max_iterations < 1 or not tolerance >= 0:
        raise ValueError(f"max_iterations is {max_iterations} and tolerance {tolerance}; expected >= 1 and >= 0.")


Start = ArrayLike | Callable[[Any], ArrayLike]


def class_barycenters(
    points_by_class: Iterable[ArrayLike],
    starts: int | Iterable[Start],
    *,
    seed: int = 0,
    workers: int | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> list[Barycenter]:
    """``solve_barycenter`` of every class, in order, by several threads.

    Args:
        points_by_class: (n_c,d) of every class; at most ``workers`` + 1 are in memory at a time.
        starts: k, or for every class the initial atoms (k_c,d) or a function that computes them from its points.
        seed: Class c gets a seed of its own from it.
        workers: Threads, each with one BLAS and one OpenMP thread; where None as many as compute otherwise, up to 8.
            The results do not depend on it.
        names: Of the classes, for messages.
        options: Of ``solve_barycenter``.

    Raises:
        ValueError: not one start a class, or a class that ``solve_barycenter`` refuses.
        ConvergenceError: a plan did not converge.
    """
    workers = min(8, usual_threads()) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1.")
    if isinstance(starts, int | np.integer):
        classes: Iterable[tuple[Any, Any]] = zip(points_by_class, repeat(starts), strict=False)
    else:
        classes = zip(points_by_class, starts, strict=True)
    total = len(names) if names else len(points_by_class) if isinstance(points_by_class, Sized) else None

    def solve(label: int, points: ArrayLike, start: int | Start) -> Barycenter:
        try:
            start = start(points) if callable(start) else start
            return solve_barycenter(points, start, seed=derive(seed, "class", label), **options)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"Class {repr(names[label]) if names else label}: {error}") from error

    # OpenMP's limit belongs to a thread, so every worker sets it; BLAS's to the process, so it is undone here.
    with one_thread(), ThreadPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as pool:

        def running() -> Iterator[Future[Barycenter]]:
            for label, (points, start) in enumerate(classes):
                yield pool.submit(solve, label, points, start)

        return list(track(_in_order(running(), workers), "barycenters", total))


def _in_order(futures: Iterator[Future[Barycenter]], ahead: int) -> Iterator[Barycenter]:
    """Results in order; a new one is started only when fewer than ``ahead`` are waiting."""
    waiting: deque[Future[Barycenter]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
