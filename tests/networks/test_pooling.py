"""Halving against PyTorch's own 2x2 average pooling: values, derivatives of two orders, layouts, odd sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gendistill.networks.classifiers import AvgPool2x2

SHAPES = [(2, 3, 8, 8), (1, 2, 7, 5), (2, 1, 3, 2), (4, 3, 2, 2), (0, 3, 4, 4)]


def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_are_those_of_average_pooling(shape, dtype, layout):
    images = some(*shape, dtype=dtype).contiguous(memory_format=layout)
    found, expected = AvgPool2x2()(images), nn.AvgPool2d(2)(images)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout) or not found.numel()


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_both_derivatives_are_those_of_finite_differences(shape):
    images = some(*shape, dtype=torch.float64).requires_grad_()
    assert gradcheck(AvgPool2x2(), images)
    assert gradgradcheck(AvgPool2x2(), images)


def test_gradients_are_those_of_average_pooling():
    images, weights = some(2, 3, 9, 8).requires_grad_(), some(2, 3, 4, 4)
    found, expected = (
        torch.autograd.grad((pool(images) * weights).sum(), images)[0] for pool in (AvgPool2x2(), nn.AvgPool2d(2))
    )
    torch.testing.assert_close(found, expected)


def test_vmap_over_classes_changes_nothing():
    images = some(5, 2, 3, 6, 6)
    torch.testing.assert_close(torch.func.vmap(AvgPool2x2())(images), torch.stack([AvgPool2x2()(i) for i in images]))


def test_a_single_row_is_refused_as_by_average_pooling():
    with pytest.raises(RuntimeError, match="too small"):
        AvgPool2x2()(some(1, 1, 1, 4))


def test_it_has_no_state():
    assert not AvgPool2x2().state_dict()
