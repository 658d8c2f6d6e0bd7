"""Positions of images by class: sorted once, held out, or evenly spaced."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from gendistill.errors import DataError
from gendistill.seeding import torch_rng


class ClassIndex:
    """The positions of each class among ``labels`` (N,), sorted once for all classes."""

    def __init__(self, labels: Tensor) -> None:
        there = labels.cpu()
        self._order = class_sorted(there).to(labels.device)
        self._first = list(accumulate(torch.bincount(there).tolist(), initial=0))

    def of(self, label: int) -> Tensor:
        """Positions of one class, ascending."""
        first = self._first
        return self._order[first[label] : first[label + 1]] if label + 1 < len(first) else self._order[:0]


def class_sorted(labels: Tensor) -> Tensor:
    """Positions (N,) of all images, class by class, in their order within each; NumPy sorts small integers in O(N)."""
    values = labels.numpy()
    small = values.astype(np.uint16) if len(values) and values.max() < 1 << 16 else values
    return torch.from_numpy(np.argsort(small, kind="stable"))


def hold_out(
    labels: Tensor, fraction: float, classes: tuple[str, ...], seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Positions in ``labels`` (N,), ascending, of (rest, held out).

    ``fraction`` of every class is held out, rounded, at least one image and leaving at least one.

    Raises:
        DataError: a class has fewer than two images.
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, (name, index) in enumerate(zip(classes, positions_by_class(labels, len(classes)), strict=True)):
        if len(index) < 2:
            raise DataError(
                f"Class {name!r} has {len(index)} usable image(s), too few to hold out a {purpose} split; expected at "
                "least 2. Add images or remove the class."
            )
        order = torch.randperm(len(index), generator=torch_rng(seed, "split", purpose, label))
        count = min(max(1, round(fraction * len(index))), len(index) - 1)
        mask[index[order[:count]]] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


def positions_by_class(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Of each class, ascending, among ``labels`` (N,), which are below ``classes``; sorted once for all of them."""
    return class_sorted(labels).split(torch.bincount(labels, minlength=classes).tolist())


def evenly_spaced(count: int, most: int | None) -> list[int]:
    """At most ``most`` of the positions 0 to count - 1, evenly spaced; all of them for None."""
    if most is None or count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def evenly_spaced_by_class(labels: Tensor, classes: int, most: int) -> Tensor:
    """Positions, ascending, of at most ``most`` of ``labels`` (N,): as many of every class, evenly spaced within it.

    Where there are more classes than ``most``, one of each of so many classes.
    """
    each = max(1, most // classes)
    by_class = positions_by_class(labels, classes)
    found = [by_class[c] for c in evenly_spaced(classes, most)]
    return torch.cat([index[evenly_spaced(len(index), each)] for index in found]).sort().values
