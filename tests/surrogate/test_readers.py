"""Other libraries read a set's folder as it lies there, whatever the classes are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gendistill.surrogate.manifest import folder_names
from gendistill.surrogate.set import SurrogateSet
from tests.surrogate.sets import NASTY, make

NAMES = {
    "plain": ("ant", "bee", "cow"),
    "unsorted": ("zebra", "ant", "10", "2", "a/b", "größe"),
    "nasty": NASTY,
    "names of splits": ("_y", "test", "train", "val", "validation", "data"),
    "all names of splits": ("cat", "dev", "eval", "evaluation", "test", "testing", "train", "training", "valid"),
    "underscores": ("__x__", "plain"),  # datasets skips folders with two leading underscores
    "what YAML takes for other things": ("no", "null", "1.0", "1e3", "~", "- x", "{a: b}", "#", "'", '"', "yes: no"),
    "one class": ("only",),
    "cases": ("cat", "Cat", "CAT"),
}
by_name = pytest.mark.parametrize("classes", NAMES.values(), ids=NAMES.keys())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def by_class(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[bytes]]:
    """{class: its images in order} from (PIL image, class)."""
    found: dict[Any, list[bytes]] = {}
    for image, name in pairs:
        found.setdefault(name, []).append(np.asarray(image).tobytes())
    return found


def expected(original: SurrogateSet, keys: Iterable[Any]) -> dict[Any, list[bytes]]:
    """The same from the set itself, its classes called ``keys``."""
    return {
        key: [np.ascontiguousarray(i.permute(1, 2, 0).squeeze(-1)).tobytes() for i in original.of_class(c)]
        for c, key in enumerate(keys)
    }


@by_name
@pytest.mark.parametrize("channels", [1, 3])
def test_datasets_reads_the_folder_unconfigured_with_labels_in_order(
    tmp_path: Path, classes: tuple[str, ...], channels: int
) -> None:
    import datasets

    original = make(classes, channels=channels)
    original.save(tmp_path / "set")
    for config in (None, "ipc-2"):
        read = datasets.load_dataset(str(tmp_path / "set"), config)["train"]
        assert read.features["label"].names == list(folder_names(classes))
        assert by_class((row["image"], row["label"]) for row in read) == expected(original, range(len(classes)))


def test_datasets_does_not_take_one_set_for_another_in_a_folder_of_the_same_name(tmp_path: Path) -> None:
    import datasets

    first, names = make(), make(("ant", "bee", "dog"))
    other = replace(first, images=255 - first.images)
    for place, original in zip("abc", (first, other, names), strict=True):
        original.save(tmp_path / place / "ipc-2")
        read = datasets.load_dataset(str(tmp_path / place / "ipc-2"), split="train")
        assert read.features["label"].names == list(original.classes)
        assert by_class((row["image"], row["label"]) for row in read) == expected(original, range(3))


@by_name
def test_datasets_reads_the_files_without_the_card(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """The call of docs/surrogate.md; labels are in the order of the folders' names."""
    import datasets

    original = make(classes)
    original.save(tmp_path / "set")
    files = {"train": str(tmp_path / "set" / "train" / "*" / "*.png")}
    read = datasets.load_dataset("imagefolder", data_files=files, drop_labels=False)
    assert list(read) == ["train"]
    names = read["train"].features["label"].names
    found = by_class((row["image"], names[row["label"]]) for row in read["train"])
    assert found == expected(original, folder_names(classes))


@by_name
def test_torchvision_reads_the_folder(tmp_path: Path, classes: tuple[str, ...]) -> None:
    from torchvision.datasets import ImageFolder

    original = make(classes)
    original.save(tmp_path / "set")
    read = ImageFolder(str(tmp_path / "set" / "train"))
    found = by_class((image, read.classes[label]) for image, label in read)
    assert found == expected(original, folder_names(classes))


@by_name
def test_timm_reads_the_folder(tmp_path: Path, classes: tuple[str, ...]) -> None:
    from timm.data import create_dataset

    original = make(classes)
    original.save(tmp_path / "set")
    read = create_dataset("", root=str(tmp_path / "set"), split="train")
    names = {label: name for name, label in read.reader.class_to_idx.items()}
    found = by_class((image, names[label]) for image, label in read)
    assert found == expected(original, folder_names(classes))
