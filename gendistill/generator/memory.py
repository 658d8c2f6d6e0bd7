"""Per-class first-in-first-out memories of the minimax criteria, updated without host synchronisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.config import MinimaxConfig
from gendistill.errors import ArtifactError
from gendistill.runtime import prefixed, unprefixed

if TYPE_CHECKING:
    from gendistill.runtime import Accelerator


class ClassMemory:
    """The newest ``size`` vectors of each class, scaled to length 1: ``vectors`` (K,size,D), ``filled`` (K,size).

    The criteria compare by cosine, so each vector is scaled once, when it comes in, instead of at every step.
    Where we differ: the released code keeps Python lists and concatenates 64 tensors per class and step.
    """

    def __init__(self, classes: int, size: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.classes, self.size, self.dim = classes, size, dim
        # One extra row takes the writes of images that must not be kept.
        self._rows = torch.zeros(classes * size + 1, dim, device=device)
        self._seen = torch.zeros(classes, dtype=torch.int64, device=device)

    @property
    def vectors(self) -> Tensor:
        return self._rows[:-1].view(self.classes, self.size, self.dim)

    @property
    def filled(self) -> Tensor:
        slots = torch.arange(self.size, device=self._seen.device)
        return slots < self._seen[:, None]

    @torch.no_grad()
    def update(self, z: Tensor, labels: Tensor, active: Tensor | None = None) -> None:
        """Append z (B,D) to the memories of ``labels`` (B,) in batch order, skipping images that are not active."""
        member = labels[:, None] == torch.arange(self.classes, device=labels.device)  # (B,K)
        member = member if active is None else member & active[:, None]
        count = member.sum(0)
        rank = member.cumsum(0).gather(1, labels[:, None])[:, 0] - 1  # how many of its class came before it
        slot = labels * self.size + (self._seen[labels] + rank) % self.size
        # Of more than `size` images of a class only the newest are written, so no two writes meet.
        kept = member.any(1) & (rank >= count[labels] - self.size)
        row = torch.where(kept, slot, len(self._rows) - 1)
        self._rows.index_copy_(0, row, F.normalize(z.detach().to(self._rows.dtype), dim=1))
        self._seen += count

    def state_dict(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        found, expected = tuple(state["vectors"].shape), tuple(self.vectors.shape)
        if found != expected:
            raise ArtifactError(
                f"The stored minimax memory (classes, images, dimensions) is {found}; expected {expected}. Resume with "
                "the classes, memory_size and image size it was made with, or start again with --overwrite."
            )
        self.vectors.copy_(state["vectors"])
        self._seen.copy_(state["seen"])


class MinimaxMemories:
    """The real and the generated memory of the minimax criteria, shared by all processes or each with its own."""

    def __init__(
        self, classes: int, dim: int, criteria: MinimaxConfig, accelerator: Accelerator, device: torch.device
    ) -> None:
        self.criteria, self.accelerator = criteria, accelerator
        self.real = ClassMemory(classes, criteria.memory_size, dim, device)
        self.generated = ClassMemory(classes, criteria.memory_size, dim, device)

    @property
    def bytes(self) -> int:
        return sum(v.numel() * v.element_size() for v in self._own().values())

    def update(self, x0: Tensor, z: Tensor, labels: Tensor, active: Tensor) -> None:
        """Append the batch: x0 (B,c,h,w) to the real memory, and z (B,D), where active (B,), to the generated one.

        The batch is that of all processes together, unless each keeps its own memories.
        """
        values = (x0.flatten(1), z.detach(), labels, active)
        if self.criteria.share_memory:
            values = self.accelerator.gather(values)
        x0, z, labels, active = values
        self.real.update(x0, labels)
        self.generated.update(z, labels, active)

    def _own(self) -> dict[str, Tensor]:
        return {**prefixed("real", self.real.state_dict()), **prefixed("generated", self.generated.state_dict())}

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: where each process has its own, those of all of them (P, ...)."""
        if self.criteria.share_memory:
            return self._own()
        return {k: self.accelerator.gather(v[None]) for k, v in self._own().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ArtifactError where the checkpoint is of another number of processes, each with its own memory."""
        if not self.criteria.share_memory:
            counts = {len(v) for v in state.values()}
            if counts != {self.accelerator.num_processes}:
                raise ArtifactError(
                    f"The checkpoint holds the memories of {max(counts)} process(es), now "
                    f"{self.accelerator.num_processes} run; resume with as many as before."
                )
            state = {k: v[self.accelerator.process_index] for k, v in state.items()}
        self.real.load_state_dict(unprefixed("real", state))
        self.generated.load_state_dict(unprefixed("generated", state))
