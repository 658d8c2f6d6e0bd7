"""Gradients through what has none: images cut to their range, and images as a lossy format stores them.

Legend: x are images (B,C,H,W) of floats in [-1, 1], each coded by itself, so that batching changes none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gendistill.data.pixels import to_float, to_uint8
from gendistill.surrogate.image_files import recode
from gendistill.surrogate.image_formats import Coding


def into_range(values: Tensor, limit: float = 1.0) -> Tensor:
    """``values`` cut to [-limit, limit], with a gradient that still leads back inside.

    The gradient of ``clamp`` is 0 outside, so a pixel that has left the range once would stay black or white. Here it
    is 0 only where a descent would lead farther outside.
    """
    return _StraightThrough.apply(values, values.detach().clamp(-limit, limit), limit)


def as_coded(images: Tensor, coding: Coding) -> Tensor:
    """The images x that a reader of their files gets, with the gradient of x (the straight-through estimator).

        forward: decode(encode(uint8(x)))          backward: d/dx = 1 in [-1, 1], outside as of ``into_range``

    A lossy format rounds, so its own gradient is 0 almost everywhere. Source of the estimator: Bengio et al. 2013,
    arXiv 1308.3432. Files are coded on the CPU, so that a GPU waits for them.

    Args:
        images: (B,C,H,W); values outside [-1, 1] are stored as black or white.
        coding: A lossy format and its quality.

    Returns:
        (B,C,H,W) of 256 levels in [-1, 1], to the bit those of ``SurrogateSet.stored_as``, on the images' device.
    """
    stored, _ = recode(to_uint8(images.detach()).cpu(), coding)
    return _StraightThrough.apply(images, to_float(stored).to(images.device, images.dtype), 1.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shown: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.limit = limit
        return shown

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        outward = ((values > ctx.limit) & (gradient < 0)) | ((values < -ctx.limit) & (gradient > 0))
        return gradient.masked_fill(outward, 0), None, None
