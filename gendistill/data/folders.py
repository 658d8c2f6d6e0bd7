"""Folders of images: class folders, parquet or tar files, or a dataset that ``save_to_disk`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gendistill.config import DataConfig
from gendistill.data import archives, columns
from gendistill.data.files import SUFFIXES, beside, files_of_types, with_images
from gendistill.data.items import Source, some
from gendistill.data.layouts import image_folder
from gendistill.errors import ConfigError, DataError


def folder(config: DataConfig) -> Source:
    """A folder of class folders, of parquet or tar files, or one that ``save_to_disk`` wrote."""
    root = Path(config.name).expanduser()
    if columns.is_saved(root):
        return columns.saved(config, root)
    parquet, tars = files_of_types(root, ".parquet", ".tar")
    by_class = with_images(root) if parquet or tars else []
    of_images = [name for name in parquet if columns.is_image_table(root, name, damaged=not by_class)]
    if of_images and len(by_class) > 1:
        raise DataError(
            f"{root} has parquet files with images ({some(of_images, 3)}) and folders with images "
            f"({some(path.name for path in by_class)}). Give the folder of one of both as data.name."
        )
    if of_images or (parquet and not by_class):
        left = beside(root, ".parquet")
        for name in (name for name in parquet if of_images and name not in of_images):
            left.add("parquet file(s) without images", name)
        check_one_set(root, of_images)
        return columns.parquet(config, root, of_images or parquet, left)
    for option in ("image_column", "label_column"):
        if getattr(config, option) is not None:
            raise ConfigError(f"data.{option} applies to parquet files and datasets; {root} has none. Leave it out.")
    if tars and not by_class:
        check_one_set(root, tars)
        return archives.webdataset(config, root, tars, SUFFIXES, beside(root, ".tar"))
    return image_folder(config, root)


def check_one_set(root: Path, files: Sequence[str]) -> None:
    """Refuse several surrogate sets below one folder: together they are no data set."""
    places = sorted({Path(name).parent for name in files})
    sets = [place for place in places if (root / place / archives.MANIFEST).is_file()]
    if len(sets) > 1:
        raise DataError(f"{root} has several sets: {some(map(str, sets))}. Give one as data.name: {root / sets[0]}.")
