"""Names below a folder: which are images, which are read, and which are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from gendistill.data.items import Item, LeftOut, file_item, printable

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".jp2",
}  # fmt: skip
SYSTEM = {"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"}


def is_skipped(name: str) -> bool:
    """Whether a name is hidden or of an operating system."""
    return name.startswith(".") or name in SYSTEM


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in ``root``, sorted, without hidden and system names and links to folders above."""
    with os.scandir(root) as entries:
        found = [entry for entry in entries if not is_skipped(entry.name) and leads_to(entry, folder=True)]
    return tuple(sorted(one.name for one in found if not (one.is_symlink() and leads_up(Path(one.path)))))


def leads_up(path: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return path.is_symlink() and Path(os.path.realpath(path)) in path.absolute().parent.resolve().joinpath("_").parents


def walk(root: Path, left: LeftOut | None = None) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its regular files) of ``root`` and what is below.

    Links are followed, after all else and not to a folder that was read or lies above. Hidden and system names, such
    links, and what is no regular file are added to ``left``.
    """
    left = left or LeftOut()
    seen = {_identity(parent) for parent in root.resolve().parents}
    folders, links = [str(root)], list[str]()
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        try:
            identity, entries = _identity(place), sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            left.add(f"folder(s) that cannot be read ({error.strerror})", place)
            continue
        if identity in seen:
            left.add("link(s) to folders that are read already", place)
            continue
        seen.add(identity)
        files = []
        for entry in entries:
            if is_skipped(entry.name):
                left.add("hidden or system name(s)", entry.path)
            elif leads_to(entry, folder=True):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif leads_to(entry, folder=False):
                files.append(entry.name)
            else:
                left.add("broken link(s)" if entry.is_symlink() else "name(s) that are no regular file", entry.path)
        yield place, files


def leads_to(entry: os.DirEntry[str], *, folder: bool) -> bool:
    """Whether it is a folder, or a regular file; a link in a circle or to a forbidden place is neither."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:
        return False


def _identity(place: str | Path) -> tuple[int, int]:
    status = os.stat(place)
    return status.st_dev, status.st_ino


def is_image_name(name: str) -> bool | None:
    """Whether a file is an image by its type; None where it has no type, such as ``0001`` or ``photo.2``."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES if any(map(str.isalpha, suffix)) else None


def is_image(path: str) -> bool:
    """The same; the content of a file without type decides."""
    known = is_image_name(os.path.basename(path))
    if known is not None:
        return known
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError, ValueError):
        return False
    except Image.DecompressionBombError:
        return True


def kind_of_file(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return f"file(s) of type {printable(suffix)}" if suffix else "file(s) of no type"


def with_images(root: Path) -> list[Path]:
    """The visible folders in ``root`` that have an image in them or below, sorted."""
    return [root / name for name in class_folders(root) if has_image(root / name)]


def has_image(root: Path) -> bool:
    return any(is_image(os.path.join(place, name)) for place, files in walk(root) for name in files)


def has_direct_image(root: Path) -> bool:
    return any(is_image(os.path.join(root, name)) for name in next(walk(root), ("", []))[1])


def image_files(root: Path, classes: Sequence[str], left: LeftOut | None = None) -> list[Item]:
    """The images below ``root/<class>``, where there is one, in order; label i is that of ``classes[i]``."""
    left = left or LeftOut()
    items: list[Item] = []
    for label, name in enumerate(classes):
        for place, files in sorted(walk(root / name, left)) if (root / name).is_dir() else ():
            for file in sorted(files):
                path = os.path.join(place, file)
                if is_image(path):
                    items.append(file_item(path, label))
                else:
                    left.add(kind_of_file(file), os.path.relpath(path, root))
    return items


def files_of_types(root: Path, *suffixes: str) -> list[list[str]]:
    """For each type, the names, from ``root``, of its visible files, sorted."""
    found: dict[str, list[str]] = {suffix: [] for suffix in suffixes}
    for place, files in walk(root):
        for name in files:
            if name.endswith(suffixes):
                found[os.path.splitext(name)[1]].append(os.path.relpath(os.path.join(place, name), root))
    return [sorted(names) for names in found.values()]


def beside(root: Path, suffix: str) -> LeftOut:
    """What lies beside the files of one type."""
    left = LeftOut()
    for place, files in walk(root, left):
        for name in sorted(files):
            if not name.endswith(suffix):
                left.add(kind_of_file(name), os.path.relpath(os.path.join(place, name), root))
    return left
