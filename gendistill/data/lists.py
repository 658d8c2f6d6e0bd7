"""Lists of images: a CSV, TSV or JSON Lines file that has the path of an image and its label in each row."""

from __future__ import annotations

import json
import os
import reprlib
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill.config import DataConfig
from gendistill.data.class_names import in_order
from gendistill.data.items import LeftOut, Source, file_item, printable, some
from gendistill.data.splits import NONE, WHOLE, assign, role
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
    if empty := [str(tables[split][0]) for split, ones in rows.items() if not ones]:
        raise DataError(f"{some(empty)} has no row; expected a path and a label in each.")
    left, origins = LeftOut(), {split: path.name for split, (path, _) in tables.items()}
    column = next((name for name in SPLIT_COLUMNS if name in tables["train"][1]), None)
    if column is None:
        _check_options(main, tables, config)
    else:
        parts = tables["train"][1][column].tolist()
        own = {split: "none" for split in tables if split != "train"}  # they are lists of their own
        chosen = replace(config, **own)  # type: ignore[arg-type]
        found = assign([*dict.fromkeys(parts)], chosen, str(main), left, files=False)
        if config.train is None and (kind := role(found["train"][0])) in ("test", "validation"):
            raise DataError(
                f"The column {column} of {main} has only {some(found['train'])}, which is named as a {kind} split, and "
                f"no training split. Give --data.train {found['train'][0]} to train on it."
            )
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


def _check_options(main: Path, lists: Iterable[str], config: DataConfig) -> None:
    """Refuse options that name a part of a list that has none."""
    for split in ("train", "validation", "test"):
        named = getattr(config, split)
        if named not in (None, NONE, WHOLE) and (split == "train" or split not in lists):
            raise DataError(
                f"--data.{split} is {named!r}, but {main} has no column {SPLIT_COLUMNS[0]}, and there is no list of "
                f"this name in {main.parent}."
            )


def _read(path: Path) -> Any:
    """A table of text."""
    import pandas as pd

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is no file; expected a list of images.")
    try:
        if path.suffix.lower() == ".jsonl":
            return pd.DataFrame(_objects(path)).fillna("")
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"Cannot read {path} as a list of images: {error}. Expected columns of paths and labels."
        ) from error


def _objects(path: Path) -> list[dict[str, str]]:
    """The values of each line of a JSON Lines file, as text; of a null none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        row = json.loads(line, parse_constant=lambda _: None)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is {reprlib.repr(row)}, not an object")
        for name, value in row.items():
            if isinstance(value, (dict, list)) and name.lower() in (*IMAGE_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS):
                raise ValueError(f"line {number} has {reprlib.repr(value)} as {name}, not text or a number")
        found.append({k: str(v) for k, v in row.items() if v is not None})
    return found


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
        DataError: some are missing, or are no regular files.
    """
    found, missing = [], []
    for path in paths:
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError
            found.append((path, status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            missing.append(printable(path))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} files that {source} names are missing, or no regular files: "
            f"{some(missing, 3)}. Paths are relative to {source.parent}; correct them, or remove the rows."
        )
    return found
