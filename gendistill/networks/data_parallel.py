"""A classifier's training whose batches several processes share, as one process would train it up to rounding.

Every process draws the whole batch and takes its own rows; the gradients are added up:

    d/d theta mean_B loss = sum over processes p of  (B_p / B)  d/d theta mean_{B_p} loss

Batch norm takes the mean and variance of the whole batch, and so do its running averages.

Legend: B images of a batch, B_p of them in process p, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gendistill import parallel
from gendistill.data.dataset import Split
from gendistill.errors import ConfigError


def begin_alike(network: nn.Module, batch_size: int) -> None:
    """Give every process the main one's weights, and check that each gets a part of a batch.

    Raises:
        ConfigError: there are more processes than images in a batch.
    """
    if batch_size < parallel.world():
        raise ConfigError(
            f"{parallel.world()} processes share batches of {batch_size} images; expected at least one image each. "
            "Raise batch_size, or start fewer processes."
        )
    for tensor in network.state_dict().values():
        dist.broadcast(tensor, src=0)


def own_rows(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """(images (B_p,...), targets (B_p,...), B_p / B) of this process, from the whole batch."""
    rows = _own_part(len(images))
    return images[rows], targets[rows], (rows.stop - rows.start) / len(images)


def _own_part(count: int) -> slice:
    """Which of so many rows are this process's; all processes have equally many, give or take one."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return slice(count * rank // world, count * (rank + 1) // world)


def add_up_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Add up the gradients of all processes, and their shares of the loss, which is returned."""
    total = loss.detach().clone()
    parallel.add_up([total, *(p.grad for p in parameters if p.grad is not None)])
    return total


def shared_accuracy(accuracy: Callable[[nn.Module, Split], float], network: nn.Module, split: Split) -> float:
    """``accuracy`` of a split of which every process classifies a part."""
    if len(split) < parallel.world():
        return accuracy(network, split)
    rows = torch.arange(len(split))[_own_part(len(split))]
    right = round(accuracy(network, split.take(rows)) * len(rows))
    return sum(parallel.gathered({dist.get_rank(): right}).values()) / len(split)


class WholeBatchNorm(TorchFunctionMode):
    """Inside this block batch norm in training mode takes the statistics of all processes' rows together.

    It replaces the function, so it also serves layers that do more than batch norm, as timm's do. torch's SyncBatchNorm
    replaces the layers, and does not run on a CPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` of (B_p,C,...) rows; in training the statistics are those of all B, exchanged twice: sums, then
    squares about the mean."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [0, *range(2, input.dim())]
    shape = [1, -1] + [1] * (input.dim() - 2)
    own = x.new_tensor([x.numel() / x.shape[1]])
    sums = _Sum.apply(torch.cat([x.sum(dims), own]))
    total = sums[-1].detach()
    centred = x - (sums[:-1] / total).view(shape)
    variance = _Sum.apply(centred.square().sum(dims)) / total
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_((sums[:-1] / total).to(running_mean), momentum)
        if running_var is not None:
            running_var.lerp_((variance * total / (total - 1)).to(running_var), momentum)
    found = centred * (variance + eps).rsqrt().view(shape)
    found = found if weight is None else found * weight.view(shape)
    return (found if bias is None else found + bias.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, which every process's loss has a part of."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
