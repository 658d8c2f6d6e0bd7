"""Mean and variance of every row and channel of a feature map, differentiable, in chunks that fit in the cache.

Legend: R rows (images, or windows of them), C channels, S positions of a map (R,C,...).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 2**19}  # floats that stay in a core's cache from their mean to the sum of their squares
OTHER_CHUNK = 2**24


def row_sums(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, sum of x - mean, sum of (x - mean)^2), fp32 (R,C), over the positions of (R,C,...).

    The second one is the rounding error of the mean, which the corrected two-pass algorithm needs.
    """
    where = tuple(range(2, inputs.dim()))
    step = max(1, CHUNK.get(inputs.device.type, OTHER_CHUNK) // inputs[0].numel())
    room = torch.empty_like(inputs[:step], dtype=torch.float32)  # in the layout of the input
    parts = []
    for part in inputs.split(step):
        values = part.float()
        mean = values.mean(where, keepdim=True)
        centred = torch.sub(values, mean, out=room[: len(part)])
        parts.append((mean.flatten(1), centred.sum(where), centred.square_().sum(where)))
    mean, rest, squares = (torch.cat(sums) for sums in zip(*parts, strict=True))
    return mean, rest, squares


def row_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance) over the positions of every row and channel of (R,C,...), fp32 (R,C); differentiable.

    Autograd would keep two more maps of the input's size for the variance and read them ten times.
    """
    if inputs[0, 0].numel() == 1:
        mean = inputs.flatten(1).float()
        return mean, torch.zeros_like(mean)
    return _RowMoments.apply(inputs)


class _RowMoments(torch.autograd.Function):
    """d mean / dx = 1 / S and d variance / dx = 2 (x - mean) / S: one multiply-add of the input, in its own dtype."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, rest, squares = row_sums(inputs)
        ctx.positions = inputs[0, 0].numel()
        rest = rest / ctx.positions
        mean, variance = mean + rest, (squares / ctx.positions - rest.square()).clamp_(min=0)
        ctx.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, mean_grad: Tensor, variance_grad: Tensor) -> Tensor:
        inputs, mean = ctx.saved_tensors
        slope = 2 * variance_grad / ctx.positions
        offset = mean_grad / ctx.positions - slope * mean
        shape = (*mean.shape, *[1] * (inputs.dim() - 2))
        slope, offset = (value.to(inputs.dtype).view(shape) for value in (slope, offset))
        return torch.addcmul(offset, inputs, slope)
