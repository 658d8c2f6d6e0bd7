"""What other readers make of a set's folders, and so what code puts their labels into the order of the manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gendistill.surrogate.multi_formation import Factor, factor_of


@dataclass(frozen=True)
class Layout:
    """The folders of one set as readers see them; equal layouts are read by the same code.

    Attributes:
        grey: One channel.
        factor: Views along each side of a stored image, or several such numbers.
        renamed: Folders differ from class names.
        sorted: Lexicographic order of the folders is the classes' (datasets, torchvision).
        natural: So is the order that puts "2" before "10" (timm).
        single: There is one class, which datasets would not take for a label.
        distinct: No two classes have one name, which datasets refuses in a ClassLabel.
    """

    grey: bool
    factor: Factor
    renamed: bool
    sorted: bool
    natural: bool
    single: bool
    distinct: bool

    @property
    def decoded(self) -> bool:
        """Images are not trained on as they are stored."""
        return self.factor != 1

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Layout:
        classes, folders = manifest["classes"], manifest["folders"]
        return cls(
            grey=manifest["channels"] == 1,
            factor=factor_of(manifest),
            renamed=classes != folders,
            sorted=_ascending(folders),
            natural=_ascending([_natural(name) for name in folders]),
            single=len(classes) == 1,
            distinct=len(set(classes)) == len(classes),
        )


def features(folders: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of an image folder as ``configs`` of a card tell them to datasets: labels in this order."""
    names = {str(label): name for label, name in enumerate(folders)}
    return [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": {"class_label": {"names": names}}}]


def _ascending(keys: Sequence[Any]) -> bool:
    return all(a < b for a, b in pairwise(keys))


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
