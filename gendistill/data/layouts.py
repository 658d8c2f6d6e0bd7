"""Folders of class folders: which of them are splits, and their images. docs/data.md lists what is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gendistill.config import DataConfig
from gendistill.data.files import (
    class_folders,
    has_direct_image,
    has_image,
    image_files,
    is_image,
    is_skipped,
    kind_of_file,
    leads_to,
    leads_up,
    walk,
    with_images,
)
from gendistill.data.items import Item, LeftOut, Source, file_item, printable, some
from gendistill.data.splits import NONE, prefer, role
from gendistill.errors import DataError

ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: lines of file name, class and a box


def image_folder(config: DataConfig, root: Path) -> Source:
    """Class folders, in split folders or not.

    Raises:
        DataError: it is not clear which folders are splits and which are classes, or there are fewer than two classes.
    """
    left = LeftOut()
    found = find_splits(config, root, left)
    train, held_out = found["train"], [path for split, path in found.items() if split != "train"]
    names = [name for name in class_folders(train) if not any(_covers(train / name, path) for path in held_out)]
    if len(names) < 2:
        raise DataError(
            f"{train} holds {len(names)} class folder(s); expected at least two, as in {root}/train/<class>/*.png "
            f"or {root}/<class>/*.png."
        )
    splits = {"train": image_files(train, names, left)}
    for split in (split for split in ("validation", "test") if split in found):
        splits[split] = _held_out_items(found[split], train, names, left)
        if not splits[split]:
            raise _empty(found[split])
    for path in dict.fromkeys([root, *found.values()]):
        if not (path / ANNOTATIONS).is_file():
            _count_loose(path, root, left)
    origins = {split: _shown(path, root) for split, path in found.items()}
    return Source(tuple(map(printable, names)), splits, None, origins, left.sentences())


def _shown(path: Path, root: Path) -> str:
    inside = os.path.relpath(path, root)
    return printable(root if inside == "." else f"{inside}/")


def _count_loose(folder: Path, root: Path, left: LeftOut) -> None:
    """Files beside the class folders."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = os.path.relpath(entry.path, root)
        if is_skipped(entry.name):
            left.add("hidden or system name(s)", name)
        elif leads_up(Path(entry.path)):
            left.add("link(s) to folders that are read already", name)
        elif leads_to(entry, folder=False):
            left.add("image(s) outside the class folders" if is_image(entry.path) else kind_of_file(entry.name), name)


def find_splits(config: DataConfig, root: Path, left: LeftOut) -> dict[str, Path]:
    """The folder of each split that is there; folders that are set aside are added to ``left``.

    Raises:
        DataError: an option names no folder, or a folder could be a split and a class.
    """
    options = {split: getattr(config, split) for split in ("train", "validation", "test")}
    found = {
        split: class_root(_named(root, split, name)) for split, name in options.items() if name not in (None, NONE)
    }
    explicit = "train" in found
    base = root if explicit else _inner(root)
    folders = [path for path in with_images(base) if not any(_covers(path, chosen) for chosen in found.values())]
    if not explicit:
        found["train"] = _find_train(base, root, folders)
        _check_levels(found["train"], root)
    if found["train"] == base:
        return found
    if config.test is None:
        test = _find_test(base, found)
        found |= {} if test is None else {"test": test}
    _set_aside(root, folders, found, explicit, left)
    return found


def _named(root: Path, split: str, name: str) -> Path:
    path = root / Path(name).expanduser()
    if not path.is_dir():
        raise DataError(
            f"--data.{split} is {name!r}, but {root} has no such folder; it has {some(class_folders(root))}."
        )
    return path


def class_root(folder: Path, classes: Sequence[str] = ()) -> Path:
    """Where the class folders of a split are: in it, or in the only folder that it holds (``train/train/<class>``)."""
    inside = with_images(folder)
    one_deeper = len(inside) == 1 and inside[0].name not in classes and not has_direct_image(folder)
    return inside[0] if one_deeper and len(with_images(inside[0])) > 1 else folder


def _inner(root: Path) -> Path:
    """``root``, or the only folder in it where that holds the classes or splits."""
    return class_root(root) if len(class_folders(root)) == 1 else root


def _is_split(folder: Path) -> bool:
    """Whether a folder that is named as a split has folders of images, rather than images as a class has."""
    inside = len(with_images(folder))
    return inside > 1 or (inside == 1 and not has_direct_image(folder))


def _find_train(base: Path, root: Path, folders: Sequence[Path]) -> Path:
    """The training split of ``base``: a folder of that name, or ``base`` itself."""
    if base.name != root.name and role(base.name) in ("test", "validation"):
        raise DataError(
            f"{root} has only {base.name}, which is named as a {role(base.name)} split, and no training split. Give "
            f"--data.train {os.path.relpath(base, root)} to train on it."
        )
    roles = {path: role(path.name) for path in folders}
    splits = [path for path in folders if roles[path] and _is_split(path)]
    chosen = prefer([path.name for path in splits if roles[path] == "train"], "train", str(base))
    if chosen is not None:
        return class_root(base / chosen)
    flat = len(folders) > 1 and all(roles.values())
    if splits or flat:
        what = "no training split with class folders" if splits else "images, but no class folders"
        raise DataError(
            f"{base} has {some(path.name for path in folders)}, which are named as splits, and {what}. Name the folder "
            f"that has the class folders with --data.train, such as --data.train {os.path.relpath(folders[0], root)}, "
            f"or give --data.train {os.path.relpath(base, root)} where these folders are the classes."
        )
    return base


def _check_levels(train: Path, root: Path) -> None:
    """Refuse classes that hold only folders: the classes may be these."""
    for path in with_images(train):
        inside = with_images(class_root(path))
        if len(inside) > 1 and not has_direct_image(path):
            raise DataError(
                f"{path} holds only folders ({some(one.name for one in inside)}): it is not clear whether these are "
                f"classes, or it is one. Give --data.train {os.path.relpath(train, root)} where the folders in {train} "
                f"are the classes, or --data.train {os.path.relpath(path, root)} where those in {path} are."
            )


def _find_test(base: Path, found: dict[str, Path]) -> Path | None:
    """A test split with labels beside the training split, or else a validation split."""
    classes = class_folders(found["train"])
    names = [n for n in class_folders(base) if not any(_covers(base / n, path) for path in found.values())]
    candidates = [base / name for name in names if role(name) in ("test", "validation")]
    labelled = [path for path in candidates if _is_labelled(path, classes)]
    for wanted in ("test", "validation"):
        chosen = prefer([path.name for path in labelled if role(path.name) == wanted], wanted, str(base))
        if chosen is not None:
            return class_root(base / chosen, classes)
    for path in candidates:
        if not has_image(path):
            raise _empty(path)
        raise DataError(
            f"{path} holds images without labels: no folders of the classes ({some(classes)}) and no {ANNOTATIONS}. "
            "Sort them into class folders, or give --data.test none to take the test split from the training images."
        )
    return None


def _is_labelled(folder: Path, classes: Sequence[str]) -> bool:
    if (folder / ANNOTATIONS).is_file():
        return True
    inside = [path.name for path in with_images(class_root(folder, classes))]
    return len(inside) > 1 or (len(inside) == 1 and inside[0] in classes)


def _empty(path: Path) -> DataError:
    return DataError(f"{path} holds no image. Add some, or remove it; its images are then taken from train.")


def _set_aside(root: Path, folders: Sequence[Path], found: dict[str, Path], explicit: bool, left: LeftOut) -> None:
    """Count the folders of no split, or refuse what may be a class or a further split."""
    for path in folders:
        if any(_covers(path, chosen) for chosen in found.values()):
            continue
        unlabelled = "test" in found and _is_flat(path)
        if not explicit and not unlabelled and role(path.name) not in ("test", "validation"):
            train = os.path.relpath(found["train"], root)
            raise DataError(
                f"{path} holds images beside the training split {train}/, and its name says no other split. Give "
                f"--data.train {train} to set it aside, or --data.train {os.path.relpath(path.parent, root)} where the "
                f"folders in {path.parent} are the classes."
            )
        left.add("folder(s) of no split", f"{os.path.relpath(path, root)}/")


def _is_flat(folder: Path) -> bool:
    """Whether all images lie together in a folder, or in its only one (``seg_pred/seg_pred/*.png``)."""
    inside = with_images(folder)
    return not inside or ([path.name for path in inside] == [folder.name] and not with_images(inside[0]))


def _covers(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents


def _held_out_items(folder: Path, train: Path, names: Sequence[str], left: LeftOut) -> list[Item]:
    """The images of a split with labels for the classes of ``train``."""
    if (folder / ANNOTATIONS).is_file():
        return _annotated(folder, names, left)
    strange = sorted({*class_folders(folder)} - {*names})
    if strange:
        raise DataError(f"{folder} has classes that {train} lacks: {some(strange)}. Give both the same names.")
    return image_files(folder, names, left)


def _annotated(folder: Path, names: Sequence[str], left: LeftOut) -> list[Item]:
    """The images that ``val_annotations.txt`` gives a class."""
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    label = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    position = {name: i for i, name in enumerate(names)}
    if strange := sorted({*label.values()} - {*position}):
        raise DataError(f"{folder / ANNOTATIONS} has classes without training folder: {some(strange)}. Correct it.")
    items: list[Item] = []
    for place, files in sorted(walk(folder, left)):
        for file in sorted(files):
            path = os.path.join(place, file)
            if file in label and is_image(path):
                items.append(file_item(path, position[label.pop(file)]))
            elif file != ANNOTATIONS:
                left.add(f"file(s) that {ANNOTATIONS} does not name", path)
    for file in label:
        left.add(f"file(s) that {ANNOTATIONS} names and that are missing", file)
    return items
