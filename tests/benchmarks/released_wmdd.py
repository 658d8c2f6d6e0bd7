"""WMDD's image optimisation organised as the released code's newer script: the reference of a speed benchmark, not used
elsewhere.

fp32 and eager; batches of whole classes, up to 100 images; one network for features and cross-entropy; the moments of
all classes at once in a hook on every batch-norm layer, no image weighed; one crop, mirror and roll for the batch; a
host sync and a copy every step. Written from shared facts about that code (docs/differences.md), not from the code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.data.pixels import to_float, to_uint8
from gendistill.networks.factories import batch_norm_layers
from gendistill.networks.teacher import Teacher
from gendistill.refine.constraints import chunks
from gendistill.seeding import torch_rng

BATCH = 100  # images, whole classes


class ReleasedLoop:
    """``run`` yields the terms (features, batch_norm, cross_entropy) of every step; then ``images`` are refined."""

    def __init__(
        self,
        teacher: Teacher,
        start: Tensor,
        labels: Tensor,
        atoms: Tensor,
        *,
        steps: int,
        learning_rate: float,
        crops: bool = True,
    ) -> None:
        self.network: Any = copy.deepcopy(teacher.network).eval().requires_grad_(False)
        self.teacher, self.images, self.labels, self.atoms = teacher, start.clone(), labels, atoms
        self.steps, self.learning_rate, self.crops, self.rng = steps, learning_rate, crops, torch_rng(0, "released")
        self.gaps: dict[str, Tensor] = {}
        for name, layer in batch_norm_layers(self.network).items():
            layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        means, variances = self.teacher.statistics.means[name], self.teacher.statistics.variances[name]

        def compare(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            by_class = inputs[0].unflatten(0, (len(self.present), -1))  # (G, images of a class, C, ...)
            where = [1, *range(3, by_class.dim())]
            mean, variance = by_class.mean(where), by_class.var(where, unbiased=False)
            gaps = (variance - variances[self.present]).norm(dim=1) + (mean - means[self.present]).norm(dim=1)
            self.gaps[name] = gaps.mean()

        return compare

    def run(self) -> Iterator[dict[str, float]]:
        for rows in chunks(self.labels, BATCH):
            yield from self._batch(rows)

    def _batch(self, rows: Tensor) -> Iterator[dict[str, float]]:
        x = to_float(self.images[rows]).requires_grad_()
        labels, best = self.labels[rows], math.inf
        self.present = labels.unique()
        optimizer = torch.optim.Adam([x], lr=self.learning_rate, betas=(0.5, 0.9))
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            seen = self._seen(x) if self.crops else x
            features = self.network.features(seen)
            terms = {"features": (features - self.atoms[rows]).norm()}
            terms["cross_entropy"] = F.cross_entropy(self.network.classify(features), labels)
            terms["batch_norm"] = torch.stack([*self.gaps.values()]).sum()
            loss = torch.stack([*terms.values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
            if loss.item() < best:
                best, kept = loss.item(), x.detach().clone()
            yield {name: value.item() for name, value in terms.items()}
        self.images[rows] = to_uint8(kept)

    def _seen(self, x: Tensor) -> Tensor:
        """A random crop, mirror and roll of the whole batch."""
        size = x.shape[-1]
        area, flip, place_x, place_y = torch.rand(4, generator=self.rng).tolist()
        side = round(size * (0.5 + 0.5 * area) ** 0.5)
        left, top = (round(place * (size - side)) for place in (place_x, place_y))
        x = F.interpolate(x[..., top : top + side, left : left + side], (size, size), mode="bilinear", antialias=True)
        x = x.flip(3) if flip < 0.5 else x
        return x.roll(torch.randint(-4, 5, (2,), generator=self.rng).tolist(), (2, 3))
