"""The minimax criteria against a slow loop over classes, by value and by gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gendistill.objectives.minimax import diversity, representativeness

REDUCTIONS = ("per_sample", "global")
CRITERIA = (representativeness, diversity)


def slow(criterion, z, labels, memory, filled, reduction, active, weight=None):
    """One class after the other, one cosine after the other."""
    pick = torch.min if criterion is representativeness else torch.max
    extremes, shares = [], []
    for c in range(len(memory)):
        own = {
            i: torch.stack([F.cosine_similarity(z[i], memory[c, m], dim=0) for m in torch.nonzero(filled[c]).flatten()])
            for i in range(len(z))
            if labels[i] == c and active[i] and filled[c].any()
        }
        if own and reduction == "global":
            extremes, shares = [*extremes, pick(torch.stack(list(own.values())))], [*shares, 1.0]
        elif own:
            extremes += [pick(row) for row in own.values()]
            shares += [1.0 if weight is None else weight[i].item() for i in own]
    if not sum(shares):
        return z.sum() * 0
    mean = sum(s * e for s, e in zip(shares, extremes, strict=True)) / sum(shares)
    return 1 - mean if criterion is representativeness else mean


def make(seed, classes=4, size=5, dim=6, batch=9):
    """Ragged memories, some of them empty; classes that no image has; images that take no part."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, dim, generator=rng)
    labels = torch.randint(0, classes, (batch,), generator=rng)
    memory = F.normalize(torch.randn(classes, size, dim, generator=rng), dim=-1)
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


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 8),
    weights=st.lists(st.sampled_from([0.0, 1e-3, 0.2, 1.0, 7.0]), min_size=1, max_size=12),
)
def test_weighted_value_and_gradient_equal_the_slow_loop(criterion, masked, seed, classes, weights):
    z, labels, memory, filled, active = make(seed, classes, batch=len(weights))
    weight = torch.tensor(weights)
    given_active = active if masked else None
    active = active if masked else torch.ones_like(active)
    found = value_and_gradient(lambda x: criterion(x, labels, memory, filled, active=given_active, weight=weight), z)
    expected = value_and_gradient(lambda x: slow(criterion, x, labels, memory, filled, "per_sample", active, weight), z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error")  # a buffer of the wrong size is resized with no more than that
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_images_of_real_size_equal_the_slow_loop(criterion, reduction):
    """Memories too large for one chunk: two images each and one left over."""
    z, labels, memory, filled, active = make(5, classes=3, size=64, dim=1500, batch=7)
    found = value_and_gradient(lambda x: criterion(x, labels, memory, filled, reduction=reduction, active=active), z)
    expected = value_and_gradient(lambda x: slow(criterion, x, labels, memory, filled, reduction, active), z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_weights_are_no_weights(criterion):
    z, labels, memory, filled, active = make(6)
    found = criterion(z, labels, memory, filled, active=active, weight=torch.full((len(z),), 0.3))
    torch.testing.assert_close(found, criterion(z, labels, memory, filled, active=active))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weight_zero_is_inactive(criterion):
    z, labels, memory, filled, active = make(7)
    found = criterion(z, labels, memory, filled, weight=active.float())
    torch.testing.assert_close(found, criterion(z, labels, memory, filled, active=active))


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
    memory = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [1.0, 0.0]]])
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


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [(representativeness, 1 - (1 * 0.6 + 3 * 0.0 - 4 * 1.0) / 8), (diversity, (1 * 0.8 + 3 * 1.0 - 4 * 1.0) / 8)],
)
def test_weighted_hand_numbers(criterion, expected):
    weight = torch.tensor([1.0, 3.0, 4.0])
    assert criterion(*hand_problem(), weight=weight).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_that_are_all_zero_give_zero_and_zero_gradient(criterion):
    z, labels, memory, filled, _ = make(3)
    weight = torch.zeros(len(z))
    value, gradient = value_and_gradient(lambda x: criterion(x, labels, memory, filled, weight=weight), z)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


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
def test_the_length_of_an_image_does_not_count(criterion):
    z, labels, memory, filled, active = make(4)
    found = criterion(7 * z, labels, memory, filled, active=active)
    torch.testing.assert_close(found, criterion(z, labels, memory, filled, active=active))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_unknown_reduction_is_refused(criterion):
    with pytest.raises(ValueError, match="per_sample"):
        criterion(*hand_problem(), reduction="mean")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_of_the_global_reduction_are_refused(criterion):
    with pytest.raises(ValueError, match="weight goes with reduction 'per_sample'"):
        criterion(*hand_problem(), reduction="global", weight=torch.ones(3))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["labels", "memory", "active", "weight"])
def test_shapes_that_would_broadcast_are_refused(criterion, name):
    z, labels, memory, filled = hand_problem()
    options = {"labels": labels, "memory": memory, "active": labels < 1, "weight": torch.ones(3)}
    options[name] = options[name][:, None] if name != "memory" else memory[:, :, :1]
    with pytest.raises(ValueError, match=f"{name} has shape .*; expected"):
        criterion(z, filled=filled, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_broken_image_shows(criterion, reduction):
    z, labels, memory, filled = hand_problem()
    z[0] = torch.nan
    assert criterion(z, labels, memory, filled, reduction=reduction).isnan()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_is_computed_in_fp32(criterion, reduction):
    z, labels, memory, filled, active = make(8)
    z = z.bfloat16()
    found = criterion(z, labels, memory, filled, reduction=reduction, active=active)
    expected = criterion(z.float(), labels, memory, filled, reduction=reduction, active=active)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_is_read_on_the_host(criterion, reduction):
    """Tensors without values: whatever asks for one (item, nonzero, a mask as index) raises."""
    z, labels, memory, filled, active = (value.to("meta") for value in make(9))
    weight = torch.ones(len(z), device="meta") if reduction == "per_sample" else None
    value = criterion(z.requires_grad_(), labels, memory, filled, reduction=reduction, active=active, weight=weight)
    value.backward()
    assert value.shape == ()
