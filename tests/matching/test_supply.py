"""The networks that images are matched on: how many, how they learn, and that a restored queue goes on as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gendistill.data.crops import cutmix
from gendistill.data.dataset import Split
from gendistill.matching.network_pool import BlendedNetworks, FreshNetworks, NetworkQueue, Training
from gendistill.matching.synthetic import SyntheticImages
from gendistill.networks import pieces
from gendistill.networks.factories import build_network
from gendistill.seeding import derive, torch_rng

RATE = 0.05


def build(seed):
    return build_network("convnet", channels=1, image_size=8, classes=2, width=4, depth=1, seed=seed)


@pytest.fixture(scope="module")
def real():
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch_rng(0), dtype=torch.uint8)
    return Split(pixels, torch.arange(40) % 2)


def queue(real, **changes):
    options = {"steps": 3, "size": 6, "interval": 2, "seed": 0} | changes
    return NetworkQueue(build, Training(classes=2, batch_size=8, learning_rate=RATE), real, **options)


def walk(supply, iterations):
    return [(supply.network(iteration), supply.learn(iteration, 0, True, []))[0] for iteration in iterations]


def weights(member):
    return weights_of(member.network)


def weights_of(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_queue_begins_with_four_networks_and_drops_the_oldest(real):
    supply, counts = queue(real), []
    for iteration in range(8):
        supply.network(iteration)
        counts.append(len(supply._members))
    assert counts == [4, 4, 5, 5, 6, 6, 6, 6]
    first = supply._members[0]
    supply.network(8)
    assert first not in supply._members


def test_blended_networks_lie_between_the_fresh_and_the_trained_one(real):
    training = Training(classes=2, batch_size=8, learning_rate=RATE)
    supply = BlendedNetworks(build, training, real, steps=3, size=2, seed=0)
    shares = []
    for iteration in range(6):
        blended = supply.network(iteration)
        assert not blended.training
        rng = torch_rng(0, "blended", iteration)
        number, share = int(torch.randint(2, (), generator=rng)), float(torch.rand((), generator=rng))
        fresh = build(derive(0, "blended network", number))
        trained = build(derive(0, "blended network", number)).train()
        optimizer = training.optimizer(trained)
        training.on_split(trained, optimizer, real, 0, 3, derive(0, "blended training", number))
        for own, a, b in zip(blended.parameters(), fresh.parameters(), trained.parameters(), strict=True):
            torch.testing.assert_close(own, a + share * (b - a))
        shares.append((number, share))
    assert len(set(shares)) == 6
    assert {number for number, _ in shares} == {0, 1}
    restored = BlendedNetworks(build, training, real, steps=3, size=2, seed=0)
    restored.load_state_dict(supply.state_dict())
    restored._train = None  # nothing is trained again
    assert torch.equal(weights_of(restored.network(7)), weights_of(supply.network(7)))


@pytest.mark.parametrize(("norm", "passes"), [("instance", [16, 16]), ("batch", [32])])
def test_a_step_goes_through_in_equal_pieces_unless_batch_norm_needs_it_whole(norm, passes, monkeypatch):
    monkeypatch.setattr(pieces, "VALUES", 16 * 4 * 8 * 8)
    images, labels = torch.rand(32, 1, 8, 8, generator=torch_rng(1)) * 2 - 1, torch.arange(32) % 2
    options = {"channels": 1, "image_size": 8, "classes": 2, "width": 4, "depth": 1, "seed": 0}
    stepped, mine = (
        build_network("convnet_bn" if norm == "batch" else "convnet", **options).double() for _ in range(2)
    )
    seen = []
    stepped.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    training = Training(classes=2, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    training.step(stepped.train(), training.optimizer(stepped), images.double(), labels, seed=3)
    F.cross_entropy(mine.train()(images.double()).float(), labels).backward()
    assert [count for count in seen if count > 2] == passes  # two images show how large activations are
    for found, parameter in zip(stepped.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(found, parameter - RATE * parameter.grad, rtol=1e-6, atol=1e-6)


def test_cutmix_mixes_labels_by_the_share_that_images_give(real):
    """Against a step of the same network on the same mixture, made by hand."""
    images, labels = torch.rand(6, 1, 8, 8, generator=torch_rng(1)) * 2 - 1, torch.tensor([0, 1, 1, 0, 0, 0])
    mixed, mine, plain = build(0), build(0), build(0)
    training = Training(classes=2, learning_rate=RATE, momentum=0.0, weight_decay=0.0, cutmix=1.0)
    training.step(mixed, training.optimizer(mixed), images, labels, seed=3)
    rng = torch_rng(3, "training")
    torch.rand((), generator=rng)  # whether to mix
    shown, share = cutmix(images, 1.0, rng)
    assert 0.05 < share < 0.95
    assert torch.equal((shown != images).flatten(1).any(1), torch.ones(6, dtype=torch.bool))
    logs = F.log_softmax(mine(shown), 1)
    own, other = (F.nll_loss(logs, y) for y in (labels, labels.flip(0)))
    ((1 - share) * own + share * other).backward()
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.sub_(RATE * parameter.grad)
    for a, b in zip(mixed.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    replace(training, cutmix=0.0).step(plain, training.optimizer(plain), images, labels, seed=3)
    assert any(not torch.allclose(a, b) for a, b in zip(mixed.parameters(), plain.parameters(), strict=True))


def test_a_restored_queue_trains_on_as_if_it_had_not_stopped(real):
    whole, cut, again = queue(real), queue(real), queue(real)
    walk(whole, range(7))
    walk(cut, range(5))
    again.load_state_dict({name: value.clone() for name, value in cut.state_dict().items()})
    walk(again, range(5, 7))
    assert all(torch.equal(weights(a), weights(b)) for a, b in zip(whole._members, again._members, strict=True))
    assert [m.accuracy for m in whole._members] == [m.accuracy for m in again._members]


def test_networks_of_a_queue_keep_their_momentum(real):
    """Two trainings of one step are the two steps of plain SGD with momentum, not two first steps."""
    supply = queue(real, steps=1, begin=1, interval=100)
    supply.network(0)
    (member,) = supply._members
    moves = []
    for iteration in range(2):
        before = weights(member)
        supply.learn(iteration, 0, True, [])
        moves.append(weights(member) - before)
    buffers = [state["momentum_buffer"].flatten() for state in member.optimizer.state.values()]
    assert torch.allclose(moves[1], -RATE * torch.cat(buffers), atol=1e-6)
    gradients = torch.cat([p.grad.flatten() for p in member.network.parameters()])
    assert (moves[1] + RATE * gradients).norm() > 0.3 * moves[1].norm()  # what the first step left takes part


@pytest.mark.parametrize("source", ["real", "surrogate"])
def test_networks_learn_between_inner_steps_but_not_after_the_last(real, source):
    supply = FreshNetworks(build, Training(classes=2, batch_size=8, learning_rate=RATE), source, real, 1, 0)
    network = supply.network(0)
    stored = SyntheticImages(torch.rand(4, 1, 8, 8, generator=torch_rng(1)), 2)

    def moved(inner, last):
        before = torch.cat([p.detach().flatten() for p in network.parameters()])
        supply.learn(0, inner, last, [stored])
        return not torch.equal(before, torch.cat([p.detach().flatten() for p in network.parameters()]))

    assert moved(0, False)
    assert not moved(1, True)


def test_a_network_of_a_queue_learns_no_more_after_its_most_steps(real):
    supply = queue(real, steps=3, begin=1, interval=100, most_steps=5)
    walk(supply, range(2))
    (member,) = supply._members
    before = weights(member)
    assert member.steps == 5
    walk(supply, range(2, 4))
    assert member.steps == 5
    assert torch.equal(weights(member), before)


def test_warm_steps_train_a_network_before_it_is_first_matched_on(real):
    options = (Training(classes=2, batch_size=8, learning_rate=RATE), "none", real, 0, 0)
    cold, warm = (FreshNetworks(build, *options, warm_steps=steps).network(0) for steps in (0, 4))
    begun = torch.cat([p.detach().flatten() for p in build(derive(0, "matching network", 0)).parameters()])
    cold, warm = (torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (cold, warm))
    assert torch.equal(cold, begun)
    assert not torch.equal(warm, begun)
