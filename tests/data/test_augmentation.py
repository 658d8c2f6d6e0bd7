"""What a training batch is shown as."""

import pytest
import torch
from torch.nn import functional as F

from gendistill.data.augmentation import Augmentation, augment, color_jitter, pca_lighting
from gendistill.data.crops import batch_indices, epoch_indices
from gendistill.data.siamese import Siamese
from gendistill.seeding import torch_rng

ALL = {
    "shift": Augmentation(shift=2),
    "flip": Augmentation(flip=True),
    "crop": Augmentation(min_crop=0.3),
    "jitter": Augmentation(jitter=0.4),
    "lighting": Augmentation(lighting=0.1),
    "dsa": Augmentation(siamese=(Siamese(),)),
    "cutmix": Augmentation(cutmix=1.0),
}


def images(count=8, channels=3, size=8, seed=0):
    return 2 * torch.rand(count, channels, size, size, generator=torch_rng(seed)) - 1


def one_hot(count=8, classes=4):
    return F.one_hot(torch.arange(count) % classes, classes).float()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_replays_from_seed_and_step(name, channels):
    given, targets = images(channels=channels), one_hot()
    first, wanted = ALL[name].batch(given, targets, 1, 5)
    again, same = ALL[name].batch(given, targets, 1, 5)
    assert first.shape == given.shape
    assert wanted.shape == targets.shape
    assert torch.equal(first, again)
    assert torch.equal(wanted, same)
    if (name, channels) != ("lighting", 1):
        assert not torch.equal(first, given)
        others = [ALL[name].batch(given, targets, seed, step)[0] for seed, step in ((1, 6), (2, 5), (1, 7), (1, 8))]
        assert any(not torch.equal(first, other) for other in others)
    assert torch.equal(given, images(channels=channels)), "the batch that was given is left alone"


def test_nothing_asked_for_changes_nothing():
    given, targets = images(), torch.arange(8)
    shown, wanted = Augmentation().batch(given, targets, 0, 0)
    assert torch.equal(shown, given)
    assert wanted is targets


def test_shift_and_flip_are_those_of_the_stream_named_augment():
    shown, _ = Augmentation(shift=1, flip=True).batch(images(), torch.arange(8), 3, 4)
    assert torch.equal(shown, augment(images(), torch_rng(3, "augment", 4), 1, True))


@pytest.mark.parametrize("shift", [1, 7, 20])
def test_a_shift_repeats_the_edges(shift):
    shown = augment(images(), torch_rng(0), shift, False)
    padded = F.pad(images(), (shift,) * 4, mode="replicate")
    top, left = torch.randint(0, 2 * shift + 1, (2, 8), generator=torch_rng(0))
    for index, (row, column) in enumerate(zip(top, left, strict=True)):
        assert torch.equal(shown[index], padded[index, :, row : row + 8, column : column + 8])


def test_a_shift_beyond_the_image_takes_no_memory_for_it():
    shown = augment(images(), torch_rng(0), 10**9, False)
    assert torch.equal(shown.amax((2, 3)), shown.amin((2, 3))), "of each image one corner is left"


@pytest.mark.parametrize("name", ["shift", "flip", "crop", "cutmix"])
def test_moves_invent_no_values(name):
    shown, _ = ALL[name].batch(images(), one_hot(), 0, 1)
    assert shown.min() >= images().min() - 1e-6
    assert shown.max() <= images().max() + 1e-6


def test_crops_are_enlarged_parts():
    ramp = torch.linspace(-1, 1, 16).expand(64, 1, 16, 16)
    shown, _ = Augmentation(min_crop=0.25).batch(ramp, torch.arange(64), 0, 0)
    reach = shown.amax((1, 2, 3)) - shown.amin((1, 2, 3))
    assert 0.25 * 3 / 4 * 2 * 0.8 < reach.min() < 1.7, "the smallest crop shows a part of the ramp"
    assert reach.max() <= 2


def test_cutmix_gives_each_target_the_share_of_its_pixels():
    """Images that are constant at their class number, so that pixels say where they come from."""
    labels = torch.arange(6)
    flat = (labels / 6).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    seen = set()
    for step in range(20):
        shown, targets = Augmentation(cutmix=1.0).batch(flat, F.one_hot(labels, 6).float(), 0, step)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        for i in range(6):
            counts = [(shown[i] == flat[j]).all(0).float().mean() for j in range(6)]
            assert torch.allclose(targets[i], torch.stack(counts), atol=1e-6)
        seen.add(round(float(targets[0, 5]), 3))
    assert len(seen) > 5


def test_cutmix_mixes_as_often_as_its_probability_says():
    augmentation = Augmentation(cutmix=0.5)
    mixed = sum(not torch.equal(augmentation.batch(images(), one_hot(), 0, s)[1], one_hot()) for s in range(100))
    assert 25 < mixed < 60  # a box of no pixels at all mixes nothing


def test_cutmix_of_plain_labels_is_refused():
    with pytest.raises(ValueError, match=r"\(B,K\)"):
        Augmentation(cutmix=1.0).batch(images(), torch.arange(8), 0, 0)


def test_jitter_of_one_image_is_three_lerps_in_some_order():
    """By hand, for every order: toward black, toward mean grey, toward own grey."""
    image = images(1)
    found = color_jitter(image, 0.4, torch_rng(7))
    rng = torch_rng(7)
    order, share = torch.rand(1, 3, generator=rng).argsort(1)[0], 0.4 * (2 * torch.rand(1, 3, generator=rng) - 1)[0]
    expected = (image + 1) / 2
    for which in order.tolist():
        r, g, b = expected[0]
        grey = 0.299 * r + 0.587 * g + 0.114 * b
        goal = (torch.zeros_like(expected), grey.mean().expand_as(expected), grey.expand_as(expected))[which]
        expected = (1 - share[which]) * expected + share[which] * goal
    assert torch.allclose((found + 1) / 2, expected, atol=1e-5)


def test_jitter_draws_for_each_image_alone():
    same = images(1).expand(16, -1, -1, -1)
    assert len(color_jitter(same, 0.4, torch_rng(0)).unique(dim=0)) == 16


def test_lighting_adds_one_small_colour_an_image():
    added = pca_lighting(images(500), 0.1, torch_rng(0)) - images(500)
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-5)
    colour = added[:, :, 0, 0] / 2
    direction = torch.tensor([-0.5675, -0.5808, -0.5836])
    assert float((colour @ direction).std()) == pytest.approx(0.1 * 0.2175, rel=0.15)
    assert torch.equal(pca_lighting(images(4, 1), 0.1, torch_rng(0)), images(4, 1))


def test_dsa_draws_the_operation_for_the_batch_and_its_strength_for_each_image():
    same = images(1).expand(8, -1, -1, -1)
    color = Augmentation(siamese=(Siamese(operations=("color",)),))
    assert len(color.batch(same, torch.arange(8), 0, 0)[0].unique(dim=0)) == 8


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 64)])
def test_whole_epochs_end_with_what_is_left(count, size):
    per_epoch = -(-count // size)
    for epoch in range(3):
        parts = [epoch_indices(count, size, epoch * per_epoch + part, 1) for part in range(per_epoch)]
        assert [len(p) for p in parts] == [min(size, count - size * p) for p in range(per_epoch)]
        assert torch.cat(parts).sort().values.tolist() == list(range(count))
    if count % size == 0:
        assert all(torch.equal(epoch_indices(count, size, s, 1), batch_indices(count, size, s, 1)) for s in range(6))
