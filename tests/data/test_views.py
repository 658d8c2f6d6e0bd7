"""Views from a counter: the same at any time, inside the image, and what CutMix and crops claim to be."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill.data.crops import Views, cutmix
from gendistill.data.pixels import to_float
from gendistill.seeding import torch_rng

RAMP = torch.arange(16, dtype=torch.uint8).repeat(16, 1) * 16  # brightness grows from left to right


def ramps(count):
    return RAMP.expand(count, 1, 16, 16)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 9),
    st.integers(1, 12),
    st.integers(1, 9),
    st.floats(0.1, 1),
    st.booleans(),
    st.sampled_from([0, 1.0]),
)
def test_a_step_is_the_same_whenever_it_is_asked_for(step, count, batch_size, min_crop, flip, cutmix):
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    views = Views(seed=5, batch_size=batch_size, min_crop=min_crop, flip=flip, cutmix=cutmix)
    first, index = views.batch(images, step)
    views.batch(images, step + 1)
    again, same = views.batch(images, step)
    assert torch.equal(first, again)
    assert torch.equal(index, same)
    assert first.shape == (min(batch_size, count), 3, 8, 8)
    assert -1 <= first.min() <= first.max() <= 1


def test_without_options_views_are_the_images():
    views, index = Views(seed=0, batch_size=4).batch(ramps(6), 3)
    assert torch.equal(views, to_float(ramps(6)[index]))


def test_crops_are_windows_of_the_least_area_and_more():
    views = Views(seed=0, batch_size=200, min_crop=0.25).of(to_float(ramps(200)), 0)
    width = (views[:, 0, 8, -1] - views[:, 0, 8, 0]) / (to_float(RAMP)[8, -1] - to_float(RAMP)[8, 0])
    assert (views.diff(dim=-1) >= -1e-6).all()  # still growing to the right
    assert width.min() > (0.25 * 3 / 4) ** 0.5 - 1 / 16
    assert width.min() < 0.6
    assert width.max() > 0.9


def test_about_half_of_the_views_are_mirrored():
    views = Views(seed=0, batch_size=400, flip=True).of(to_float(ramps(400)), 0)
    mirrored = (views[:, 0, 0, 0] > views[:, 0, 0, -1]).float().mean()
    assert 0.4 < mirrored < 0.6
    torch.testing.assert_close(views[0].sort(-1).values, to_float(ramps(1))[0], atol=1e-5, rtol=0)


def test_cutmix_puts_one_box_of_the_batch_in_reverse_into_every_image():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 1, 16, 16)
    shares = []
    for step in range(300):
        mixed = Views(seed=0, batch_size=6, cutmix=1.0).of(images, step)
        inside = mixed[0, 0] != images[0, 0]
        for i in range(6):
            assert torch.equal(mixed[i, 0], torch.where(inside, images[5 - i, 0], images[i, 0]))
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        if len(rows):
            box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all()
        shares.append(inside.float().mean())
    mean = torch.stack(shares).mean()
    assert 0.2 < mean < 0.45  # 1/2 in the mean before boxes are cut at the border


def test_cutmix_tells_the_share_of_the_other_image():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 1, 16, 16)
    for seed in range(50):
        mixed, share = cutmix(images, 1.0, torch_rng(seed))
        assert (mixed != images).float().mean((1, 2, 3)).tolist() == [share] * 6
