"""Gradient distances, mean features and class-aware cross-entropy against hand numbers, NumPy loops and differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.objectives.matching import (
    DISTANCES,
    characteristic_distance,
    class_aware_cross_entropy,
    gradient_distance,
    mean_feature_distance,
    waves,
)

SHAPES = [(4, 3, 3, 3), (5, 6), (2, 4, 1)]


def gradients(seed, shapes=SHAPES):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def slow_distance(real, synthetic, kind):
    """The sum over parameters and output rows, one number at a time."""
    total = 0.0
    for a, b in zip(real, synthetic, strict=True):
        for row, other in zip(a.reshape(len(a), -1).tolist(), b.reshape(len(b), -1).tolist(), strict=True):
            pairs = list(zip(row, other, strict=True))
            if kind == "mse":
                total += sum((x - y) ** 2 for x, y in pairs)
            elif kind == "l1":
                total += sum(abs(x - y) for x, y in pairs)
            else:
                norms = math.sqrt(sum(x * x for x in row)) * math.sqrt(sum(y * y for y in other))
                total += 1 - sum(x * y for x, y in pairs) / (norms + 1e-6)
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from(DISTANCES))
def test_gradient_distance_equals_a_slow_loop(seed, kind):
    real, synthetic = gradients(seed), gradients(seed + 1)
    found = gradient_distance(real, synthetic, kind)
    assert found.shape == ()
    assert found.item() == pytest.approx(slow_distance(real, synthetic, kind), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mse", 9.0 + 1.0 + 16.0),  # (3-0)^2 + (4-3)^2 in the first row, (0-4)^2 in the second
        ("l1", 3.0 + 1.0 + 4.0),
        ("cosine", (1 - 12 / (15 + 1e-6)) + (1 - 0 / (4 + 1e-6))),
    ],
)
def test_gradient_distance_of_hand_numbers(kind, expected):
    real, synthetic = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 4.0]])
    if kind == "cosine":
        synthetic = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    assert gradient_distance([real], [synthetic], kind).item() == pytest.approx(expected, rel=1e-6)


def test_cosine_sees_directions_alone_and_every_row_counts_the_same():
    real = gradients(0)
    grown = [gradient * 1000 for gradient in real]
    rows = sum(len(gradient) for gradient in real)
    assert gradient_distance(real, grown, "cosine").item() == pytest.approx(0, abs=1e-5)
    assert gradient_distance(real, [-g for g in real], "cosine").item() == pytest.approx(2 * rows, rel=1e-5)


@pytest.mark.parametrize("kind", DISTANCES)
def test_gradient_distance_has_the_derivative_of_finite_differences(kind):
    real, synthetic = gradients(1, [(3, 4)]), gradients(2, [(3, 4)])
    assert torch.autograd.gradcheck(lambda s: gradient_distance(real, [s], kind), synthetic[0].requires_grad_())


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_row_that_is_zero_gets_no_gradient_that_is_not_a_number(kind):
    real, synthetic = torch.ones(3, 2), torch.zeros(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(gradient_distance([real], [synthetic], kind), synthetic)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("real", "synthetic", "kind", "message"),
    [
        ([torch.ones(2, 2)], [torch.ones(2, 2)], "l2", "expected one of cosine, mse, l1"),
        ([torch.ones(2, 2)], [torch.ones(2, 1)], "mse", r"expected the same"),
        ([torch.ones(2, 2)], [], "mse", r"expected the same"),
        ([], [], "mse", "at least one"),
        ([torch.ones(2)], [torch.ones(2)], "cosine", "no 1-D"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(real, synthetic, kind, message):
    with pytest.raises(ValueError, match=message):
        gradient_distance(real, synthetic, kind)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_mean_feature_distance_equals_numpy(seed, real_count, made_count):
    rng = np.random.default_rng(seed)
    real, synthetic = rng.normal(size=(real_count, 5)), rng.normal(size=(made_count, 5))
    expected = np.linalg.norm(real.mean(0) - synthetic.mean(0)) ** 2
    found = mean_feature_distance(torch.from_numpy(real), torch.from_numpy(synthetic))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_mean_feature_distance_of_hand_numbers():
    real, synthetic = torch.tensor([[0.0, 2.0], [2.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert mean_feature_distance(real, synthetic).item() == 9.0


@pytest.mark.parametrize("shapes", [((3, 2), (3, 1)), ((3,), (3,)), ((0, 2), (3, 2)), ((3, 2), (0, 2))])
def test_features_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"expected \(R,D\)|Means need images"):
        mean_feature_distance(torch.ones(shapes[0]), torch.ones(shapes[1]))


def slow_characteristic(features, frequencies):
    """The empirical characteristic function at each frequency, a complex number at a time."""
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features.tolist()]
    phases = [[sum(t * x for t, x in zip(own, row, strict=True)) for row in unit] for own in frequencies.tolist()]
    return [sum(complex(math.cos(p), math.sin(p)) for p in row) / len(row) for row in phases]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 6), st.integers(1, 6))
def test_characteristic_distance_equals_complex_numbers_one_at_a_time(seed, amplitude, real_count, made_count):
    rng = np.random.default_rng(seed)
    real, made, t = (torch.from_numpy(rng.normal(size=(n, 5))) for n in (real_count, made_count, 7))
    terms = []
    for r, s in zip(slow_characteristic(real, t), slow_characteristic(made, t), strict=True):
        phase = 2 * (abs(r) * abs(s) - (r * s.conjugate()).real)
        terms.append(math.sqrt(amplitude * (abs(r) - abs(s)) ** 2 + (1 - amplitude) * phase))
    found = characteristic_distance(waves(real, t).mean(0), waves(made, t).mean(0), amplitude)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("amplitude", [0.2, 0.5, 0.8])
def test_characteristic_distance_has_the_gradient_of_differences(amplitude):
    rng = torch.Generator().manual_seed(0)
    real, made, t = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (5, 3, 6))
    wanted = waves(real, t).mean(0)

    def loss(features):
        return characteristic_distance(wanted, waves(features, t).mean(0), amplitude)

    assert torch.autograd.gradcheck(loss, made.requires_grad_())
    same = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(same), same)
    assert loss(same).item() == pytest.approx(1e-6)
    assert gradient.abs().max() == 0  # no number that is none where a root has no derivative


@pytest.mark.parametrize("shapes", [((6,), (4,)), ((5,), (5,)), ((2, 3), (2, 3))])
def test_characteristic_functions_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="twice"):
        characteristic_distance(torch.ones(shapes[0]), torch.ones(shapes[1]))
    with pytest.raises(ValueError, match=r"expected \(B,D\) and \(M,D\)"):
        waves(torch.ones(3, 2), torch.ones(4, 3))


def test_class_aware_cross_entropy_of_hand_numbers():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    expected = 0.5 * 0.4 * (math.log(2) + math.log(4 / 3)) / 2
    found = class_aware_cross_entropy(logits, torch.tensor([0, 0]), accuracy=0.4, weight=0.5)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("accuracy", [40.0, -0.1, math.nan])
def test_an_accuracy_in_percent_is_refused(accuracy):
    with pytest.raises(ValueError, match="not percent"):
        class_aware_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), accuracy=accuracy, weight=1.0)
