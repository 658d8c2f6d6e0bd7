"""Decoding: labelled items to square uint8 images of one size, one channel count and one range of grey values."""

from __future__ import annotations

import mmap
import multiprocessing
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from gendistill.data.dataset import Split
from gendistill.data.decoders import compiled, read_image
from gendistill.data.items import Item, printable
from gendistill.data.mapped import HASH, hash_of
from gendistill.data.pixels import SIXTEEN_BITS, is_deep, is_grey, needs_range, prepare
from gendistill.errors import DataError
from gendistill.progress import track
from gendistill.threads import usable_processors

Places = Sequence[int] | np.ndarray

UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
MAX_PIXELS = 1 << 27  # a decompression bomb, not a photograph
LOOKED_AT = 64
BLOCK = 512  # small images that a process decodes before it reports
FEW = 2000  # small images for which no processes are started
SMALL = 10_000  # pixels that take as long to decode as a small image to open


class Target(Protocol):
    """Where decoded images go: ``target[place] = image``, uint8 (C,H,W)."""

    def __setitem__(self, place: Any, image: np.ndarray, /) -> None: ...


@dataclass
class Block:
    """What decoding some items gave, beside the pixels.

    Attributes:
        first: Position of the first item.
        readable: bool (n,).
        hashes: uint8 (n,16), zeros where an item is not readable.
        problems: Sentences on single items.
        deep: Images with more than 8 bits.
        highest: The highest value in those.
    """

    first: int
    readable: np.ndarray
    hashes: np.ndarray
    problems: list[str] = field(default_factory=list)
    deep: int = 0
    highest: float = 0.0

    @property
    def end(self) -> int:
        return self.first + len(self.readable)


@dataclass(frozen=True)
class Reader:
    """Decodes items to square images.

    Attributes:
        size: Side of the images.
        channels: 1 or 3.
        resize_is_news: Whether images of another size are a problem.
        value_range: Black and white of images with more than 8 bits.
        exact: Whether JPEG files that are much larger than ``size`` are decoded in full, and all files by Pillow.
        same_size: Whether the images looked at have this size already.
        weight: How many times as long as a small image one takes.
    """

    size: int
    channels: int
    resize_is_news: bool
    value_range: tuple[float, float] | None = None
    exact: bool = True
    same_size: bool = False
    weight: float = 1.0

    @classmethod
    def for_items(
        cls,
        items: Sequence[Item],
        size: int | None,
        value_range: tuple[float, float] | None = None,
        exact: bool = True,
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
        weight = 1 + sum(width * height for (width, height), _ in seen) / len(seen) / SMALL
        if size is not None:
            same = sum(shape == (size, size) for shape, _ in seen) > len(seen) / 2
            return cls(size, channels, False, value_range, exact, same, weight)
        ((width, height), count), *_ = Counter(s for s, _ in seen).most_common()
        if width != height or count < len(seen) / 2:
            raise DataError(
                f"The images have different sizes or are not square ({width}x{height} is the most common, {count} of "
                f"{len(seen)} checked). Set --data.image_size N to resize all of them to N x N."
            )
        return cls(width, channels, True, value_range, exact, True, weight)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def takes_long(self, count: int) -> bool:
        """Whether so many images are worth several processes."""
        return count * self.weight >= FEW

    def read(self, items: Sequence[Item]) -> tuple[Split, list[Block]]:
        """The readable images of ``items`` in memory, and what was found on the way."""
        count = len(items)
        pixels = (shared_array if self.takes_long(count) else _array)((count, *self.shape))
        blocks = [*show_blocks(self.decode_all(items, pixels, range(count)), count)]
        kept = np.concatenate([np.empty(0, bool), *(block.readable for block in blocks)])
        labels = np.array([item.label for item in items], np.int64)[kept]
        return Split(torch.from_numpy(pixels if kept.all() else pixels[kept]), torch.from_numpy(labels)), blocks

    def decode_all(self, items: Sequence[Item], target: Target, places: Places, first: int = 0) -> Iterator[Block]:
        """Write the images of ``items[first:]`` to ``target[places[i]]``; blocks in order, decoded by all processors.

        ``target`` must be one that processes share, where there are more than a few items.
        """
        count = len(items) - first
        workers = usable_processors() if self.takes_long(count) else 1
        step = max(1, round(BLOCK / self.weight))
        jobs = _Jobs(self, items, target, places, range(first, len(items), step))
        if min(workers, len(jobs)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
            yield from (jobs[i] for i in range(len(jobs)))
            return
        compiled("decode_jpeg")  # once, before processes are forked
        loader = torch.utils.data.DataLoader(
            jobs,
            batch_size=None,
            num_workers=min(workers, len(jobs)),
            multiprocessing_context="fork",
            generator=torch.Generator(),  # else it would draw from the caller's
        )
        yield from loader

    def decode(self, items: Sequence[Item], target: Target, places: Places, first: int) -> Block:
        """``items`` into ``target[places[i]]``; ``first`` is the position of the first of them in all."""
        block = Block(first, np.zeros(len(items), bool), np.zeros((len(items), HASH), np.uint8))
        image = np.empty(self.shape, np.uint8)  # one for all: new memory takes longer than the copy
        for i, item in enumerate(items):
            try:
                image[...] = self._array(item, block)
            except UNREADABLE as error:
                block.problems.append(f"skipped: {printable(item.where)} cannot be read ({printable(str(error))})")
                continue
            target[places[i]] = image
            block.readable[i] = True
            block.hashes[i] = hash_of(image)
        return block

    def _array(self, item: Item, block: Block) -> np.ndarray:
        if self.same_size and not self.exact and item.read is not None:
            found = read_image(item.read(), self.shape)
            if found is not None:
                return found
        with item.open() as image:
            return self._prepared(image, printable(item.where), block)

    def _prepared(self, image: Image.Image, where: str, block: Block) -> np.ndarray:
        if not _fits(image):
            raise ValueError(f"{image.width}x{image.height} is larger than {MAX_PIXELS} pixels")
        if self.resize_is_news and image.size != (self.size, self.size):
            block.problems.append(f"resized: {where} is {image.width}x{image.height}, not {self.size}x{self.size}")
        if self.channels == 1 and not is_grey(image):
            block.problems.append(f"made grey: {where} is {image.mode}, the images looked at are grey")
        array = prepare(image, self.size, self.channels, self.value_range, exact=self.exact)
        if is_deep(image):
            values = np.asarray(image)
            block.deep += 1
            block.highest = max(block.highest, float(values.max()))
            if self.value_range and (values.min() < self.value_range[0] or values.max() > self.value_range[1]):
                block.problems.append(
                    f"clipped: {where} has values from {values.min():g} to {values.max():g}, outside value_range"
                )
        return array

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """On single images, then what the values of all of them say about the range."""
        single = [problem for block in blocks for problem in block.problems]
        deep, highest = sum(block.deep for block in blocks), max((block.highest for block in blocks), default=0.0)
        if self.value_range is not None and not deep:
            return [*single, "value range: no image has more than 8 bits, so --data.value_range changes nothing"]
        if self.value_range is None and deep and 0 < highest <= SIXTEEN_BITS[1] // 2:
            top = (1 << int(highest).bit_length()) - 1
            single.append(
                f"value range: the highest value of {deep} 16-bit images is {highest:g} of 65535, so they are dark; if "
                f"white is {top}, give --data.value_range [0,{top}]"
            )
        return single


class _Jobs(torch.utils.data.Dataset[Block]):
    """Blocks of items, for a ``DataLoader``."""

    def __init__(
        self,
        reader: Reader,
        items: Sequence[Item],
        target: Target,
        places: Places,
        starts: range,
    ) -> None:
        self.reader, self.items, self.target, self.places, self.starts = reader, items, target, places, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> Block:
        span = slice(self.starts[number], self.starts[number] + self.starts.step)
        return self.reader.decode(self.items[span], self.target, self.places[span], span.start)


def show_blocks(blocks: Iterable[Block], total: int, done: int = 0) -> Iterator[Block]:
    """The blocks, with a bar that counts their images."""
    return track(blocks, "read images", total, initial=done, size=lambda block: len(block.readable))


def _array(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def shared_array(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 memory that processes forked later can write to."""
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)


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
