"""The minimax criteria of "Efficient Dataset Distillation via Minimax Diffusion" (arXiv 2311.15529, eq. 4 to 7).

Legend: z (B,D) predicted x0, flattened; labels (B,) int64; memory (K,M,D) past images of each class in fp32, each
scaled to length 1 (``generator.memory`` does so); filled (K,M) bool, which slots hold one; active (B,) bool, which
images take part; weight (B,) nonnegative, how much each counts.

Both criteria compare an image with the memory of its own class by cosine. Reductions:
``global`` takes one extreme pair a class, so one image a class gets a gradient, and averages over the classes that have
a pair (the released code divides by all classes of the batch, also those without a memory); ``per_sample`` gives every
image its own extreme and averages over the images, with ``weight`` where there is one.
An image whose class memory is empty, or that is not active, does not count; if no image is left, or the weights sum to
0, the value is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def representativeness(
    z: Tensor,
    labels: Tensor,
    memory: Tensor,
    filled: Tensor,
    *,
    reduction: str = "per_sample",
    active: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Representativeness (eq. 5): mean over images of 1 - min over slots m of cos(z, memory[label, m]).

    Minimising it pulls each image toward the FARTHEST real image of its class.

    Args:
        z: Predicted x0, flattened, (B,D); the gradient flows into it.
        labels: Class of each image, (B,) int64 in [0, K).
        memory: Past real images by class, (K,M,D), each of length 1.
        filled: Which slots hold an image, (K,M) bool.
        reduction: ``per_sample`` or ``global``; see above.
        active: Which images take part, (B,) bool; all by default.
        weight: How much each image counts, (B,), at least 0; only with ``per_sample``.

    Returns:
        A scalar in [0, 2], in fp32.

    Raises:
        ValueError: unknown reduction, ``weight`` with ``global``, or shapes that do not fit.
    """
    _check(z, labels, memory, filled, active, weight, reduction)
    partner, usable = _partner(z, labels, memory, filled, active, nearest=False)
    return _reduce(1 - _cosine(z, partner), usable, labels, len(memory), weight, reduction)


def diversity(
    z: Tensor,
    labels: Tensor,
    memory: Tensor,
    filled: Tensor,
    *,
    reduction: str = "per_sample",
    active: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Diversity (eq. 6): mean over images of max over slots m of cos(z, memory[label, m]).

    Minimising it pushes each image away from the CLOSEST generated image of its class.

    Args:
        z: Predicted x0, flattened, (B,D); the gradient flows into it.
        labels: Class of each image, (B,) int64 in [0, K).
        memory: Past generated images by class, (K,M,D), each of length 1.
        filled: Which slots hold an image, (K,M) bool.
        reduction: ``per_sample`` or ``global``; see above.
        active: Which images take part, (B,) bool; all by default.
        weight: How much each image counts, (B,), at least 0; only with ``per_sample``.

    Returns:
        A scalar in [-1, 1], in fp32.

    Raises:
        ValueError: unknown reduction, ``weight`` with ``global``, or shapes that do not fit.
    """
    _check(z, labels, memory, filled, active, weight, reduction)
    partner, usable = _partner(z, labels, memory, filled, active, nearest=True)
    return _reduce(_cosine(z, partner), usable, labels, len(memory), weight, reduction)


def _check(
    z: Tensor,
    labels: Tensor,
    memory: Tensor,
    filled: Tensor,
    active: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> None:
    batch, dim = z.shape
    wanted = {"labels": (labels, (batch,)), "memory": (memory, (*filled.shape, dim))}
    wanted |= {"active": (active, (batch,))} if active is not None else {}
    wanted |= {"weight": (weight, (batch,))} if weight is not None else {}
    for name, (value, shape) in wanted.items():
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}.")
    if reduction not in {"per_sample", "global"}:
        raise ValueError(f"reduction is {reduction!r}; expected 'per_sample' or 'global'.")
    if weight is not None and reduction == "global":
        raise ValueError("weight goes with reduction 'per_sample'; in 'global' one pair a class counts.")


def _cosine(z: Tensor, partner: Tensor) -> Tensor:
    return (F.normalize(z.float(), dim=1) * partner).sum(1)


@torch.no_grad()
def _partner(
    z: Tensor, labels: Tensor, memory: Tensor, filled: Tensor, active: Tensor | None, *, nearest: bool
) -> tuple[Tensor, Tensor]:
    """The slot of its class that each image is pulled to or pushed from, (B,D), and whether there is one, (B,).

    Choosing needs no gradient, so the (B,M,D) comparison leaves nothing behind for the backward pass.
    """
    usable = filled[labels]
    usable = usable if active is None else usable & active[:, None]
    sign = 1 if nearest else -1
    score = (sign * _products(z.float(), labels, memory)).masked_fill(~usable, -torch.inf)
    return memory[labels, score.argmax(1)], usable.any(1)


def _products(z: Tensor, labels: Tensor, memory: Tensor) -> Tensor:
    """Inner product of each image with every slot of its class, (B,M), without a host sync.

    Images go through in chunks, because the memories gathered for a chunk are a copy. On a CPU a small copy (1 MiB),
    always to the same place, stays in the cache, which is over 10 times as fast as gathering for the whole batch;
    an accelerator wants few launches (256 MiB).
    """
    numbers = 2**18 if z.device.type == "cpu" else 2**26
    chunk = min(len(z), max(1, numbers // memory[0].numel()))
    copy = memory.new_empty(chunk, *memory.shape[1:])
    products = []
    for part, own in zip(z.split(chunk), labels.split(chunk), strict=True):
        gathered = torch.index_select(memory, 0, own, out=copy[: len(own)])
        products.append(torch.bmm(part[:, None], gathered.mT)[:, 0])
    return torch.cat(products)


def _reduce(
    value: Tensor, valid: Tensor, labels: Tensor, classes: int, weight: Tensor | None, reduction: str
) -> Tensor:
    """Weighted mean over the valid images, or mean over the largest of each class present; 0 without any."""
    if reduction == "global":
        lowest = value.new_full((classes,), -torch.inf)
        value = lowest.scatter_reduce(0, labels, value.masked_fill(~valid, -torch.inf), "amax")
        valid = value.detach() != -torch.inf  # true of NaN, which must show
    share = valid.float() if weight is None else weight.float().masked_fill(~valid, 0)
    total, sum_of_shares = (value.masked_fill(~valid, 0) * share).sum(), share.sum()
    return total / torch.where(sum_of_shares > 0, sum_of_shares, 1)
