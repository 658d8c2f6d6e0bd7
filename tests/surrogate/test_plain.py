"""Plain folders: classes by name or by number, images of any size and kind, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gendistill.errors import ArtifactError
from gendistill.surrogate.image_folder import read_plain
from tests.surrogate.sets import NASTY, make

CLASSES = ("ant", "bee", "cow")


def picture(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def read(folder: Path, classes: tuple[str, ...] = CLASSES, channels: int = 3):
    return read_plain(folder, classes, channels, 8)


def shades(made) -> dict[int, list[int]]:
    """Grey values by label."""
    found: dict[int, list[int]] = {}
    for image, label in zip(made.images, made.labels.tolist(), strict=True):
        found.setdefault(label, []).append(int(image[0, 4, 4]))
    return found


@pytest.mark.parametrize("place", [".", "train", "Training"])
def test_class_folders_are_found_by_name_in_any_order(tmp_path, place):
    for value, name in enumerate(("cow", "ant", "bee")):
        picture(tmp_path / place / name / "x.png", 10 * value)
    assert shades(read(tmp_path)) == {0: [10], 1: [20], 2: [0]}


@pytest.mark.parametrize("names", [("0", "1", "2"), ("00000", "00001", "00002"), ("0", "01", "002")])
def test_whole_numbers_are_positions(tmp_path, names):
    for value, name in enumerate(names):
        picture(tmp_path / name / "x.png", value)
    assert shades(read(tmp_path)) == {0: [0], 1: [1], 2: [2]}


def test_names_that_are_numbers_are_names_first(tmp_path):
    for value, name in enumerate(("1", "2")):
        picture(tmp_path / name / "x.png", value)
    assert shades(read(tmp_path, ("2", "1", "0"))) == {0: [1], 1: [0]}
    (tmp_path / "2").rename(tmp_path / "002")  # position 2 or the name 2 written otherwise: not to be guessed
    with pytest.raises(ArtifactError, match="no class of the data: 002"):
        read(tmp_path, ("2", "1", "0"))
    assert shades(read(tmp_path, ("0", "1", "2"))) == {1: [0], 2: [1]}  # both mean the same


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 6))
def test_zero_padded_positions_are_told_from_one_another(tmp_path_factory, order, width):
    root = tmp_path_factory.mktemp("plain")
    for label in order[:7]:
        picture(root / f"{label:0{width}d}" / "x.png", 20 * label)
    made = read(root, tuple(f"class {i}" for i in range(12)))
    assert shades(made) == {label: [20 * label] for label in sorted(order[:7])}
    assert made.meta["missing_classes"] == [f"class {i}" for i in sorted(order[7:])]


def test_the_folders_of_our_own_sets_are_understood_without_their_manifest(tmp_path):
    made = make(NASTY[:12], channels=3)
    made.save(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    again = read(tmp_path / "set", NASTY[:12])
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.labels, made.labels)
    assert again.meta["bytes"]["images"] == sum(p.stat().st_size for p in (tmp_path / "set").rglob("*.png"))
    assert (again.meta["name"], again.meta["method"]) == ("set", "folder")


def test_sizes_formats_and_colours_become_those_of_the_data(tmp_path):
    picture(tmp_path / "ant" / "a.jpg", 200, (32, 16))
    picture(tmp_path / "ant" / "deep" / "b.bmp", 100, (8, 8), "L")
    picture(tmp_path / "bee" / "c.webp", 50, (4, 4))
    picture(tmp_path / "cow" / "d.png", 25)
    (tmp_path / "cow" / "notes.txt").write_text("no image")
    made = read(tmp_path)
    assert made.images.shape == (4, 3, 8, 8)
    assert np.allclose(shades(made)[0], [200, 100], atol=3)
    assert [problem.split(":")[0] for problem in made.meta["problems"]] == ["resized", "resized"]
    assert read(tmp_path, channels=1).images.shape == (4, 1, 8, 8)


def test_unreadable_images_are_named_and_missing_classes_told(tmp_path):
    picture(tmp_path / "ant" / "a.png", 1)
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()  # of no class, but nothing is lost
    made = read(tmp_path)
    assert len(made.labels) == 1
    assert len(made.meta["problems"]) == 1
    assert "broken.png" in made.meta["problems"][0]
    assert made.meta["missing_classes"] == ["bee", "cow"]


def test_folders_of_unknown_classes_are_refused(tmp_path):
    picture(tmp_path / "ant" / "a.png", 1)
    picture(tmp_path / "wasp" / "a.png", 1)
    with pytest.raises(ArtifactError, match=r"no class of the data: wasp; expected the data's class names \(ant, bee"):
        read(tmp_path)
    for name in ("3", "-1", "1.5", "²"):
        (tmp_path / "wasp").rename(tmp_path / name)
        with pytest.raises(ArtifactError, match="no class of the data"):
            read(tmp_path)
        (tmp_path / name).rename(tmp_path / "wasp")


def test_two_folders_of_one_class_are_refused(tmp_path):
    picture(tmp_path / "1" / "a.png", 1)
    picture(tmp_path / "01" / "a.png", 1)
    with pytest.raises(ArtifactError, match="several folders of one class: 01, 1"):
        read(tmp_path)


def test_several_sets_are_not_one(tmp_path):
    make().save(tmp_path / "ipc-2")
    with pytest.raises(ArtifactError, match=r"holds several sets; give one, such as .*ipc-2"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["nothing", "pickles", "no images", "all broken"])
def test_what_holds_no_images_by_class_is_refused(tmp_path, content):
    said = {"nothing": "no class folders", "pickles": "images.pt, labels.pt, which are pickles"}
    said |= {"no images": r"its folders \(ant\) hold no image", "all broken": "None of the 1 images"}
    if content == "pickles":
        (tmp_path / "images.pt").touch()
        (tmp_path / "labels.pt").touch()
    elif content != "nothing":
        (tmp_path / "ant").mkdir()
    if content == "all broken":
        (tmp_path / "ant" / "a.png").touch()
    with pytest.raises(ArtifactError, match=said[content]):
        read(tmp_path)
