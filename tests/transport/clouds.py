"""Random problems shared by the transport tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

SEED = st.integers(0, 2**32)


def cloud(seed: int, n: int, d: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(points (n,d), init (k,d)) with k <= n, not always a divisor of n."""
    n, seed = draw(st.integers(1, 12)), draw(SEED)
    k = draw(st.integers(1, n))
    return cloud(seed, n), cloud(seed + 1, k) * 2


@st.composite
def masses(draw: st.DrawFn, n: int) -> np.ndarray:
    """Uneven masses (n,), some of them 0, of any sum."""
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=n, max_size=n))
    return np.array(weights) + np.eye(n)[draw(st.integers(0, n - 1))]
