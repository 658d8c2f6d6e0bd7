"""The classes of labels that are read as text, and their names from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gendistill.config import DataConfig
from gendistill.data.items import Source, some
from gendistill.errors import DataError


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels, sorted: as numbers where all are."""
    distinct = {*labels}
    return tuple(sorted(distinct, key=int if all(map(is_number, distinct)) else None))


def is_number(label: str) -> bool:
    """Whether a label is a whole number, as Python reads it."""
    return label.removeprefix("-").isdecimal() and len(label) < 1000  # Python reads no numbers of 4300 digits


def rename_classes(source: Source, config: DataConfig) -> Source:
    """The source with the names of ``config.class_names`` for its classes, in their order.

    Raises:
        DataError: a class has no name there.
    """
    if config.class_names is None:
        return source
    names, position = read_class_names(config.class_names)
    if strange := [name for name in source.classes if name not in position]:
        raise DataError(
            f"{config.name} has classes that data.class_names {config.class_names} does not name: {some(strange)}; it "
            f"names {some(position)}."
        )
    label = [position[name] for name in source.classes]
    splits = {
        split: [replace(item, label=label[item.label]) for item in items] for split, items in source.splits.items()
    }
    return replace(source, classes=names, splits=splits)


def read_class_names(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """(names, position of each label): a name a line, or JSON: a list of names, or an object of names by label.

    A label is the number of its name, from 0, or the name itself.

    Raises:
        DataError: the file is something else, or names a class twice.
    """
    try:
        if path.expanduser().exists() and not path.expanduser().is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        text = path.expanduser().read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data.class_names {path} cannot be read: {error}. Expected text or JSON.") from error
    if isinstance(found, dict):
        numbers = all(map(is_number, found))
        by_label = {label: found[label] for label in (sorted(found, key=int) if numbers else found)}
    elif isinstance(found, list):
        by_label = {str(i): name for i, name in enumerate(found)}
    else:
        by_label = {}
    names = tuple(name.strip() for name in by_label.values() if isinstance(name, str) and name.strip())
    if odd := [name for name in names if any("\ud800" <= c <= "\udfff" for c in name)]:
        raise DataError(f"data.class_names {path} has the name {odd[0]!r}, which is no text; expected Unicode.")
    if len(names) < len(by_label) or len({*names}) < len(names) or len(names) < 2:
        raise DataError(
            f"data.class_names {path} has {len(by_label)} entries, {len({*names})} different names; expected at least "
            "two names, each once: one a line, or JSON."
        )
    return names, {name: i for i, name in enumerate(names)} | {label: i for i, label in enumerate(by_label)}
