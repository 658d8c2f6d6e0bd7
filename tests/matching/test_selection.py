"""Which real images are matched: random and representative picks, against slow references and on digits."""

import copy
import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from gendistill.config import DistillConfig
from gendistill.config.flat import options_of
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, DivergenceError
from gendistill.evaluation.set_metrics import batch_mmd
from gendistill.matching.selection import (
    RandomSelection,
    RepresentativeSelection,
    embed,
    representatives,
    sample_without_replacement,
)
from gendistill.networks.factories import build_network
from gendistill.seeding import derive, torch_rng

SELECTIONS = {"random": RandomSelection, "representative": RepresentativeSelection}

WEIGHTS = ["free", "fixed"]


class Pixels(nn.Module):
    """Features are the pixels, so that a test can place them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def features(self, images):
        return self.scale * images.flatten(1)


def shuffled(images, labels):
    order = torch.randperm(len(labels), generator=torch_rng(0, "order"))
    return Split(images[order], labels[order])


def blobs(sizes, classes=2, side=4, seed=0):
    """Every class has clusters of these sizes around places of its own, far apart beside their width."""
    rng = torch_rng(seed, "blobs")
    places = torch.randint(40, 216, (classes, len(sizes), 1, side, side), generator=rng)
    images = [
        (places[c, j] + torch.randint(-3, 4, (n, 1, side, side), generator=rng)).to(torch.uint8)
        for c in range(classes)
        for j, n in enumerate(sizes)
    ]
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).repeat(classes)
    labels = torch.arange(classes).repeat_interleave(sum(sizes))
    order = torch.randperm(len(labels), generator=rng)
    return Split(torch.cat(images)[order], labels[order]), cluster[order]


def convnet(seed=0, name="convnet"):
    return build_network(name, channels=1, image_size=8, classes=10, width=16, seed=seed)


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def selection(kind, split, classes=10, batch_size=12, seed=0, **options):
    return SELECTIONS[kind](split, classes, batch_size, seed, **options)


# every selection


def test_the_options_name_every_selection():
    named, _ = get_args(options_of(DistillConfig)["selection"].type)  # or null, the method's
    assert set(get_args(named)) == set(SELECTIONS)


@pytest.mark.parametrize("kind", SELECTIONS)
def test_picks_are_different_images_of_the_class(kind, digits: RealData):
    picks = selection(kind, digits.train).picks(convnet(), 2, 5)
    assert len(picks) == 10
    for label, pick in enumerate(picks):
        assert (pick.dtype, pick.device.type, pick.shape) == (torch.int64, "cpu", (12,))
        assert len(pick.unique()) == 12
        assert (digits.train.labels[pick] == label).all()


@pytest.mark.parametrize("kind", SELECTIONS)
def test_classes_smaller_than_a_batch_give_all_their_images(kind):
    labels = torch.tensor([0] * 3 + [1] * 12 + [2] * 20)
    split = shuffled(torch.randint(0, 256, (35, 1, 8, 8), generator=torch_rng(0), dtype=torch.uint8), labels)
    picks = selection(kind, split, classes=3).picks(convnet(), 0, 0)
    assert [len(pick) for pick in picks] == [3, 12, 12]
    assert torch.equal(picks[0].sort().values, split.of_class(0))
    assert torch.equal(picks[1].sort().values, split.of_class(1))


@pytest.mark.parametrize("kind", SELECTIONS)
def test_picks_do_not_depend_on_what_was_asked_before(kind, digits: RealData):
    network = convnet()
    moments = [(0, 0), (0, 10), (1, 29)]
    forward, backward = (selection(kind, digits.train, seed=4, batch_size=6) for _ in range(2))
    first = {moment: forward.picks(network, *moment) for moment in moments}
    second = {moment: backward.picks(network, *moment) for moment in reversed(moments)}
    assert all(equal(first[moment], second[moment]) for moment in moments)


@pytest.mark.parametrize("kind", SELECTIONS)
def test_seed_iteration_and_refresh_each_change_the_picks(kind, digits: RealData):
    network = convnet()
    options = {} if kind == "random" else {"candidates": 40}
    asked = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 10)]
    found = [selection(kind, digits.train, seed=s, **options).picks(network, i, n) for s, i, n in asked]
    assert not any(equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", SELECTIONS)
def test_the_global_generators_are_left_alone(kind, digits: RealData):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    options = {} if kind == "random" else {"candidates": 40, "dimensions": 5, "weights": "fixed"}
    selection(kind, digits.train, **options).picks(convnet(), 0, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


# random


def test_random_picks_are_drawn_anew_each_inner_step_and_cover_the_class_evenly(digits: RealData):
    chosen = selection("random", digits.train)
    steps = [chosen.picks(convnet(), 0, inner)[3] for inner in range(150)]
    assert not torch.equal(steps[0], steps[1])
    own = digits.train.of_class(3)
    counts = torch.bincount(torch.cat(steps), minlength=len(digits.train))[own].double()
    expected = 150 * 12 / len(own)
    assert (counts - expected).abs().max() < 5 * expected**0.5


# representative


@pytest.mark.parametrize("label", [0, 7])
def test_the_exact_rule_equals_a_slow_loop(label, digits: RealData):
    """k-means on all images, then argmin by argmin; the classes are such that no two centres share an image."""
    network, split = convnet(), digits.train
    picks = selection("representative", split, seed=5).picks(network, 3, 17)[label]
    index = split.of_class(label)
    with torch.no_grad():
        features = network.features(to_float(split.images[index])).numpy()
    seed = derive(derive(5, "representative selection", 3, 1), label)
    centres = KMeans(12, n_init=1, random_state=derive(seed, "kmeans") % 2**32).fit(features).cluster_centers_
    nearest = [min(range(len(index)), key=lambda i: np.linalg.norm(features[i] - centre)) for centre in centres]
    assert len(set(nearest)) == 12
    assert picks.tolist() == index[nearest].tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"candidates": 60}, {"dimensions": 5}, {"candidates": 60, "dimensions": 5}, {"weights": "fixed"}],
)
def test_every_well_separated_cluster_is_hit(options):
    split, cluster = blobs([15] * 8)
    for seed in range(5):
        found = selection("representative", split, 2, 8, seed, **options).picks(Pixels(), 0, 0)
        assert all(sorted(cluster[pick].tolist()) == list(range(8)) for pick in found)


def test_free_weights_pick_one_image_of_each_cluster_and_fixed_ones_as_many_as_it_weighs():
    split, cluster = blobs([40, 20, 10, 10])
    features = embed(Pixels(), split, split.of_class(0))
    counts = {}
    for weights in WEIGHTS:
        picks = split.of_class(0)[representatives(features, 8, 0, weights=weights)]
        counts[weights] = torch.bincount(cluster[picks]).tolist()
    assert counts["fixed"] == [4, 2, 1, 1]
    assert min(counts["free"]) >= 1
    picks = split.of_class(0)[representatives(features, 4, 0)]
    assert torch.bincount(cluster[picks]).tolist() == [1, 1, 1, 1]


def test_per_cluster_takes_the_images_nearest_to_each_centre():
    split, cluster = blobs([15] * 4)
    picks = selection("representative", split, 2, 12, per_cluster=3).picks(Pixels(), 0, 0)
    features = embed(Pixels(), split, torch.arange(len(split)))
    for label, pick in enumerate(picks):
        for j in range(4):
            members = torch.nonzero((split.labels == label) & (cluster == j)).flatten()
            gaps = (features[members] - features[members].mean(0)).norm(dim=1)
            assert set(members[gaps.argsort()[:3]].tolist()) == set(pick[cluster[pick] == j].tolist())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_where_images_coincide_every_place_is_picked_and_no_image_twice(weights):
    """Ten clusters of five places: half of them are empty."""
    places = torch.eye(5).repeat_interleave(torch.tensor([30, 12, 6, 4, 4]), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picks = representatives(places, 10, 0, weights=weights)
    assert len(picks.unique()) == 10
    assert set(places[picks].argmax(1).tolist()) == set(range(5))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_where_all_images_are_the_same_picks_differ(weights):
    assert len(representatives(torch.ones(30, 4), 8, 0, weights=weights).unique()) == 8


@pytest.mark.parametrize("weights", WEIGHTS)
def test_picks_of_two_refreshes_are_fixed_between_them(weights, digits: RealData):
    chosen, network = selection("representative", digits.train, interval=4, weights=weights), convnet()
    steps = []
    for inner in range(8):
        steps.append(chosen.picks(network, 0, inner))
        with torch.no_grad():  # as training does between the steps
            network.body[0].weight.mul_(1.5).add_(0.1)
    assert all(equal(steps[0], step) for step in steps[:4])
    assert not equal(steps[0], steps[4])
    assert all(equal(steps[4], step) for step in steps[4:])


def test_picks_follow_the_network(digits: RealData):
    first, second = (selection("representative", digits.train).picks(convnet(seed), 0, 0) for seed in (0, 1))
    assert not equal(first, second)


def test_a_class_is_picked_alike_whatever_else_is_there(digits: RealData):
    alone = digits.train.take(digits.train.of_class(0))
    whole = selection("representative", digits.train, candidates=50).picks(convnet(), 0, 0)[0]
    picks = selection("representative", alone, classes=1, candidates=50).picks(convnet(), 0, 0)[0]
    assert torch.equal(digits.train.of_class(0)[picks], whole)


def test_few_candidates_are_drawn_anew_at_every_refresh(digits: RealData):
    alone, network = digits.train.take(digits.train.of_class(0)), convnet()
    chosen = selection("representative", alone, classes=1, candidates=20)
    seen = torch.cat([chosen.picks(network, 0, 10 * refresh)[0] for refresh in range(25)])
    assert len(seen.unique()) > 0.9 * len(alone)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("network_seed", [0, 1])
def test_representative_batches_are_nearer_to_their_class_than_random_ones(weights, network_seed, digits: RealData):
    network, split = convnet(network_seed), digits.train
    chosen = selection("representative", split, batch_size=16, weights=weights).picks(network, 0, 0)
    ratios = []
    for label, pick in enumerate(chosen):
        own = split.of_class(label)
        features = embed(network, split, own)
        random = [
            batch_mmd(features, embed(network, split, sample_without_replacement(own, 16, torch_rng(s))))
            for s in range(30)
        ]
        ratios.append(float(batch_mmd(features, embed(network, split, pick)) / torch.stack(random).mean()))
    assert np.mean(ratios) < 0.85
    assert np.sum(np.less(ratios, 1)) >= 9


def test_fixed_weights_keep_a_batch_near_a_class_whose_width_varies_where_free_ones_do_not():
    """Free clusters follow the volume that images fill: the few that are wide apart get most of the picks."""
    rng = torch_rng(0, "widths")
    near, wide = 0.3 * torch.randn(480, 8, generator=rng), 5 + 3 * torch.randn(120, 8, generator=rng)
    features, everything = torch.cat([near, wide]), torch.arange(600)
    gaps: dict[str, list[float]] = {"random": [], "free": [], "fixed": []}
    for seed in range(6):
        few = features[sample_without_replacement(everything, 256, torch_rng(seed, "few"))]
        gaps["random"].append(
            float(batch_mmd(features, features[sample_without_replacement(everything, 64, torch_rng(seed))]))
        )
        for weights in WEIGHTS:
            picks = representatives(few, 64, seed, weights=weights)
            gaps[weights].append(float(batch_mmd(features, few[picks])))
    mean = {name: np.mean(values) for name, values in gaps.items()}
    assert mean["fixed"] < 0.9 * mean["random"]
    assert mean["free"] > 1.5 * mean["random"]


# the network is only looked at


@pytest.mark.parametrize("training", [True, False])
def test_the_network_keeps_its_mode_buffers_and_gradients(training, digits: RealData):
    network = convnet(name="convnet_bn").train(training)
    before = copy.deepcopy(network.state_dict())
    selection("representative", digits.train, candidates=30).picks(network, 0, 0)
    assert network.training == training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_features_are_those_of_the_mode_the_network_is_in(digits: RealData):
    network, index = convnet(name="convnet_bn"), digits.train.of_class(0)[:32]
    modes = [embed(network.train(training), digits.train, index) for training in (True, False)]
    assert not torch.allclose(*modes)


def test_features_come_in_the_order_of_their_images_and_without_a_graph(digits: RealData):
    network, index = convnet(), digits.train.of_class(5)
    features = embed(network, digits.train, index)
    with torch.no_grad():
        assert torch.allclose(features, network.features(to_float(digits.train.images[index])), atol=1e-5)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_bf16_features_are_near_those_of_fp32(digits: RealData):
    network, index = convnet(), digits.train.of_class(5)
    full, half = (embed(network, digits.train, index, bf16=bf16) for bf16 in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert (full - half).norm() < 0.02 * full.norm()


@pytest.mark.slow
def test_compiled_features_are_those_of_eager_ones_in_every_batch(digits: RealData):
    """40 images: a whole batch on CPUs, and a rest that is not compiled."""
    network = build_network("convnet", channels=1, image_size=8, classes=10, width=4, seed=0).eval()
    index = torch.arange(40)
    eager, compiled = (embed(network, digits.train, index, compile=compile) for compile in (False, True))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_projections_keep_squared_distances_in_the_mean(digits: RealData):
    network, index = convnet(), digits.train.of_class(5)[:40]
    full = torch.pdist(embed(network, digits.train, index)).square()
    ratios = []
    for seed in range(20):
        points = embed(network, digits.train, index, dimensions=16, seed=seed)
        assert points.shape == (40, 16)
        ratios.append((torch.pdist(points).square() / full).mean())
    assert 0.9 < float(torch.stack(ratios).mean()) < 1.1


def test_more_dimensions_than_there_are_project_nothing(digits: RealData):
    network, index = convnet(), digits.train.of_class(5)
    assert torch.equal(embed(network, digits.train, index, dimensions=999), embed(network, digits.train, index))


def test_a_network_that_diverged_is_refused(digits: RealData):
    network = convnet()
    nn.init.constant_(network.body[0].weight, float("nan"))
    with pytest.raises(DivergenceError, match="not finite"):
        selection("representative", digits.train).picks(network, 0, 0)


# resuming


def test_a_resumed_run_goes_on_with_the_picks_it_had(digits: RealData):
    network = convnet()
    first = selection("representative", digits.train)
    picks = first.picks(network, 3, 10)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    with torch.no_grad():
        network.body[0].weight.neg_()
    second = selection("representative", digits.train)
    second.load_state_dict(state)
    assert equal(second.picks(network, 3, 14), picks)
    assert equal(second.picks(network, 3, 20), first.picks(network, 3, 20))
    assert not equal(selection("representative", digits.train).picks(network, 3, 14), picks)


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_state_before_the_first_step_is_empty_and_loads(kind, digits: RealData):
    first, second = (selection(kind, digits.train) for _ in range(2))
    assert first.state_dict() == {}
    second.load_state_dict({})
    assert equal(second.picks(convnet(), 0, 0), first.picks(convnet(), 0, 0))


def test_picks_of_classes_of_different_sizes_are_kept_apart():
    labels = torch.tensor([0] * 3 + [1] * 30)
    split = shuffled(torch.randint(0, 256, (33, 1, 8, 8), generator=torch_rng(0), dtype=torch.uint8), labels)
    first, second = (selection("representative", split, classes=2) for _ in range(2))
    picks = first.picks(convnet(), 0, 0)
    second.load_state_dict(first.state_dict())
    assert equal(second.picks(convnet(), 0, 9), picks)


def test_picks_of_other_classes_are_refused(digits: RealData):
    first = selection("representative", digits.train)
    first.picks(convnet(), 0, 0)
    fewer = selection("representative", digits.train, classes=5)
    moved = selection("representative", digits.for_classes(digits.classes[::-1]).train)
    for other in (fewer, moved):
        with pytest.raises(ArtifactError, match="selected images of 10 classes"):
            other.load_state_dict(first.state_dict())


# the start, the measure and the options


def test_as_many_representatives_as_clusters_are_of_one_each():
    split, cluster = blobs([15] * 8)
    index = split.of_class(1)
    start = representatives(embed(Pixels(), split, index), 8, seed=2)
    assert sorted(cluster[index[start]].tolist()) == list(range(8))


def test_as_many_representatives_as_images_are_all_of_them():
    assert representatives(torch.randn(12, 3, generator=torch_rng(0)), 12, 0).tolist() == list(range(12))


def test_mmd_equals_the_kernel_sums():
    rng = torch_rng(0)
    x, y = torch.randn(9, 3, generator=rng).double(), torch.randn(5, 3, generator=rng).double()

    def kernel(a, b):
        return (a.norm() + b.norm() - (a - b).norm()) / 2

    def mean(u, v):
        return torch.stack([kernel(a, b) for a in u for b in v]).mean()

    squared = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert torch.allclose(batch_mmd(x, y) ** 2, squared)


def test_mmd_is_nothing_for_the_class_itself_and_scales_with_the_features():
    x = torch.randn(20, 4, generator=torch_rng(0)).double()
    assert float(batch_mmd(x, x.flip(0))) < 1e-6
    assert torch.allclose(batch_mmd(9 * x, 9 * x[:5]), 3 * batch_mmd(x, x[:5]))


def test_no_image_is_embedded_alone_beside_others(digits: RealData):
    """Batch norm on maps of one position cannot take the statistics of one image."""
    network = build_network("timm:resnet10t", channels=1, image_size=8, classes=10)
    assert len(embed(network, digits.train, torch.arange(33))) == 33
