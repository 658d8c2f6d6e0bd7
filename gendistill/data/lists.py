"""Lists of images: a CSV, TSV or JSON Lines file that has the path of an image and its label in each row."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill.config import DataConfig
from gendistill.data.class_names import in_order
from gendistill.data.items import LeftOut, Source, file_item, printable, some
from gendistill.data.splits import assign
from gendistill.errors import DataError
from gendistill.hashing import hash_json

IMAGE_COLUMNS = ("path", "file", "file_name", "filename", "image", "image_path", "img")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")


def file_list(config: DataConfig) -> Source:
    """The images that a list names, in its order; paths are relative to the list's folder, or absolute.

    A column ``split`` (or ``set``, ``subset``, ``partition``) says which row belongs to which split;
    ``config.test`` and ``config.validation`` may also name lists of their own.

    Raises:
        DataError: the file is no table, a column is missing, or files are.
    """
    main = Path(config.name).expanduser()
    tables = {"train": (main, _read(main))}
    for split in ("validation", "test"):
        if (named := getattr(config, split)) and (other := main.parent / Path(named).expanduser()).is_file():
            tables[split] = other, _read(other)
    rows = {split: _rows(path, table, config) for split, (path, table) in tables.items()}
    left, origins = LeftOut(), {split: path.name for split, (path, _) in tables.items()}
    column = next((name for name in SPLIT_COLUMNS if name in tables["train"][1]), None)
    if column is not None:
        parts = tables["train"][1][column].tolist()
        own = {split: "none" for split in tables if split != "train"}  # they are lists of their own
        chosen = replace(config, **own)  # type: ignore[arg-type]
        found = assign([*dict.fromkeys(parts)], chosen, str(main), left, files=False)
        every = [*zip(parts, rows.pop("train"), strict=True)]
        rows = {split: [row for part, row in every if part in names] for split, names in found.items()} | rows
        origins = {split: f"{column} {some(names, 3)}" for split, names in found.items()} | origins
    classes = in_order(label for _, label in rows["train"])
    position = {label: i for i, label in enumerate(classes)}
    for split, ones in rows.items():
        if strange := sorted({label for _, label in ones} - {*position}):
            raise DataError(f"The {split} split of {main} has labels that training lacks: {some(strange)}.")
    stats = _stats([path for ones in rows.values() for path, _ in ones], main)
    splits = {split: [file_item(path, position[label]) for path, label in ones] for split, ones in rows.items()}
    return Source(classes, splits, None, origins, left.sentences(), identity=hash_json([stats, rows]))


def _read(path: Path) -> Any:
    """A table of text."""
    import pandas as pd

    try:
        if path.suffix.lower() == ".jsonl":
            return pd.read_json(path, lines=True, dtype=False, convert_dates=False).astype(str)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, UnicodeError) as error:
        raise DataError(
            f"Cannot read {path} as a list of images: {error}. Expected columns of paths and labels."
        ) from error


def _rows(path: Path, table: Any, config: DataConfig) -> list[tuple[str, str]]:
    """(path, label) of every row."""
    columns = [
        _column(path, table, config.image_column, IMAGE_COLUMNS, "image_column"),
        _column(path, table, config.label_column, LABEL_COLUMNS, "label_column"),
    ]
    images, labels = (table[name].str.strip().tolist() for name in columns)
    if empty := [i for i, (image, label) in enumerate(zip(images, labels, strict=True)) if not image or not label]:
        raise DataError(f"{path} has {len(empty)} row(s) without path or label, first row {empty[0] + 1}. Remove them.")
    return [(os.path.join(path.parent, image), label) for image, label in zip(images, labels, strict=True)]


def _column(path: Path, table: Any, chosen: str | None, usual: tuple[str, ...], option: str) -> str:
    names = [str(name) for name in table.columns]
    found = [name for name in names if name == chosen or (chosen is None and name.lower() in usual)]
    if len(found) != 1:
        raise DataError(
            f"{path} has the columns {some(names)}; expected one of {', '.join(usual)}. Name it with --data.{option}."
        )
    return found[0]


def _stats(paths: list[str], source: Path) -> list[tuple[str, int, int]]:
    """Size and time of every file.

    Raises:
        DataError: some are missing.
    """
    found, missing = [], []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((path, status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            missing.append(printable(path))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} files that {source} names are missing: {some(missing, 3)}. Paths are "
            f"relative to {source.parent}; correct them, or remove the rows."
        )
    return found
