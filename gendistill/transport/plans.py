"""Transport plans, exact by POT's network simplex or entropic, distances and assignments; unfinished plans are errors.

Legend: x (n,d) and y (m,d) points; a (n,) and b (m,) masses of sum 1; cost (n,m); float64 NumPy inside.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from threadpoolctl import ThreadpoolController

from gendistill.errors import ConvergenceError

PIVOTS = 10_000_000  # POT's default, 100 000, is too low for 20 000 x 100
LARGEST = 1e150  # squares of larger numbers overflow
SINKHORN_STEPS = 2_000  # per plan; POT's default is 1000
UNDERFLOW = 600  # cost / reg; exp(-745) is 0
MISSED = 1e-3  # share of the mass that an entropic plan may leave in the wrong place
EQUAL = 1e-11  # of the largest difference in cost: what rounding may make of a tie


@cache
def _libraries() -> ThreadpoolController:
    import sklearn.cluster  # noqa: F401  (the controller knows only what is loaded, and k-means brings its own OpenMP)

    return ThreadpoolController()  # 8 ms, a limit 0.2 ms


def one_thread() -> AbstractContextManager[object]:
    """Limit BLAS and OpenMP to one thread: sums over several come in no fixed order, and rounding may decide."""
    return _libraries().limit(limits=1)


def as_points(name: str, values: ArrayLike) -> np.ndarray:
    """``values`` as float64 (n,d), n and d >= 1.

    Raises:
        ValueError: another shape, ragged rows, or a number that is not finite or above 1e150.
    """
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as numbers in rows of one length (n,d): {error}") from error
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; expected (n,d) with n and d at least 1.")
    bad = np.flatnonzero(~(np.abs(array) < LARGEST).all(1))
    if len(bad):
        raise ValueError(
            f"{name} has NaN, infinite or huge numbers in {len(bad)} of {len(array)} rows, the first in row {bad[0]}; "
            f"expected finite numbers below {LARGEST:g}. Drop those rows."
        )
    return array


def as_mass(name: str, values: ArrayLike | None, count: int) -> np.ndarray:
    """Masses (count,) of sum 1; ``values`` may have any positive sum, None is uniform.

    Raises:
        ValueError: another shape, a negative or non-finite mass, or no mass at all.
    """
    mass = np.ones(count) if values is None else np.asarray(values, np.float64)
    if mass.shape != (count,):
        raise ValueError(f"{name} has shape {mass.shape}; expected one mass a point, ({count},).")
    if not (np.isfinite(mass) & (mass >= 0)).all() or not 0 < mass.sum() < np.inf:
        raise ValueError(f"{name} has negative, NaN or infinite masses or only zeros; expected masses >= 0, sum > 0.")
    return mass / mass.sum()


def same_dimension(**arrays: np.ndarray) -> None:
    """Refuse point clouds (n,d) whose d differ."""
    if len({array.shape[1] for array in arrays.values()}) > 1:
        shapes = " and ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{shapes} differ in dimension; expected (n,d) and (k,d) with one d.")


def transport(a: np.ndarray, b: np.ndarray, cost: np.ndarray, pivots: int = PIVOTS) -> tuple[np.ndarray, float]:
    """The plan (n,m) of least cost between masses ``a`` and ``b`` of one sum, and that cost >= 0.

    The cost is scaled to a largest entry of 1: beside POT's artificial arcs, which cost at least 1, smaller costs would
    lose their digits.

    Raises:
        ConvergenceError: no optimum within ``pivots``. POT would only warn and return a matrix that is not a coupling.
    """
    import ot  # with scikit-learn and pandas: a second that many commands need not wait

    scale = cost.max() or 1.0
    plan, log = ot.emd(a, b, cost / scale, numItermax=pivots, log=True)
    if log["result_code"] != 1:
        raise ConvergenceError(
            f"POT found no optimal plan for {len(a)} x {len(b)} masses in {pivots} pivots ({log['warning']}); "
            "take fewer points."
        )
    return plan, float(log["cost"] * scale)


def sinkhorn_method(largest: float, reg: float) -> str:
    """POT's solver for costs up to ``largest``: in the log domain, 10 to 20 times as slow, only against underflow."""
    return "sinkhorn" if largest < UNDERFLOW * reg else "sinkhorn_log"


def entropic_plan(
    a: ArrayLike | None,
    b: ArrayLike | None,
    cost: np.ndarray,
    reg: float,
    *,
    steps: int = SINKHORN_STEPS,
    remedy: str = "Take a larger reg.",
) -> np.ndarray:
    """The plan (n,m) of least <P, cost> + reg * sum P log P between masses ``a`` and ``b``, by Sinkhorn's iterations.

    Masses are as in ``as_mass``; at most so many ``steps`` are taken; ``remedy`` ends the message of an error.

    Raises:
        ValueError: masses that do not fit the cost.
        ConvergenceError: cost or plan are not finite, or the plan misses its masses by more than ``MISSED``.
    """
    import ot

    if not np.isfinite(cost).all():  # all steps would be taken in vain
        raise ConvergenceError(f"Sinkhorn's plans did not converge: distances are infinite or NaN. {remedy}")
    a, b = as_mass("a", a, len(cost)), as_mass("b", b, cost.shape[1])
    method = sinkhorn_method(float(cost.max()), reg)
    plan: np.ndarray = ot.sinkhorn(a, b, cost, reg, method=method, numItermax=steps, warn=False)
    missed = max(np.abs(plan.sum(0) - b).sum(), np.abs(plan.sum(1) - a).sum())
    if not missed <= MISSED:  # NaN is not either
        raise ConvergenceError(
            f"Sinkhorn's plans did not converge: {missed:.2g} of the mass is in the wrong place after {steps} steps "
            f"at reg = {reg:g}. {remedy}"
        )
    return plan


def wasserstein2(x: ArrayLike, y: ArrayLike, x_mass: ArrayLike | None = None, y_mass: ArrayLike | None = None) -> float:
    """Squared 2-Wasserstein distance between two point clouds, exact; masses are uniform or scaled to sum 1.

    W2^2(x, y) = |mean x - mean y|^2 + W2^2(x - mean x, y - mean y), so that distant clouds lose no digits.

    Raises:
        ValueError: inputs that are not two clouds of one dimension with masses.
        ConvergenceError: no optimal plan within POT's work limit.
    """
    import ot

    x, y = as_points("x", x), as_points("y", y)
    same_dimension(x=x, y=y)
    a, b = as_mass("x_mass", x_mass, len(x)), as_mass("y_mass", y_mass, len(y))
    x_mean, y_mean = a @ x, b @ y
    return transport(a, b, ot.dist(x - x_mean, y - y_mean))[1] + float(np.square(x_mean - y_mean).sum())


def assign(targets: ArrayLike, candidates: ArrayLike, equal: float = 0.0) -> np.ndarray:
    """For each target (k,d) its own candidate (n,d), n >= k: positions (k,) that minimise the total squared distance.

    SciPy's assignment solver, 30 times as fast as a transport plan at 100 x 500. Terms of the cost that are the same
    for all candidates of a target are left out, so that distant targets lose no digits. Where ``equal`` is
    positive, costs are rounded to multiples of ``equal`` times the largest difference, and positions decide between
    those that become equal. So with ``EQUAL`` an error in the last digits does not choose between the two points of a
    cluster of two, unless the costs are on both sides of a half.

    Raises:
        ValueError: fewer candidates than targets, or inputs that are not two clouds of one dimension.
    """
    import ot

    targets, candidates = as_points("targets", targets), as_points("candidates", candidates)
    same_dimension(targets=targets, candidates=candidates)
    if len(candidates) < len(targets):
        raise ValueError(f"{len(targets)} targets need as many candidates; got {len(candidates)}.")
    t_mean, c_mean = targets.mean(0), candidates.mean(0)
    t, c = targets - t_mean, candidates - c_mean
    with one_thread():
        cost = ot.dist(t, c) - 2 * c @ (t_mean - c_mean)
    cost -= cost.min(1, keepdims=True)
    unit = equal * cost.max()
    return linear_sum_assignment(np.round(cost / unit) if unit else cost)[1]
