"""Presets: published values where there are some, a rule everywhere else, and nothing that the user gave is changed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gendistill.config import Characteristic, Features, Gradient, MatchingConfig, Representative
from gendistill.matching.methods import Images, image_rate, length_and_decay, method_of, resolve_options
from gendistill.registry import DISTILLERS
from gendistill.seeding import torch_rng

METHODS = [name for name in DISTILLERS.names() if "matching" in DISTILLERS[name].sections]
CIFAR10 = Images(channels=3, size=32, classes=10)
OBJECTIVES = {
    **dict.fromkeys(("dc", "dsa", "idc", "dream"), Gradient(distance="l1")),
    **dict.fromkeys(("dm", "idm"), Features(class_aware=0.0)),
    "cf": Characteristic(frequencies=7),
}
DREAM = MatchingConfig(selection=Representative())


@given(
    st.sampled_from(sorted(METHODS)),
    st.integers(1, 500),
    st.sampled_from([1, 3]),
    st.integers(4, 512),
    st.integers(2, 1000),
)
def test_every_method_has_a_value_for_everything_at_any_ipc_and_size(method, ipc, channels, size, classes):
    images = Images(channels, size, classes)
    found = resolve_options(method, MatchingConfig(), ipc, images)
    left = {"depth", "classes_per_chunk"}  # the image size's and the device's
    parts = (found, found.objective, found.networks)
    assert all(getattr(one, f.name) is not None for one in parts for f in fields(one) if f.name not in left)
    assert image_rate(method, found, ipc, images) > 0
    assert resolve_options(method, found, ipc, images) == found


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_was_given_stays(method):
    mine = MatchingConfig(factor=5, learning_rate=0.7, inner_steps=3, real_batch=9, start="noise")
    preset = resolve_options(method, mine, 10, CIFAR10)
    mine = replace(mine, objective=OBJECTIVES[method])
    found = resolve_options(method, mine, 10, CIFAR10)
    for name in ("factor", "learning_rate", "inner_steps", "real_batch", "start"):
        assert getattr(found, name) == getattr(mine, name)
    values = {f.name: getattr(OBJECTIVES[method], f.name) for f in fields(OBJECTIVES[method])}
    given = {name: value for name, value in values.items() if value is not None}
    assert found.objective == replace(preset.objective, **given)


def test_idc_matches_large_images_on_its_resnet():
    found = {
        side: resolve_options("idc", MatchingConfig(), 10, Images(3, side, 10)).network for side in (32, 64, 128, 224)
    }
    assert found == {32: "convnet", 64: "convnet", 128: "resnetap10", 224: "resnetap10"}
    assert resolve_options("idc", MatchingConfig(network="convnet"), 10, Images(3, 224, 10)).network == "convnet"
    assert resolve_options("idm", MatchingConfig(), 10, Images(3, 224, 10)).network == "convnet"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_representative_selection_brings_the_clustered_start(method):
    assert resolve_options(method, DREAM, 10, CIFAR10).start == "clustered"
    assert resolve_options(method, replace(DREAM, start="noise"), 10, CIFAR10).start == "noise"
    plain = MatchingConfig(selection=None if method == "dream" else "random")
    assert (resolve_options(method, plain, 10, CIFAR10).start == "clustered") == (method == "dream")


@pytest.mark.parametrize(("config", "batch"), [(MatchingConfig(), 5000), (DREAM, 256)])
def test_representative_batches_of_idm_are_no_whole_classes(config, batch):
    found = resolve_options("idm", config, 1, CIFAR10)
    assert found.real_batch == batch
    cheap = {"candidates": 4 * batch, "dimensions": 256, "cluster_weights": "fixed"}
    assert found.selection == (Representative(interval=10, **cheap) if config is DREAM else "random")
    assert resolve_options("idm", replace(config, real_batch=500), 1, CIFAR10).real_batch == 500


@pytest.mark.parametrize("method", sorted(METHODS))
def test_clustering_is_rarer_where_a_step_costs_little(method):
    assert resolve_options(method, DREAM, 10, CIFAR10).selection.interval == (50 if method == "dm" else 10)
    seven = MatchingConfig(selection=Representative(interval=7))
    assert resolve_options(method, seven, 10, CIFAR10).selection.interval == 7


@pytest.mark.parametrize(
    ("ipc", "loops"), [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (45, (40, 15)), (50, (50, 10))]
)
def test_published_loops_of_dc(ipc, loops):
    found = resolve_options("dc", MatchingConfig(), ipc, CIFAR10)
    assert (found.inner_steps, found.train_steps) == loops


@pytest.mark.parametrize("method", sorted(METHODS))
def test_representative_batches_leave_a_choice(method):
    small = replace(CIFAR10, per_class=120)
    found = resolve_options(method, DREAM, 10, small)
    assert (found.real_batch, found.selection.candidates) == (30, 0 if method == "dream" else 120)
    fours = MatchingConfig(selection=Representative(per_cluster=4))
    assert resolve_options(method, fours, 10, small).real_batch == 28
    alone = MatchingConfig(selection="random")
    assert resolve_options(method, alone, 10, small).real_batch >= (64 if method == "idc" else 128)


def test_published_values_on_cifar10():
    dc = resolve_options("dc", MatchingConfig(), 10, CIFAR10)
    assert (dc.inner_steps, dc.train_steps, dc.objective.distance) == (10, 50, "cosine")
    assert resolve_options("dc", MatchingConfig(), 50, CIFAR10).train_steps == 10
    idm = [resolve_options("idm", MatchingConfig(), ipc, CIFAR10) for ipc in (1, 10, 50)]
    assert [c.objective.class_aware for c in idm] == pytest.approx([0.5 * 100, 0.5 * 100, 0.1 * 100])
    assert [c.networks.interval for c in idm] == [5, 30, 30]
    assert [c.real_batch for c in idm] == [5000, 256, 256]


@pytest.mark.parametrize(("method", "published"), [("dc", 0.1), ("dsa", 0.1), ("dm", 1.0), ("idm", 0.2)])
def test_rates_make_the_step_that_is_published_for_standardised_images(method, published):
    """The same loss as a function of u = (x - 1/2) / s: a step of x must be s times the published step of u."""
    s = 0.25
    u = torch.randn(20, generator=torch_rng(0), dtype=torch.float64, requires_grad=True)
    x = (0.5 + s * u).detach().requires_grad_()
    for values in (u, (x - 0.5) / s):
        (values.sin() * values).sum().backward()
    rate = image_rate(method, resolve_options(method, MatchingConfig(), 10, CIFAR10), 10, CIFAR10)
    torch.testing.assert_close(rate * x.grad, s * published * u.grad)


@pytest.mark.parametrize(
    ("images", "steps"),
    [(CIFAR10, (10, 10, 10)), (replace(CIFAR10, classes=100), (10, 50, 10)), (Images(3, 64, 200), (10, 10, 50))],
)
def test_published_training_of_the_networks_of_idm(images, steps):
    assert tuple(resolve_options("idm", MatchingConfig(), ipc, images).train_steps for ipc in (1, 10, 50)) == steps


@pytest.mark.parametrize("method", sorted(METHODS))
def test_between_published_ipc_the_nearest_below_holds(method):
    below = 19 if method in ("dc", "dsa") else 49
    values = [resolve_options(method, MatchingConfig(), ipc, CIFAR10) for ipc in (1, 9, 10, below, 50, 500)]
    assert values[0] == values[1]
    assert values[2] == values[3]
    assert values[4] == values[5]


MNIST = Images(1, 28, 10, count=60_000, name="ylecun/mnist")
FASHION = Images(1, 28, 10, count=60_000, name="zalando-datasets/fashion_mnist")
SVHN = Images(3, 32, 10, count=73_257, name="ufldl-stanford/svhn")
CIFAR100 = Images(3, 32, 100, count=50_000, name="uoft-cs/cifar100")
TINY = Images(3, 64, 200, count=100_000, name="zh-plus/tiny-imagenet")
IMAGENET10 = Images(3, 224, 10, count=12_000, name="imagenet10")
IMAGENET100 = Images(3, 224, 100, count=128_000, name="imagenet100")
# argument.py and misc/reproduce.py of snu-mllab/Efficient-Dataset-Condensation and of Yanqing0327/DREAM, at IPC 10:
# factor, start, distance, rate of the images (scaled), real batch, images a training / batch of it, its rate, warm
# epochs, CutMix, augmentation, iterations, weight decay, network
RELEASED = [
    ("idc", CIFAR10, 2, "random", "mse", 5e-3, 64, 32, 64, 0.01, 0, 0.5, "all", 2000, 5e-4, "convnet"),
    ("idc", SVHN, 2, "random", "mse", 5e-3, 64, 8, 64, 0.01, 0, 0.5, "all", 2000, 5e-4, "convnet"),
    ("idc", MNIST, 2, "random", "l1", 1e-4, 64, 8, 64, 0.01, 0, 0.0, "color_crop", 2000, 5e-4, "convnet"),
    ("idc", FASHION, 2, "random", "l1", 7.65625e-5, 64, 8, 64, 0.01, 0, 0.5, "all", 2000, 5e-4, "convnet"),
    ("idc", IMAGENET10, 3, "random", "l1", 3e-3, 64, 8, 64, 0.01, 10, 1.0, "all", 500, 5e-4, "resnetap10"),
    ("idc", IMAGENET100, 3, "random", "l1", 1e-3, 128, 4, 128, 0.1, 5, 1.0, "all", 500, 1e-4, "resnetap10"),
    ("dream", CIFAR10, 2, "clustered", "mse", 5e-3, 128, 32, 64, 0.01, 0, 0.5, "all", 1200, 5e-4, "convnet"),
    ("dream", CIFAR100, 2, "clustered", "mse", 5e-3, 128, 32, 64, 0.01, 0, 0.5, "all", 1200, 5e-4, "convnet"),
    ("dream", SVHN, 2, "clustered", "mse", 5e-3, 128, 8, 64, 0.01, 0, 0.5, "all", 1200, 5e-4, "convnet"),
    ("dream", MNIST, 2, "clustered", "l1", 1e-4, 128, 8, 64, 0.01, 0, 0.0, "color_crop", 1200, 5e-4, "convnet"),
    ("dream", FASHION, 2, "clustered", "l1", 7.65625e-5, 128, 8, 64, 0.01, 0, 0.5, "all", 1200, 5e-4, "convnet"),
    ("dream", TINY, 2, "clustered", "mse", 4 * 5e-3, 64, 16, 64, 0.01, 0, 1.0, "all", 1200, 5e-4, "convnet"),
    ("dream", IMAGENET10, 3, "clustered", "l1", 3e-3, 128, 8, 64, 0.01, 10, 1.0, "all", 500, 5e-4, "resnetap10"),
    ("dream", IMAGENET100, 3, "clustered", "l1", 1e-3, 128, 4, 128, 0.1, 5, 1.0, "all", 500, 1e-4, "resnetap10"),
]


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: f"{row[0]} {row[1].name or 'cifar10'}")
def test_idc_and_dream_are_as_their_released_code(row):
    method, images, *expected = row
    found = resolve_options(method, MatchingConfig(), 10, images)
    epoch = -(-images.count // found.train_batch)
    iterations, decay = length_and_decay(method_of(method), images)
    assert expected == [
        found.factor, found.start, found.objective.distance, pytest.approx(image_rate(method, found, 10, images)),
        found.real_batch, found.train_steps, found.train_batch, found.train_learning_rate,
        found.networks.warm_steps / epoch if epoch else 0, found.cutmix, found.augmentation, iterations, decay,
        found.network,
    ]  # fmt: skip
    same = (found.inner_steps, found.most_views, found.momentum, found.objective.match_head, found.networks.train_on)
    assert same == (100, 128, 0.5, False, "real")
    assert not found.flip
    exact = Representative(interval=10, cluster_weights="free", candidates=0, dimensions=0)
    assert found.selection == (exact if method == "dream" else "random")


def test_idc_on_whole_images_of_mnist_keeps_cutmix_and_cutout():
    whole = resolve_options("idc", MatchingConfig(factor=1), 10, MNIST)
    assert (whole.factor, whole.cutmix, whole.augmentation) == (1, 0.5, "all")


@pytest.mark.parametrize(("ipc", "rate"), [(10, 5e-3), (49, 5e-3), (50, 1e-6)])
def test_dream_lowers_its_rate_on_tiny_imagenet_at_fifty_images(ipc, rate):
    assert resolve_options("dream", MatchingConfig(), ipc, TINY).learning_rate == rate


def test_dream_can_cluster_as_the_others_do():
    cheap = Representative(cluster_weights="fixed", candidates=512, dimensions=256)
    found = resolve_options("dream", MatchingConfig(selection=cheap), 10, CIFAR10)
    assert found.selection == replace(cheap, interval=10)
    assert resolve_options("dream", MatchingConfig(selection="random"), 10, CIFAR10).selection == "random"


@pytest.mark.parametrize(
    ("name", "is_mnist"),
    [
        ("digits", True),
        ("ylecun/mnist", True),
        ("/data/MNIST", True),
        ("mnist_png", True),
        ("fashion_mnist", False),
        ("Fashion-MNIST", False),
        ("kmnist", False),
        ("emnist", False),
        ("arrays", False),
    ],
)
def test_mnist_is_known_by_its_name(name, is_mnist):
    assert Images(1, 28, 10, name=name).digits == is_mnist


def test_idc_does_not_lower_its_rate_below_the_smallest_published_size():
    rates = {}
    for size in (8, 27, 28, 32):
        images = Images(1, size, 10, name="mnist")
        rates[size] = image_rate("idc", resolve_options("idc", MatchingConfig(), 10, images), 10, images)
    assert rates[8] == rates[27] == rates[28] == pytest.approx(1e-4)
    assert rates[32] > rates[28]


def test_no_method_loses_more_than_a_hundred_steps_or_iterations():
    for method in METHODS:
        found = resolve_options(method, MatchingConfig(), 10, CIFAR10)
        assert found.checkpoint_every * found.inner_steps <= 100


def test_idc_scales_its_rate_by_size_and_ipc():
    twice = replace(CIFAR10, size=64)
    config = resolve_options("idc", MatchingConfig(learning_rate=0.01), 10, twice)
    assert image_rate("idc", config, 10, twice) == pytest.approx(0.04)
    assert image_rate("idc", config, 1, twice) == pytest.approx(0.004)
