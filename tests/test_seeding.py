"""Streams of randomness are named by their keys alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.seeding import derive, numpy_rng, torch_rng

KEYS = st.lists(st.integers() | st.text(max_size=8), max_size=4).map(tuple)


def test_derived_seeds_never_change():
    assert derive(0) == 5238861445096578620
    assert derive(7, "order", 3) == 3477376331303558193


@settings(deadline=None, max_examples=200)
@given(st.integers(), KEYS)
def test_seeds_fit_in_63_bits_and_repeat(seed, keys):
    assert 0 <= derive(seed, *keys) < 2**63
    assert derive(seed, *keys) == derive(seed, *keys)


@settings(deadline=None, max_examples=200)
@given(st.integers(), KEYS, st.integers(), KEYS)
def test_distinct_keys_give_distinct_seeds(seed, keys, other_seed, other_keys):
    same = (seed, *keys) == (other_seed, *other_keys)
    assert (derive(seed, *keys) == derive(other_seed, *other_keys)) == same


@pytest.mark.parametrize(
    ("left", "right"),
    [(("a", "bc"), ("ab", "c")), ((1,), ("1",)), (("a",), ("a", "")), ((1, 2), (12,)), (("a", "b"), ("b", "a"))],
)
def test_keys_do_not_run_together(left, right):
    assert derive(0, *left) != derive(0, *right)


def test_torch_rng_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    torch.randn(3, generator=torch_rng(0, "x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_rngs_start_at_the_derived_seed():
    expected = torch.rand(4, generator=torch.Generator().manual_seed(derive(3, "x", 1)))
    assert torch.equal(torch.rand(4, generator=torch_rng(3, "x", 1)), expected)
    assert np.array_equal(numpy_rng(3, "x", 1).random(4), np.random.default_rng(derive(3, "x", 1)).random(4))
