"""The minimax criteria of "Efficient Dataset Distillation via Minimax Diffusion" (arXiv 2311.15529, eq. 4 to 7).

Legend: z (B,D) predicted x0, flattened; labels (B,) int64; memory (K,M,D) past images of each class; filled (K,M) bool,
which slots hold one; active (B,) bool, which images take part.

Both criteria compare an image with the memory of its own class by cosine. Reductions:
``global`` takes one extreme pair a class and averages over the classes present, as the released code does, so one
image a class gets a gradient; ``per_sample`` gives every image its own extreme and averages over the images.
An image whose class memory is empty, or that is not active, counts for nothing; if none is left the value is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine_to_memory(z: Tensor, labels: Tensor, memory: Tensor) -> Tensor:
    """Cosine of each image with every slot of its class's memory, (B,M), in fp32."""
    own = F.normalize(memory.float(), dim=-1)[labels]  # (B,M,D)
    return torch.einsum("bd,bmd->bm", F.normalize(z.float(), dim=-1), own)


def representativeness(
    z: Tensor,
    labels: Tensor,
    memory: Tensor,
    filled: Tensor,
    *,
    reduction: str = "per_sample",
    active: Tensor | None = None,
) -> Tensor:
    """1 - smallest cosine to the real memory: minimising it pulls toward the FARTHEST real image (eq. 5). In [0, 2]."""
    cosine = cosine_to_memory(z, labels, memory)
    usable = _usable(labels, filled, active)
    smallest = cosine.masked_fill(~usable, torch.inf).amin(1)
    return 1 - _reduce(smallest, usable.any(1), labels, len(memory), reduction, "amin")


def diversity(
    z: Tensor,
    labels: Tensor,
    memory: Tensor,
    filled: Tensor,
    *,
    reduction: str = "per_sample",
    active: Tensor | None = None,
) -> Tensor:
    """Largest cosine to the generated memory: it pushes from the CLOSEST generated image (eq. 6). In [-1, 1]."""
    cosine = cosine_to_memory(z, labels, memory)
    usable = _usable(labels, filled, active)
    largest = cosine.masked_fill(~usable, -torch.inf).amax(1)
    return _reduce(largest, usable.any(1), labels, len(memory), reduction, "amax", empty=0.0)


def _usable(labels: Tensor, filled: Tensor, active: Tensor | None) -> Tensor:
    usable = filled[labels]
    return usable if active is None else usable & active[:, None]


def _reduce(
    extreme: Tensor, valid: Tensor, labels: Tensor, classes: int, reduction: str, kind: str, empty: float = 1.0
) -> Tensor:
    """Mean over valid images, or over the extremes of the classes present; ``empty`` without any. No host sync."""
    if reduction == "global":
        neutral = torch.inf if kind == "amin" else -torch.inf
        start = extreme.new_full((classes,), neutral)
        extreme = start.scatter_reduce(0, labels, extreme.masked_fill(~valid, neutral), kind)
        valid = torch.zeros(classes, dtype=torch.bool, device=labels.device).index_put(
            (labels,), valid, accumulate=True
        )
    elif reduction != "per_sample":
        raise ValueError(f"reduction is {reduction!r}; expected 'per_sample' or 'global'.")
    total = extreme.masked_fill(~valid, 0).sum()
    count = valid.sum()
    return torch.where(count > 0, total / count.clamp(min=1), total + empty)
