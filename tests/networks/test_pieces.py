"""Batches in pieces give the gradients of whole batches, and batch norm keeps them whole."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gendistill.data.dataset import Split
from gendistill.networks import pieces
from gendistill.networks.factories import build_network
from gendistill.networks.pieces import backward_in_pieces, piece_rows, prediction_rows
from gendistill.networks.training import mean_loss, train_classifier
from gendistill.progress import finish
from gendistill.seeding import torch_rng


def network_of(name="convnet", size=8, width=4):
    return build_network(name, channels=3, image_size=size, classes=3, width=width)


def batch(count, size=8, soft=False):
    rng = torch_rng(0, "batch")
    images = torch.randn(count, 3, size, size, generator=rng)
    targets = torch.rand(count, 3, generator=rng).softmax(1) if soft else torch.arange(count) % 3
    return images, targets


def gradients(network):
    return torch.cat([p.grad.flatten().double() for p in network.parameters()])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 12])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_pieces_give_the_loss_and_the_gradients_of_the_whole_batch(dtype, tolerance, rows, soft):
    """12 images in pieces of 1, 4, 5 (and one of 2), and whole; hard labels, and soft ones at temperature 3."""
    network, (images, targets) = network_of().to(dtype), batch(12, soft=soft)
    images, temperature = images.to(dtype), 3.0 if soft else 1.0
    targets = targets.to(dtype) if soft else targets

    def in_full(images, targets):
        return temperature**2 * F.cross_entropy(network(images) / temperature, targets)

    loss_of = in_full if dtype == torch.float64 else mean_loss(network, temperature=temperature)
    loss = 0.25 * in_full(images, targets)
    expected = torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, list(network.parameters()))])
    found = backward_in_pieces(loss_of, images, targets, rows, weight=0.25)
    assert not found.requires_grad
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(gradients(network), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_bf16_pieces_differ_from_a_whole_batch_by_rounding():
    found = []
    for rows in (12, 4):
        network = network_of(width=8)
        backward_in_pieces(mean_loss(network, bf16=True), *batch(12), rows)
        found.append(gradients(network))
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()


@pytest.mark.parametrize(
    ("width", "size", "count", "rows", "compiled"),
    [
        (128, 32, 256, 16, 64),  # 2^17 values after the first convolution, 2^21 in a piece and 2^23 in a compiled one
        (128, 32, 100, 17, 100),  # 6 pieces of 16 or 17; of the divisors of 100 that are 64 or more there is only 100
        (128, 32, 31, 31, 31),
        (64, 32, 256, 32, 128),
        (128, 16, 256, 64, 256),
        (128, 8, 256, 256, 256),
        (128, 64, 64, 4, 16),
        (128, 224, 3, 1, 1),
    ],
)
def test_pieces_are_as_large_as_the_caches_want(width, size, count, rows, compiled):
    network, images = network_of(width=width, size=size), torch.zeros(1, 3, size, size).expand(count, -1, -1, -1)
    assert piece_rows(network, images) == rows
    assert piece_rows(network, images, compiled=True) == compiled


def test_networks_of_many_parameters_have_larger_pieces():
    """ResNet-18's 11 million: 32 images have activations of 2^21, but 38 have four times as many as parameters."""
    small, large = (network_of(name, size=32) for name in ("resnet10", "resnet18"))
    images = torch.zeros(256, 3, 32, 32)
    assert piece_rows(small, images) == 32
    assert piece_rows(large, images) == 43


@pytest.mark.parametrize(
    ("name", "size", "rows"), [("convnet", 32, 16), ("convnet_bn", 64, 4), ("resnet18_bn", 32, 64)]
)
def test_predictions_take_fewer_images_where_that_halves_the_batch(name, size, rows):
    network = network_of(name, size=size, width=128).eval()
    assert prediction_rows(network, torch.zeros(1, 3, size, size), 64) == rows
    assert prediction_rows(network, torch.zeros(1, 3, size, size), 1) == 1


def test_another_size_of_images_is_looked_at_anew():
    network = build_network("resnet10", channels=3, image_size=32, classes=3)
    assert [piece_rows(network, torch.zeros(256, 3, size, size)) for size in (32, 16, 32)] == [32, 128, 32]


def test_batch_norm_in_training_keeps_batches_whole(monkeypatch):
    monkeypatch.setattr(pieces, "VALUES", 1)
    monkeypatch.setattr(pieces, "PER_PARAMETER", 0)
    images = batch(12)[0]
    assert piece_rows(network_of(), images) == 1
    network = network_of("convnet_bn")
    assert piece_rows(network.train(), images) == 12
    assert piece_rows(network.eval(), images) == 1
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert piece_rows(untracked, images) == 12


def test_looking_at_a_network_changes_nothing():
    """Neither its weights, gradients and mode nor the random numbers that its dropout draws."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    piece_rows(network, batch(4)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", ["convnet", "convnet_bn"])
def test_a_training_in_pieces_is_one_of_whole_batches(name, monkeypatch):
    """10 images a step in pieces of 4 and less; the recorded losses are those of whole batches."""
    labels = torch.arange(24) % 3
    pixels = torch.randint(0, 256, (24, 3, 8, 8), generator=torch_rng(0, "pixels"), dtype=torch.uint8)
    sizes, losses, weights = [], [], []
    for values in (pieces.VALUES, 3 * 4 * 8 * 8):
        monkeypatch.setattr(pieces, "VALUES", values)
        monkeypatch.setattr(pieces, "PER_PARAMETER", 0)
        network = network_of(name)
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        options = {"steps": 4, "batch_size": 10, "learning_rate": 0.1, "weight_decay": 0.0, "optimizer": "sgd"}
        losses.append([float(r["loss"]) for r in train_classifier(network, Split(pixels, labels), **options)])
        weights.append(torch.cat([v.flatten() for v in network.state_dict().values()]))
    looks = [2]  # images that the rule looks at
    assert sizes == (looks + 4 * [10] + looks + 4 * [4, 4, 2] if name == "convnet" else 8 * [10])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


@pytest.mark.slow
def test_compiled_pieces_are_all_of_one_size(monkeypatch):
    monkeypatch.setattr(pieces, "COMPILED_VALUES", 4 * 4 * 8 * 8)
    monkeypatch.setattr(pieces, "PER_PARAMETER", 0)
    network = network_of()
    assert [piece_rows(network, batch(count)[0], compiled=True) for count in (12, 10, 13)] == [4, 5, 13]
    split = Split(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), torch.arange(12) % 3)
    loop = train_classifier(
        network, split, steps=2, batch_size=12, learning_rate=0.01, weight_decay=0.0, compile=True, bf16=True
    )
    assert all(p.isfinite().all() for p in finish(loop).parameters())


def test_a_norm_that_refuses_single_values_is_looked_at_by_two_images():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.GroupNorm(4, 4), torch.nn.Flatten())
    images, _ = batch(6)
    with pytest.raises(ValueError, match="more than 1 value"):
        network(images[:1])
    assert piece_rows(network, images) == 6
