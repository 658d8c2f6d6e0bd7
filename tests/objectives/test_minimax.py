"""The minimax criteria against a slow loop over classes, by value and by gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gendistill.objectives.minimax import diversity, representativeness

REDUCTIONS = ("per_sample", "global")
CRITERIA = (representativeness, diversity)


def slow(criterion, z, labels, memory, filled, reduction, active):
    """One class after the other, one cosine after the other."""
    pick = torch.min if criterion is representativeness else torch.max
    extremes = []
    for c in range(len(memory)):
        own = [
            torch.stack([F.cosine_similarity(z[i], memory[c, m], dim=0) for m in torch.nonzero(filled[c]).flatten()])
            for i in range(len(z))
            if labels[i] == c and active[i] and filled[c].any()
        ]
        if own:
            extremes += [pick(torch.stack(own))] if reduction == "global" else [pick(row) for row in own]
    if not extremes:
        return z.sum() * 0
    mean = torch.stack(extremes).mean()
    return 1 - mean if criterion is representativeness else mean


def make(seed, classes=4, size=5, dim=6, batch=9):
    """Ragged memories, some of them empty; classes that no image has; images that take no part."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, dim, generator=rng)
    labels = torch.randint(0, classes, (batch,), generator=rng)
    memory = torch.randn(classes, size, dim, generator=rng)
    filled = torch.arange(size) < torch.randint(0, size + 1, (classes, 1), generator=rng)
    active = torch.rand(batch, generator=rng) < 0.7
    return z, labels, memory, filled, active


def value_and_gradient(function, z):
    z = z.clone().requires_grad_()
    value = function(z)
    value.backward()
    return value.detach(), z.grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), classes=st.integers(1, 8), size=st.integers(1, 5), batch=st.integers(1, 12))
def test_value_and_gradient_equal_the_slow_loop(criterion, reduction, seed, classes, size, batch):
    z, labels, memory, filled, active = make(seed, classes, size, batch=batch)
    found = value_and_gradient(lambda x: criterion(x, labels, memory, filled, reduction=reduction, active=active), z)
    expected = value_and_gradient(lambda x: slow(criterion, x, labels, memory, filled, reduction, active), z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_no_mask_means_that_every_image_is_active(criterion, reduction):
    z, labels, memory, filled, _ = make(1)
    everyone = torch.ones(len(z), dtype=torch.bool)
    found = criterion(z, labels, memory, filled, reduction=reduction)
    assert torch.equal(found, criterion(z, labels, memory, filled, reduction=reduction, active=everyone))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_global_reduction_moves_one_image_a_class(criterion):
    z, _, memory, _, _ = make(2, batch=12)
    labels = torch.arange(12) % 3  # class 3 is absent
    filled = torch.ones(4, 5, dtype=torch.bool)
    _, gradient = value_and_gradient(lambda x: criterion(x, labels, memory, filled, reduction="global"), z)
    moved = gradient.abs().sum(1) > 0
    assert torch.bincount(labels[moved], minlength=4).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_per_sample_reduction_moves_every_image(criterion):
    z, labels, memory, _, _ = make(2)
    filled = torch.ones(4, 5, dtype=torch.bool)
    _, gradient = value_and_gradient(lambda x: criterion(x, labels, memory, filled), z)
    assert (gradient.abs().sum(1) > 0).all()


def hand_problem():
    """Class 0 remembers (1,0) and (0,1); class 1 remembers (-1,0) and an unfilled slot that must not count."""
    memory = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [1.0, 0.0]]])
    filled = torch.tensor([[True, True], [True, False]])
    z = torch.tensor([[3.0, 4.0], [5.0, 0.0], [1.0, 0.0]])  # cosines (.6, .8), (1, 0), (-1)
    return z, torch.tensor([0, 0, 1]), memory, filled


@pytest.mark.parametrize(
    ("criterion", "reduction", "expected"),
    [
        (representativeness, "per_sample", 1 - (0.6 + 0.0 - 1.0) / 3),
        (representativeness, "global", 1 - (0.0 - 1.0) / 2),
        (diversity, "per_sample", (0.8 + 1.0 - 1.0) / 3),
        (diversity, "global", (1.0 - 1.0) / 2),
    ],
)
def test_hand_numbers(criterion, reduction, expected):
    assert criterion(*hand_problem(), reduction=reduction).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("why", ["empty memory", "nobody active"])
def test_nothing_usable_gives_zero_and_zero_gradient(criterion, reduction, why):
    z, labels, memory, filled, _ = make(3)
    filled = filled.zero_() if why == "empty memory" else torch.ones_like(filled)
    active = torch.zeros(len(z), dtype=torch.bool) if why == "nobody active" else None
    value, gradient = value_and_gradient(
        lambda x: criterion(x, labels, memory, filled, reduction=reduction, active=active), z
    )
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_only_directions_count(criterion):
    z, labels, memory, filled, active = make(4)
    found = criterion(7 * z, labels, 0.1 * memory, filled, active=active)
    torch.testing.assert_close(found, criterion(z, labels, memory, filled, active=active))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_unknown_reduction_is_refused(criterion):
    with pytest.raises(ValueError, match="per_sample"):
        criterion(*hand_problem(), reduction="mean")
