"""Distribution matching against class-by-class references, and itself in other chunks."""

import pytest
import torch
from torch.nn import functional as F

from gendistill.matching import distribution
from gendistill.matching.distribution import CharacteristicMatching, FeatureMatching
from gendistill.matching.functional import StackedBatches
from gendistill.objectives.matching import characteristic_distance, waves
from gendistill.seeding import torch_rng
from tests.matching.references import WithDropout, batches, image_cosine, losses_of, network_of, values_and_gradients

ACCURACY = 0.6


def reference(network, real, views, labels, ce_weight=0.0):
    """Losses (K,) class by class on the network as it is, by plain autograd."""
    losses = []
    for r, v, label in zip(real, views, labels, strict=True):
        features = network.features(v)
        loss = (network.features(r).detach().mean(0) - features.mean(0)).square().sum()
        entropy = F.cross_entropy(network.classify(features), torch.full((len(v),), label))
        losses.append(loss + ce_weight * ACCURACY * entropy)
    return torch.stack(losses)


def assert_same(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("ce_weight", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "training"), [("convnet", True), ("convnet_bn", True), ("convnet_bn", False), ("timm:resnet10t", False)]
)
def test_losses_and_image_gradients_equal_a_plain_loop_over_classes(name, training, ce_weight, chunk):
    """Batch norm in training mode: each class has its own statistics; in evaluation mode the running ones."""
    network, (real, views) = network_of(name, size=16).train(), batches((5, 3, 4), (3, 2, 3), size=16)
    network(torch.cat(real))  # running statistics that say something
    network.train(training)
    objective = FeatureMatching(ce_weight=ce_weight, classes_per_chunk=chunk)
    found = losses_of(objective, network, real, views, [2, 0, 3], ACCURACY)
    assert found.shape == (3,)
    expected = reference(network, real, views, [2, 0, 3], ce_weight)
    assert_same(values_and_gradients(found, views), values_and_gradients(expected, views))


@pytest.mark.parametrize("chunk", [1, None])
@pytest.mark.parametrize("amplitude", [0.3, 0.5])
def test_characteristic_functions_equal_a_plain_loop_over_classes(amplitude, chunk):
    network, (real, views) = network_of("convnet").eval(), batches((5, 3, 4), (3, 2, 3))
    objective = CharacteristicMatching(frequencies=9, amplitude_weight=amplitude, classes_per_chunk=chunk)
    found = objective.prepared(network, real, [2, 0, 3], seed=4).losses(views)
    width = network.features(real[0]).shape[1]
    t = torch.randn(9, width, generator=torch_rng(4, "frequencies")).double()
    means = [[waves(network.features(x), t).mean(0) for x in pair] for pair in zip(real, views, strict=True)]
    expected = torch.stack([characteristic_distance(r.detach(), v, amplitude) for r, v in means])
    assert_same(values_and_gradients(found, views), values_and_gradients(expected, views))
    other = objective.prepared(network, real, [2, 0, 3], seed=5).losses(views)
    assert not torch.allclose(found, other, rtol=1e-4)  # other frequencies


@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
def test_real_images_go_through_in_pieces_unless_batch_norm_needs_them_whole(name, monkeypatch):
    network, (real, views) = network_of(name), batches((7, 3), (2, 2))
    expected = values_and_gradients(losses_of(FeatureMatching(), network, real, views, [0, 1]), views)
    monkeypatch.setattr(distribution, "CPU_ROWS", 4)
    assert_same(values_and_gradients(losses_of(FeatureMatching(), network, real, views, [0, 1]), views), expected)


@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
def test_real_images_need_not_lie_in_memory_together(name, monkeypatch):
    network, (real, views) = network_of(name), batches((7, 3, 4), (2, 2, 2))
    expected = values_and_gradients(losses_of(FeatureMatching(), network, real, views, [0, 1, 2]), views)
    made = []
    lazy = StackedBatches([7, 3, 4], lambda place: (made.append(place), real[place])[1])
    monkeypatch.setattr(distribution, "VALUES", 2 * 7 * real[0][0].numel())
    prepared = FeatureMatching().prepared(network, lazy, [0, 1, 2])
    assert made == [0, 1, 2]  # each once
    assert_same(values_and_gradients(prepared.losses(views), views), expected)


@pytest.mark.parametrize(
    ("views", "given", "passes"),
    [
        (10, None, [1] * 10),
        (40, None, [1] * 10),
        (3, None, [5, 5]),
        (1, None, [10]),
        (3, 4, [3, 3, 4]),
        (3, 99, [10]),
    ],
)
def test_views_go_through_in_even_passes_of_what_fits(views, given, passes):
    """16 rows on a CPU unless the classes of a pass are given; a class of more than that goes alone."""
    ten = [torch.zeros(views, 1, 2, 2)] * 10
    assert [part.stop - part.start for part in distribution._chunks(ten, given)] == passes


def test_image_gradients_are_those_of_finite_differences():
    network, (real, views) = network_of("convnet", size=4), batches((4,), (2,), size=4)
    objective = FeatureMatching(ce_weight=0.3)
    assert torch.autograd.gradcheck(lambda v: losses_of(objective, network, real, [v], [1], ACCURACY), views[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    network, (real, views) = network_of("convnet_bn").train(training), batches((5, 4), (3, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses_of(FeatureMatching(ce_weight=1.0), network, real, views, [0, 1], ACCURACY).sum().backward()
    assert network.training is training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_one_objective_serves_both_modes_and_fresh_networks():
    objective, (real, views) = FeatureMatching(), batches((5,), (3,))
    for seed, training in [(0, True), (0, False), (1, False), (2, True)]:
        network = network_of("convnet_bn", seed=seed).train(training)
        found = losses_of(objective, network, real, views, [1])
        torch.testing.assert_close(found, reference(network, real, views, [1]), rtol=1e-10, atol=1e-10)


def test_dropout_is_off():
    network, (real, views) = network_of("convnet"), batches((5,), (3,))
    dropped = losses_of(FeatureMatching(), WithDropout(network).train(), real, views, [1])
    torch.testing.assert_close(dropped, losses_of(FeatureMatching(), network, real, views, [1]))


def test_bf16_and_channels_last_are_close_to_fp32():
    network, (real, views) = (
        network_of("convnet", size=16, width=32, dtype=torch.float32),
        batches((32,), (8,), size=16),
    )
    real, views = [real[0].float()], [views[0].detach().float().requires_grad_()]
    exact = values_and_gradients(losses_of(FeatureMatching(), network, real, views, [1]), views)
    half = FeatureMatching(bf16=True)
    found = values_and_gradients(losses_of(half, network, real, views, [1]), views)
    assert not torch.equal(found[0], exact[0])
    assert image_cosine(found[1], exact[1]) > 0.98


@pytest.mark.slow
def test_compiled_equals_eager():
    (real, views), labels = batches((6, 6), (4, 4), dtype=torch.float32), [0, 1]
    network = network_of("convnet", depth=1, dtype=torch.float32)
    compiled = losses_of(FeatureMatching(compile=True, ce_weight=0.5), network, real, views, labels, ACCURACY)
    eager = losses_of(FeatureMatching(ce_weight=0.5), network, real, views, labels, ACCURACY)
    assert_same(values_and_gradients(compiled, views), values_and_gradients(eager, views), 1e-4)


def test_a_missing_accuracy_is_refused():
    with pytest.raises(ValueError, match="accuracy"):
        losses_of(FeatureMatching(ce_weight=0.5), network_of("convnet"), *batches((2,), (2,)), [0])
