"""Per-class first-in-first-out memories for the minimax criteria, as one ring buffer without host syncs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class ClassMemory:
    """The newest ``size`` vectors of each class: ``vectors`` (K,size,D), ``filled`` (K,size).

    Differs from the released code, which keeps Python lists and concatenates 64 tensors a class and step.
    """

    def __init__(self, classes: int, size: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        # One spare class swallows the writes of images that must not be kept.
        self._vectors = torch.zeros(classes + 1, size, dim, device=device)
        self._seen = torch.zeros(classes + 1, dtype=torch.int64, device=device)

    @property
    def vectors(self) -> Tensor:
        return self._vectors[:-1]

    @property
    def filled(self) -> Tensor:
        slots = torch.arange(self.size, device=self._seen.device)
        return slots < self._seen[:-1, None]

    @torch.no_grad()
    def update(self, z: Tensor, labels: Tensor, active: Tensor | None = None) -> None:
        """Append z (B,D) to the memories of ``labels`` (B,) in batch order, skipping images that are not active."""
        spare = len(self._seen) - 1
        labels = labels if active is None else torch.where(active, labels, spare)
        onehot = F.one_hot(labels, spare + 1)
        rank = (onehot.cumsum(0) * onehot).sum(1) - 1  # how many of its class came before it in this batch
        count = onehot.sum(0)
        slot = (self._seen[labels] + rank) % self.size
        # Of more than `size` images of a class only the newest are written, so no two writes meet.
        kept = torch.where(rank >= count[labels] - self.size, labels, spare)
        self._vectors[kept, slot] = z.detach().to(self._vectors.dtype)
        self._seen += count

    def state_dict(self) -> dict[str, Tensor]:
        return {"vectors": self._vectors, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._vectors.copy_(state["vectors"])
        self._seen.copy_(state["seen"])
