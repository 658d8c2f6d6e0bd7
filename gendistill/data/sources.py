"""Reading the real images: digits, a folder, a Hub id, or a source of your own.

A source lists labelled images that are not decoded yet (see ``items``); ``load_data`` decodes and resizes them, counts
what it could not read, and makes the three splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gendistill.config import DataConfig, to_dict
from gendistill.config.data import unreadable
from gendistill.data.class_names import rename_classes
from gendistill.data.class_positions import hold_out
from gendistill.data.dataset import RealData, Split, require_classes
from gendistill.data.items import Item, Source, some
from gendistill.data.mapped import MappedImages
from gendistill.data.reader import Reader
from gendistill.data.store import Store, build_store, is_store, open_store
from gendistill.data.store_cache import (
    GIB,
    OF_MACHINE,
    Identity,
    identity_of_files,
    known_store,
    memory_limit,
    remove_older,
    store_folder,
    store_key,
    worth_storing,
)
from gendistill.errors import ConfigError, DataError, StorageError
from gendistill.progress import note, report_problems
from gendistill.registry import SOURCES, resolve
from gendistill.seeding import torch_rng

HELD_OUT = "held out"  # the origin of a split that was taken from the training split before it was limited
DIGITS_LICENCE = "cc-by-4.0"  # of the UCI repository, https://doi.org/10.24432/C50P49


def load_data(config: DataConfig | str | None = None, **options: object) -> RealData:
    """Read, resize and split the real images of a name: digits, a folder or a Hub id.

    Args:
        config: What to read and how to split it, or its name alone, such as ``digits`` or a folder.
        options: The fields of ``DataConfig`` as keywords, instead of ``config``.

    Returns:
        The data. ``reading`` says what was read and what was left out, ``problems`` lists images that were skipped or
        altered.

    Raises:
        DataError: nothing is there, a class is empty, no image can be read, or it is not clear what is what.
        ConfigError: an option out of its range, or beside ``config``.

    Example:
        ``load_data(name="uoft-cs/cifar10", max_per_class=500)``
    """
    if isinstance(config, str):
        options, config = {"name": config, **options}, None
    elif config is not None and options:
        raise ConfigError(f"load_data takes a config or options, not both: {some(options)}. Set them in the config.")
    config = config or DataConfig(**options)  # type: ignore[arg-type]
    if config.folder and is_store(config.folder):
        return _split(_open_source(config.folder, config), config)
    identity = identity_of_files(config) if config.cache is not None else None
    if identity and (known := known_store(config, identity)):
        return _split(known, config)
    source = present_classes(rename_classes(find_source(config), config), config)
    require_classes(config.name, source.classes)
    if identity is None and source.identity:
        identity = Identity(source.identity)
        if known := known_store(config, identity):
            return _split(known, config)
    return _read(limited(source, config), identity, config)


def _open_source(folder: Path, config: DataConfig) -> Store:
    """A store that is read by its own name.

    Raises:
        ConfigError: an option that decides what is read and how: its images are as they are.
    """
    store, default = open_store(folder), DataConfig()
    side = store.record["shape"][-1]
    apply = {"name", "licence", "test_fraction", "validation_fraction", "split_seed", *OF_MACHINE}
    for option, value in to_dict(config).items():
        if option not in apply and value not in (getattr(default, option), side if option == "image_size" else None):
            raise ConfigError(
                f"data.{option} is {value!r}, but {folder} is a store, whose images of {side} px are read as they are. "
                "Leave it out, or give the images that the store was made from."
            )
    return store


def _read(source: Source, identity: Identity | None, config: DataConfig) -> RealData:
    """Decode the images: into a store where one is worth it, else into memory."""
    reader = Reader.for_items(
        source.splits["train"], config.image_size, config.value_range, exact=config.decoding == "exact"
    )
    count = sum(map(len, source.splits.values()))
    size = count * prod(reader.shape)
    if identity and worth_storing(config, identity, count):
        try:
            made = build_store(
                store_folder(config, identity), source, reader, key=store_key(config, identity), name=config.name
            )
        except StorageError as error:
            if config.cache != "auto" or size > memory_limit(config):
                raise
            note(f"{error} They are held in memory.")
        else:
            remove_older(made)
            return _split(made, config)
    if identity is None and config.cache not in ("auto", None):
        note(f"data.cache: no store is kept of {config.name}, because nothing says when its images change.")
    if size > memory_limit(config):
        no_store = config.cache is None
        why = "--data.cache null keeps no store. Give a folder" if no_store else "their source has no identity. Add one"
        raise DataError(
            f"The {count} images of {config.name} take {size / GIB:.3g} GiB in memory, more than "
            f"{memory_limit(config) / GIB:.3g}, and {why}, a smaller --data.image_size, or more --data.in_memory_gib."
        )
    splits, blocks = {}, []
    for split in source.splits:
        splits[split], found = reader.read(source.splits[split])
        blocks += found
    return _split(Decoded(source, splits, reader.problems(blocks)), config)


@dataclass(frozen=True)
class Decoded:
    """What ``_split`` needs of images in memory, as a ``Store`` has it."""

    source: Source
    splits: Mapping[str, Split]
    problems: Sequence[str]


def _split(found: Decoded | Store, config: DataConfig) -> RealData:
    """The data of decoded images, with the splits that the source lacks held out from its training split."""
    source, splits, options = found.source, found.splits, _options(config)
    config = replace(config, licence=config.licence or source.licence)
    for split in splits.values():
        if isinstance(split.images, MappedImages) and config.in_memory_gib is not None:
            split.images.limit = memory_limit(config)
    data = RealData.from_splits(
        config, source.classes, splits["train"], splits.get("test"), splits.get("validation"), problems=found.problems
    )
    return replace(data, reading=describe_reading(data, source, config), options=options)


def limited(source: Source, config: DataConfig) -> Source:
    """The splits in the order train, test, validation, with at most ``max_per_class`` training images of a class."""
    splits, origins = dict(source.splits), source.origins
    if config.max_per_class is not None:
        if "test" not in splits:  # before fewer are kept, so that the test split is that of all images
            splits["train"], splits["test"] = _hold_out_test(splits["train"], source.classes, config)
            origins = origins | {"test": HELD_OUT}
        splits["train"] = limit(splits["train"], config.max_per_class, config.split_seed)
    ordered = {str(split): splits[split] for split in ("train", "test", "validation") if split in splits}
    return replace(source, splits=ordered, origins=origins)


def _options(config: DataConfig) -> dict[str, object]:
    """What reads the same images again, from any folder: the options that are not at their default, and the name."""
    default = DataConfig()
    return {k: v for k, v in options_from_anywhere(config).items() if k == "name" or v != getattr(default, k)}


def options_from_anywhere(config: DataConfig) -> dict[str, Any]:
    """All options, with whole paths, but for those of this machine."""
    found = {k: v for k, v in to_dict(config).items() if k not in OF_MACHINE}
    paths = {"name": config.place, "class_names": config.class_names}
    return found | {k: str(path.expanduser().resolve()) for k, path in paths.items() if path is not None}


def find_source(config: DataConfig) -> Source:
    """Read the source that ``config.name`` means: one of your own, ``digits``, an existing folder, else a Hub id.

    Raises:
        DataError: no source reads this name, or the one that does cannot.
    """
    if problem := config.problem():
        raise DataError(problem)
    scheme = config.name.partition(":")[0]
    for name in sorted((*SOURCES.added(), *SOURCES.ours()), key=lambda name: name != scheme):
        kind = SOURCES[name]
        matches = resolve(kind.matches)
        if matches(config.name) if matches else scheme == name:
            try:
                found = resolve(kind.function)(config)
            except OSError as error:
                raise DataError(f"Cannot read {config.name}: {error}. Check the disk and your rights.") from error
            if not isinstance(found, Source) or "train" not in found.splits:
                raise DataError(f"The source {name!r} returned {found!r}; expected a Source with a split 'train'.")
            return found
    raise DataError(unreadable(config.name))


def is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def digits(config: DataConfig) -> Source:
    from sklearn.datasets import load_digits

    for option in ("train", "test", "validation", "image_column", "label_column"):
        if getattr(config, option) is not None:
            raise ConfigError(f"data.{option} does not apply to the built-in digits. Leave it out.")
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    items = [
        Item(lambda i=i: Image.fromarray(pixels[i]), int(y), f"digits[{i}]")  # type: ignore[misc]
        for i, y in enumerate(bunch.target)
    ]
    return Source(tuple(str(d) for d in range(10)), {"train": items}, DIGITS_LICENCE)


def present_classes(source: Source, config: DataConfig) -> Source:
    """The source without classes that have no training image, where ``config.classes`` asks for that.

    Raises:
        DataError: a class has none, and it does not.
    """
    counts = Counter(item.label for item in source.splits["train"])
    empty = [name for label, name in enumerate(source.classes) if not counts[label]]
    if not empty:
        return source
    if config.classes == "all":
        raise DataError(
            f"Empty class in {config.name}: no training image of {some(empty)} ({len(empty)} of {len(source.classes)} "
            "classes). Add images, or give --data.classes present to read the other classes alone."
        )
    kept = sorted(counts)
    position = {label: i for i, label in enumerate(kept)}
    splits = {
        split: [replace(item, label=position[item.label]) for item in items if item.label in position]
        for split, items in source.splits.items()
    }
    dropped = sum(map(len, source.splits.values())) - sum(map(len, splits.values()))
    images = f" with {dropped} image(s) of other splits" if dropped else ""
    left = (*source.left_out, f"{len(empty)} classes without training images{images} ({some(empty, 3)})")
    return replace(source, classes=tuple(source.classes[label] for label in kept), splits=splits, left_out=left)


def limit(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """At most ``most`` items of a class, drawn by the split seed."""
    seen: Counter[int] = Counter()
    kept = []
    for i in torch.randperm(len(items), generator=torch_rng(seed, "limit")).tolist():
        seen[items[i].label] += 1
        if seen[items[i].label] <= most:
            kept.append(i)
    return [items[i] for i in sorted(kept)]


def _hold_out_test(
    items: Sequence[Item], classes: tuple[str, ...], config: DataConfig
) -> tuple[list[Item], list[Item]]:
    """The items of the training and test split, as ``from_splits`` draws them where every image can be read."""
    labels = torch.tensor([item.label for item in items])
    rest, held = hold_out(labels, config.test_fraction, classes, config.split_seed, "test")
    return [items[i] for i in rest.tolist()], [items[i] for i in held.tolist()]


def describe_reading(data: RealData, source: Source, config: DataConfig) -> str:
    """One line: where each split comes from, and what was left out."""
    own = source.origins.get("train")
    parts = [f"{len(data.train)} images for training from {own or config.name}"]
    for split, count in (("validation", data.validation), ("test", data.test)):
        if split in source.splits and source.origins.get(split) != HELD_OUT:
            parts.append(f"{len(count)} for {split} from {source.origins.get(split) or config.name}")
        else:
            parts.append(f"{len(count)} for {split} held out from these")
    text = f"{len(data.classes)} classes; {', '.join(parts)}"
    without = [name for name, n in zip(data.classes, data.test.counts(len(data.classes)), strict=True) if not n]
    if without:
        text += f"; no test image of {len(without)} class(es): {some(without)}"
    if source.left_out:
        text += f"; left out: {'; '.join(source.left_out)}"
    return text


def read_data(config: DataConfig) -> RealData:
    """``load_data``, with what was read, skipped or altered named and counted on standard error."""
    data = load_data(config)
    note(data.reading)
    report_problems(data.problems, f"going on with {len(data.train)} training images")
    return data
