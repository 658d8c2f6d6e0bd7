"""Images in columns: parquet files, datasets on the Hub, and datasets that ``save_to_disk`` wrote."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from gendistill.config import DataConfig
from gendistill.data.class_names import in_order, is_number
from gendistill.data.features import Feature, features_of, features_of_schema
from gendistill.data.items import Item, LeftOut, Source, some
from gendistill.data.splits import assign
from gendistill.errors import DataError

IMAGE, LABEL, BOTH = "image_column", "label_column", "of type Image and one of type ClassLabel"
ROWS = 256  # read at a time


@dataclass(frozen=True)
class Table:
    """Rows with an image and a label.

    Attributes:
        where: Names it in messages.
        features: The types of its columns.
        column: All values of a column.
        cell: One value, an image undecoded.
    """

    where: str
    features: Mapping[str, Feature]
    column: Callable[[str], list[Any]]
    cell: Callable[[str, int], Any]


def hub(config: DataConfig) -> Source:
    """A dataset on the Hub."""
    import datasets

    try:
        loaded = datasets.load_dataset(config.name, revision=config.revision)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data.name is {config.name!r}: no such folder here, and it cannot be loaded from the Hub ({reason}). "
            "Give 'digits', an existing folder, or a Hub id that you can reach."
        ) from error
    return _of_datasets(loaded, config)


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote a folder."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def saved(config: DataConfig, root: Path) -> Source:
    """A dataset, or several by split, that ``save_to_disk`` wrote."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:
        raise DataError(f"Cannot read the dataset that save_to_disk wrote to {root}: {error}") from error
    return _of_datasets(loaded if isinstance(loaded, dict) else {"train": loaded}, config)


def _of_datasets(loaded: Mapping[Any, Any], config: DataConfig) -> Source:
    """The splits of a ``datasets.DatasetDict``."""
    import datasets

    def table(name: str) -> Table:
        data = plain = loaded[name]
        features = features_of(data.features)
        for column in (k for k, feature in features.items() if feature.is_image):
            plain = plain.cast_column(column, datasets.Image(decode=False))
        return Table(f"{config.name} {name}", features, cache(lambda k: plain[k][:]), lambda k, i: plain[i][k])

    left, tables = LeftOut(), {str(name): table(str(name)) for name in loaded}
    found = assign(
        [*tables], config, config.name, left, files=False, labelled=lambda name: labelled(tables[name], config)
    )
    licence = loaded[found["train"][0]].info.license or None
    source = from_tables(
        {split: [tables[n] for n in names] for split, names in found.items()}, found, config, left, licence
    )
    return replace(source, identity=" ".join(loaded[name]._fingerprint for names in found.values() for name in names))


def labelled(table: Table, config: DataConfig) -> bool:
    """Whether no label is kept back."""
    return None not in labels_of(table, config)


def parquet(config: DataConfig, root: Path, files: Sequence[str], left: LeftOut) -> Source:
    """Parquet files below ``root``; ``files`` are their names from there, sorted."""
    tables = {name: parquet_table(root, name) for name in files}
    found = assign(files, config, str(root), left, files=True, labelled=lambda name: labelled(tables[name], config))
    return from_tables({split: [tables[n] for n in names] for split, names in found.items()}, found, config, left)


def parquet_table(root: Path, name: str) -> Table:
    """A parquet file, of which few rows are in memory at a time."""
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(root / name)
        features = features_of_schema(file.schema_arrow)
    except Exception as error:
        raise DataError(f"Cannot read the parquet file {root / name}: {error}. Remove it, or get it again.") from error
    return Table(name, features, cache(lambda k: file.read([k]).column(0).to_pylist()), Cells(file).cell)


class Cells:
    """Cells of a parquet file by position, fastest in ascending order: ``ROWS`` rows are in memory at a time."""

    def __init__(self, file: Any) -> None:
        self.file, self.first = file, [0]  # of each row group
        for group in range(file.num_row_groups):
            self.first.append(self.first[-1] + file.metadata.row_group(group).num_rows)
        self._forget()

    def _forget(self) -> None:
        self.name, self.rows, self.start, self.end = "", list[Any](), 0, 0  # what is in memory, and where
        self.batches: Iterator[Any] = iter(())

    def cell(self, name: str, position: int) -> Any:
        if name != self.name or not self.start <= position < self.end:
            try:
                self._go_to(name, position)
            except BaseException:
                self._forget()
                raise
        return self.rows[position - self.start]

    def _go_to(self, name: str, position: int) -> None:
        """Read on to a position; from the start of its row group where that is behind or another one."""
        group = bisect_right(self.first, position) - 1
        if name != self.name or not self.first[group] <= self.start <= position:
            self.batches = self.file.iter_batches(ROWS, [group], [name], use_threads=False)
            self.name, self.start, self.end = name, self.first[group], self.first[group]
        while self.end <= position:
            batch = next(self.batches)
            self.start, self.end = self.end, self.end + len(batch)
        self.rows = batch.column(0).to_pylist()


def from_tables(
    splits: Mapping[str, Sequence[Table]],
    names: Mapping[str, Sequence[str]],
    config: DataConfig,
    left: LeftOut,
    licence: str | None = None,
) -> Source:
    """The images and labels of the tables of each split; labels of several tables are joined by class name.

    Raises:
        DataError: no column, or several, can be the images or the labels, a label is missing or has no name, or a
            class is not one of the training split; labels are numbers in one table and names in another.
    """
    known = {split: [(one, labels_of(one, config)) for one in tables] for split, tables in splits.items()}
    if config.class_names is None:
        _refuse_mixed([pair for pairs in known.values() for pair in pairs], config)
    classes = _classes(known["train"], config)
    position = {name: label for label, name in enumerate(classes)}
    found: dict[str, list[Item]] = {}
    for split, tables in known.items():
        items: list[Item] = found.setdefault(split, [])
        for table, labels in tables:
            names_here = [label for label in labels if label is not None]
            if len(names_here) < len(labels):
                raise DataError(f"{table.where} has {labels.count(None)} image(s) without label; remove them.")
            if strange := sorted({*names_here} - {*position}):
                raise DataError(
                    f"{table.where} has classes that the training split lacks: {some(strange)}; its classes are "
                    f"{some(classes)}. Give both the same names."
                )
            image, first = image_column(table, config), len(items)
            for i, label in enumerate(names_here):
                where = f"{config.name} {split}[{first + i}]"
                at = table, image, i
                items.append(Item(partial(_open, *at), position[label], where, partial(_read, *at)))
    origins = {split: some(chosen, 3) for split, chosen in names.items()}
    return Source(classes, found, licence, origins, left.sentences())


def _refuse_mixed(tables: Sequence[tuple[Table, Sequence[str | None]]], config: DataConfig) -> None:
    """Refuse labels that are whole numbers in one table and names in another."""
    numbers = [one for one, _ in tables if _has_plain_numbers(one, config)]
    named = ((one, label) for one, labels in tables if not _has_plain_numbers(one, config) for label in labels)
    if numbers and (other := next(((one, label) for one, label in named if label and not is_number(label)), None)):
        raise DataError(
            f"{numbers[0].where} has numbers as labels, and {other[0].where} has names, such as {other[1]!r}. Give "
            "both the same, or --data.class_names with the names of the numbers."
        )


def _has_plain_numbers(table: Table, config: DataConfig) -> bool:
    return table.features[label_column(table, config)].is_number


def _classes(tables: Sequence[tuple[Table, Sequence[str | None]]], config: DataConfig) -> tuple[str, ...]:
    """The declared names, those of the first table first; else the labels that occur, numbers in their order."""
    declared: dict[str, None] = {}
    for table, _ in tables:
        declared |= dict.fromkeys(table.features[label_column(table, config)].names or ())
    if declared:
        return tuple(declared)
    return in_order(label for _, labels in tables for label in labels if label is not None)


def labels_of(table: Table, config: DataConfig) -> list[str | None]:
    """The class name of every row, None where it has no label (a null, or -1 as the Hub keeps labels back).

    Raises:
        DataError: a label has no name, or is blank.
    """
    column = label_column(table, config)
    names, values = table.features[column].names, table.column(column)
    blank = {i for i, name in enumerate(names or ()) if not name.strip()}
    if rows := [i for i, value in enumerate(values) if (value in blank if names else is_blank(value))]:
        raise DataError(
            f"{table.where} has {len(rows)} empty label(s) in the column {column!r}, first row {rows[0] + 1}; expected "
            "a name or a number. Correct them, or remove the rows."
        )
    if names is None:
        return [None if value is None else str(value) for value in values]
    beyond = [value for value in values if value is not None and value >= len(names)]
    if beyond:
        raise DataError(
            f"{table.where} has {len(beyond)} label(s) beyond its {len(names)} class names, such as {beyond[0]} in the "
            f"column {column!r}; expected 0 to {len(names) - 1}. Correct the labels or the names."
        )
    return [None if value is None or value < 0 else names[value] for value in values]


def is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def image_column(table: Table, config: DataConfig) -> str:
    like = _names(table, lambda feature: feature.is_image_like)
    return _column(table, IMAGE, config.image_column, _names(table, lambda feature: feature.is_image), like)


def label_column(table: Table, config: DataConfig) -> str:
    like = _names(table, lambda feature: feature.is_label_like)
    usual = ["label"] if "label" in like else []
    return _column(table, LABEL, config.label_column, _names(table, lambda feature: feature.is_label), usual, like)


def _names(table: Table, fits: Callable[[Feature], bool]) -> list[str]:
    return [name for name, feature in table.features.items() if fits(feature)]


def _column(table: Table, option: str, chosen: str | None, *candidates: list[str]) -> str:
    """The chosen column, or the only one of the first kind that there is one of; the last are what can be chosen."""
    listed = ", ".join(f"{k}: {f.kind}" for k, f in table.features.items())
    if chosen is not None:
        if chosen not in {name for names in candidates for name in names}:
            raise DataError(f"--data.{option} is {chosen!r}, but {table.where} has the columns {listed}.")
        return chosen
    found = next(filter(None, candidates[:2]), [])
    if len(found) == 1:
        return found[0]
    if choice := found or candidates[-1]:
        what = "images" if option == IMAGE else "labels"
        raise DataError(
            f"{table.where} has the columns {listed}, and it is not clear which has the {what}. Name it with "
            f"--data.{option}, such as --data.{option} {choice[0]}."
        )
    raise DataError(f"{table.where} has columns {listed}; expected one {BOTH}.")


def is_image_table(root: Path, name: str, *, damaged: bool) -> bool:
    """Whether a parquet file has a column of images; one that cannot be read is an error if ``damaged`` is."""
    try:
        return any(feature.is_image_like for feature in parquet_table(root, name).features.values())
    except DataError:
        if damaged:
            raise
        return False


def _read(table: Table, column: str, row: int) -> bytes:
    """The file in a cell, or the file that it names."""
    cell = table.cell(column, row)
    data, path = (cell, None) if isinstance(cell, bytes) else ((cell or {}).get(key) for key in ("bytes", "path"))
    if data is None and not path:
        raise ValueError("the cell is empty")
    if data is None and not os.path.isfile(str(path)):  # a pipe would be waited for
        raise ValueError(f"there is no file {path}")
    return data if data is not None else Path(str(path)).read_bytes()


def _open(table: Table, column: str, row: int) -> Image.Image:
    return Image.open(io.BytesIO(_read(table, column, row)))
