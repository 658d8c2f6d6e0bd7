"""Lists of images: CSV, TSV and JSON Lines; names of classes from a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gendistill.cli import main
from gendistill.data.sources import load_data
from gendistill.errors import DataError
from tests.data.folders import as_set, fill, make, of_label, stored


@pytest.fixture
def images(tmp_path: Path) -> dict[str, list]:  # type: ignore[type-arg]
    return {name: fill(tmp_path / "files" / name, 8, seed=i) for i, name in enumerate(("cat", "dog"))}


def rows(label: dict[str, str], numbers: range = range(8)) -> list[tuple[str, str]]:
    return [(f"files/{name}/{i:03d}.png", label[name]) for name in label for i in numbers]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_list_of_paths_and_labels(tmp_path: Path, images: dict, kind: str) -> None:  # type: ignore[type-arg]
    found, path = rows({"cat": "a cat", "dog": "a, dog"}), tmp_path / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"file_name": f, "label": label}) + "\n" for f, label in found))
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        quoted = [(f, f'"{label}"') for f, label in found]
        path.write_text("\n".join(separator.join(row) for row in [("path", "label"), *quoted]))
    data = load_data(name=str(path))
    assert data.classes == ("a cat", "a, dog")
    assert of_label(data, 0) == stored(images["cat"])
    assert of_label(data, 1) == stored(images["dog"])
    assert data.options == {"name": str(path)}


def test_a_column_says_the_split_and_another_list_does(tmp_path: Path, images: dict) -> None:  # type: ignore[type-arg]
    label = {"cat": "0", "dog": "1"}
    parts = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    lines = [f"{f},{y},{part}" for (f, y), part in zip(rows(label), parts * 2, strict=True)]
    (tmp_path / "all.csv").write_text("\n".join(["image,class,split", *lines]))
    data = load_data(name=str(tmp_path / "all.csv"), test_fraction=0.5, validation="val")
    assert [split.counts(2) for split in (data.train, data.validation, data.test)] == [[4, 4], [2, 2], [2, 2]]
    assert as_set(data.test.images) == stored(images["cat"][6:] + images["dog"][6:])
    for name, numbers in (("train", range(5)), ("test", range(5, 8))):
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *map(",".join, rows(label, numbers))]))
    data = load_data(name=str(tmp_path / "train.csv"), test="test.csv")
    assert as_set(data.test.images) == stored(images["cat"][5:] + images["dog"][5:])
    assert data.classes == ("0", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nfiles/cat/000.png,a\nfiles/none.png,b", r"1 of 2 files .* are missing, .*none\.png"),
        ("a,b\nx,y", r"has the columns a, b; expected one of path, .* --data\.image_column"),
        ("path,label\nfiles/cat/000.png,", "1 row\\(s\\) without path or label, first row 1"),
        ('path,label\n"', "Cannot read"),
        ("", "Cannot read"),
    ],
    ids=["missing files", "columns", "no label", "damaged", "empty"],
)
def test_bad_lists_are_refused(tmp_path: Path, images: dict, text: str, message: str) -> None:  # type: ignore[type-arg]
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_data(name=str(tmp_path / "list.csv"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("names.txt", "Katze\nHund\n"), ("names.json", '["Katze", "Hund"]'), ("map.json", '{"0": "Katze", "1": "Hund"}')],
)
def test_numbers_get_names_from_a_file(tmp_path: Path, images: dict, name: str, text: str) -> None:  # type: ignore[type-arg]
    (tmp_path / name).write_text(text)
    lines = ["path,label", *map(",".join, rows({"cat": "0", "dog": "1"}))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    data = load_data(name=str(tmp_path / "list.csv"), class_names=tmp_path / name, cache=tmp_path / "cache")
    assert data.classes == ("Katze", "Hund")
    assert of_label(data, 0) == stored(images["cat"])
    (tmp_path / name).write_text(text.replace("Hund", "Wolf"))
    again = load_data(name=str(tmp_path / "list.csv"), class_names=tmp_path / name, cache=tmp_path / "cache")
    assert again.classes == ("Katze", "Wolf")


def test_class_folders_get_names_and_their_order_from_a_file(tmp_path: Path) -> None:
    make(tmp_path / "images", ("n01", "n02"))
    (tmp_path / "names.json").write_text('{"n02": "tench", "n01": "cock"}')
    plain = load_data(name=str(tmp_path / "images"))
    data = load_data(name=str(tmp_path / "images"), class_names=tmp_path / "names.json")
    assert data.classes == ("tench", "cock")
    assert of_label(data, 0) == of_label(plain, 1)


@pytest.mark.parametrize("text", ["one\n", "a\na\n", "{", "[1, 2]"], ids=["one", "twice", "damaged", "numbers"])
def test_bad_class_names_are_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "images")
    (tmp_path / "names.json").write_text(text)
    words = ["--data", str(tmp_path / "images"), "--data.class_names", str(tmp_path / "names.json")]
    assert main(["distill", "--method", "random", "--ipc", "1", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "data.class_names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


NOTHING = {"null": "null", "absent": None, "not a number": "NaN", "blank": '" "'}


@pytest.mark.parametrize("kind", NOTHING)
@pytest.mark.parametrize("column", ["path", "label"])
def test_a_row_without_path_or_label_is_refused(tmp_path: Path, images: dict, kind: str, column: str) -> None:  # type: ignore[type-arg]
    row = {"path": '"files/cat/000.png"', "label": "1", column: NOTHING[kind]}
    text = "".join(json.dumps({"path": p, "label": int(n)}) + "\n" for p, n in rows({"cat": "0", "dog": "1"}))
    values = ", ".join(f'"{name}": {value}' for name, value in row.items() if value)
    (tmp_path / "list.jsonl").write_text(f"{text}{{{values}}}\n")
    with pytest.raises(DataError, match=r"1 row\(s\) without path or label, first row 17"):
        load_data(name=str(tmp_path / "list.jsonl"))


def test_whole_numbers_stay_whole_beside_a_byte_order_mark(tmp_path: Path, images: dict) -> None:  # type: ignore[type-arg]
    text = "".join(json.dumps({"path": p, "label": int(n)}) + "\n" for p, n in rows({"cat": "2", "dog": "10"}))
    (tmp_path / "list.jsonl").write_text("\ufeff" + text + "\n")
    assert load_data(name=str(tmp_path / "list.jsonl")).classes == ("2", "10")


def test_a_nested_label_is_refused(tmp_path: Path, images: dict) -> None:  # type: ignore[type-arg]
    (tmp_path / "list.jsonl").write_text('{"path": "files/cat/000.png", "label": {"name": "cat"}}\n')
    with pytest.raises(DataError, match=r"line 1 has .* as label"):
        load_data(name=str(tmp_path / "list.jsonl"))


@pytest.mark.parametrize("name", ["pipe.png", "files/cat", "/dev/zero"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path: Path, images: dict, name: str) -> None:  # type: ignore[type-arg]
    os.mkfifo(tmp_path / "pipe.png")
    found = [*rows({"cat": "cat", "dog": "dog"}), (name, "cat")]
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, [("path", "label"), *found])))
    with pytest.raises(DataError, match=r"1 of 17 files .* no regular files"):
        load_data(name=str(tmp_path / "list.csv"))


@pytest.mark.parametrize("options", [{"test": "other.csv"}, {"test": "files"}, {"train": "x"}, {"validation": "x"}])
def test_an_option_that_names_no_part_of_a_list_is_refused(tmp_path: Path, images: dict, options: dict) -> None:  # type: ignore[type-arg]
    found = rows({"cat": "cat", "dog": "dog"})
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, [("path", "label"), *found])))
    with pytest.raises(DataError, match="has no column split, and there is no list of this name"):
        load_data(name=str(tmp_path / "list.csv"), **options)


def test_a_list_without_rows_is_refused(tmp_path: Path, images: dict) -> None:  # type: ignore[type-arg]
    found = rows({"cat": "cat", "dog": "dog"})
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, [("path", "label"), *found])))
    (tmp_path / "none.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"none.csv has no row"):
        load_data(name=str(tmp_path / "list.csv"), test="none.csv")


def test_labels_of_thousands_of_digits_are_text(tmp_path: Path, images: dict) -> None:  # type: ignore[type-arg]
    found = rows({"cat": "9" * 5000, "dog": "2"})
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, [("path", "label"), *found])))
    assert load_data(name=str(tmp_path / "list.csv")).classes == ("2", "9" * 5000)


@pytest.mark.parametrize("name", ["list.csv", "names.txt"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, images: dict, name: str) -> None:  # type: ignore[type-arg]
    os.mkfifo(tmp_path / name)
    options = (
        {"name": str(tmp_path / "files"), "class_names": str(tmp_path / name)}
        if name == "names.txt"
        else {"name": str(tmp_path / name)}
    )
    with pytest.raises(DataError):
        load_data(**options)


def test_a_list_of_one_class_is_refused(tmp_path: Path, images: dict) -> None:  # type: ignore[type-arg]
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, [("path", "label"), *rows({"cat": "cat"})])))
    with pytest.raises(DataError, match=r"has 1 class\(es\) \(cat\); expected at least two classes"):
        load_data(name=str(tmp_path / "list.csv"))


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_list_without_training_split_is_refused_until_one_is_named(tmp_path: Path, images: dict, name: str) -> None:  # type: ignore[type-arg]
    lines = [f"{path},{label},{name}" for path, label in rows({"cat": "cat", "dog": "dog"})]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    with pytest.raises(DataError, match=rf"has only {name}, .* no training split\. Give --data\.train {name}"):
        load_data(name=str(tmp_path / "list.csv"))
    assert load_data(name=str(tmp_path / "list.csv"), train=name).classes == ("cat", "dog")


def test_a_class_name_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "images")
    (tmp_path / "names.json").write_text('["Katze", "Hund", "\\ud800"]')
    with pytest.raises(DataError, match=r"has the name '\\ud800', which is no text") as caught:
        load_data(name=str(tmp_path / "images"), class_names=tmp_path / "names.json")
    assert str(caught.value).isprintable()
