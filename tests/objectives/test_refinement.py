"""Feature and batch-norm losses against NumPy, finite differences and hand numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.objectives.refinement import feature_loss, published_gap, released_feature_loss
from tests.objectives.references import batch_norm_loss, class_moments

SHAPES = [(6,), (3, 4, 4), (2, 5, 1)]


def random_inputs(seed, shape, batch=7, classes=4):
    """Inputs with a mean far from 0; the last class is absent."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, *shape, generator=rng) * 2 + 5
    return inputs, torch.randint(0, classes - 1, (batch,), generator=rng)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from(SHAPES), st.integers(1, 9), st.sampled_from([1, 1, 2, 5]))
def test_class_moments_equal_numpy_class_by_class(seed, shape, batch, rows):
    labels = random_inputs(seed, shape, batch)[1]
    inputs = random_inputs(seed, shape, batch * rows)[0]  # the first image's rows, the second's, ...
    mean, variance, images = class_moments(inputs, labels, 4)
    for c in range(4):
        own = inputs[np.repeat(labels.numpy() == c, rows)].double().numpy()
        assert images[c] * rows == len(own)
        axes = (0, *range(2, own.ndim))
        expected = (own.mean(axes), own.var(axes)) if len(own) else (np.zeros(shape[0]),) * 2
        np.testing.assert_allclose(mean[c], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(variance[c], expected[1], rtol=1e-4, atol=1e-5)


def layers(seed, classes=4):
    """Two layers, with labels and class moments that differ from those of the inputs."""
    inputs, labels = random_inputs(seed, (3, 4, 4), classes=classes)
    found = {"a": inputs, "b": random_inputs(seed + 1, (5,), classes=classes)[0]}
    rng = torch.Generator().manual_seed(seed + 2)
    means = {k: torch.randn(classes, v.shape[1], generator=rng) for k, v in found.items()}
    variances = {k: torch.rand(classes, v.shape[1], generator=rng) + 0.5 for k, v in found.items()}
    return found, labels, means, variances


def test_batch_norm_loss_is_zero_when_moments_agree():
    inputs, labels, _, _ = layers(0)
    moments = {k: class_moments(v, labels, 4) for k, v in inputs.items()}
    loss = batch_norm_loss(inputs, labels, {k: m[0] for k, m in moments.items()}, {k: m[1] for k, m in moments.items()})
    assert loss.item() == pytest.approx(0, abs=1e-10)


def test_batch_norm_loss_equals_its_formula_written_with_loops():
    inputs, labels, means, variances = layers(1)
    per_layer = []
    for name, value in inputs.items():
        floor = 0.01 * variances[name].double().mean().item()
        per_class = []
        for c in labels.unique().tolist():
            own = value[labels == c].double().numpy()
            axes = (0, *range(2, own.ndim))
            real_mean, real_var = means[name][c].double().numpy(), variances[name][c].double().numpy() + floor
            gap = (own.mean(axes) - real_mean) ** 2 + (np.sqrt(own.var(axes) + floor) - np.sqrt(real_var)) ** 2
            per_class.append((gap / real_var).mean())
        per_layer.append(np.mean(per_class))
    assert batch_norm_loss(inputs, labels, means, variances).item() == pytest.approx(np.mean(per_layer), rel=1e-4)


def test_batch_norm_loss_ignores_absent_classes():
    inputs, labels, means, variances = layers(2)
    wild = {k: torch.cat([v[:3], torch.full_like(v[3:], 1e6)]) for k, v in means.items()}
    loss = batch_norm_loss(inputs, labels, means, variances)
    assert torch.equal(batch_norm_loss(inputs, labels, wild, variances), loss)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_batch_norm_loss_does_not_depend_on_the_scale_of_a_layer(factor):
    inputs, labels, means, variances = layers(3)
    scaled = [{k: v * f for k, v in d.items()} for d, f in ((inputs, factor), (means, factor), (variances, factor**2))]
    expected = batch_norm_loss(inputs, labels, means, variances)
    torch.testing.assert_close(batch_norm_loss(scaled[0], labels, *scaled[1:]), expected, rtol=1e-4, atol=1e-5)


def check_gradient(function, x, step=1e-2):
    """Central differences in a random direction; the losses compute in fp32, so torch's gradcheck cannot."""
    x = x.clone().requires_grad_()
    function(x).backward()
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        d = torch.nn.functional.normalize(torch.randn(x.shape, generator=rng).flatten(), dim=0).view(x.shape)
        with torch.no_grad():
            slope = (function(x + step * d) - function(x - step * d)) / (2 * step)
        assert slope.item() == pytest.approx((x.grad * d).sum().item(), rel=2e-2, abs=2e-3)


def test_batch_norm_loss_gradient():
    inputs, labels, means, variances = layers(4)
    check_gradient(lambda x: batch_norm_loss({**inputs, "a": x}, labels, means, variances), inputs["a"])


def test_batch_norm_loss_gradient_is_finite_where_one_flat_image_is_a_class():
    inputs, labels, means, variances = layers(5)
    flat = torch.ones_like(inputs["a"]).requires_grad_()
    batch_norm_loss({"a": flat}, labels, means, variances).backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("rows", [1, 3])
def test_class_moments_gradient(rows):
    labels, inputs = random_inputs(6, (3, 4, 4))[1], random_inputs(6, (3, 4, 4), 7 * rows)[0]
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))

    def mixed(x):
        mean, variance, _ = class_moments(x, labels, 4)
        return (weight * (mean + variance)).sum()

    check_gradient(mixed, inputs)


def test_feature_loss_gradient():
    rng = torch.Generator().manual_seed(0)
    features, atoms = torch.randn(2, 4, 3, generator=rng)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    features.requires_grad_()
    feature_loss(features, atoms, scale).backward()
    torch.testing.assert_close(features.grad, (2 * (features - atoms) / scale[:, None] / 4).detach())


def test_feature_loss_by_hand():
    features, atoms = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert feature_loss(features, atoms, torch.tensor([5.0, 2.0])).item() == (25 / 5 + 4 / 2) / 2


def test_published_losses_equal_their_formulas_written_with_loops():
    inputs, labels, means, variances = layers(7)
    total = 0.0
    for name, value in inputs.items():
        per_class = []
        for c in labels.unique().tolist():
            own = value[labels == c].double().numpy()
            axes = (0, *range(2, own.ndim))
            gaps = own.mean(axes) - means[name][c].numpy(), own.var(axes) - variances[name][c].numpy()
            per_class.append(sum(np.linalg.norm(gap) for gap in gaps))
        total += np.mean(per_class)
    assert batch_norm_loss(inputs, labels, means, variances, published_gap).item() == pytest.approx(total, rel=1e-4)
    features, atoms = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    expected = np.linalg.norm((features - atoms).numpy())
    assert released_feature_loss(features, atoms).item() == pytest.approx(expected, rel=1e-5)


def test_published_losses_have_gradients_also_at_their_minimum():
    inputs, labels, means, variances = layers(8)
    check_gradient(lambda x: batch_norm_loss({**inputs, "a": x}, labels, means, variances, published_gap), inputs["a"])
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    check_gradient(lambda x: released_feature_loss(x, features + 1), features)
    x = features.clone().requires_grad_()
    released_feature_loss(x, features).backward()
    assert x.grad.isfinite().all()
