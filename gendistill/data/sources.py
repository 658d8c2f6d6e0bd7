"""Reading the real images: digits, a folder of class folders or of parquet files, a Hub id, or a source of your own.

A source lists labelled images that are not decoded yet; ``load_data`` decodes and resizes them, counts what it could
not read, and makes the three splits.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gendistill.config import DataConfig
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import is_grey, prepare
from gendistill.errors import DataError
from gendistill.progress import report_problems
from gendistill.registry import SOURCES, resolve
from gendistill.seeding import torch_rng

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
TRAIN, HELD_OUT = ("train", "training"), ("test", "testing", "validation", "valid", "val")
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
DIGITS_LICENCE = "cc-by-4.0"  # of the UCI repository, https://doi.org/10.24432/C50P49
MAX_PIXELS = 1 << 27  # a decompression bomb, not a photograph


@dataclass(frozen=True)
class Item:
    """One labelled image that is not decoded yet.

    Attributes:
        open: Opens it with Pillow.
        label: Position in the class names.
        where: Names it in messages.
    """

    open: Callable[[], Image.Image]
    label: int
    where: str


@dataclass(frozen=True)
class Source:
    """What a data source finds.

    Attributes:
        classes: Names in index order.
        splits: Items by split: ``train``, and ``test`` where the source has one.
        licence: Of the images, as the Hub spells it.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    licence: str | None = None


def load_data(config: DataConfig | str | None = None, **options: object) -> RealData:
    """Read, resize and split the real images of a name: digits, a folder, parquet files or a Hub id.

    Args:
        config: What to read and how to split it, or its name alone, such as ``digits`` or a folder.
        options: The fields of ``DataConfig`` as keywords, instead of ``config``.

    Returns:
        The data. ``problems`` lists images that were skipped or altered.

    Raises:
        DataError: nothing is there, a class is empty, or no image can be read.
        ConfigError: an option out of its range.

    Example:
        ``load_data(name="uoft-cs/cifar10", max_per_class=500)``
    """
    if isinstance(config, str):
        options, config = {"name": config, **options}, None
    config = config or DataConfig(**options)  # type: ignore[arg-type]
    source = find_source(config)
    reader = Reader.for_items(source.splits["train"], config.image_size)
    train = reader.read(_limit(source.splits["train"], config))
    test = reader.read(source.splits["test"]) if "test" in source.splits else None
    config = replace(config, licence=config.licence or source.licence)
    return RealData.from_splits(config, source.classes, train, test, problems=reader.problems)


def find_source(config: DataConfig) -> Source:
    """Read the source that ``config.name`` means: one of your own, ``digits``, an existing folder, else a Hub id.

    Raises:
        DataError: no source reads this name, or the one that does cannot.
    """
    scheme = config.name.partition(":")[0]
    for name in sorted((*SOURCES.added(), *SOURCES.ours()), key=lambda name: name != scheme):
        kind = SOURCES[name]
        matches = resolve(kind.matches)
        if matches(config.name) if matches else scheme == name:
            found = resolve(kind.function)(config)
            if not isinstance(found, Source) or "train" not in found.splits:
                raise DataError(f"The source {name!r} returned {found!r}; expected a Source with a split 'train'.")
            return found
    own = "".join(f", {name}:..." for name in SOURCES.added())
    if Path(config.name).expanduser().exists():
        raise DataError(f"data.name is {config.name!r}, a file; expected 'digits', a folder or a Hub id{own}.")
    raise DataError(
        f"data.name is {config.name!r}, but there is no such folder. Give 'digits', an existing folder of class "
        f"folders or of parquet files, or a Hub id such as 'uoft-cs/cifar10'{own}."
    )


def is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def looks_like_hub_id(name: str) -> bool:
    outside = name.startswith((".", "/", "~")) or Path(name).expanduser().exists()
    return not outside and name.count("/") <= 1


def digits(config: DataConfig) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    items = [
        Item(lambda i=i: Image.fromarray(pixels[i]), int(y), f"digits[{i}]")  # type: ignore[misc]
        for i, y in enumerate(bunch.target)
    ]
    return Source(tuple(str(d) for d in range(10)), {"train": items}, DIGITS_LICENCE)


def folder(config: DataConfig) -> Source:
    """A folder of parquet files, or of class folders."""
    root = Path(config.name).expanduser()
    return _parquet(root) if any(root.rglob("*.parquet")) else _image_folder(root)


def _image_folder(root: Path) -> Source:
    """``root/train/<class>/*`` with an optional ``root/test`` (or val), or ``root/<class>/*``."""
    folders = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir()}
    train = next((folders[n] for n in TRAIN if n in folders and class_folders(folders[n])), None)
    held = next((folders[n] for n in HELD_OUT if n in folders), None) if train else None
    train = train or root
    classes = class_folders(train)
    if len(classes) < 2:
        raise DataError(
            f"{train} holds {len(classes)} class folder(s); expected at least two, as in {root}/train/<class>/*.png "
            f"or {root}/<class>/*.png."
        )
    if held is not None:
        strange = sorted(set(class_folders(held)) - set(classes))
        if strange:
            raise DataError(f"{held} has classes that {train} lacks: {', '.join(strange)}. Give both the same names.")
    splits = {"train": image_files(train, classes, require=True)}
    if held is not None:
        splits["test"] = image_files(held, classes, require=False)
        if not splits["test"]:
            raise DataError(f"{held} holds no image. Add some, or remove it; the test split is then taken from train.")
    return Source(classes, splits)


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in ``root``, sorted; hidden ones are not looked at."""
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))


def image_files(root: Path, classes: tuple[str, ...], require: bool) -> list[Item]:
    """The images below ``root/<class>``, in order; label i is that of ``classes[i]``.

    Raises:
        DataError: a class has none, where all are required.
    """
    items, empty = [], []
    for label, name in enumerate(classes):
        paths = [
            Path(folder) / file
            for folder, _, files in sorted(os.walk(root / name))
            for file in sorted(files)
            if Path(file).suffix.lower() in SUFFIXES
        ]
        if not paths:
            empty.append(name)
        items += [Item(lambda p=p: Image.open(p), label, str(p)) for p in paths]  # type: ignore[misc]
    if empty and require:
        raise DataError(
            f"Empty class under {root}: {', '.join(empty)} hold(s) no image ({', '.join(sorted(SUFFIXES))}). "
            "Add images or remove the folder."
        )
    return items


def _parquet(root: Path) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset("parquet", data_dir=str(root))
    except Exception as error:
        raise DataError(f"Cannot read the parquet files under {root}: {error}") from error
    return _from_datasets(loaded, str(root))


def hub(config: DataConfig) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset(config.name, revision=config.revision)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data.name is {config.name!r}: no such folder here, and it cannot be loaded from the Hub ({reason}). "
            "Give 'digits', an existing folder, or a Hub id that you can reach."
        ) from error
    return _from_datasets(loaded, config.name)


def _from_datasets(loaded: object, where: str) -> Source:
    """The Image and ClassLabel columns of a ``datasets.DatasetDict``, undecoded."""
    import datasets

    splits = {str(k): v for k, v in loaded.items()}  # type: ignore[attr-defined]
    train_name = next((n for n in TRAIN if n in splits), next(iter(splits)))
    features = splits[train_name].features
    image_column = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    label_column = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image_column is None or label_column is None:
        raise DataError(
            f"{where} has columns {', '.join(f'{k}: {type(f).__name__}' for k, f in features.items())}; expected one "
            "of type Image and one of type ClassLabel."
        )

    def labelled(name: str) -> bool:
        """Not so where labels are kept back, as -1."""
        return all(y is not None and y >= 0 for y in splits[name][label_column])

    held_name = next((n for n in HELD_OUT if n in splits and n != train_name and labelled(n)), None)
    if not labelled(train_name):
        raise DataError(f"{where} has images without label in its split {train_name!r}; remove them.")

    def items(name: str) -> list[Item]:
        table = splits[name].cast_column(image_column, datasets.Image(decode=False))
        labels = table[label_column]
        return [
            Item(lambda t=table, i=i: _decode(t[i][image_column]), int(y), f"{where} {name}[{i}]")  # type: ignore[misc]
            for i, y in enumerate(labels)
        ]

    found = {"train": items(train_name)}
    if held_name is not None:
        found["test"] = items(held_name)
    return Source(tuple(features[label_column].names), found, splits[train_name].info.license or None)


def _decode(cell: dict | None) -> Image.Image:
    if cell is None:
        raise ValueError("the cell is empty")
    return Image.open(io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"])


def _limit(items: list[Item], config: DataConfig) -> list[Item]:
    """At most ``max_per_class`` items of a class, drawn by the split seed."""
    if config.max_per_class is None:
        return items
    order = torch.randperm(len(items), generator=torch_rng(config.split_seed, "limit")).tolist()
    seen: Counter[int] = Counter()
    kept = []
    for i in order:
        seen[items[i].label] += 1
        if seen[items[i].label] <= config.max_per_class:
            kept.append(i)
    return [items[i] for i in sorted(kept)]


class Reader:
    """Decodes items to one size and channel count, keeping a list of what went wrong."""

    def __init__(self, size: int, channels: int, resize_is_news: bool) -> None:
        self.size, self.channels, self.resize_is_news = size, channels, resize_is_news
        self.problems: list[str] = []

    @classmethod
    def for_items(cls, items: list[Item], size: int | None) -> Reader:
        """Size: the given one, else the commonest. Channels: 1 if all of some 64 images are grey."""
        seen: list[tuple[tuple[int, int], bool]] = []
        step = max(1, len(items) // 64)
        for item in items[::step]:
            try:
                with item.open() as image:
                    seen.append((image.size, is_grey(image)))
            except UNREADABLE:
                continue
        if not seen:
            first = items[0].where if items else "no file at all"
            raise DataError(f"None of the images could be opened (the first is {first}).")
        channels = 1 if all(grey for _, grey in seen) else 3
        if size is not None:
            return cls(size, channels, resize_is_news=False)
        ((width, height), count), *_ = Counter(s for s, _ in seen).most_common()
        if width != height or count < len(seen) / 2:
            raise DataError(
                f"The images have different sizes or are not square ({width}x{height} is the most common, {count} of "
                f"{len(seen)} checked). Set --data.image_size N to resize all of them to N x N."
            )
        return cls(width, channels, resize_is_news=True)

    def read(self, items: list[Item]) -> Split:
        from gendistill.progress import track

        pixels = np.empty((len(items), self.channels, self.size, self.size), np.uint8)
        labels, n = [], 0
        for item, array in track(self._arrays(items), "read images", len(items)):
            if array is not None:
                pixels[n] = array
                labels.append(item.label)
                n += 1
        return Split(torch.from_numpy(pixels[:n]), torch.tensor(labels, dtype=torch.int64))

    def _arrays(self, items: list[Item]) -> Iterator[tuple[Item, np.ndarray | None]]:
        for item in items:
            try:
                with item.open() as image:
                    if image.width * image.height > MAX_PIXELS:
                        raise ValueError(f"{image.width}x{image.height} is larger than {MAX_PIXELS} pixels")
                    if self.resize_is_news and image.size != (self.size, self.size):
                        self.problems.append(
                            f"resized: {item.where} is {image.width}x{image.height}, not {self.size}x{self.size}"
                        )
                    if self.channels == 1 and not is_grey(image):
                        self.problems.append(f"made grey: {item.where} is {image.mode}, the images looked at are grey")
                    yield item, prepare(image, self.size, self.channels)
            except UNREADABLE as error:
                self.problems.append(f"skipped: {item.where} cannot be read ({error})")
                yield item, None


def read_data(config: DataConfig) -> RealData:
    """``load_data``, with what was skipped or altered named and counted on standard error."""
    data = load_data(config)
    report_problems(data.problems, f"going on with {len(data.train)} training images")
    return data
