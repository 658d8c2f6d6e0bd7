"""The supervised loop, its batches and its augmentation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.data.augmentation import augment
from gendistill.data.crops import batch_indices
from gendistill.data.dataset import Split
from gendistill.errors import ConfigError
from gendistill.networks.factories import build_network
from gendistill.networks.training import accuracy, is_correct, predicted, train_classifier
from gendistill.progress import finish
from gendistill.seeding import torch_rng

# batches


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 99))
def test_every_epoch_visits_each_image_once(count, batch_size, seed):
    steps = 3 * count  # at least three epochs
    walk = torch.cat([batch_indices(count, batch_size, step, seed) for step in range(steps)])
    epochs = walk[: len(walk) // count * count].view(-1, count)
    assert len(epochs) >= 3
    assert torch.equal(epochs.sort(1).values, torch.arange(count).expand(len(epochs), count))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 99), st.integers(0, 30))
def test_any_step_alone_is_its_part_of_the_walk(count, batch_size, seed, step):
    size = min(batch_size, count)
    walk = [i for e in range(40) for i in torch.randperm(count, generator=torch_rng(seed, "order", e)).tolist()]
    assert batch_indices(count, batch_size, step, seed).tolist() == walk[step * size : (step + 1) * size]


def test_epochs_differ_and_so_do_seeds():
    orders = {tuple(batch_indices(10, 10, step, seed).tolist()) for step in range(2) for seed in range(2)}
    assert len(orders) == 4


# batch norm


@pytest.mark.parametrize("frozen", [True, False])
def test_one_image_a_batch_is_refused_only_where_batch_norm_trains(frozen):
    network = build_network("convnet_bn", channels=1, image_size=8, classes=2, width=4, depth=2, seed=0)
    if frozen:
        network.train = lambda mode=True: type(network).train(network, False)
    split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    loop = train_classifier(network, split, steps=1, batch_size=1, learning_rate=0.1, weight_decay=0)
    if frozen:
        finish(loop)
    else:
        with pytest.raises(ConfigError, match="batch norm needs at least 2 images a batch"):
            finish(loop)


# weight decay


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("on", ["all", "weights"])
def test_weights_alone_decay_or_everything(optimizer, on):
    network = build_network("convnet", channels=1, image_size=8, classes=2, width=4, depth=2, seed=0)
    zero = lambda step: (torch.zeros(4, 1, 8, 8), torch.full((4, 2), 0.5))  # noqa: E731
    for parameter in network.parameters():
        parameter.data.fill_(1.0)
        parameter.register_hook(torch.zeros_like)  # no gradient, so that decay alone moves it
    split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    options = {"steps": 1, "batch_size": 4, "learning_rate": 0.1, "weight_decay": 0.5, "rate": lambda step: 1.0}
    finish(train_classifier(network, split, batches=zero, optimizer=optimizer, weight_decay_on=on, **options))
    dimensions = {parameter.ndim for parameter in network.parameters()}
    assert dimensions == {1, 2, 4}
    for parameter in network.parameters():
        decays = on == "all" or parameter.ndim > 1
        assert torch.allclose(parameter, torch.full_like(parameter, 0.95 if decays else 1.0))


# augmentation


def some_images(count=6, channels=3, height=5, width=7):
    return torch.arange(count * channels * height * width, dtype=torch.float32).view(count, channels, height, width)


def test_augment_without_shift_and_flip_is_the_identity():
    assert torch.equal(augment(some_images(), torch_rng(0), 0, False), some_images())


@pytest.mark.parametrize(("shift", "flip"), [(2, False), (0, True), (1, True), (9, True)])
def test_augment_equals_a_slow_loop(shift, flip):
    images, (count, _, height, width) = some_images(), some_images().shape
    found = augment(images, torch_rng(1), shift, flip)
    rng = torch_rng(1)
    mirrored = torch.rand(count, generator=rng) < 0.5 if flip else torch.zeros(count)
    offset = torch.randint(0, 2 * shift + 1, (2, count), generator=rng) - shift
    for i in range(count):
        for y in range(height):
            for x in range(width):
                row = min(max(y + int(offset[0, i]), 0), height - 1)
                column = min(max(x + int(offset[1, i]), 0), width - 1)
                column = width - 1 - column if mirrored[i] else column
                assert torch.equal(found[i, :, y, x], images[i, :, row, column])


def test_augment_treats_images_apart():
    same = some_images(1).expand(64, -1, -1, -1)
    assert len(augment(same, torch_rng(0), 2, True).unique(dim=0)) > 10


def test_augment_leaves_its_argument_alone():
    images = some_images()
    augment(images, torch_rng(0), 2, True)
    assert torch.equal(images, some_images())


# training


def bright_and_dark(count=12):
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 100, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return Split((noise + 150 * labels[:, None, None, None]).to(torch.uint8), labels)


def trained(seed=0, steps=4, name="convnet_bn", split=None, batch_size=5):
    network = build_network(name, channels=1, image_size=8, classes=2, width=4)
    loop = train_classifier(
        network,
        split or bright_and_dark(),
        steps=steps,
        batch_size=batch_size,
        learning_rate=0.01,
        weight_decay=0.01,
        shift=1,
        flip=True,
        seed=seed,
    )
    return finish(loop)


def weights(network):
    return torch.cat([v.flatten().double() for v in network.state_dict().values()])


def test_same_seed_same_weights():
    assert torch.equal(weights(trained(seed=1)), weights(trained(seed=1)))


def test_another_seed_gives_other_weights():
    assert not torch.equal(weights(trained(seed=1)), weights(trained(seed=2)))


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    trained()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns_what_can_be_learnt_and_ends_in_eval_mode():
    network = trained(steps=60)
    assert not network.training
    assert accuracy(network, bright_and_dark()) == 1.0


@pytest.mark.slow
def test_compiled_bf16_learns_what_eager_fp32_learns():
    split, losses = bright_and_dark(), {}
    for fast in (False, True):
        network = build_network("convnet", channels=1, image_size=8, classes=2, width=8, depth=1, seed=1)
        loop = train_classifier(
            network, split, steps=30, batch_size=6, learning_rate=0.003, weight_decay=0.0, bf16=fast, compile=fast
        )
        losses[fast] = torch.stack([record["loss"] for record in loop])
    slow, quick = losses[False], losses[True]
    assert not torch.equal(slow, quick)  # bf16 did run
    assert slow[-1] < 0.5 * slow[0]
    assert torch.allclose(quick, slow, atol=0.05)


def test_a_tiny_run_repeats_its_stored_losses():
    network = build_network("convnet", channels=1, image_size=8, classes=2, width=4)
    loop = train_classifier(
        network,
        bright_and_dark(),
        steps=5,
        batch_size=5,
        learning_rate=0.05,
        weight_decay=0.1,
        shift=1,
        flip=True,
        seed=3,
    )
    assert [r["loss"].item() for r in loop] == pytest.approx([0.7201, 0.9268, 0.5309, 0.5238, 0.4580], abs=1e-3)


def test_sgd_is_a_hand_loop_of_momentum_and_weight_decay():
    split, seed = bright_and_dark(), 2
    network = build_network("convnet", channels=1, image_size=8, classes=2, width=4)
    by_hand = build_network("convnet", channels=1, image_size=8, classes=2, width=4)
    options = {"learning_rate": 0.1, "weight_decay": 0.01, "optimizer": "sgd", "momentum": 0.9}
    rates = [1.0, 1.0, 0.5, 0.5]
    finish(train_classifier(network, split, steps=4, batch_size=5, seed=seed, rate=rates.__getitem__, **options))
    parameters = list(by_hand.parameters())
    speeds = [torch.zeros_like(p) for p in parameters]
    for step, rate in enumerate(rates):
        index = batch_indices(len(split), 5, step, seed)
        loss = torch.nn.functional.cross_entropy(by_hand(split.images[index] / 127.5 - 1), split.labels[index])
        for p, v, g in zip(parameters, speeds, torch.autograd.grad(loss, parameters), strict=True):
            with torch.no_grad():
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.1 * rate * v)
    assert torch.allclose(weights(network), weights(by_hand), atol=1e-6)


def test_records_count_the_steps():
    network = build_network("convnet", channels=1, image_size=8, classes=2, width=4)
    loop = train_classifier(network, bright_and_dark(), steps=3, batch_size=4, learning_rate=0.01, weight_decay=0.0)
    records = list(loop)
    assert [r["step"] for r in records] == [1, 2, 3]
    assert all(r["loss"].isfinite() and not r["loss"].requires_grad for r in records)


@pytest.mark.parametrize(("images", "batch_size"), [(12, 1), (1, 8)])
def test_batch_norm_with_batches_of_one_image_is_refused(images, batch_size):
    split = bright_and_dark().take(torch.arange(images))
    with pytest.raises(ConfigError, match="batch_size"):
        trained(split=split, batch_size=batch_size)


def test_without_batch_norm_one_image_is_enough():
    assert weights(trained(name="convnet", split=bright_and_dark().take(torch.arange(1)))).isfinite().all()


def test_accuracy_is_the_share_of_images_recognised():
    class Brightness(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images):
            mean = images.mean((1, 2, 3)) * self.scale
            return torch.stack([-mean, mean], 1)

    split = Split(torch.tensor([0, 255, 255, 0, 200]).to(torch.uint8).view(5, 1, 1, 1), torch.tensor([0, 1, 0, 1, 1]))
    assert is_correct(Brightness(), split).tolist() == [True, True, False, False, True]
    many = Split(split.images.repeat(30, 1, 1, 1), split.labels.repeat(30))  # more than a batch
    assert is_correct(Brightness(), many).tolist() == 30 * [True, True, False, False, True]
    assert accuracy(Brightness(), split) == 0.6
    guesses, confidence = predicted(Brightness(), split)
    assert guesses.tolist() == [0, 1, 1, 0, 1]
    assert confidence[:4].tolist() == pytest.approx(4 * [torch.tensor(2.0).sigmoid().item()])
