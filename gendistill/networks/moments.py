"""Exact moments of feature maps by class, batch by batch, without a second look at the data.

Legend: B images, K classes of the data, G classes of a batch, C channels, S positions of a map, R rows of a layer's
input: B, or a multiple of it where a layer sees several windows or tokens of an image as rows, image by image.
(count, mean, M2), M2 being the sum of squared deviations from the mean, of two parts join by Chan, Golub and LeVeque
(1979): mean += delta n_b / n and M2 += M2_b + delta^2 n_a n_b / n with delta = mean_b - mean. The last term, between
the parts, is what averaging the variances of batches loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gendistill.objectives.moments import row_sums


@dataclass(frozen=True)
class Members:
    """The ``classes`` (G,) of a batch, each image's place among them ``group`` (B,), and their ``images`` (G,1)."""

    classes: Tensor
    group: Tensor
    images: Tensor

    @classmethod
    def of(cls, labels: Tensor, device: torch.device) -> Members:
        classes, group, images = labels.cpu().unique(return_inverse=True, return_counts=True)
        return cls(classes.to(device), group.to(device), images[:, None].to(device))


def _exact_rows(inputs: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, M2) over the positions of every row and channel of (R,C,...), float64 (R,C) on ``device``.

    Sums are taken in fp32 on the input's own device about the mean in fp32, and what rounding left of it is made good
    (the corrected two-pass algorithm); so a mean that is large beside the spread costs no digits.
    """
    inputs, positions = inputs.detach(), inputs[0, 0].numel()
    if positions == 1:
        mean = inputs.flatten(1).to(device).double()
        return mean, torch.zeros_like(mean)
    mean, rest, squares = (sums.to(device).double() for sums in row_sums(inputs))
    rest /= positions
    return mean + rest, (squares - positions * rest.square()).clamp_(min=0)


class ClassMoments:
    """Running ``count`` (K,1), ``mean`` (K,C) and ``m2`` (K,C) in float64; zeros for a class not seen."""

    def __init__(self, classes: int, channels: int, device: torch.device) -> None:
        self.count = torch.zeros(classes, 1, dtype=torch.float64, device=device)
        self.mean = torch.zeros(classes, channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def add(self, inputs: Tensor, members: Members) -> None:
        """Take up one batch's inputs (R,C,...) with R a multiple of its B images."""
        mean, m2 = _exact_rows(inputs, self.mean.device)
        rows, positions = len(inputs) // len(members.group), inputs[0, 0].numel()
        group = members.group.repeat_interleave(rows) if rows > 1 else members.group
        count = members.images.double() * rows
        empty = mean.new_zeros(len(members.classes), mean.shape[1])
        centre = empty.index_add(0, group, mean) / count
        between = (mean - centre[group]).square_().mul_(positions)
        self.merge(members.classes, count * positions, centre, empty.index_add_(0, group, m2.add_(between)))

    def merge(self, classes: Tensor, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Join (count (G,1), mean (G,C), M2 (G,C)) of some classes, each named once and with a count above 0."""
        before = self.count[classes]
        total = before + count
        delta = mean - self.mean[classes]
        self.count[classes] = total
        self.mean[classes] += delta * (count / total)
        self.m2[classes] += m2 + delta.square_() * (before * count / total)

    def merge_processes(self) -> None:
        """Let every process have the moments of all: the same formula for many parts at once, with an exact mean."""
        count, mean = self.count.clone(), self.mean * self.count
        dist.all_reduce(count)
        dist.all_reduce(mean)
        mean /= count.clamp(min=1)
        m2 = self.m2 + self.count * (self.mean - mean).square()
        dist.all_reduce(m2)
        self.count, self.mean, self.m2 = count, mean, m2

    def variance(self) -> Tensor:
        return self.m2 / self.count.clamp(min=1)
