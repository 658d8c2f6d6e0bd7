"""Multi-formation: tiles come back as whole images, in order, whatever the factor."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gendistill.surrogate.multi_formation import Decoded, decode, views_in
from gendistill.surrogate.set import SurrogateSet


def flat_tiles(count, factor, side, channels=3):
    """Stored images whose tiles are of one colour each, and those colours (N*factor^2,)."""
    colours = torch.arange(count * factor**2, dtype=torch.uint8) * 7 % 251
    grid = colours.view(count, factor, factor)
    bounds = [round(side * i / factor) for i in range(factor + 1)]
    images = torch.zeros(count, channels, side, side, dtype=torch.uint8)
    for r in range(factor):
        for c in range(factor):
            images[:, :, bounds[r] : bounds[r + 1], bounds[c] : bounds[c + 1]] = grid[:, r, c, None, None, None]
    return images, colours


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(4, 17), st.sampled_from([1, 3]))
def test_tiles_of_one_colour_become_images_of_that_colour_in_order(count, factor, side, channels):
    images, colours = flat_tiles(count, factor, side, channels)
    views = decode(images, factor)
    assert views.shape == (count * factor**2, channels, side, side)
    assert torch.equal(views, colours[:, None, None, None].expand_as(views))


def test_a_tile_is_enlarged_bilinearly():
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, :2, :2] = torch.tensor([[0, 100], [0, 100]])
    row = decode(image, 2)[0, 0, 0].tolist()
    assert row == [0, 25, 75, 100]  # half-pixel centres at -1/4, 1/4, 3/4, 5/4, held at the border


def test_factor_one_is_the_images():
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(decode(images, 1), images)


def test_several_factors_give_the_views_of_each_image_by_image():
    images = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    found = decode(images, (1, 2, 3)).unflatten(0, (2, -1))
    expected = [decode(images, factor).unflatten(0, (2, -1)) for factor in (1, 2, 3)]
    assert torch.equal(found, torch.cat(expected, 1))
    assert found.shape[1] == views_in((1, 2, 3)) == 14


def test_a_set_of_several_factors_is_read_again_and_trained_on(tmp_path):
    from torchvision.datasets import ImageFolder

    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    made = SurrogateSet(images, torch.tensor([0, 0, 1, 1]), ("ant", "bee"), factor=(1, 2))
    made.save(tmp_path / "set")
    found = SurrogateSet.load(tmp_path / "set")
    assert (found.ipc, found.factor, found.views) == (2, (1, 2), 5)
    assert found.split.labels.tolist() == [0] * 10 + [1] * 10
    assert found.content_hash() == made.content_hash() != replace(made, factor=2).content_hash()
    assert torch.equal(found.take(torch.tensor([2])).split.images, found.split.images[10:15])
    views = Decoded(ImageFolder(str(tmp_path / "set" / "train")), (1, 2), np.asarray)
    assert torch.equal(torch.from_numpy(np.stack([v for v, _ in views])).movedim(-1, 1), found.split.images)


@pytest.mark.parametrize("factor", [0, -1, 6, (1, 6), (0, 2)])
def test_a_factor_that_does_not_fit_is_refused(factor):
    with pytest.raises(ValueError, match=rf"factor is {re.escape(str(factor))}"):
        decode(torch.zeros(1, 3, 5, 5, dtype=torch.uint8), factor)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_counts_stored_images_and_trains_on_decoded_ones(tmp_path, channels):
    from torchvision.datasets import ImageFolder

    images, colours = flat_tiles(4, 3, 12, channels)
    SurrogateSet(images, torch.tensor([0, 0, 1, 1]), ("ant", "bee"), factor=3).save(tmp_path / "set")
    found = SurrogateSet.load(tmp_path / "set")
    assert (found.ipc, found.factor, len(found.split)) == (2, 3, 36)
    assert found.split.labels.tolist() == [0] * 18 + [1] * 18
    assert torch.equal(found.split.images[:, 0, 0, 0], colours)
    views = Decoded(ImageFolder(str(tmp_path / "set" / "train")), 3, np.asarray)
    assert len(views) == 36
    assert [int(image[0, 0, 0]) for image, _ in views] == colours.tolist()
    assert [label for _, label in views] == [0] * 18 + [1] * 18


def test_decoded_views_of_grey_images_stay_grey_and_take_a_transform():
    stored = [(Image.fromarray(np.full((4, 4), 9, np.uint8)), 3)]
    views = Decoded(stored, 2, lambda image: (image.mode, image.size))
    assert list(views) == [(("L", (4, 4)), 3)] * 4
    assert views[-1] == views[3]
    with pytest.raises(IndexError):
        views[4]
