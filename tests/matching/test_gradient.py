"""Gradient matching against autograd's plain double backward, finite differences and itself in other chunks."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from gendistill.data.pixels import to_float
from gendistill.errors import ConfigError
from gendistill.matching.functional import equal_rows
from gendistill.matching.gradient import GradientMatching
from gendistill.networks.factories import build_network
from gendistill.objectives.matching import DISTANCES
from tests.matching.references import (
    Scaled,
    WithDropout,
    absolute,
    batches,
    image_cosine,
    losses_of,
    matching_reference,
    network_of,
    row_cosine,
    squared,
    values_and_gradients,
    weights,
)

REFERENCE = {"cosine": row_cosine, "mse": squared, "l1": absolute}
HEADS = {"convnet": ["head.weight"], "convnet_bn": ["head.weight"], "timm:resnet10t": ["net.fc.weight"]}


def assert_same(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("match_head", [True, False])
@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
def test_losses_and_image_gradients_equal_a_plain_double_backward(name, match_head, distance):
    """For batch norm the reference runs in training mode, class by class: each class has its own statistics."""
    network, (real, views) = network_of(name), batches((5, 4, 6), (3, 3, 2))
    names = weights(network, () if match_head else HEADS[name])
    expected = matching_reference(network_of(name), real, views, [2, 0, 3], names, REFERENCE[distance])
    losses = losses_of(GradientMatching(distance=distance, match_head=match_head), network, real, views, [2, 0, 3])
    assert losses.shape == (3,)
    assert_same(values_and_gradients(losses, views), values_and_gradients(expected, views))


@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
def test_real_images_go_through_in_pieces_unless_batch_norm_needs_them_whole(name):
    """Of 32 and 34 images in two each; 37 are not divided."""
    network, (real, views) = network_of(name), batches((32, 34, 37), (2, 2, 2))
    expected = matching_reference(network_of(name), real, views, [2, 0, 3], weights(network, HEADS[name]), squared)
    objective = GradientMatching()
    losses = losses_of(objective, network, real, views, [2, 0, 3])
    assert [equal_rows(len(one)) for one in real] == [16, 17, 37]
    assert_same(values_and_gradients(losses, views), values_and_gradients(expected, views))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("timm:resnet10t", 16), ("resnet10", 8), ("resnet10_bn", 8), ("resnetap10", 8)],
)
def test_a_resnet_equals_a_plain_double_backward(name, size):
    network, (real, views) = network_of(name, size=size), batches((4, 4), (3, 3), size=size)
    names = weights(network, HEADS.get(name, ["head.weight"]))
    found = values_and_gradients(losses_of(GradientMatching(), network, real, views, [0, 1]), views)
    expected = values_and_gradients(matching_reference(network, real, views, [0, 1], names, squared), views)
    assert_same(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_transformer_can_be_matched(chunk):
    """Fused attention has no second derivative; the reference is the unfused one, in a plain double backward."""
    network, (real, views) = network_of("timm:vit_tiny_patch16_224"), batches((3, 3), (2, 2))
    network.net.blocks = network.net.blocks[:2]
    objective = GradientMatching(classes_per_chunk=chunk)
    found = values_and_gradients(losses_of(objective, network, real, views, [0, 1]), views)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    names = weights(network, ["net.head.weight"])
    expected = values_and_gradients(matching_reference(network, real, views, [0, 1], names, squared), views)
    assert_same(found, expected, 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet_bn", "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_bf16_is_near_fp32_class_by_class_and_together(name):
    """Batch norm under vmap and attention have no derivative in bf16 of their own."""
    network, (real, views) = network_of(name), batches((6, 6), (4, 4))
    if name.startswith("timm:vit"):
        network.net.blocks = network.net.blocks[:1]
    network, real, views = (
        network.float(),
        [r.float() for r in real],
        [v.detach().float().requires_grad_() for v in views],
    )
    exact = losses_of(GradientMatching(), network, real, views, [0, 1])
    for chunk in (1, 2):
        found = losses_of(GradientMatching(classes_per_chunk=chunk, bf16=True), network, real, views, [0, 1])
        torch.testing.assert_close(found, exact, rtol=0.2, atol=0.0)
        assert all(g.isfinite().all() and g.any() for g in torch.autograd.grad(found.sum(), views))


def test_a_network_that_can_be_derived_once_is_refused():
    network, (real, views) = network_of("timm:mobilenetv3_small_050"), batches((3,), (2,))
    with pytest.raises(ConfigError, match=r"hardsigmoid_backward is not implemented.*take --matching\.network convnet"):
        losses_of(GradientMatching(), network, real, views, [0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10", "resnet10_bn"])
def test_matching_a_resnet_at_the_published_rate_lowers_its_loss_and_keeps_images_apart(digits, name):
    """On 8 px images: last maps of 2 x 2 positions would give gradients of 1e6, and images of 1e3."""
    network = build_network(name, channels=1, image_size=8, classes=10)
    real = [to_float(digits.train.images[digits.train.of_class(label)[:8]]) for label in range(3)]
    start = 0.5 * torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    side, images, velocity, losses = GradientMatching().prepared(network, real, [0, 1, 2]), start, 0, []
    for _ in range(8):
        leaf = images.detach().requires_grad_()
        loss = side.losses(list(leaf)).sum()
        velocity = 0.5 * velocity + torch.autograd.grad(loss, leaf)[0]
        images, losses = leaf.detach() - 5e-3 * velocity, [*losses, loss.item()]
    assert losses[-1] < 0.95 * losses[0]
    assert 0.02 < (images - start).abs().mean() < 0.5
    assert images.abs().max() < 4
    assert images.flatten(0, 1).std(0).mean() > 0.3


def test_the_distance_of_mean_features_is_added_with_its_weight():
    network, (real, views) = network_of("convnet"), batches((5, 4), (3, 2))
    names = weights(network, HEADS["convnet"])
    expected = matching_reference(network, real, views, [0, 1], names, squared, feature_mean=0.7)
    found = losses_of(GradientMatching(feature_mean=0.7), network, real, views, [0, 1])
    assert_same(values_and_gradients(found, views), values_and_gradients(expected, views))


@pytest.mark.slow
@pytest.mark.parametrize("distance", DISTANCES)
def test_image_gradients_are_those_of_finite_differences(distance):
    network, (real, _) = network_of("convnet", size=4), batches((4,), (2,), size=4)
    _, views = batches((1,), (2,), size=4, seed=5)
    objective = GradientMatching(distance=distance)
    assert torch.autograd.gradcheck(lambda v: losses_of(objective, network, real, [v], [1]), views[0])


@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_classes_together_equal_classes_in_turn(name, chunk):
    """Five classes, two of which have batches of another size than the rest, in every order of groups."""
    network, (real, views) = network_of(name), batches((4, 5, 4, 4, 4), (3, 3, 2, 3, 3))
    together = GradientMatching(classes_per_chunk=chunk, feature_mean=0.5)
    in_turn = GradientMatching(feature_mean=0.5)
    labels = torch.tensor([3, 1, 0, 2, 2])
    found = values_and_gradients(losses_of(together, network, real, views, labels), views)
    assert_same(found, values_and_gradients(losses_of(in_turn, network, real, views, labels), views))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was_and_its_mode_changes_nothing(training):
    network, (real, views) = network_of("convnet_bn").train(training), batches((5, 4), (3, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = losses_of(GradientMatching(), network, real, views, [0, 1])
    losses.sum().backward()
    assert network.training is training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    other = losses_of(GradientMatching(), network.train(not training), real, views, [0, 1])
    assert torch.equal(losses, other)


def test_fresh_networks_of_one_structure_get_their_own_values():
    objective, (real, views) = GradientMatching(), batches((5,), (3,))
    for seed in range(3):
        network = network_of("convnet", seed=seed)
        expected = matching_reference(network, real, views, [1], weights(network, HEADS["convnet"]), squared)
        found = losses_of(objective, network, real, views, [1])
        assert_same(values_and_gradients(found, views), values_and_gradients(expected, views))


@pytest.mark.parametrize("change", ["pooling", "slope", "setting", "width"])
def test_another_structure_is_not_taken_for_the_same(change):
    objective, (real, views) = GradientMatching(), batches((5,), (3,))
    for other in (False, True):
        network = network_of("convnet", width=8 if other and change == "width" else 6)
        if change == "pooling" and other:
            network.body[3] = nn.MaxPool2d(2)
        if change == "slope":
            network.body[2] = nn.LeakyReLU(0.3 if other else 0.1)
        if change == "setting":
            network.body[2] = Scaled(0.5 if other else 2.0)
        expected = matching_reference(network, real, views, [1], weights(network, HEADS["convnet"]), squared)
        torch.testing.assert_close(losses_of(objective, network, real, views, [1]), expected, rtol=1e-10, atol=1e-10)


def test_bf16_and_channels_last_are_close_to_fp32():
    network, dtype = network_of("convnet", size=16, width=32, dtype=torch.float32), torch.float32
    real, views = batches((32,), (8,), size=16, dtype=dtype)
    exact = values_and_gradients(losses_of(GradientMatching(), network, real, views, [1]), views)
    found = values_and_gradients(losses_of(GradientMatching(bf16=True), network, real, views, [1]), views)
    assert not torch.equal(found[0], exact[0])
    assert found[1][0].dtype == torch.float32
    assert image_cosine(found[1], exact[1]) > 0.98
    torch.testing.assert_close(found[0], exact[0], rtol=0.02, atol=0)


@pytest.mark.slow
def test_compiled_equals_eager_and_serves_fresh_networks_without_compiling_again():
    (real, views), labels = batches((6, 6), (4, 4), dtype=torch.float32), [0, 1]
    compiled, eager = GradientMatching(compile=True), GradientMatching()
    before, graphs = counters["stats"]["unique_graphs"], []
    for seed in range(2):
        network = network_of("convnet", seed=seed, depth=1, dtype=torch.float32)
        found = values_and_gradients(losses_of(compiled, network, real, views, labels), views)
        assert_same(found, values_and_gradients(losses_of(eager, network, real, views, labels), views), 1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [graphs[0]] * 2
    assert graphs[0] > before


def test_dropout_is_off():
    network, (real, views) = network_of("convnet"), batches((5,), (3,))
    plain = losses_of(GradientMatching(), network, real, views, [1])
    dropped = losses_of(GradientMatching(), WithDropout(network).train(), real, views, [1])
    torch.testing.assert_close(dropped, plain)


def test_gradients_flow_on_to_what_the_views_were_made_from():
    network, (real, _) = network_of("convnet"), batches((5,), (1,))
    stored = torch.rand(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    views = 2 * stored - 1
    losses = losses_of(GradientMatching(), network, real, [views], [1])
    (of_views,) = torch.autograd.grad(losses.sum(), views, retain_graph=True)
    (of_stored,) = torch.autograd.grad(3 * losses.sum(), stored)
    torch.testing.assert_close(of_stored, 6 * of_views)
