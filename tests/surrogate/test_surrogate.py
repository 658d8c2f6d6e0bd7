"""The folder of a surrogate set: what goes in comes out, whatever the classes are called."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gendistill.errors import ArtifactError
from gendistill.surrogate.manifest import MANIFEST, folder_names
from gendistill.surrogate.set import SurrogateSet
from tests import helpers
from tests.surrogate.sets import NASTY, make


@pytest.fixture
def saved(tmp_path):
    """The folder of a set of three classes with two images each."""
    make().save(tmp_path / "set")
    return tmp_path / "set"


def edit(folder, **changes):
    helpers.edit(folder / MANIFEST, **changes)


def same(first, second):
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.labels, second.labels)
        and first.classes == second.classes
    )


# there and back


@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_survives_its_folder(tmp_path, channels):
    original = make(channels=channels, method="random", seed=3, stages=["a", "b"])
    original.save(tmp_path / "set")
    found = SurrogateSet.load(tmp_path / "set")
    assert same(found, original)
    assert found.meta == original.meta
    assert found.content_hash() == original.content_hash()


def test_a_loaded_set_saves_the_same_files(tmp_path, saved):
    SurrogateSet.load(saved).save(tmp_path / "again")
    names = sorted(p.relative_to(saved) for p in saved.rglob("*") if p.is_file())
    assert len(names) == 9
    assert all((tmp_path / "again" / n).read_bytes() == (saved / n).read_bytes() for n in names)


def test_images_keep_their_order_beyond_ten(tmp_path):
    original = make(("ant",), ipc=12)
    original.save(tmp_path / "set")
    assert same(SurrogateSet.load(tmp_path / "set"), original)


def test_images_stored_by_turns_come_back_class_by_class(tmp_path):
    mixed = SurrogateSet(make().images, torch.tensor([0, 1, 2, 0, 1, 2]), ("ant", "bee", "cow"))
    mixed.save(tmp_path / "set")
    found = SurrogateSet.load(tmp_path / "set")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(torch.equal(found.of_class(c), mixed.of_class(c)) for c in range(3))


def check_names(folder, classes):
    """Saved below ``folder``, the set comes back and has written nothing but its own files."""
    original = make(classes, ipc=1)
    original.save(folder / "set")
    assert same(SurrogateSet.load(folder / "set"), original)
    assert [p.name for p in folder.iterdir()] == ["set"]
    images = sorted(p for p in (folder / "set").rglob("*") if p.is_file() and p.suffix == ".png")
    assert len(images) == len(classes)
    assert {p.parent.parent for p in images} == {folder / "set" / "train"}


@pytest.mark.parametrize("name", NASTY)
def test_any_class_name_survives_inside_the_folder(tmp_path, name):
    check_names(tmp_path, ("plain", name))


def test_all_those_names_survive_together(tmp_path):
    check_names(tmp_path, NASTY)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=50), min_size=1, max_size=4, unique=True))
def test_random_class_names_survive(names):
    with tempfile.TemporaryDirectory() as folder:
        check_names(Path(folder), tuple(names))


@pytest.mark.parametrize("classes", [("class-00001", ""), ("a", " a", "a "), ("%2F", "/"), (".a", "%2Ea")], ids=str)
def test_classes_with_similar_names_keep_apart(tmp_path, classes):
    check_names(tmp_path, classes)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=200), max_size=5, unique=True))
def test_folder_names_are_plain_short_and_apart(names):
    folders = folder_names(names)
    for folder in folders:
        assert Path(folder).name == folder
        assert not folder.startswith(".")
        assert folder.isascii()
        assert len(folder) <= 255
    assert len({folder.casefold() for folder in folders}) == len(names)


def test_ordinary_names_stay_as_they_are():
    names = ("cat", "n01440764", "tabby cat", "T-shirt (top)")
    assert folder_names(names) == names


def test_names_that_differ_in_case_alone_get_different_folders():
    assert folder_names(("cat", "Cat", "CAT")) == ("cat", "class-00001", "class-00002")


@pytest.mark.parametrize("name", ["con", "NUL", "com1", "aux.photos", "ends."])
def test_names_that_windows_keeps_or_cuts_are_quoted(name):
    assert "%" in folder_names((name,))[0]


def test_a_folder_that_holds_a_set_is_not_overwritten(saved):
    with pytest.raises(ArtifactError, match="already"):
        make(ipc=1).save(saved)
    assert same(SurrogateSet.load(saved), make())


# prefixes


def test_prefix_keeps_the_first_images_of_every_class():
    whole = make(ipc=5, seed=1)
    found = whole.prefix(2)
    assert found.ipc == 2
    assert found.meta == whole.meta
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(torch.equal(found.of_class(c), whole.of_class(c)[:2]) for c in range(3))


@pytest.mark.parametrize("ipc", [0, 3])
def test_prefix_refuses_what_a_class_does_not_have(ipc):
    with pytest.raises(ArtifactError, match="'ant' has 2 images"):
        make().prefix(ipc)


def test_prefix_of_all_images_is_the_set():
    assert same(make().prefix(2), make())


# hashes


def test_the_content_hash_depends_on_pixels_labels_and_names():
    base = make()
    images = base.images.clone()
    images[0, 0, 0, 0] ^= 1
    others = [
        SurrogateSet(images, base.labels, base.classes),
        SurrogateSet(base.images, base.labels.flip(0), base.classes),
        SurrogateSet(base.images, base.labels, ("ant", "bee", "owl")),
    ]
    assert len({s.content_hash() for s in (base, *others)}) == 4


# the manifest


def test_the_manifest_counts_what_is_stored(saved):
    manifest = json.loads((saved / MANIFEST).read_text(encoding="utf-8"))
    size = sum(p.stat().st_size for p in saved.glob("train/*/*.png"))
    assert (manifest["ipc"], manifest["stored_images"], manifest["image_size"], manifest["channels"]) == (2, 6, 8, 3)
    assert manifest["bytes"] == {"images": size, "labels": 0}
    assert manifest["classes"] == manifest["folders"] == ["ant", "bee", "cow"]


# damaged folders


def refused(folder, match):
    with pytest.raises(ArtifactError, match=match):
        SurrogateSet.load(folder)


def test_a_folder_without_manifest_is_refused(tmp_path):
    refused(tmp_path, r"not a surrogate set.*manifest\.json")


@pytest.mark.parametrize("kept", [0, 5, 40, 70, 150])
def test_a_truncated_image_is_named(saved, kept):
    path = saved / "train" / "bee" / "00001.png"
    path.write_bytes(path.read_bytes()[:kept])
    refused(saved, r"bee.00001\.png")


def test_a_missing_image_is_noticed(saved):
    (saved / "train" / "bee" / "00001.png").unlink()
    refused(saved, r"1 image\(s\) missing \(bee/00001\.png\)")


def test_an_image_too_many_is_named(saved):
    (saved / "train" / "bee" / "00001.png").rename(saved / "train" / "bee" / "00007.png")
    refused(saved, r"missing \(bee/00001\.png\), 1 image\(s\) too many \(bee/00007\.png\)")


def test_an_image_of_another_size_is_named(saved):
    Image.new("RGB", (9, 8)).save(saved / "train" / "cow" / "00000.png")
    refused(saved, r"cow.00000\.png is 9x8")


@pytest.mark.parametrize("name", ["..", "../other", "a/b", "/etc", ".", "", "ant/.."])
def test_a_manifest_with_an_unsafe_folder_is_refused(saved, name):
    (saved / "train" / "cow").rename(saved / "elsewhere")
    edit(saved, folders=["ant", "bee", name])
    refused(saved, "unsafe")


def test_no_manifest_reaches_images_outside_train(saved):
    for path in (saved / "train" / "cow").iterdir():
        path.rename(saved / path.name)
    edit(saved, folders=["ant", "bee", ".."])
    refused(saved, "unsafe")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"format": 1}', '{"format": 99}', '{"classes": ["a"]}'],
)
def test_a_damaged_manifest_is_refused(saved, text):
    (saved / MANIFEST).write_text(text)
    refused(saved, r"manifest\.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["ant", "bee"]}, {"classes": ["ant", "bee", "cow", "dog"]}, {"classes": None}, {"folders": None},
        {"folders": [1, 2, 3]}, {"folders": [], "stored_images": 0}, {"image_size": "8"}, {"channels": 2},
        {"counts": [2, 2, 1]}, {"counts": [3, 3]}, {"counts": [2, 2, -2]}, {"factor": 0}, {"factor": [2]},
        {"factor": [1, 0]}, {"folders": ["ant"] * 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(saved, changes):
    edit(saved, **changes)
    with pytest.raises(ArtifactError):
        SurrogateSet.load(saved)


def test_a_class_name_that_is_no_unicode_survives(tmp_path):
    check_names(tmp_path, ("plain", b"gr\xf6\xdfe".decode(errors="surrogateescape")))
