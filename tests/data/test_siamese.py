"""Siamese augmentation: the same draw for all or one each, every operation by hand, strengths, gradients, streams."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gendistill.data.siamese import OPERATIONS, AugmentationDraw, Siamese
from gendistill.errors import ConfigError
from gendistill.seeding import torch_rng

OFF = {"brightness": 0, "saturation": 0, "contrast": 0, "crop": 0, "cutout": 0, "flip": 0, "scale": 1, "rotate": 0}


def some_images(count=4, channels=3, size=8, dtype=torch.float32):
    return torch.rand(count, channels, size, size, generator=torch_rng(0, "images"), dtype=dtype) * 2 - 1


def one_step(name, value, size=8, **options):
    return AugmentationDraw(((name, torch.tensor(value)),), size, **options)


def only(name, **options):
    return Siamese(operations=(name,), compose="all", **options)


def drawn(name, count=2000, size=32, **options):
    ((_, value),) = only(name, **options).draw(torch_rng(1), count, size).steps
    return value


# what a draw is


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 4]), st.floats(-1, 1), st.integers(2, 12))
def test_at_strength_zero_images_stay_as_they_are(count, mean, size):
    images = some_images(size=size)
    augmentation = Siamese(compose="all", **OFF, mean=mean)
    found = augmentation.draw(torch_rng(0), count, size).apply(images)
    torch.testing.assert_close(found, images, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_draw_treats_every_batch_alike(name):
    draw = only(name, flip=1.0).draw(torch_rng(3), 1, 8)
    real, synthetic = some_images(5), some_images(3).flip(0)
    together = draw.apply(torch.cat([real, synthetic]))
    torch.testing.assert_close(together, torch.cat([draw.apply(real), draw.apply(synthetic)]))
    same = draw.apply(real[:1].expand(6, -1, -1, -1))
    torch.testing.assert_close(same, same[:1].expand_as(same))
    assert not torch.allclose(together[:5], real)


@pytest.mark.parametrize("name", OPERATIONS)
def test_with_a_set_of_parameters_each_images_differ_and_equal_their_own_draw(name):
    images = some_images(1).expand(16, -1, -1, -1)
    draw = only(name).draw(torch_rng(3), 16, 8)
    found = draw.apply(images)
    assert len(found.unique(dim=0)) > 1
    ((_, value),) = draw.steps
    for i in range(16):
        own = AugmentationDraw(((name, value[i : i + 1]),), 8).apply(images[:1])
        torch.testing.assert_close(found[i : i + 1], own)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**40), st.sampled_from([1, 4]), st.sampled_from(["one", "all"]), st.sampled_from([1, 3]))
def test_a_seed_gives_one_draw_and_leaves_the_global_streams_alone(seed, count, compose, channels):
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    images = some_images(channels=channels)
    first, again = (Siamese(compose=compose).draw(torch_rng(seed), count, 8).apply(images) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert torch.equal(images, some_images(channels=channels))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002


def test_one_takes_each_operation_equally_often_and_all_take_their_order():
    rng = torch_rng(0)
    names = [name for _ in range(1200) for name, _ in Siamese().draw(rng, 1, 8).steps]
    assert len(names) == 1200
    assert all(150 < names.count(name) < 250 for name in OPERATIONS)
    order = ("color", "crop", "cutout")  # IDC
    draw = Siamese(operations=order, compose="all").draw(rng, 1, 8)
    assert tuple(name for name, _ in draw.steps) == order
    images, expected = some_images(), some_images()
    for step in draw.steps:
        expected = AugmentationDraw((step,), 8).apply(expected)
    torch.testing.assert_close(draw.apply(images), expected)


@settings(deadline=None, max_examples=20)
@given(st.floats(-0.9, 0.9), st.floats(0.1, 1), st.integers(0, 99))
def test_strengths_are_those_on_normalised_images(mean, std, seed):
    images = some_images()
    ours = Siamese(compose="all", mean=mean, std=std).draw(torch_rng(seed), 4, 8).apply(images)
    theirs = Siamese(compose="all", mean=0, std=1).draw(torch_rng(seed), 4, 8).apply((images - mean) / std)
    torch.testing.assert_close(ours, theirs * std + mean, atol=1e-5, rtol=0)


# operations by hand


def test_flip_exchanges_left_and_right_where_told():
    images = some_images(3)
    found = one_step("flip", [True, False, True]).apply(images)
    assert torch.equal(found, torch.stack([images[0].flip(-1), images[1], images[2].flip(-1)]))


@pytest.mark.parametrize("shifts", [[[2, -3]], [[0, 1], [-2, 0], [7, 9], [-1, -1]]])
def test_crop_equals_a_slow_loop(shifts):
    images = some_images(4, 2, 5)
    found = one_step("crop", shifts, 5, mean=0.25).apply(images)
    for i in range(4):
        down, right = shifts[i % len(shifts)]
        for y in range(5):
            for x in range(5):
                row, column = min(max(y + down, 0), 4), min(max(x + right, 0), 4)
                outside = (row, column) != (y + down, x + right)
                expected = torch.full((2,), 0.25) if outside else images[i, :, row, column]
                torch.testing.assert_close(found[i, :, y, x], expected)


def test_cutout_puts_a_square_to_the_mean():
    images = some_images(2)
    found = one_step("cutout", [[[-2, 2], [5, 9]], [[1, 5], [2, 6]]], mean=-0.5).apply(images)
    expected = images.clone()
    expected[0, :, :2, 5:] = -0.5
    expected[1, :, 1:5, 2:6] = -0.5
    torch.testing.assert_close(found, expected)


def test_rotation_by_a_right_angle_turns_anticlockwise():
    images = some_images(2)
    torch.testing.assert_close(one_step("rotate", [90.0]).apply(images), images.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    found = one_step("rotate", [180.0, -90.0]).apply(images)
    expected = torch.stack([images[0].rot90(2, (1, 2)), images[1].rot90(-1, (1, 2))])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_scale_and_rotation_equal_affine_sampling_as_released():
    images, angle = some_images(2), torch.tensor(12.0).deg2rad()
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    shrink = torch.tensor([[1.15, 0, 0], [0, 0.9, 0]])
    for theta, draw in ((turn, one_step("rotate", [12.0])), (shrink, one_step("scale", [[1 / 1.15, 1 / 0.9]]))):
        grid = F.affine_grid(theta.expand(2, 2, 3), [2, 3, 8, 8], align_corners=False)
        expected = F.grid_sample(images, grid, align_corners=False)
        torch.testing.assert_close(draw.apply(images), expected, atol=1e-5, rtol=0)


def test_uncovered_corners_take_the_mean():
    flat = torch.full((1, 1, 8, 8), 0.5)
    for name, value in (("rotate", [45.0]), ("scale", [[0.5, 0.5]])):
        assert one_step(name, value, mean=-0.25).apply(flat)[0, 0, 0, 0] == -0.25


def test_colour_shifts_saturates_and_contrasts():
    images = some_images()
    grey, mean = images.mean(1, keepdim=True), images.mean((1, 2, 3), keepdim=True)
    for value, expected in (
        ([0.5, 1.0, 1.0], images + 0.5),
        ([0.0, 0.0, 1.0], grey.expand_as(images)),
        ([0.0, 1.0, 0.0], mean.expand_as(images)),
        ([0.0, 2.0, 1.0], 2 * images - grey),
        ([-0.1, 1.0, 1.5], 1.5 * images - 0.5 * mean - 0.1),
    ):
        torch.testing.assert_close(one_step("color", [value]).apply(images), expected, atol=1e-6, rtol=1e-5)


def test_colour_is_brightness_then_saturation_then_contrast():
    images, value = some_images(), torch.tensor([0.3, 1.7, 0.6])
    expected = images + value[0]
    expected = (expected - expected.mean(1, keepdim=True)) * value[1] + expected.mean(1, keepdim=True)
    mean = expected.mean((1, 2, 3), keepdim=True)
    expected = (expected - mean) * value[2] + mean
    torch.testing.assert_close(AugmentationDraw((("color", value[None]),), 8).apply(images), expected)


def test_colour_is_not_clamped():
    bright = torch.ones(1, 3, 8, 8)
    assert one_step("color", [[0.25, 1.0, 1.0]]).apply(bright).max() == 1.25


def test_saturation_leaves_grey_images_alone():
    grey = some_images(channels=1)
    draw = only("color", brightness=0, contrast=0).draw(torch_rng(0), 4, 8)
    torch.testing.assert_close(draw.apply(grey), grey)


# strengths


def test_released_strengths_are_the_defaults():
    colour = drawn("color")
    for column, low, high in ((0, -0.25, 0.25), (1, 0, 2), (2, 0.5, 1.5)):
        assert low <= colour[:, column].min() < low + 0.02
        assert high - 0.02 < colour[:, column].max() <= high
    scale, angle = 1 / drawn("scale"), drawn("rotate")
    assert 1 / 1.2 - 1e-6 <= scale.min() < 0.84
    assert 1.19 < scale.max() <= 1.2 + 1e-6
    assert abs(scale.mean() - (1 / 1.2 + 1.2) / 2) < 0.007  # uniform in what sides are divided by
    assert not torch.allclose(scale[:, 0], scale[:, 1])
    assert -15 <= angle.min() < -14.9
    assert 14.9 < angle.max() <= 15
    assert 0.45 < drawn("flip").float().mean() < 0.55


@pytest.mark.parametrize(("size", "reach"), [(32, 4), (28, 4), (8, 1), (3, 1)])
def test_crop_reaches_an_eighth_of_the_side_and_at_least_a_pixel(size, reach):
    assert drawn("crop", size=size).unique().tolist() == list(range(-reach, reach + 1))


@pytest.mark.parametrize(("size", "side"), [(32, 16), (8, 4), (5, 3)])
def test_cutout_squares_have_half_the_side_and_centres_all_over_the_image(size, side):
    start, end = drawn("cutout", size=size).unbind(2)
    assert (end - start == side).all()
    centres = list(range(size + 1 - side % 2))
    assert (start + side // 2).unique().tolist() == centres


# gradients and compilers


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_equal_finite_differences(name, count):
    images = some_images(2, 2, 5, torch.float64).requires_grad_()
    draw = only(name, flip=1.0, mean=0.1).draw(torch_rng(0), count, 5)
    assert torch.autograd.gradcheck(draw.apply, images)


@pytest.mark.parametrize("count", [1, 4])
def test_vmap_and_grad_go_through(count):
    draw = Siamese(compose="all").draw(torch_rng(0), count, 8)
    classes = torch.stack([some_images(), some_images() * 0.5])
    gradient = torch.func.grad(lambda images: draw.apply(images).square().sum())
    found = torch.func.vmap(gradient)(classes)
    for images, slope in zip(classes, found, strict=True):
        leaf = images.clone().requires_grad_()
        draw.apply(leaf).square().sum().backward()
        torch.testing.assert_close(slope, leaf.grad)


@pytest.mark.slow
def test_compiles_whole_and_once_for_every_draw():
    augmentation, images = Siamese(compose="all"), some_images(2)
    graphs = []
    compiled = torch.compile(
        lambda draw, images: draw.apply(images), backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True
    )
    for seed in range(3):
        draw = augmentation.draw(torch_rng(seed), 1, 8)
        torch.testing.assert_close(compiled(draw, images), draw.apply(images))
    assert len(graphs) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_images_type_is_kept(dtype):
    images = some_images().to(dtype)
    assert Siamese(compose="all").draw(torch_rng(0), 1, 8).apply(images).dtype == dtype


# refusals


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("operations", ()),
        ("operations", ("color", "blur")),
        ("operations", ("crop", "crop")),
        ("compose", "some"),
        ("cutout", 1.5),
        ("flip", -0.1),
        ("scale", 0.8),
        ("std", -1),
        ("mean", 2),
        ("rotate", float("nan")),
    ],
)
def test_what_cannot_work_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"{option} is .*; expected "):
        Siamese(**{option: value})


@pytest.mark.parametrize("shape", [(4, 3, 9, 9), (4, 3, 8, 7), (3, 8, 8), (3, 3, 8, 8)])
def test_images_that_the_draw_is_not_for_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B,C,8,8\)|drawn for 4 images, not for the 3"):
        Siamese().draw(torch_rng(0), 4, 8).apply(torch.zeros(shape))
