"""Pixel values: every way to store images wrong is named, and real images are not."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from gendistill.data.dataset import RealData
from gendistill.evaluation.checks.pixel_values import distance, histogram, mistakes, range_findings
from gendistill.seeding import torch_rng


def drawn(images: Tensor, count: int, seed: int = 0) -> Tensor:
    return images[torch.randperm(len(images), generator=torch_rng(seed, "drawn"))[:count]]


def found(made: Tensor, real: Tensor) -> list[tuple[str, str]]:
    return [(f.kind, f.severity) for f in range_findings(made, real, [f"{i}.png" for i in range(len(made))])]


def stored(values: Tensor) -> Tensor:
    """What a user writes who takes ``values`` for numbers from 0 to 1."""
    return values.mul(255).round().clamp(0, 255).byte()


def standardised(images: Tensor, real: Tensor) -> Tensor:
    unit, all_of_them = images / 255, real / 255
    mean, std = all_of_them.mean((0, 2, 3), keepdim=True), all_of_them.std((0, 2, 3), keepdim=True)
    return stored((unit - mean) / std)


WRONG = {
    "standardised": standardised,
    "scaled to -1 to 1": lambda x, real: stored(x / 255 * 2 - 1),
    "as if from -1 to 1": lambda x, real: stored((x / 255 + 1) / 2),
    "without the factor of 255": lambda x, real: (x / 255).round().byte(),
}


def test_distance_is_scipys() -> None:
    one, other = (torch.rand(2, 256, generator=torch_rng(s, "levels")).double() for s in range(2))
    one, other = one / one.sum(1, keepdim=True), other / other.sum(1, keepdim=True)
    levels = torch.arange(256).numpy()
    by_channel = [wasserstein_distance(levels, levels, a.numpy(), b.numpy()) for a, b in zip(one, other, strict=True)]
    assert distance(one, other) == pytest.approx(sum(by_channel) / 2)


def test_histogram_by_hand() -> None:
    images = torch.tensor([[[[0, 255]], [[7, 7]]]], dtype=torch.uint8)
    shares = histogram(images)
    assert (shares[0, 0], shares[0, 255], shares[1, 7]) == (0.5, 0.5, 1)
    assert torch.equal(shares.sum(1), torch.ones(2).double())


@pytest.mark.parametrize("which", ["digits", "cifar10"])
@pytest.mark.parametrize("count", [10, 50, 200])
def test_real_images_have_nothing_wrong(which: str, count: int, request: pytest.FixtureRequest) -> None:
    real = request.getfixturevalue(which).train.pixels
    for seed in range(5):
        assert found(drawn(real, count, seed), real) == []


@pytest.mark.parametrize("which", ["digits", "cifar10"])
@pytest.mark.parametrize("count", [10, 100])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_range_is_named(name: str, count: int, which: str, request: pytest.FixtureRequest) -> None:
    real = request.getfixturevalue(which).train.pixels
    made = WRONG[name](drawn(real, count), real)
    findings = [f for f in range_findings(made, real, [""] * count) if f.kind == "value range"]
    assert len(findings) == 1
    assert findings[0].severity == "error"
    assert name in findings[0].text


def test_inverted_digits_are_named(digits: RealData) -> None:
    real = digits.train.pixels
    assert "inverted" in range_findings(255 - drawn(real, 20), real, [""] * 20)[0].text
    assert found(255 - drawn(real, 20), real) == [("value range", "error")]


def test_strange_images_give_a_warning_at_most(digits: RealData) -> None:
    noise = torch.randint(0, 256, (50, 1, 8, 8), generator=torch_rng(0, "noise"), dtype=torch.uint8)
    assert found(noise, digits.train.pixels) == [("value range", "warning")]


def test_flat_images_are_named(digits: RealData) -> None:
    made = drawn(digits.train.pixels, 20)
    made[4], made[9] = 0, 90
    text = range_findings(made, digits.train.pixels, [f"{i}.png" for i in range(20)])[0].text
    assert text.startswith("Images of one flat colour: 2 of 20 (4.png, 9.png);")


def test_grey_images_are_named_where_colour_is_expected(cifar10: RealData) -> None:
    made = drawn(cifar10.train.pixels, 20)
    assert ("grey images", "error") in found(made.float().mean(1, keepdim=True).byte().expand(-1, 3, -1, -1), made)
    assert found(drawn(cifar10.train.pixels, 20), cifar10.train.pixels) == []


def test_mistakes_leave_the_real_images_by_far(cifar10: RealData) -> None:
    assert all(levels.shape == (3, 256) for levels in mistakes(histogram(cifar10.train.pixels)).values())
