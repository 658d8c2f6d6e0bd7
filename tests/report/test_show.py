"""`gendistill show`: what it writes with and without real images, what it refuses, and that sets stay as they are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

import gendistill.report.show as show_module
from gendistill.data.dataset import RealData, Split
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ArtifactError
from gendistill.networks.teacher import Teacher
from gendistill.report.images import GAP, MARGIN, NAME, contact_sheet, fit, name_on_sheet, shorten
from gendistill.report.sets import set_names
from gendistill.report.show import facts_of, numbers, show
from gendistill.surrogate.set import SurrogateSet
from tests.data.mapped import MOST, noise, stored
from tests.helpers import files, gendistill

SMALL = ("--data.max_per_class", 12)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random and a k-means set of some digits, and a teacher of the same."""
    folder = tmp_path_factory.mktemp("made")
    for method in ("random", "kmeans"):
        assert gendistill("distill", "--method", method, "--ipc", 2, "--output_dir", folder / method, *SMALL) == 0
    options = ("--steps", 2, "--width", 4, *SMALL)
    assert gendistill("teacher", "--output_dir", folder / "teacher", *options) == 0
    return folder


def load(folder: Path) -> dict:
    return json.loads((folder / "show.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def words(folder: Path) -> str:
    return re.sub(r"\s+", " ", (folder / "show.html").read_text(encoding="utf-8"))


def assert_loads_nothing(folder: Path) -> None:
    page = words(folder)
    assert "http" not in page
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert not re.search(r"url\(|@import|<script|<link", page)


def test_without_real_images_it_makes_sheets_and_says_how_to_see_more(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, unknown = tmp_path / "out", without_origin(made / "kmeans" / "ipc-2", tmp_path / "ipc-2")
    assert gendistill("show", unknown, "--output_dir", out) == 0
    assert names(out) == ["contact_sheet.png", "show.html", "show.json"]
    assert_loads_nothing(out)
    page = words(out)
    assert "<code>--data.name</code>" in page
    assert "<code>--teacher DIR</code>" in page
    assert "How close" not in page
    assert load(out)["sets"]["ipc-2"]["copies"] is None
    said = capsys.readouterr().out
    assert f"{out / 'show.html'}" in said
    assert "--data or --teacher" in said
    assert "cannot be used" not in said


def without_origin(folder: Path, target: Path) -> Path:
    """The set without what its manifest says of the real images."""
    loaded = SurrogateSet.load(folder)
    replace(loaded, meta={k: v for k, v in loaded.meta.items() if k != "data"}).save(target)
    return target


@pytest.mark.slow
def test_without_data_it_reads_the_images_that_the_set_was_made_from(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made / "kmeans" / "ipc-2"
    assert gendistill("show", source, "--output_dir", tmp_path / "given", *SMALL) == 0
    assert gendistill("show", source, "--output_dir", tmp_path / "recorded") == 0
    assert "20 are copies of training images" in capsys.readouterr().out
    without = ("command", "versions")
    given, recorded = (
        {k: v for k, v in load(tmp_path / name).items() if k not in without} for name in ("given", "recorded")
    )
    assert recorded == given
    assert gendistill("show", source, "--output_dir", tmp_path / "tsne", "--projection", "tsne") == 0
    assert load(tmp_path / "tsne")["projection"]["method"] == "tsne"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "/gone/away"}, "there is no such folder"),
        ({"name": "digits", "split_seed": 7}, "made from other images or splits"),
        ({"name": "digits", "image_size": 2}, "data.image_size is 2"),
        ({"name": "digits", "colour": "red"}, "colour"),
    ],
)
def test_it_shows_the_set_alone_where_these_images_cannot_be_read(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict, reason: str
) -> None:
    loaded = SurrogateSet.load(made / "kmeans" / "ipc-2")
    replace(loaded, meta={**loaded.meta, "data": {**loaded.meta["data"], "options": options}}).save(tmp_path / "set")
    assert gendistill("show", tmp_path / "set", "--output_dir", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["contact_sheet.png", "show.html", "show.json"]
    said = capsys.readouterr().out
    assert "The real images are not shown" in said
    assert reason in said
    assert gendistill("show", tmp_path / "set", "--output_dir", tmp_path / "no", "--projection", "tsne") == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_beside_real_images_it_checks_draws_and_tells(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sets = tmp_path / "out", (made / "kmeans" / "ipc-2", made / "random" / "ipc-2")
    before = [files(path, "**/*") for path in sets]
    assert gendistill("show", *sets, "--output_dir", out, *SMALL) == 0
    sheets = ["contact_sheet-kmeans-ipc-2.png", "contact_sheet-random-ipc-2.png"]
    assert names(out) == ["closest_pairs.png", *sheets, "projection.svg", "show.html", "show.json"]
    assert_loads_nothing(out)
    record = load(out)
    assert record["projection"]["space"] == "pixels"
    assert record["projection"]["points"] == {"kmeans-ipc-2": 20, "random-ipc-2": 20}
    for found in record["sets"].values():
        assert found["copies"]["exact"] == {"train": 20, "validation": 0, "test": 0}
        assert (found["copies"]["near"], found["copies"]["images"]) == (20, 20)
        assert found["closest"][0]["file"] == "train/0/00000.png"
    line = "kmeans-ipc-2: 20 images: 20 are copies of training images; 20 closer than 99 % of held-out real images"
    assert line in capsys.readouterr().out
    assert "Among the real images" in words(out)
    assert [files(path, "**/*") for path in sets] == before


def test_with_a_teacher_it_reads_the_teacher_s_data_and_features(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--teacher", made / "teacher", "--projection", "tsne")
    assert gendistill("show", made / "kmeans" / "ipc-2", "--output_dir", out, *options) == 0
    record = load(out)
    assert (record["projection"]["space"], record["projection"]["method"]) == ("teacher features", "tsne")
    copies = record["sets"]["ipc-2"]["copies"]
    assert (copies["space"], copies["near"], copies["median"]) == ("teacher features", 20, pytest.approx(0, abs=1e-5))
    assert record["data"]["counts"]["train"] == [11] * 10  # of 12, without validation
    assert "root mean square difference of the teacher features" in words(out)
    assert "t-SNE" in (out / "projection.svg").read_text()


def test_images_of_the_test_split_are_found_by_file(digits: RealData, tmp_path: Path) -> None:
    picked = distill(digits, "random", 2, seed=1)
    images = 255 - picked.images
    images[5] = digits.test.images[17]
    record = show({"set": replace(picked, images=images)}, tmp_path, data=digits)
    found = record["sets"]["set"]
    assert found["copies"]["exact"] == {"train": 0, "validation": 0, "test": 1}
    place = {"file": "train/2/00001.png", "view": 0, "split": "test", "position": 17, "distance": 0.0}
    assert found["copies_of_held_out"] == [place]
    assert found["closest"][0] == place
    assert "1 is a copy of a test image" in words(tmp_path)
    assert load(tmp_path) == json.loads(json.dumps(record))


def test_packed_sets_are_compared_by_their_views(digits: RealData, tmp_path: Path) -> None:
    splits = [_doubled(split) for split in (digits.train, digits.validation, digits.test)]
    big = RealData("big", digits.classes, *splits)
    packed = replace(distill(big, "random", 2), factor=2, meta={})
    record = show({"set": packed}, tmp_path, data=big)
    assert names(tmp_path)[:3] == ["closest_pairs.png", "contact_sheet.png", "contact_sheet_views.png"]
    assert record["sets"]["set"]["copies"]["images"] == 80
    assert dict(facts_of(packed))["Images"] == "20, decoded to 80"
    rows = record["sets"]["set"]["closest"]
    assert {row["view"] for row in rows} == {0, 1, 2, 3}
    assert {row["file"].rsplit("/", 1)[1] for row in rows} <= {"00000.png", "00001.png"}


def _doubled(split: Split) -> Split:
    return Split(split.images.repeat_interleave(2, 2).repeat_interleave(2, 3), split.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.split_seed", 1), "made from other images or splits"),
        ((*SMALL, "--data.image_size", 12), "made from other images or splits"),
        (("--data.name", "nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_other_data_are_refused_and_nothing_is_left(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple, message: str
) -> None:
    out = tmp_path / "out"
    assert gendistill("show", made / "kmeans" / "ipc-2", "--output_dir", out, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_classes_and_sizes_are_refused(digits: RealData, tmp_path: Path) -> None:
    picked = distill(digits, "random", 1)
    with pytest.raises(ArtifactError, match="the surrogate set set has classes"):
        show({"set": replace(picked, classes=tuple("abcdefghij"))}, tmp_path, data=digits)
    with pytest.raises(ArtifactError, match=r"are \(1, 4, 4\) \(C,H,W\), the real ones \(1, 8, 8\)"):
        show({"set": replace(picked, images=picked.images[..., :4, :4], meta={})}, tmp_path, data=digits)


def test_output_is_guarded(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = made / "kmeans" / "ipc-2", tmp_path / "out"
    assert gendistill("show", source, "--output_dir", source) == 2
    assert gendistill("show", source, "--output_dir", out) == 0
    assert gendistill("show", source, "--output_dir", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    (out / "mark").touch()
    assert gendistill("show", source, "--output_dir", out, "--overwrite") == 0
    assert not (out / "mark").exists()
    assert {"contact_sheet.png", "show.html", "show.json"} <= {*names(out)}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    assert gendistill("show", source, "--output_dir", mine, "--overwrite") == 2
    assert names(mine) == ["notes.txt"]


def test_options_that_would_do_nothing_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = without_origin(made / "kmeans" / "ipc-2", tmp_path / "ipc-2")
    assert gendistill("show", source, "--output_dir", tmp_path / "out", "--projection", "tsne") == 2
    assert "projection is 'tsne', but there are no real images to project" in capsys.readouterr().err
    assert gendistill("show", source, source, "--output_dir", tmp_path / "out") == 2
    assert "given twice" in capsys.readouterr().err


def test_sets_are_told_apart_by_short_names(tmp_path: Path) -> None:
    assert set_names([tmp_path / "a" / "ipc-1", tmp_path / "a" / "ipc-10"]) == ["ipc-1", "ipc-10"]
    assert set_names([tmp_path / "a" / "ipc-1", tmp_path / "b" / "ipc-1"]) == ["a-ipc-1", "b-ipc-1"]
    assert set_names([tmp_path / "my set\n<1>"]) == ["my_set_1_"]
    odd = set_names([tmp_path / "x?", tmp_path / "x!", tmp_path / "X_"])
    assert len({name.casefold() for name in odd}) == 3
    assert all(re.fullmatch(r"[\w.=+-]+", name) for name in odd)


def test_sheet_holds_the_images_own_pixels_in_class_order(digits: RealData) -> None:
    picked = distill(digits, "random", 3)
    sheet = np.asarray(contact_sheet(picked.split, picked.classes, "title"))
    for label in (0, 9):
        tile = picked.of_class(label)[2].repeat_interleave(6, 1).repeat_interleave(6, 2)
        wanted = np.repeat(tile.numpy().transpose(1, 2, 0), 3, 2)
        corners = np.argwhere((sheet[:-47, :-47] == wanted[0, 0]).all(2))
        assert sum((sheet[y : y + 48, x : x + 48] == wanted).all() for y, x in corners) == 1
    row = 48 + GAP
    assert row * 5 < sheet.shape[0] < row * 10 + 4 * MARGIN + 40


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=1500).filter(any),
    st.integers(10, 300),
    st.integers(10_000, 20_000_000),
)
def test_sheets_are_bounded_whatever_the_set(counts: list[int], row: int, most: int) -> None:
    classes, shown = fit(counts, row, most)
    assert len(classes) * shown * row**2 <= max(most, row**2)
    assert 1 <= shown <= 10
    assert classes == sorted(set(classes))
    if shown > 1:
        assert len(classes) == len(counts)


def test_many_classes_stand_in_columns_and_what_is_left_out_is_said() -> None:
    labels = torch.arange(120).repeat_interleave(12)
    images = torch.randint(0, 256, (len(labels), 3, 32, 32), dtype=torch.uint8)
    classes = [f"class {i}" for i in range(120)]
    whole = contact_sheet(Split(images, labels), classes, "title")
    assert 0.6 < whole.width / whole.height < 2.5
    small = contact_sheet(Split(images, labels), classes, "title", most_pixels=100_000, widest=400)
    assert small.width <= 400
    assert small.width * small.height < whole.width * whole.height / 4


def test_names_on_sheets_are_cut_and_never_boxes() -> None:
    font = ImageFont.load_default(13)
    assert name_on_sheet("façade\nof a  house", 3, font) == "facade of a house"
    assert name_on_sheet("собака", 3, font) == "class 3"
    assert name_on_sheet("", 3, font) == "class 3"
    long = name_on_sheet("word " * 400, 3, font)
    assert long.startswith("word word")
    assert long.endswith("...")
    assert font.getlength(long) <= NAME
    assert shorten("W", font, 1) == "..."


def test_uneven_sets_and_hostile_names_are_shown(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    names_ = ("<b>../../x</b>", "пусто", "z" * 300)
    labels = torch.tensor([0, 0, 0, 2])
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=rng, dtype=torch.uint8)
    uneven = SurrogateSet(images, labels, names_, {"method": "m"})
    many = torch.randint(0, 256, (3, 30, 3, 16, 16), generator=rng, dtype=torch.uint8).flatten(0, 1)
    splits = [Split(many, torch.arange(3).repeat_interleave(30)) for _ in range(3)]
    show({"set": uneven}, tmp_path, data=RealData("real", names_, *splits))
    page = words(tmp_path)
    assert "<b>../../x</b>" not in page
    assert "<b>../../x</b>" not in (tmp_path / "projection.svg").read_text()
    assert dict(facts_of(uneven))["Images per class"] == "0 to 3"
    assert numbers(uneven, None)["counts"] == {"<b>../../x</b>": 3, "пусто": 0, "z" * 300: 1}
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width < 1000


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_collection_in_a_file_is_shown_as_one_in_memory(made: Path, tmp_path: Path, with_teacher: bool) -> None:
    small = load_data(max_per_class=12)
    teacher = Teacher.from_pretrained(made / "teacher") if with_teacher else None
    sets = {name: SurrogateSet.load(made / name / "ipc-2") for name in ("random", "kmeans")}
    for name, data in (("memory", small), ("file", stored(small))):
        show(sets, tmp_path / name, data=data, teacher=teacher)
    ours, theirs = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("memory", "file"))
    assert ours == theirs


def test_no_step_of_a_report_reads_all_images_together(tmp_path: Path) -> None:
    data = stored(noise(3 * MOST))
    show(distill(data, "random", 1), tmp_path, data=data)


def test_of_very_many_pairs_of_images_some_are_measured(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, shown = load_data(max_per_class=12), SurrogateSet.load(made / "random" / "ipc-2")
    monkeypatch.setattr(show_module, "MOST_MEASURED", 3)
    distances = len(data.train) * (20 + len(data.validation))
    for limit, measured in ((distances, 20), (distances - 1, 3)):
        monkeypatch.setattr(show_module, "MOST_DISTANCES", limit)
        found = show({"set": shown}, tmp_path, data=data)
        assert found["sets"]["set"]["copies"]["measured"] == measured
