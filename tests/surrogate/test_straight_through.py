"""What has no gradient takes that of its input: the range of images, and lossy files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gendistill as gd
from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ConfigError
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.straight_through import as_coded, into_range

LOSSY: dict[str, Any] = {"webp": gd.Webp, "jpeg": gd.Jpeg, "avif": gd.Avif}
each = pytest.mark.parametrize("name", LOSSY)


def images(count: int = 3, channels: int = 3, side: int = 16, scale: float = 0.6) -> Tensor:
    return scale * torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(count))


@given(st.floats(0.1, 2), st.floats(-3, 3), st.floats(-1, 1))
def test_the_gradient_of_the_range_is_the_plain_one_inside_and_leads_inward_outside(
    limit: float, value: float, slope: float
) -> None:
    assume(abs(abs(value) - limit) > 1e-3)
    x = torch.tensor([value], requires_grad=True)
    cut = into_range(x, limit)
    assert cut.item() == pytest.approx(max(-limit, min(limit, value)), abs=1e-6)
    (found,) = torch.autograd.grad(slope * cut.sum(), x)
    outward = abs(x.item()) > limit and slope * value < 0
    assert float(found) == pytest.approx(0 if outward else slope, abs=1e-6)


@each
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(quality=st.sampled_from([1, 10, 60, 100]), channels=st.sampled_from([1, 3]), side=st.integers(4, 20))
def test_the_images_are_those_that_a_reader_of_the_files_gets(
    name: str, quality: int, channels: int, side: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image_format = LOSSY[name](quality=quality)
    x = images(4, channels, side)
    seen = as_coded(x, Coding.of(image_format))
    folder = tmp_path_factory.mktemp("set")
    SurrogateSet(to_uint8(x), torch.tensor([0, 0, 1, 1]), ("ant", "bee")).stored_as(image_format).save(folder)
    assert torch.equal(seen, to_float(SurrogateSet.load(folder).images))
    assert seen.dtype == x.dtype
    alone = torch.cat([as_coded(one[None], Coding.of(image_format)) for one in x])
    assert torch.equal(alone, seen)


@each
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_that_of_the_images_themselves(name: str, channels: int) -> None:
    """Of a function of what is seen: inside the range it is passed on as it is, outside as by ``into_range``."""
    coding, weights = Coding.of(LOSSY[name](quality=20)), images(3, channels)
    x = images(3, channels, scale=1.0).requires_grad_()
    seen = as_coded(x, coding)
    (found,) = torch.autograd.grad((weights * seen).sum(), x)
    inside, outward = x.abs() <= 1, (x.abs() > 1) & (weights * x < 0)
    assert 0.1 < inside.float().mean() < 0.9
    assert torch.equal(found[inside], weights[inside])
    assert not found[outward].any()
    assert torch.equal(found[~inside & ~outward], weights[~inside & ~outward])
    other = seen.detach().requires_grad_()  # not linear: the slope is that at what is seen
    (expected,) = torch.autograd.grad(other.sin().sum(), other)
    (curved,) = torch.autograd.grad(as_coded(x, coding).sin().sum(), x)
    assert torch.equal(curved[inside], expected[inside])


def test_steps_on_what_is_stored_undo_what_the_file_does_to_features() -> None:
    """Ten linear features, which a file changes that is coded once, at the end."""
    coding, x = Coding.of(gd.Jpeg(quality=10)), images(2, scale=0.3)
    features = images(10, scale=1 / 16).flatten(1)
    wanted = x.flatten(1) @ features.T
    x.requires_grad_()
    errors = []
    for _ in range(50):
        error = (as_coded(x, coding).flatten(1) @ features.T - wanted).square().sum()
        (gradient,) = torch.autograd.grad(error, x)
        with torch.no_grad():
            x -= 0.1 * gradient
        errors.append(error.item())
    assert min(errors) < 0.1 * errors[0]


def test_a_lossless_format_is_refused_as_that_of_steps() -> None:
    assert Coding.of_steps(None, 8) is None
    assert Coding.of_steps(gd.Webp(quality=30), 8) == Coding.of(gd.Webp(quality=30))
    for name in ("png", "webp_lossless"):
        lossless: Any = name
        with pytest.raises(ConfigError, match=f"image_format is '{name}'; expected a lossy one, or None"):
            Coding.of_steps(lossless, 8)
