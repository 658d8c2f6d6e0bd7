"""Which parts of a source (folders, files, splits of a dataset) are its training, validation and test split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from gendistill.config import DataConfig
from gendistill.data.items import LeftOut, some
from gendistill.errors import DataError

NAMES = {  # by role, the names that are preferred first
    "train": ("train", "training", "trainset", "trainval"),
    "test": ("test", "testing", "testset"),
    "validation": ("validation", "valid", "val", "valset", "dev", "devset", "eval", "evaluation", "evalset"),
}
NONE, WHOLE = "none", "."  # option values: no such split; everything


def role(name: str) -> str | None:
    """``train``, ``test`` or ``validation`` where a name has a word for one of them: ``seg_train``, ``val2017``."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    found = {role for role, names in NAMES.items() for word in words if word in names}
    return found.pop() if len(found) == 1 else None


def prefer(names: Sequence[str], wanted: str, where: str) -> str | None:
    """The one of ``names``, all of one role, that is that split: named as usual, or the only one.

    Raises:
        DataError: there are several.
    """
    usual = {name.lower(): name for name in names}
    exact = next((usual[name] for name in NAMES[wanted] if name in usual), None)
    if exact is None and len(names) > 1:
        option = "train" if wanted == "train" else "test"
        raise DataError(
            f"{where} has several parts that could be its {wanted} split: {some(names)}. Name one with "
            f"--data.{option} {names[0]}."
        )
    return exact or next(iter(names), None)


def plain_name(file: str) -> str:
    """The name of a file without its type and the number of a shard: ``data/train-00000-of-00002.parquet``, train."""
    return re.sub(r"-\d+(-of-\d+)?$", "", PurePosixPath(file).stem)


def file_role(file: str) -> str | None:
    """The role of a file by its name, or else by the nearest folder that has one."""
    parts = [plain_name(file), *reversed(PurePosixPath(file).parts[:-1])]
    return next(filter(None, map(role, parts)), None)


def assign(
    names: Sequence[str],
    config: DataConfig,
    where: str,
    left: LeftOut,
    *,
    files: bool,
    labelled: Callable[[str], bool] = lambda name: True,
) -> dict[str, list[str]]:
    """The names of each split: as the options say, or else by their words.

    Args:
        names: Files of a folder, of which several make one split, or splits of a dataset.
        config: ``train``, ``test`` and ``validation`` of it.
        where: Names the source in messages.
        left: What belongs to no split is added to it.
        files: Whether these are files.
        labelled: Whether a part has labels; one that is named as a test split and has none gives way to the next.

    Raises:
        DataError: an option names nothing, or it is not clear which part is the training split.
    """
    found = _named(names, config, where)
    rest = [name for name in names if not any(name in chosen for chosen in found.values())]
    by_role: dict[str | None, list[str]] = {}
    for name in rest:
        by_role.setdefault(file_role(name) if files else role(name), []).append(name)
    if not files:
        for one in ("train", *(() if config.test else ("test", "validation"))):
            if len(by_role.get(one, ())) > 1 and one not in found:
                by_role[one] = [name for name in [prefer(by_role[one], one, where)] if name]
    if "train" not in found:
        found["train"] = _training(by_role, where, files, held_out="test" in found)
    hidden: list[str] = []
    for one in ("test", "validation") if config.test is None else ():
        candidate = by_role.get(one, [])
        if "test" in found or not candidate or one in found or candidate == found["train"]:
            continue
        if all(map(labelled, candidate)):
            found["test"] = candidate
        else:
            hidden += candidate
    taken = [name for chosen in found.values() for name in chosen]
    for name in (name for name in rest if name not in taken):
        left.add("part(s) without labels" if name in hidden else "part(s) of no split", name)
    return found


def _named(names: Sequence[str], config: DataConfig, where: str) -> dict[str, list[str]]:
    """What the options name; patterns leave out what options name that come before: test, validation, train."""
    found: dict[str, list[str]] = {}
    for split in ("test", "validation", "train"):
        pattern = getattr(config, split)
        if pattern is None or pattern == NONE:
            continue
        taken = [name for chosen in found.values() for name in chosen]
        several = pattern == WHOLE or "*" in pattern
        chosen = [name for name in names if _fits(name, pattern) and not (several and name in taken)]
        if not chosen:
            raise DataError(f"--data.{split} is {pattern!r}, but {where} has no such part; it has {some(names, 10)}.")
        if twice := [name for name in chosen if name in taken]:
            raise DataError(f"--data.{split} {pattern} names {some(twice)}, which is another split too; expected one.")
        found[split] = chosen
    return found


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern is the name of a part, of its file, or of a folder that it lies in."""
    path = PurePosixPath(name)
    forms = (name, plain_name(name), path.name, path.stem, *(str(parent) for parent in path.parents))
    return any(fnmatchcase(form, pattern.rstrip("/")) for form in forms)


def _training(by_role: dict[str | None, list[str]], where: str, files: bool, held_out: bool) -> list[str]:
    """The training split, where no option names it: what is named so, or everything where nothing else is."""
    if "train" in by_role:
        return by_role["train"]
    whole = len(by_role) == 1 and not (held_out and None not in by_role)
    parts = [name for names in by_role.values() for name in names]
    if whole and (files or len(parts) == 1):
        return parts
    raise DataError(
        f"{where} has no part that is named as a training split; it has {some(parts, 10)}. Name it with --data.train "
        f"(such as --data.train {plain_name(parts[-1]) if parts else WHOLE}; . takes everything), and the test split "
        "with --data.test."
    )
