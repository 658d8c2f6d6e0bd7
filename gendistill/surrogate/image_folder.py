"""Somebody's folder of class folders, without a manifest, as a SurrogateSet for the classes of given data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gendistill.data.files import class_folders, image_files
from gendistill.data.reader import Reader
from gendistill.data.splits import NAMES
from gendistill.errors import ArtifactError
from gendistill.surrogate.manifest import MANIFEST, Provenance, folder_names
from gendistill.surrogate.set import SurrogateSet

PICKLED = (".pt", ".pth", ".pkl", ".pickle")
METHOD = "folder"


def read_plain(folder: Path, classes: tuple[str, ...], channels: int, image_size: int) -> SurrogateSet:
    """The images below ``folder/<class>``, or ``folder/train/<class>``, resized as those of the data are.

    Class folders are named as the classes are (or as our sets write those names), or else all by whole numbers, which
    are positions: 0 or 00000 is the first class. Unreadable images are left out. ``meta`` has ``name``, ``bytes`` of
    the files, ``problems`` (sentences on single images) and ``missing_classes``, of which there is no image.

    Raises:
        ArtifactError: there are no class folders, one is of no class of the data, two are of one class, or no image
            can be read.
    """
    root = _root(folder)
    files = {name: found for name in class_folders(root) if (found := image_files(root, (name,)))}
    if not files:
        raise ArtifactError(_nothing(folder, f"its folders ({_some(class_folders(root))}) hold no image"))
    owners = sorted(_labels(root, list(files), classes).items(), key=lambda owner: owner[1])
    items = [replace(item, label=label) for name, label in owners for item in files[name]]
    reader = Reader(image_size, channels, resize_is_news=True)
    split, blocks = reader.read(items)
    problems = reader.problems(blocks)
    if not len(split):
        raise ArtifactError(f"None of the {len(items)} images below {root} can be read: {problems[0]}.")
    counts = split.counts(len(classes))
    meta: Provenance = {
        "method": METHOD,
        "stage": None,
        "name": root.resolve().parent.name if root != folder else folder.resolve().name,
        "bytes": {"images": sum(Path(item.where).stat().st_size for item in items), "labels": 0},
        "problems": problems,
        "missing_classes": [name for name, count in zip(classes, counts, strict=True) if not count],
    }
    return SurrogateSet(split.pixels, split.labels, classes, meta)


def _root(folder: Path) -> Path:
    """Where the class folders are.

    Raises:
        ArtifactError: there are none.
    """
    inside = {name.lower(): folder / name for name in class_folders(folder)}
    root = next((inside[name] for name in NAMES["train"] if name in inside and class_folders(inside[name])), folder)
    if class_folders(root):
        return root
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise ArtifactError(
            f"{folder} holds {_some(pickled)}, which are pickles; they can run code when read, so they are not. Give "
            "the images as class folders of PNG files."
        )
    raise ArtifactError(_nothing(folder, "it has no class folders"))


def _labels(root: Path, names: Sequence[str], classes: tuple[str, ...]) -> dict[str, int]:
    """The class of each folder.

    Raises:
        ArtifactError: a folder of no class, several of one, or numbers that could be names and positions.
    """
    by_name = {written: label for label, written in enumerate(folder_names(classes))}
    by_name |= {name: label for label, name in enumerate(classes)}
    unknown = [name for name in names if name not in by_name]
    numbers = {name: int(name) for name in names if name.isascii() and name.isdigit() and int(name) < len(classes)}
    positions = len(numbers) == len(names) and all(by_name.get(str(n), n) == n for n in numbers.values())
    if unknown and not positions:
        sets = [name for name in names if (root / name / MANIFEST).is_file()]
        hint = f" It holds several sets; give one, such as {root / sets[0]}." if sets else ""
        raise ArtifactError(
            f"{root} has folders of no class of the data: {_some(unknown)}; expected the data's class names "
            f"({_some(classes)}), or whole numbers from 0 to {len(classes) - 1} for all.{hint}"
        )
    found = numbers if unknown else {name: by_name[name] for name in names}
    twice = [name for name, label in found.items() if list(found.values()).count(label) > 1]
    if twice:
        raise ArtifactError(f"{root} has several folders of one class: {_some(twice)}. Put their images together.")
    return found


def _nothing(folder: Path, what: str) -> str:
    return (
        f"{folder} is no surrogate set, for it has no {MANIFEST}, and no folder of images by class: {what}. Expected "
        "a folder such as RUN/samples/ipc-10, or one with <class>/*.png in it."
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
