"""Means of 2x2 squares, as fast on a CPU as memory lets them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Halving(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2), rounded down: to rounding what nn.AvgPool2d(2) gives, with no state either.

    On a CPU PyTorch's kernel for NCHW runs over single values; sums of neighbouring rows, then of columns, take a
    quarter of its time, half with the backward pass, and 13 % off a compiled matching step. The kernel stays where it
    is the better one: on a GPU, and eager in channels last or in half precision, whose sums would be rounded twice.
    """

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        plain = images.is_contiguous() and images.dtype.itemsize >= 4
        summed = images.device.type == "cpu" and (plain or torch.compiler.is_compiling())
        if not summed or min(height, width) < 2:
            return F.avg_pool2d(images, 2)
        even = images[..., : height // 2 * 2, : width // 2 * 2]
        upper, lower = even.unflatten(-2, (-1, 2)).unbind(-2)
        left, right = (upper + lower).unflatten(-1, (-1, 2)).unbind(-1)
        return (left + right) * 0.25
