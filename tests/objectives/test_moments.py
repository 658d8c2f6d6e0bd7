"""Moments of rows against float64, and their gradient against autograd's own."""

from __future__ import annotations

import pytest
import torch

from gendistill.objectives import refinement
from gendistill.objectives.refinement import row_moments

SHAPES = [(5, 3, 6, 4), (5, 3, 7), (5, 2, 3, 4, 2)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def values(*shape: int, mean: float = 5.0) -> torch.Tensor:
    return mean + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def plain(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = inputs.double().flatten(2)
    return flat.mean(2), flat.var(2, unbiased=False)


def gradient(function, inputs: torch.Tensor) -> torch.Tensor:
    """Of a weighted sum of the moments."""
    inputs = inputs.detach().requires_grad_()
    mean, variance = (value.double() for value in function(inputs))
    weights = torch.randn(2, *mean.shape, generator=torch.Generator().manual_seed(1))
    total = (weights[0] * mean).sum() + (weights[1] * variance).sum()
    return torch.autograd.grad(total, inputs)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_and_their_gradient_equal_the_plain_ones(shape: tuple[int, ...]) -> None:
    inputs = values(*shape)
    for found, expected in zip(row_moments(inputs), plain(inputs), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(row_moments, inputs), gradient(plain, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pieces_and_layouts_change_nothing(monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format) -> None:
    inputs = values(5, 4, 8, 8)
    expected, slope = row_moments(inputs), gradient(row_moments, inputs)
    monkeypatch.setitem(refinement.CHUNK, "cpu", 600)  # two images at once, and one is left
    laid = inputs.contiguous(memory_format=layout)
    torch.testing.assert_close(row_moments(laid), expected)
    torch.testing.assert_close(gradient(row_moments, laid), slope)
    assert gradient(row_moments, laid).is_contiguous(memory_format=layout)


def test_a_large_mean_costs_the_variance_no_digits() -> None:
    inputs = values(4, 3, 16, 16, mean=1000.0)
    torch.testing.assert_close(row_moments(inputs)[1].double(), plain(inputs)[1], rtol=1e-5, atol=0)


def test_bf16_inputs_have_fp32_moments_and_a_gradient_of_their_own_type() -> None:
    inputs = values(5, 3, 6, 4).bfloat16()
    torch.testing.assert_close([m.double() for m in row_moments(inputs)], list(plain(inputs)), rtol=1e-5, atol=1e-6)
    found, expected = gradient(row_moments, inputs), gradient(plain, inputs)
    assert found.dtype == torch.bfloat16
    assert (found - expected).float().norm() < 0.01 * expected.float().norm()


def test_one_position_is_its_own_mean_without_variance() -> None:
    inputs = values(5, 3).requires_grad_()
    mean, variance = row_moments(inputs)
    assert torch.equal(mean, inputs)
    assert not variance.any()
    assert torch.autograd.grad(mean.sum() + variance.sum(), inputs)[0].eq(1).all()
