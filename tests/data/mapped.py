"""The images of a data set as rows of a file, as a store maps them, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import BLOCK, MappedImages, image_hashes
from gendistill.seeding import torch_rng

MOST = 2 * BLOCK  # images that may be read together


class WatchedImages(MappedImages):
    """Refuses to read more than ``MOST`` images together."""

    def __getitem__(self, index: Any) -> Tensor:
        found = super().__getitem__(index)
        assert found.dim() < 4 or len(found) <= MOST, f"{len(found)} of {len(self)} images were read together"
        return found

    def take(self, index: Tensor) -> WatchedImages:
        return WatchedImages(self.base, self.rows[index], self._hashes)


def mapped(split: Split) -> Split:
    images = split.pixels
    return Split(WatchedImages(images, torch.arange(len(images)), image_hashes(images)), split.labels)


def stored(data: RealData) -> RealData:
    """The same images, mapped."""
    return replace(data, train=mapped(data.train), validation=mapped(data.validation), test=mapped(data.test))


def noise(count: int, classes: int = 4, size: int = 8, channels: int = 3) -> RealData:
    """``count`` training images, each class of a brightness of its own, and fewer for validation and test."""

    def split(n: int, name: str) -> Split:
        labels = torch.arange(n) % classes
        values = torch.randint(0, 128, (n, channels, size, size), generator=torch_rng(0, "noise", name))
        return Split((values + (labels * 128 // classes)[:, None, None, None]).byte(), labels)

    names = tuple(f"class {c}" for c in range(classes))
    return RealData("noise", names, split(count, "train"), split(count // 8, "validation"), split(count // 4, "test"))
