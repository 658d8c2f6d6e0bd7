"""Where refinement may go, what a step shows, and how images are shared out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.data.crops import boxes, cropped
from gendistill.refine.constraints import (
    PixelRegion,
    RefineAugmentation,
    augmented,
    chunks,
    resampled,
    rolled,
)


def images(count=6, channels=3, side=8):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1


def test_delta_is_held_in_the_bound_and_images_in_their_range():
    region = PixelRegion(bound=0.25)
    x0 = images()
    delta, moved_by = region.around(x0)
    with torch.no_grad():
        delta.add_(torch.randn(delta.shape, generator=torch.Generator().manual_seed(0)))
    region.project(delta, 1, 2)
    moved = moved_by(delta)
    assert delta.abs().max() == 0.25
    assert (moved - x0).abs().max() <= 0.25 + 1e-6
    assert moved.abs().max() <= 1


def test_a_smaller_delta_is_smooth_and_carries_gradients():
    x0 = torch.zeros(1, 1, 8, 8)
    delta, moved_by = PixelRegion(bound=2, size=2).around(x0)
    assert delta.shape == (1, 1, 2, 2)
    with torch.no_grad():
        delta[0, 0] = torch.tensor([[0.0, 0.8], [0.0, 0.8]])
    x = moved_by(delta)
    assert torch.equal(x[0, 0, 0], x[0, 0, 7])  # no change from row to row
    assert x[0, 0, 0].diff().abs().max() <= 0.8 / 4 + 1e-6  # a step of 0.8 spread over 4 pixels
    (gradient,) = torch.autograd.grad(x.sum(), delta)
    assert gradient.shape == delta.shape
    assert gradient.sum().item() == 64


@pytest.mark.parametrize(("small", "large"), [(2, 8), (3, 8), (5, 7), (8, 8)])
def test_a_smaller_delta_is_enlarged_as_interpolation_does(small, large):
    delta, moved_by = PixelRegion(bound=2, size=small).around(torch.zeros(2, 3, large, large))
    with torch.no_grad():
        delta.copy_(0.3 * images(2, 3, small))
    expected = torch.nn.functional.interpolate(delta, (large, large), mode="bilinear")
    assert torch.allclose(moved_by(delta), expected, atol=1e-6)


def test_blending_shrinks_delta_at_its_steps_alone():
    region = PixelRegion(blend_every=3, blend=0.5)
    delta = torch.full((1, 1, 2, 2), 0.8)
    for step in range(1, 10):
        region.project(delta, step, 9)  # not after the ninth, the last, which no step follows
        expected = {1: 0.8, 2: 0.8, 3: 0.4, 4: 0.4, 5: 0.4}.get(step, 0.2)
        assert delta.max().item() == torch.tensor(expected).item()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5), st.permutations(list(range(6))), st.integers(1, 5))
def test_what_a_step_shows_of_an_image_does_not_depend_on_the_batch(step, order, cut):
    crops = RefineAugmentation(seed=3, min_crop=0.3, flip=True, roll=2)
    x, drawn = images(), crops.draw(6, step)
    together = augmented(x, *drawn)
    for part in (torch.tensor(order[:cut]), torch.tensor(order[cut:])):
        assert torch.allclose(augmented(x[part], *(one[part] for one in drawn)), together[part], atol=1e-6)
    assert not torch.equal(augmented(x, *crops.draw(6, step + 1)), together)


def test_without_options_a_step_shows_the_image():
    assert torch.equal(augmented(images(), *RefineAugmentation().draw(6, 4)), images())


def test_a_roll_alone_is_drawn_alone():
    (shifts,) = RefineAugmentation(roll=2).draw(6, 4)
    assert torch.equal(augmented(images(), shifts), rolled(images(), *shifts.T))


def test_rolled_is_roll_image_by_image():
    x = images()
    down, right = torch.tensor([0, 1, -2, 3, 8, -1]), torch.tensor([0, 0, 5, -3, 2, 1])
    expected = torch.stack([i.roll((int(d), int(r)), (1, 2)) for i, d, r in zip(x, down, right, strict=True)])
    assert torch.equal(rolled(x, down, right), expected)


def test_resampled_is_crop_and_roll_with_the_same_gradient():
    """Against torch's grid sampling, on images that are not square."""
    rng = torch.Generator().manual_seed(0)
    x = (torch.rand(6, 3, 10, 7, generator=rng) * 2 - 1).requires_grad_()
    sides, centres = boxes(6, 0.3, True, rng)
    shifts = torch.randint(-4, 5, (6, 2), generator=rng)
    found = resampled(x, sides, centres, shifts)
    expected = rolled(cropped(x, sides, centres), *shifts.T)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weight = torch.randn(x.shape, generator=rng)
    slopes = [torch.autograd.grad((weight * seen).sum(), x)[0] for seen in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 12))
def test_chunks_hold_every_image_once_and_whole_classes(labels, rows):
    labels = torch.tensor(labels)
    parts = list(chunks(labels, rows))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert all(0 < len(part) <= rows or len(labels[part].unique()) == 1 for part in parts)
    for label in labels.unique():
        assert sum(bool((labels[part] == label).any()) for part in parts) == 1


def test_a_pixel_that_left_the_range_comes_back():
    """With a plain clamp its gradient would be 0, and it would stay at the border."""
    x0, wanted = torch.tensor([[[[0.9, -0.9, 0.0]]]]), torch.tensor([[[[0.2, -0.2, 2.0]]]])
    delta, images = PixelRegion(bound=2.0).around(x0.expand(1, 1, 3, 3))
    wanted = wanted.expand(1, 1, 3, 3)
    with torch.no_grad():
        delta += torch.tensor([0.5, -0.5, 0.0])
    for _ in range(200):
        (gradient,) = torch.autograd.grad((images(delta) - wanted).square().sum(), delta)
        with torch.no_grad():
            delta -= 0.1 * gradient
    torch.testing.assert_close(images(delta), wanted.clamp(-1, 1))
    assert (x0 + delta).max() < 1.2  # what cannot be reached does not pull a pixel away for ever
