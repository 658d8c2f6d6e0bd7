"""Paired intervals against SciPy, and the words they allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gendistill.evaluation.evaluator import seed_spread, with_verdict
from gendistill.evaluation.intervals import by_set, paired_interval, row_interval, verdict


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


# several synthesis seeds


def test_runs_go_round_over_the_sets():
    assert by_set([1, 2, 3, 5, 6, 7], 3) == [3, 4, 5]
    assert by_set([1, 2], 1) == [1.5]
    with pytest.raises(ValueError, match="too few for 3 sets"):
        by_set([1, 2], 3)


def test_spread_within_and_between_sets_by_hand():
    within, between = seed_spread([0.1, 0.5, 0.3, 0.7], 2)  # set 0: 0.1, 0.3; set 1: 0.5, 0.7
    assert within == pytest.approx(np.sqrt(0.02))
    assert between == pytest.approx(np.std([0.2, 0.6], ddof=1))
    assert seed_spread([0.1, 0.5], 1) == (None, None)


def pooled_row(rng, sets, runs):
    """A method no better than random, whose sets differ by much more than its trainings."""
    names = {"ipc": 1, "labels": "hard", "recipe": None, "space": None, "set": None}
    ours = np.tile(rng.normal(0.5, 0.05, sets), runs) + rng.normal(0, 0.01, sets * runs)
    theirs = rng.normal(0.5, 0.05, sets * runs)  # every random run draws anew
    random = {**names, "method": "random", "accuracy": theirs.tolist()}
    pooled = {**names, "method": "dm", "set": ["a"], "accuracy": ours.tolist(), "synthesis_seeds": sets}
    return with_verdict(pooled, [random, pooled])


def test_the_interval_of_a_pooled_row_covers_new_seeds_and_that_of_its_runs_does_not():
    rng = np.random.default_rng(0)
    found = [pooled_row(rng, 3, 5) for _ in range(400)]
    covered = {
        key: np.mean([row[key][0] <= 0 <= row[key][1] for row in found])
        for key in ("ci95_vs_random", "ci95_these_sets")
    }
    assert 0.92 < covered["ci95_vs_random"] < 0.98
    assert covered["ci95_these_sets"] < 0.9
    assert all(row["verdict"] == verdict(tuple(row["ci95_vs_random"])) for row in found)


def pool(rng, sets, runs, mean=0.5):
    """Runs go round over sets that differ by much more than their trainings."""
    made = np.tile(rng.normal(mean, 0.05, sets), runs) + rng.normal(0, 0.01, sets * runs)
    return {"accuracy": made.tolist(), "synthesis_seeds": sets}


def single(rng, runs, mean=0.5):
    """Trainings on one set whose accuracy is ``mean``."""
    return {"accuracy": rng.normal(mean, 0.01, runs).tolist(), "synthesis_seeds": 1}


@pytest.mark.parametrize(
    "pair",
    [
        lambda rng: (pool(rng, 3, 5), single(rng, 5)),  # a coreset with fewer runs
        lambda rng: (pool(rng, 3, 3), single(rng, 3)),
        lambda rng: (single(rng, 5), pool(rng, 4, 5)),
        lambda rng: (pool(rng, 3, 5), {"accuracy": rng.normal(0.5, 0.05, 20).tolist()}),  # random draws
        lambda rng: (pool(rng, 4, 3), pool(rng, 4, 3)),
        lambda rng: (pool(rng, 6, 3), pool(rng, 4, 3)),
    ],
)
def test_intervals_of_pooled_rows_cover_new_seeds_whatever_they_are_compared_with(pair):
    rng = np.random.default_rng(0)
    found = [row_interval(*pair(rng)) for _ in range(500)]
    assert 0.92 < np.mean([low <= 0 <= high for low, high in found]) < 0.985


def test_rows_of_single_sets_are_paired_by_run():
    ours, theirs = {"accuracy": [0.5, 0.7, 0.6]}, {"accuracy": [0.4, 0.4, 0.5, 0.9], "synthesis_seeds": 1}
    assert row_interval(ours, theirs) == paired_interval(ours["accuracy"], theirs["accuracy"])
    assert row_interval({"accuracy": [0.5]}, theirs) is None


def test_only_plain_random_rows_are_what_verdicts_are_against():
    names = {"ipc": 1, "labels": "hard", "recipe": None, "accuracy": [0.25, 0.5]}
    ours = {**names, "method": "dm", "space": None, "set": "a", "accuracy": [0.5, 0.75]}
    given_set = {**names, "method": "random", "space": None, "set": "b", "accuracy": [0, 0]}
    equal = {**names, "method": "random", "space": "equal bytes", "set": None, "accuracy": [0, 0]}
    random = {**names, "method": "random", "space": None, "set": None}
    assert with_verdict(ours, [given_set, equal, random, ours])["ci95_vs_random"] == [0.25, 0.25]
    assert with_verdict(random, [given_set, equal, random, ours])["verdict"] == "reference"
    assert with_verdict(ours, [given_set, equal, ours])["verdict"] == "reference"
