"""Paired intervals against SciPy, and the words they allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gendistill.evaluate.intervals import paired_interval, verdict


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 12), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_equals_scipys(seed, n, level):
    ours, theirs = np.random.default_rng(seed).normal(size=(2, n))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(level)
    assert paired_interval(ours.tolist(), theirs.tolist(), level) == pytest.approx(tuple(expected))


def test_the_default_level_is_95_percent():
    ours, theirs = [0.5, 0.7, 0.6], [0.4, 0.4, 0.5]
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert paired_interval(ours, theirs) == pytest.approx(tuple(expected))


def test_interval_by_hand():
    half = 12.706 * np.sqrt(2) / np.sqrt(2)  # t(0.975, 1); differences 1 and 3 have a deviation of sqrt(2)
    assert paired_interval([2, 5], [1, 2]) == pytest.approx((2 - half, 2 + half), abs=1e-3)


def test_differences_without_spread_give_one_point():
    assert paired_interval([0.5, 0.75], [0.25, 0.5]) == (0.25, 0.25)


def test_runs_without_a_partner_are_left_out():
    assert paired_interval([2, 5, 100], [1, 2]) == paired_interval([2, 5], [1, 2, -7])


@pytest.mark.parametrize("pairs", [0, 1])
def test_fewer_than_two_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match=f"at least 2 pairs, got {pairs}"):
        paired_interval([1.0, 2.0], [1.0] * pairs)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (None, "reference"),
        ((0.1, 0.2), "better than random"),
        ((-0.2, -0.1), "worse than random"),
        ((-0.1, 0.1), "not better than random"),
        ((0.0, 0.1), "not better than random"),
        ((-0.1, 0.0), "not better than random"),
    ],
)
def test_verdicts(interval, words):
    assert verdict(interval) == words
