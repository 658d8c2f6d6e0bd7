"""What a data source finds: labelled images that are not decoded yet, by split, and what it leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image


@dataclass(frozen=True, slots=True)  # a collection may have millions
class Item:
    """One labelled image that is not decoded yet.

    Attributes:
        open: Opens it with Pillow.
        label: Position in the class names.
        where: Names it in messages.
        read: Reads the file's bytes, where it is one.
    """

    open: Callable[[], Image.Image]
    label: int
    where: str
    read: Callable[[], bytes] | None = None


def file_item(path: str, label: int) -> Item:
    """An image in a file."""
    return Item(partial(Image.open, path), label, path, partial(read_file, path))


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()


class LeftOut:
    """What is not read, counted by reason, with the first three of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, where: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < 3:
            examples.append(printable(where))

    def sentences(self) -> tuple[str, ...]:
        """One a reason, such as ``2 files of type .txt (cat/notes.txt, cat/more.txt)``."""
        return tuple(f"{count} {reason} ({some(self.examples[reason], 3)})" for reason, count in self.counts.items())


@dataclass(frozen=True)
class Source:
    """What a data source finds.

    Attributes:
        classes: Names in index order.
        splits: Items by split: ``train``, and ``test`` and ``validation`` where the source has them.
        licence: Of the images, as the Hub spells it.
        origins: Where each split was found, for the line that says what was read.
        left_out: What was found and not read, by reason.
        identity: Changes whenever what the items give does, so that decoded images can be kept for later commands;
            None keeps none.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    licence: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    identity: str | None = None


def printable(name: str | os.PathLike[str]) -> str:
    """A name as text that every file and terminal takes: bytes that are not UTF-8 are written as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, for a message."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
