"""Images in tar files, as webdataset has them: samples of one key, an image and a ``.cls`` with its label."""

from __future__ import annotations

import io
import json
import reprlib
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from gendistill.config import DataConfig
from gendistill.data.class_names import in_order
from gendistill.data.files import is_skipped
from gendistill.data.items import Item, LeftOut, Source, some
from gendistill.data.splits import assign
from gendistill.errors import DataError

LABEL, MANIFEST = "cls", "manifest.json"
LONGEST = 1000  # bytes of a label


class Member(NamedTuple):
    """Where a file lies in its tar file."""

    offset: int
    size: int


def webdataset(config: DataConfig, root: Path, files: Sequence[str], suffixes: set[str], left: LeftOut) -> Source:
    """Tar files below ``root``; ``files`` are their names from there, sorted.

    A label is a whole number, a position in the ``classes`` of a manifest.json beside the files or in ``root`` where
    there is one, or a class name.

    Raises:
        DataError: a file is damaged or has no labelled image, or a label has no class.
    """
    found = assign(files, config, str(root), left, files=True)
    samples = {split: [s for name in names for s in _samples(root / name, suffixes)] for split, names in found.items()}
    beside = {(root / name).parent for name in files}
    names = (_class_names(*beside) if len(beside) == 1 else None) or _class_names(root)
    used = {label for label, *_ in samples["train"]}
    if names is None:
        names = [*in_order(used)]
        position = {name: i for i, name in enumerate(names)}
    else:
        position = {name: i for i, name in enumerate(names)} | {str(i): i for i in range(len(names))}
    splits: dict[str, list[Item]] = {}
    for split, ones in samples.items():
        if strange := sorted({label for label, *_ in ones} - {*position}):
            raise DataError(
                f"The {split} split of {root} has labels of no class: {some(strange)}; expected {some(names)}."
            )
        splits[split] = [
            Item(partial(_open, path, at), position[label], f"{path}:{key}", partial(_read, path, at))
            for label, key, path, at in ones
        ]
    return Source(tuple(names), splits, None, {s: some(f, 3) for s, f in found.items()}, left.sentences())


def _samples(path: Path, suffixes: set[str]) -> list[tuple[str, str, Path, Member]]:
    """(label, key, file, where) of the samples of a tar file, in its order."""
    images: dict[str, Member] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if any(is_skipped(part) for part in PurePosixPath(member.name).parts if part != "."):
                    continue
                key, _, ending = member.name.rpartition(".")
                if member.isfile() and ending == LABEL:
                    file = tar.extractfile(member)
                    labels[key] = _label(file.read(LONGEST + 1) if file else b"", f"{path}:{member.name}")
                elif member.isfile() and f".{ending.lower()}" in suffixes:
                    images[key] = Member(member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"Cannot read the tar file {path}: {error}. Remove it, or get it again.") from error
    if not images or images.keys() - labels.keys():
        without = some(sorted(images.keys() - labels.keys())) or "no image"
        raise DataError(
            f"{path} is not a webdataset of labelled images, because of {without}; expected KEY.png (or .jpg, ...) and "
            f"KEY.{LABEL} of each sample. Unpack other archives first."
        )
    return [(labels[key], key, path, where) for key, where in images.items()]


def _label(content: bytes, where: str) -> str:
    """The text of a label.

    Raises:
        DataError: it is empty, too long or no UTF-8.
    """
    try:
        label = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        label = ""
    if not label or len(content) > LONGEST:
        raise DataError(
            f"{where} is {reprlib.repr(content)}; expected a label: a whole number or a name, in UTF-8, of at most "
            f"{LONGEST} bytes. Correct it, or remove the sample."
        )
    return label


def _class_names(folder: Path) -> list[str] | None:
    """The classes of our own export; None where no manifest names any.

    Raises:
        DataError: the manifest is damaged, or its classes are no names, each once.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}. Get the export again, or remove the file.") from error
    names = found.get("classes") if isinstance(found, dict) else None
    if not isinstance(names, list):
        return None
    texts = [str(name).strip() for name in names if isinstance(name, (str, int)) and not isinstance(name, bool)]
    if len({*filter(None, texts)}) < len(names):
        raise DataError(
            f"{path} has the classes {reprlib.repr(names)}; expected names, each once. Correct them, or remove the key "
            "classes: the labels are then the classes."
        )
    return [str(name) for name in names]


def _read(path: Path, where: Member) -> bytes:
    with path.open("rb") as file:
        file.seek(where.offset)
        return file.read(where.size)


def _open(path: Path, where: Member) -> Image.Image:
    return Image.open(io.BytesIO(_read(path, where)))
