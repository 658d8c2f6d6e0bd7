"""One contract for every coreset method; each against a slow loop."""

import logging
import warnings

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from gendistill.coreset import coresets as coresets_module
from gendistill.coreset.coresets import coordinates, herding, kcenter, kmeans, positions, random
from gendistill.data.dataset import RealData, Split
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.registry import DISTILLERS, coresets, resolve
from gendistill.transport.barycenter import kmeans_atoms

CLASSES = ("a", "b", "c")
COUNTS = (7, 5, 9)
METHODS = sorted(coresets())


def features_of_one_class(n=12, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def some_split():
    """Shuffled images that carry their own number, with features by class."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Split(images, labels), torch.randn(len(labels), 4, generator=rng)


def chosen_by(method):
    return resolve(DISTILLERS[method].function)


def test_they_are_methods_of_distill():
    assert {"random", "kmeans", "herding", "kcenter"} <= set(METHODS) <= set(DISTILLERS.names())


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("method", METHODS)
def test_picks_are_different_positions_in_range(method, count):
    picks = chosen_by(method)(features_of_one_class(), count, 0)
    assert picks.shape == (count,)
    assert len(set(picks.tolist()) & set(range(12))) == count


@pytest.mark.parametrize("method", METHODS)
def test_picks_are_different_where_all_images_are_the_same(method):
    assert sorted(chosen_by(method)(np.ones((6, 3)), 6, 0).tolist()) == list(range(6))


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_repeats_its_picks(method):
    features = features_of_one_class()
    assert np.array_equal(chosen_by(method)(features, 5, 3), chosen_by(method)(features, 5, 3))


@pytest.mark.parametrize("method", METHODS)
def test_features_are_left_alone(method):
    features = features_of_one_class()
    chosen_by(method)(features, 5, 0)
    assert np.array_equal(features, features_of_one_class())


@pytest.mark.parametrize("ipc", [1, 3, min(COUNTS)])
@pytest.mark.parametrize("method", METHODS)
def test_choose_takes_ipc_images_of_every_class_with_their_labels(method, ipc):
    split, features = some_split()
    chosen = split.take(positions(method, split, features, CLASSES, ipc, 0))
    numbers = chosen.images.flatten().long()
    assert chosen.counts(3) == [ipc] * 3
    assert len(numbers.unique()) == 3 * ipc
    assert torch.equal(split.labels[numbers], chosen.labels)


@pytest.mark.parametrize("method", METHODS)
def test_choose_looks_at_the_features_of_the_class_alone(method):
    split, features = some_split()
    changed = torch.where(split.labels[:, None] == 1, features, 9 * features)
    first, second = (split.take(positions(method, split, f, CLASSES, 2, 0)) for f in (features, changed))
    assert torch.equal(first.images[first.labels == 1], second.images[second.labels == 1])


@pytest.mark.parametrize("ipc", [0, -1, min(COUNTS) + 1])
@pytest.mark.parametrize("method", METHODS)
def test_an_ipc_that_cannot_be_had_is_refused(method, ipc):
    with pytest.raises(ConfigError, match=f"ipc is {ipc}"):
        positions(method, *some_split(), CLASSES, ipc, 0)


def test_a_choice_may_be_a_reversed_view(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(features: np.ndarray, count: int, seed: int) -> np.ndarray:
        return np.arange(len(features))[::-1][:count]

    monkeypatch.setattr(coresets_module, "resolve", lambda _: last)
    split, features = some_split()
    chosen = positions("kcenter", split, features, CLASSES, 2, 0)
    assert chosen.tolist() == [place for label in range(3) for place in split.of_class(label).tolist()[:-3:-1]]


def test_the_class_that_is_too_small_is_named():
    with pytest.raises(ConfigError, match="b has 5"):
        positions("random", *some_split(), CLASSES, 6, 0)


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="random, kmeans, herding, kcenter"):
        positions("forgetting", *some_split(), CLASSES, 1, 0)


# each method


def test_random_draws_are_prefixes_of_larger_ones():
    features = features_of_one_class()
    whole = random(features, 12, 5)
    assert all(np.array_equal(random(features, k, 5), whole[:k]) for k in range(1, 12))


def test_random_draws_depend_on_the_seed():
    features = features_of_one_class()
    assert len({tuple(random(features, 3, seed)) for seed in range(20)}) > 15


@pytest.mark.parametrize("seed", range(5))
def test_herding_equals_a_slow_loop(seed):
    features = features_of_one_class(seed=seed)
    picks = []
    for _ in range(8):
        means = {i: features[[*picks, i]].mean(0) for i in range(12) if i not in picks}
        picks.append(min(means, key=lambda i: np.linalg.norm(means[i] - features.mean(0))))
    assert herding(features, 8, 0).tolist() == picks


@pytest.mark.parametrize("seed", range(5))
def test_kcenter_equals_a_slow_loop(seed):
    features = features_of_one_class(seed=seed)

    def gap(i, j):
        return np.linalg.norm(features[i] - features[j])

    picks = [min(range(12), key=lambda i: np.linalg.norm(features[i] - features.mean(0)))]
    while len(picks) < 8:
        rest = [i for i in range(12) if i not in picks]
        picks.append(max(rest, key=lambda i: min(gap(i, j) for j in picks)))
    assert kcenter(features, 8, 0).tolist() == picks


def test_kmeans_picks_the_image_nearest_to_each_centre():
    places = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    features = np.concatenate([features_of_one_class(5, 2, i) + p for i, p in enumerate(places)])
    nearest = np.linalg.norm(features[None] - kmeans_atoms(features, 3)[:, None], axis=-1).argmin(1)
    assert len(set(nearest)) == 3
    assert kmeans(features, 3, 0).tolist() == nearest.tolist()


def test_classes_are_drawn_apart(digits: RealData) -> None:
    """Equal positions in every class would tie the random row to an order that folders share."""
    index = positions("random", digits.train, torch.zeros(len(digits.train), 1), digits.classes, 3, seed=0)
    chosen = digits.train.take(index)
    found = set()
    for label in range(10):
        images = digits.train.images[digits.train.of_class(label)]
        picks = chosen.images[chosen.labels == label]
        found.add(tuple(int((images == p).flatten(1).all(1).nonzero()[0]) for p in picks))
    assert len(found) == 10


@pytest.mark.slow
def test_k_means_does_not_depend_on_the_number_of_threads() -> None:
    """Of 1,726 images in 500 clusters many have exactly two, which are equally far from their centre."""
    data = load_data(name="digits", validation_fraction=0.02, test_fraction=0.02)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(distill(data, "kmeans", 50).content_hash())
    assert found[0] == found[1]


def test_k_means_of_few_different_images_says_so_once_by_class(caplog: pytest.LogCaptureFixture) -> None:
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0], [2.0], [3.0]]).repeat(2, 1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1]).repeat(2)
    split = Split(torch.zeros(12, 1, 1, 1, dtype=torch.uint8), labels)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        positions("kmeans", split, points, ("few", "more"), (3, 2), 0)
    (record,) = caplog.records
    assert "fewer different images than clusters in few (2 for 3);" in record.getMessage()


def some_pixels(images: int = 30, width: int = 2500) -> torch.Tensor:
    """uint8 (n,d) in clusters, the first three alike."""
    rng = torch.Generator().manual_seed(1)
    centres = torch.randint(40, 216, (5, width), generator=rng)
    pixels = centres[torch.arange(images) % 5] + torch.randint(-40, 40, (images, width), generator=rng)
    pixels[1:3] = pixels[0]
    return pixels.byte()


@pytest.mark.parametrize("pixels", [some_pixels(), some_pixels(1), some_pixels()[:3], some_pixels(12, 6)])
def test_coordinates_have_the_distances_of_pixels(pixels: torch.Tensor) -> None:
    points, exact = torch.from_numpy(coordinates(pixels)), pixels.double()
    assert points.shape[1] <= len(pixels)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(exact, exact), rtol=1e-6, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(coordinates(pixels), points.numpy())


@pytest.mark.parametrize("method", ["kmeans", "herding", "kcenter"])
def test_large_pixels_are_chosen_by_their_distances(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = some_pixels()
    split = Split(pixels.view(30, 1, 50, 50), torch.zeros(30, dtype=torch.int64))
    wanted = [positions(method, split, None, ("one",), count, 0) for count in (1, 5, 11)]
    monkeypatch.setattr("gendistill.coreset.coresets.LARGE", 0)
    monkeypatch.setattr("gendistill.coreset.coresets.to_float", None)
    found = [positions(method, split, None, ("one",), count, 0) for count in (1, 5, 11)]
    assert [picks.tolist() for picks in found] == [picks.tolist() for picks in wanted]
