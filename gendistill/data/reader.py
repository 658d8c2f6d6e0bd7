"""Decoding: labelled items to square uint8 images of one size, one channel count and one range of grey values."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from gendistill.data.dataset import Split
from gendistill.data.items import Item, printable
from gendistill.data.pixels import SIXTEEN_BITS, is_deep, is_grey, needs_range, prepare
from gendistill.errors import DataError
from gendistill.progress import track

UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
MAX_PIXELS = 1 << 27  # a decompression bomb, not a photograph
LOOKED_AT = 64


class Reader:
    """Decodes items, keeping a list of what went wrong.

    Args:
        size: Side of the images.
        channels: 1 or 3.
        resize_is_news: Whether images of another size are a problem.
        value_range: Black and white of images with more than 8 bits.
    """

    def __init__(
        self, size: int, channels: int, resize_is_news: bool, value_range: tuple[float, float] | None = None
    ) -> None:
        self.size, self.channels, self.resize_is_news, self.value_range = size, channels, resize_is_news, value_range
        self.problems: list[str] = []
        self.deep, self.highest = 0, -np.inf  # images with more than 8 bits, and the highest value in them

    @classmethod
    def for_items(
        cls, items: Sequence[Item], size: int | None, value_range: tuple[float, float] | None = None
    ) -> Reader:
        """Size: the given one, else the commonest. Channels: 1 if all of some 64 images are grey.

        Raises:
            DataError: no image can be opened, they have several sizes, or they need a ``value_range``.
        """
        seen: list[tuple[tuple[int, int], bool]] = []
        vague: list[tuple[str, str, float, float]] = []
        for item in items[:: max(1, len(items) // LOOKED_AT)]:
            try:
                with item.open() as image:
                    if value_range is None and needs_range(image) and _fits(image):
                        values = np.asarray(image)
                        vague.append((printable(item.where), image.mode, float(values.min()), float(values.max())))
                    seen.append((image.size, is_grey(image)))
            except UNREADABLE:
                continue
        if not seen:
            first = printable(items[0].where) if items else "no file at all"
            raise DataError(f"None of the images could be opened (the first is {first}).")
        if vague:
            _refuse_vague(vague, len(seen))
        channels = 1 if all(grey for _, grey in seen) else 3
        if size is not None:
            return cls(size, channels, False, value_range)
        ((width, height), count), *_ = Counter(s for s, _ in seen).most_common()
        if width != height or count < len(seen) / 2:
            raise DataError(
                f"The images have different sizes or are not square ({width}x{height} is the most common, {count} of "
                f"{len(seen)} checked). Set --data.image_size N to resize all of them to N x N."
            )
        return cls(width, channels, True, value_range)

    def read(self, items: Sequence[Item]) -> Split:
        pixels = np.empty((len(items), self.channels, self.size, self.size), np.uint8)
        labels, n = [], 0
        for item, array in track(self._arrays(items), "read images", len(items)):
            if array is not None:
                pixels[n] = array
                labels.append(item.label)
                n += 1
        return Split(torch.from_numpy(pixels[:n]), torch.tensor(labels, dtype=torch.int64))

    def _arrays(self, items: Sequence[Item]) -> Iterator[tuple[Item, np.ndarray | None]]:
        for item in items:
            where = printable(item.where)
            try:
                with item.open() as image:
                    if not _fits(image):
                        raise ValueError(f"{image.width}x{image.height} is larger than {MAX_PIXELS} pixels")
                    if self.resize_is_news and image.size != (self.size, self.size):
                        self.problems.append(
                            f"resized: {where} is {image.width}x{image.height}, not {self.size}x{self.size}"
                        )
                    if self.channels == 1 and not is_grey(image):
                        self.problems.append(f"made grey: {where} is {image.mode}, the images looked at are grey")
                    array = prepare(image, self.size, self.channels, self.value_range)
                    if is_deep(image):
                        self._look_at_range(image, where)
                    yield item, array
            except UNREADABLE as error:
                self.problems.append(f"skipped: {where} cannot be read ({printable(str(error))})")
                yield item, None

    def _look_at_range(self, image: Image.Image, where: str) -> None:
        values = np.asarray(image)
        self.deep += 1
        self.highest = max(self.highest, float(values.max()))
        if self.value_range and (values.min() < self.value_range[0] or values.max() > self.value_range[1]):
            self.problems.append(
                f"clipped: {where} has values from {values.min():g} to {values.max():g}, outside value_range"
            )

    def range_problems(self) -> list[str]:
        """What the values of all images that were read say about the range."""
        if self.value_range is not None and not self.deep:
            return ["value range: no image has more than 8 bits, so --data.value_range changes nothing"]
        if self.value_range is None and self.deep and 0 < self.highest <= SIXTEEN_BITS[1] // 2:
            top = (1 << int(self.highest).bit_length()) - 1
            return [
                f"value range: the highest value of {self.deep} 16-bit images is {self.highest:g} of 65535, so they "
                f"are dark; if white is {top}, give --data.value_range [0,{top}]"
            ]
        return []


def _fits(image: Image.Image) -> bool:
    return image.width * image.height <= MAX_PIXELS


def _refuse_vague(vague: Sequence[tuple[str, str, float, float]], count: int) -> None:
    where, mode, *_ = vague[0]
    low, high = min(one[2] for one in vague), max(one[3] for one in vague)
    raise DataError(
        f"{len(vague)} of {count} images looked at, such as {where}, have values of Pillow's mode {mode} (real or "
        f"signed numbers, or 32 bits), here from {low:g} to {high:g}: nothing says which is black and which is white. "
        f"Give one range for all images, such as --data.value_range [{low:g},{high:g}]."
    )
