"""Folders of class folders as people have them: which are splits, which files are read, what is said of the rest."""

import io
import os

import pytest
from PIL import Image

from gendistill.errors import ConfigError, DataError
from tests.data.folders import as_set, everything, fill, load, make, of_label, pixels, stored
from tests.helpers import gendistill

NAMES = ("cat", "dog")


def split(root, train, test, **more):
    """Split folders by path, 6 images a class for training and 3 for others; returns the test images."""
    for i, name in enumerate(NAMES):
        fill(root / train / name, 6, seed=i)
    found = []
    for number, place in enumerate((test, *more.values())):
        for i, name in enumerate(NAMES):
            arrays = fill(root / place / name, 3, seed=10 * (number + 1) + i)
            found += arrays if place == test else []
    return found


# which folders are splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train", "eval"),
        ("Training", "Testing"),
        ("train2017", "val2017"),
        ("images-train", "images-dev"),
        ("trainImages", "validImages"),
        ("train/images", "test/images"),
        ("archive/train", "archive/val"),
        ("archive/seg_train/seg_train", "archive/seg_test/seg_test"),
    ],
)
def test_split_folders_are_known_by_a_word_of_their_names_and_one_level_deeper(tmp_path, train, test):
    held_out = split(tmp_path, train, test)
    data = load(tmp_path)
    assert data.classes == NAMES
    assert as_set(data.test.images) == stored(held_out)
    assert len(everything(data)[1]) == 18
    assert f"from {train}/" in data.reading
    assert f"6 for test from {test}/" in data.reading


def test_a_test_folder_is_preferred_and_validation_is_named_as_left_out_or_read_when_asked_for(tmp_path):
    held_out = split(tmp_path, "train", "test", validation="val")
    data = load(tmp_path)
    assert as_set(data.test.images) == stored(held_out)
    assert "left out: 1 folder(s) of no split" in data.reading
    assert "(val/)" in data.reading
    data = load(tmp_path, validation="val")
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 6)
    assert "6 for validation from val/" in data.reading
    assert "left out" not in data.reading
    data = load(tmp_path, test="val", train="train")
    assert as_set(data.test.images) != stored(held_out)
    assert "(test/)" in data.reading


def test_no_test_split_is_read_where_it_is_to_be_held_out(tmp_path):
    split(tmp_path, "train", "test")
    data = load(tmp_path, test="none")
    assert len(everything(data)[1]) == 12
    assert "for test held out from these" in data.reading


def test_a_lone_training_folder_and_a_folder_around_the_classes(tmp_path):
    make(tmp_path / "a" / "train")
    make(tmp_path / "b" / "PetImages")
    assert load(tmp_path / "a").classes == load(tmp_path / "b").classes == NAMES
    assert "from PetImages/" in load(tmp_path / "b").reading


@pytest.mark.parametrize("sibling", ["extra/cat", "extra", "train_more/cat"])
def test_a_folder_beside_train_is_refused_until_train_is_named(tmp_path, sibling):
    make(tmp_path / "train")
    fill(tmp_path / sibling, 2, seed=8)
    with pytest.raises(DataError, match=r"--data\.train train to set it aside, or --data\.train \. where"):
        load(tmp_path)
    data = load(tmp_path, train="train")
    assert data.classes == NAMES
    assert f"({sibling.split('/')[0]}/)" in data.reading


@pytest.mark.parametrize("place", ["seg_pred", "seg_pred/seg_pred"])
def test_unlabelled_images_beside_a_training_and_a_test_split_are_left_out_by_name(tmp_path, place):
    split(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
    fill(tmp_path / place, 4)
    data = load(tmp_path)
    assert len(everything(data)[1]) == 18
    assert "(seg_pred/)" in data.reading


def test_two_training_folders_are_refused_until_one_is_named(tmp_path):
    make(tmp_path / "train_a")
    make(tmp_path / "train_b")
    with pytest.raises(DataError, match=r"several .* training|several parts that could be its train split"):
        load(tmp_path)
    assert "from train_b/" in load(tmp_path, train="train_b").reading


def test_split_folders_without_a_training_folder_are_refused(tmp_path):
    make(tmp_path / "test")
    make(tmp_path / "val")
    with pytest.raises(DataError, match=r"no training split .* --data\.train test"):
        load(tmp_path)
    data = load(tmp_path, train="test", test="val")
    assert (data.classes, len(data.test)) == (NAMES, 12)


@pytest.mark.parametrize("name", ["test", "val", "seg_test/seg_test"])
def test_a_lone_test_or_validation_folder_is_refused_until_it_is_named(tmp_path, name):
    make(tmp_path / name)
    top = name.partition("/")[0]
    with pytest.raises(DataError, match=rf"no training split.* --data\.train {top}"):
        load(tmp_path)
    assert load(tmp_path, train=top).classes == NAMES
    assert load(tmp_path / top).classes == NAMES


def test_flat_split_folders_are_refused_unless_they_are_named_as_the_classes(tmp_path):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "test", 6, seed=1)
    with pytest.raises(DataError, match="no class folders"):
        load(tmp_path)
    assert load(tmp_path, train=".").classes == ("test", "train")


def test_a_flat_val_folder_is_not_called_empty(tmp_path):
    make(tmp_path / "train")
    fill(tmp_path / "val", 4)
    with pytest.raises(DataError, match=r"val holds images without labels.*--data\.test none"):
        load(tmp_path)
    assert len(everything(load(tmp_path, test="none"))[1]) == 12


def test_classes_that_hold_only_folders_are_refused_until_the_level_is_named(tmp_path):
    for place in ("a/airfield", "a/alley", "b"):
        fill(tmp_path / place, 4, seed=len(place))
    with pytest.raises(DataError, match=r"holds only folders \(airfield, alley\).*--data\.train \."):
        load(tmp_path)
    data = load(tmp_path, train=".")
    assert data.classes == ("a", "b")
    assert len(everything(data)[1]) == 12


def test_an_empty_class_beside_a_hierarchy_is_not_passed_over(tmp_path):
    for place in ("a/airfield", "a/alley"):
        fill(tmp_path / place, 4)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="holds only folders"):
        load(tmp_path)


def test_tiny_imagenet(tmp_path):
    """train/<class>/images, val/images with val_annotations.txt, and test/images without labels."""
    for i, name in enumerate(("n01", "n02")):
        fill(tmp_path / "train" / name / "images", 6, seed=i)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("000.png\t0\t0\t7\t7\n")
    arrays = fill(tmp_path / "val" / "images", 5, seed=7)
    fill(tmp_path / "test" / "images", 4, seed=8)
    labels = ["n02", "n01", "n02", "n01"]
    lines = [f"{i:03d}.png\t{name}\t0\t0\t7\t7\n" for i, name in enumerate(labels)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    data = load(tmp_path)
    assert data.classes == ("n01", "n02")
    assert data.test.labels.tolist() == [1, 0, 1, 0]
    assert as_set(data.test.images) == stored(arrays[:4])
    assert "4 for test from val/" in data.reading
    assert "1 file(s) that val_annotations.txt does not name" in data.reading
    assert "(test/)" in data.reading
    assert "2 file(s) of type .txt" in data.reading


@pytest.mark.parametrize("option", ["train", "test", "validation"])
def test_an_option_that_names_no_folder_is_refused_with_the_folders_there(tmp_path, option):
    split(tmp_path, "train", "test")
    with pytest.raises(DataError, match=rf"--data\.{option} is 'nowhere'.*test, train"):
        load(tmp_path, **{option: "nowhere"})


def test_options_that_do_not_apply_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="image_column applies to parquet"):
        load(make(tmp_path), image_column="image")
    with pytest.raises(ConfigError, match="train does not apply to the built-in digits"):
        load("digits", train="train")


# which files are read


def test_hidden_and_system_names_are_skipped_at_every_depth_and_counted(tmp_path):
    make(tmp_path, count=6)
    for place in ("cat/.ipynb_checkpoints", "cat/deeper/.cache", "__MACOSX/cat", "dog/__MACOSX", "dog/@eaDir"):
        fill(tmp_path / place, 6)
    (tmp_path / "cat" / "._000.png").write_bytes(b"\0\5\x16\7")
    data = load(tmp_path)
    assert data.classes == NAMES
    assert len(everything(data)[1]) == 12
    assert data.problems == ()
    assert "6 hidden or system name(s)" in data.reading


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.avif", "AVIF"), ("a.jp2", "JPEG2000"), ("0001", "PNG"), ("a.2", "PNG")],
)
def test_images_of_rare_types_and_without_type_are_read(tmp_path, name, kind):
    make(tmp_path)
    file = io.BytesIO()
    Image.fromarray(pixels(99)).save(file, kind)
    (tmp_path / "cat" / name).write_bytes(file.getvalue())
    data = load(tmp_path)
    assert len(of_label(data, 0)) == 7
    assert data.problems == ()


def test_what_is_no_image_is_counted_by_type(tmp_path):
    make(tmp_path)
    for name in ("notes.txt", "more.TXT", "box.xml", "LICENCE"):
        (tmp_path / "cat" / name).write_text("none")
    (tmp_path / "labels.csv").write_text("none")
    Image.fromarray(pixels(5)).save(tmp_path / "loose.png")
    reading = load(tmp_path).reading
    for text in (
        "2 file(s) of type .txt (cat/more.TXT, cat/notes.txt)", "1 file(s) of type .xml", "1 file(s) of no type",
        "1 file(s) of type .csv", "1 image(s) outside the class folders (loose.png)",
    ):  # fmt: skip
        assert text in reading


def test_links_are_followed_once(tmp_path):
    root, elsewhere = make(tmp_path / "data"), tmp_path / "elsewhere"
    arrays = fill(elsewhere, 3, seed=5)
    (root / "cat" / "more").symlink_to(elsewhere)
    (root / "cat" / "again").symlink_to(elsewhere)
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "owl").symlink_to(elsewhere)
    (root / "all").symlink_to(root)
    data = load(root)
    assert data.classes == ("cat", "dog", "owl")
    assert [len(of_label(data, label)) for label in range(3)] == [9, 6, 3]
    assert stored(arrays) < of_label(data, 0)
    assert "4 link(s) to folders that are read already" in data.reading
    assert "1 broken link(s) (" in data.reading


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(make(tmp_path) / "cat" / "pipe.png")
    data = load(tmp_path)
    assert len(everything(data)[1]) == 12
    assert "1 name(s) that are no regular file" in data.reading


@pytest.mark.slow
def test_names_that_are_not_utf_8_stop_no_run(tmp_path):
    root = make(tmp_path / "data")
    strange = os.fsdecode(b"caf\xe9")
    fill(root / strange, 6, seed=4)
    (root / strange / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    data = load(root)
    assert data.classes == ("caf\\xe9", "cat", "dog")
    [problem] = data.problems
    assert "caf\\xe9/\\xff.png cannot be read" in problem
    assert problem.encode()
    out = tmp_path / "set"
    made = ("distill", "--data.name", root, "--method", "random", "--ipc", 1, "--output_dir", out)
    assert gendistill(*made) == 0
    assert "caf\\xe9" in (out / "ipc-1" / "manifest.json").read_text().replace("\\\\", "\\")
    judged = ("evaluate", "--surrogate", out / "ipc-1", "--data.name", root, "--runs", 3, "--steps", 1, "--width", 8)
    assert gendistill(*judged, "--baselines", "[random]", "--output_dir", tmp_path / "evaluation") == 0
    assert "caf\\xe9" in (tmp_path / "evaluation" / "summary.json").read_text(encoding="utf-8").replace("\\\\", "\\")


# what is said


def test_a_class_without_test_images_is_named(tmp_path):
    split(tmp_path, "train", "test")
    fill(tmp_path / "train" / "owl", 6, seed=3)
    assert load(tmp_path).reading.endswith("; no test image of 1 class(es): owl")


def test_a_class_of_two_images_is_said_to_have_two(tmp_path):
    fill(make(tmp_path) / "owl", 2)
    with pytest.raises(DataError, match=r"'owl' has 2 usable .* at least 3"):
        load(tmp_path)
    fill(tmp_path / "owl", 3)
    assert load(tmp_path).train.counts(3)[2] == 1


def test_empty_classes_are_left_out_when_asked_for(tmp_path):
    split(tmp_path, "train", "test")
    (tmp_path / "train" / "ant").mkdir()
    fill(tmp_path / "test" / "ant", 2, seed=3)
    with pytest.raises(DataError, match=r"Empty class .* ant \(1 of 3 classes\).*--data\.classes present"):
        load(tmp_path)
    data = load(tmp_path, classes="present")
    assert data.classes == NAMES
    assert len(data.test) == 6
    assert "1 classes without training images with 2 image(s) of other splits (ant)" in data.reading


def test_the_command_line_says_in_one_line_what_was_read(tmp_path, capfd):
    split(tmp_path / "data", "train", "eval")
    (tmp_path / "data" / "cat.txt").write_text("none")
    options = ("--method", "random", "--ipc", 1, "--output_dir", tmp_path / "set")
    assert gendistill("distill", "--data.name", tmp_path / "data", *options) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "images for training" in line]
    assert lines == [
        "gendistill: 2 classes; 10 images for training from train/, 2 for validation held out from these, 6 for test "
        "from eval/; left out: 1 file(s) of type .txt (cat.txt)"
    ]


def test_max_per_class_leaves_the_test_split_alone(tmp_path):
    make(tmp_path, count=24)
    whole, few = load(tmp_path), load(tmp_path, max_per_class=5)
    assert few.test_fingerprint == whole.test_fingerprint
    assert [n + m for n, m in zip(few.train.counts(2), few.validation.counts(2), strict=True)] == [5, 5]
    kept = as_set(few.train.images) | as_set(few.validation.images)
    assert kept < as_set(whole.train.images) | as_set(whole.validation.images)
