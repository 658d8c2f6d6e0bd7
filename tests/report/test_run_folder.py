"""`gendistill report` of runs and evaluations together: what it writes, shares, leaves out and refuses."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_pil
from gendistill.errors import ArtifactError
from gendistill.evaluation.baselines import random_draw
from gendistill.report.run_folder import (
    CONTINUAL,
    CONTINUAL_PAGE,
    read_finished,
    recorded_data,
    recorded_options,
    recorded_paths,
)
from gendistill.surrogate.image_folder import read_plain
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill
from tests.report.summaries import make_evaluation, make_run, make_set, write_images

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page; elements must close in order, pictures need words, and every table a head or a caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[set[str]] = []
        self.feed(text)
        self.close()
        assert not self.open
        assert all(found & {"thead", "caption"} for found in self.tables)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "img":
            assert found["alt"]
        if tag == "svg":
            assert found.get("aria-hidden") == "true" or found["aria-label"]
        if tag == "table":
            self.tables.append(set())
        if self.tables:
            self.tables[-1].add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def words(folder: Path) -> str:
    text = (folder / "report.html").read_text(encoding="utf-8")
    Page(text)
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert not re.search(r"url\(|@import|<script|<link|https?:", text)
    return re.sub(r"\s+", " ", text).replace("‑", "-")


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def data(tmp_path: Path) -> RealData:
    return write_images(tmp_path / "images")


def made(data: RealData, method: str, ipc: int = 1, shift: int = 0) -> SurrogateSet:
    found = make_set(data, ipc, "")
    return replace(found, images=found.images - shift, meta={"method": method, "stage": None, "stages": []})


def evaluation(tmp_path: Path, data: RealData, name: str = "ev") -> Path:
    """Of two dm sets, given by paths relative to where the command was."""
    sets = {tmp_path / "one" / "ipc-1": made(data, "dm"), tmp_path / "two" / "ipc-1": made(data, "dm", shift=9)}
    command = f"gendistill evaluate --surrogate '[one/ipc-1,two/ipc-1]' --data.name images --output_dir {name}"
    return make_evaluation(tmp_path / name, data, sets, command)


def test_a_run_and_an_evaluation_on_one_page(tmp_path: Path, data: RealData) -> None:
    run, other, out = make_run(tmp_path / "run", data), evaluation(tmp_path, data), tmp_path / "out"
    assert gendistill("report", run, other, "--output_dir", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.csv", "report.html", "report.json"]
    assert not (run / "report.html").exists()
    page, found = words(out), numbers(out)
    shared = [row for row in found["rows"] if row["runs"] == ["run", "ev"]]
    assert [(row["method"], row["ipc"]) for row in shared] == [("random", 1)]
    labels = [row["label"] for row in found["rows"] if row["ipc"] == 1]
    assert labels == ["random real images", "k-means (pixels)", "+ refinement", "dm, one", "dm, two"]
    assert [run["name"] for run in found["runs"]] == ["run", "ev"]
    assert found["runs"][1]["commands"][0].startswith("gendistill evaluate")
    assert found["verdicts"][0]["among"] == 3
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found["rows"])
    for expected in ("The best of 3 by test accuracy", "Class by class", "The pictures", "Among the real images",
                     "the refined set of run at IPC 2", "gendistill evaluate --surrogate", "dm, one</td>",
                     "dm, two"):  # fmt: skip
        assert expected in page, expected
    assert "Not shown" not in page


def test_one_evaluation_gets_its_report_beside_its_summary(tmp_path: Path, data: RealData) -> None:
    folder = evaluation(tmp_path, data)
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "Accuracy by stored bytes" not in page  # which would repeat the chart by IPC
    assert "Accuracy by seconds" not in page
    assert [row["set_name"] for row in numbers(folder)["rows"]] == [None, "one", "two"]


def only(found: SurrogateSet, positions: list[int]) -> SurrogateSet:
    at = torch.tensor(positions)
    return replace(found, images=found.images[at], labels=found.labels[at])


def evaluation_of(tmp_path: Path, data: RealData, found: SurrogateSet) -> Path:
    """Of one set, which lies in the folder ``mine``."""
    command = "gendistill evaluate --surrogate mine --data.name images --output_dir ev"
    return make_evaluation(tmp_path / "ev", data, {tmp_path / "mine": found}, command)


def test_a_class_without_images_is_an_empty_cell(tmp_path: Path, data: RealData) -> None:
    folder = evaluation_of(tmp_path, data, only(made(data, "dm", 2), [2, 3]))  # bees alone
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert 'alt="bee, dm"' in page
    assert 'alt="ant, dm"' not in page
    assert page.count(">no image<") == 2  # of the set, and of random images of as many by class


def test_a_set_of_fewer_images_than_classes_is_pictured_beside_as_many_random_ones(
    tmp_path: Path, data: RealData
) -> None:
    folder = evaluation_of(tmp_path, data, only(made(data, "dm", 1), [0]))  # an ant
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "<summary>IPC 1</summary>" in page
    assert 'alt="ant, random real images"' in page
    assert 'alt="bee, random real images"' not in page


def test_a_set_larger_than_the_smallest_class_is_pictured(tmp_path: Path, data: RealData) -> None:
    few = replace(data, train=data.train.take(torch.arange(1, len(data.train))))
    shown = random_draw(few, (len(data.train), 2), 3, 0)
    assert shown.counts(2) == [len(few.train.of_class(0)), 2]
    again = random_draw(data, (2, 2), 3, 0)
    assert torch.equal(again.images[again.of_class(1)], shown.images[shown.of_class(1)])


def test_a_class_without_test_images_is_last_and_blank(tmp_path: Path, data: RealData) -> None:
    folder = evaluation_of(tmp_path, data, made(data, "dm"))
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["data"]["counts"]["test"] = [0, 4]
    for row in summary["rows"]:
        row["per_class"] = [None, 0.75]
    path.write_text(json.dumps(summary))
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "Of 4 test images a class, one is 25.0 points" in page
    assert "Classes without test images are blank." in page
    assert page.index('<th scope="row">bee</th><td class="num">75.0</td>') < page.index(
        '<th scope="row">ant</th><td class="num"></td>'
    )


def plain_evaluation(tmp_path: Path, data: RealData) -> Path:
    """Of somebody's folder of one ant, larger than the real images, and two bees."""
    inverted = [255 - image for image in data.train.images]
    for name, image in (("ant/x.png", inverted[0]), ("bee/y.png", inverted[-1]), ("bee/z.png", inverted[-2])):
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).resize((16, 16), Image.Resampling.NEAREST).save(path)
    theirs = read_plain(tmp_path / "theirs", data.classes, data.channels, data.image_size)
    command = "gendistill evaluate --surrogate theirs --data.name images --output_dir ev"
    folder = make_evaluation(tmp_path / "ev", data, {tmp_path / "unused": theirs}, command)
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"method": "folder"', '"method": "folder", "name": "theirs"'))
    return folder


def test_a_plain_folder_is_pictured_projected_and_checked_for_copies(tmp_path: Path, data: RealData) -> None:
    folder = plain_evaluation(tmp_path, data)
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "Not shown" not in page
    assert page.count('alt="bee, theirs"') == 1
    assert "theirs: 3 images as dots" in page
    assert "None of the 3 images of the set theirs at IPC 2 is" in page


def test_a_plain_folder_without_the_real_images_is_named_as_what_it_is(tmp_path: Path, data: RealData) -> None:
    folder = plain_evaluation(tmp_path, data)
    shutil.rmtree(tmp_path / "images")
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "1 of its 1 sets are plain folders, which are read as large as the real images" in page
    assert "no longer in their folders" not in page


def test_several_synthesis_seeds_are_shown_with_their_spread(tmp_path: Path, data: RealData) -> None:
    folder = evaluation_of(tmp_path, data, made(data, "dm"))
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["rows"][1] |= {"synthesis_seeds": 3, "accuracy": [0.5, 0.6, 0.7] * 2, "std_within": 0.001}
    summary["rows"][1] |= {"std_between": 0.1, "ci95_vs_random": [-0.1, 0.3]}
    path.write_text(json.dumps(summary))
    assert gendistill("report", folder) == 0
    page = words(folder)
    for expected in ('dm <span class="soft">×3</span>', "between sets 10.0, within 0.1", "3 × 2",
                     "so that they cover another synthesis seed too", "over their sets"):  # fmt: skip
        assert expected in page, expected


def test_every_set_of_an_evaluation_is_checked_for_copies(tmp_path: Path, data: RealData) -> None:
    folder = evaluation(tmp_path, data)
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "None of the 2 images of the set dm, one at IPC 1" in page
    assert "<summary>dm, two at IPC 1</summary>" in page
    assert "difference of the pixels, in grey levels" in page


def test_sets_that_have_moved_or_changed_are_left_out_and_named(
    tmp_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluation(tmp_path, data)
    shutil.rmtree(tmp_path / "one")
    assert gendistill("report", folder) == 0
    message = "1 of its 2 sets are no longer in their folders, or have changed; they are not pictured."
    assert message in words(folder)
    assert message in capsys.readouterr().out
    assert "The pictures" in words(folder)
    shutil.rmtree(tmp_path / "two")
    made(data, "dm", shift=1).save(tmp_path / "two" / "ipc-1")
    assert gendistill("report", folder) == 0
    assert message.replace("1 of", "2 of") in words(folder)
    assert "The pictures" not in words(folder)


def test_an_evaluation_whose_data_are_gone_shows_the_sets_alone(tmp_path: Path, data: RealData) -> None:
    folder = evaluation(tmp_path, data)
    shutil.rmtree(tmp_path / "images")
    assert gendistill("report", folder) == 0
    page = words(folder)
    assert "The pictures" in page
    assert "Not shown: " in page
    assert "Among the real images" not in page
    assert "How close to the real images" not in page
    assert ">ant<" in page  # the sets know their classes


def test_runs_of_other_data_are_refused(tmp_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", data)
    other = make_run(tmp_path / "other", write_images(tmp_path / "more", ("ant", "cat")))
    assert gendistill("report", run, other, "--output_dir", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "are of different data" in message
    assert not (tmp_path / "out").exists()


def test_several_runs_need_a_folder_of_their_own(
    tmp_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", data)
    other = make_run(tmp_path / "other", data)
    assert gendistill("report", run, other) == 2
    assert "output_dir is null" in capsys.readouterr().err
    assert gendistill("report", run, run, "--output_dir", tmp_path / "out") == 2
    assert "given twice" in capsys.readouterr().err
    assert gendistill("report", run, other, "--output_dir", run) == 2
    assert "holds the input" in capsys.readouterr().err
    out = tmp_path / "out"
    assert gendistill("report", run, other, "--output_dir", out) == 0
    assert gendistill("report", run, other, "--output_dir", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert gendistill("report", run, other, "--output_dir", out, "--overwrite") == 0
    assert {name for row in numbers(out)["rows"] for name in row["runs"]} == {"run", "other"}


def test_new_keys_of_a_summary_are_shown(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    path = run / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    fault = {"set": None, "kind": "leak", "severity": "error", "text": "3 images are test images."}
    note = {"set": None, "kind": "blur", "severity": "warning", "text": "They are <i>blurred</i>."}
    path.write_text(json.dumps({**summary, "findings": [note, fault]}))
    assert gendistill("report", run) == 0
    page = words(run)
    assert page.index("3 images are test images.") < page.index("<h1>") < page.index("They are &lt;i&gt;blurred")


def test_a_damaged_summary_is_refused(tmp_path: Path, data: RealData, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path, data)
    (folder / "summary.json").write_text('{"rows": 3}')
    assert gendistill("report", folder) == 2
    assert "summary.json is damaged: it lacks data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [{}]}, "it lacks rows.0."),
        ({"rows": 3}, "rows is 3; expected a list"),
        ({"accuracy": "high"}, "rows.0.accuracy is 'high'; expected a list (each a number)"),
        ({"accuracy": []}, "rows.0.accuracy is []; expected a number for every run"),
        ({"mean": 96.2}, "rows.0.mean is 96.2; expected 0 to 1"),
        ({"mean": float("nan")}, "rows.0.mean is nan; expected 0 to 1"),
        ({"ipc": 10**30}, "rows.0.ipc is 1e+30; expected 0 to 1e+09"),
        ({"bytes": {"images": "many"}}, "rows.0.bytes.images is 'many'; expected a whole number"),
        ({"ci95_vs_random": [0.1]}, "rows.0.ci95_vs_random has 1 numbers; expected the two ends"),
        ({"data": {"fingerprint": "x"}}, "it lacks data.counts"),
        ({"data": None}, "data is null; expected an object"),
        ({"findings": ["bad"]}, "findings.0 is 'bad'; expected an object"),
        ({"settings": {"changed": 5}}, "settings.changed is 5; expected a list"),
        ({"format": 2}, "format is 2; this version reads 1"),
    ],
    ids=str,
)
def test_a_damaged_field_of_a_summary_is_named(
    tmp_path: Path, data: RealData, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    path = evaluation(tmp_path, data) / "summary.json"
    summary = json.loads(path.read_text())
    in_row = not change.keys() & {"rows", "data", "findings", "settings", "format"}
    rows = [{**summary["rows"][0], **change}, *summary["rows"][1:]]
    path.write_text(json.dumps({**summary, "rows": rows} if in_row else {**summary, **change}))
    assert gendistill("report", path.parent) == 2
    assert f"{path} is damaged: {message}" in capsys.readouterr().err


def test_keys_of_a_newer_version_do_no_harm(tmp_path: Path, data: RealData) -> None:
    path = evaluation(tmp_path, data) / "summary.json"
    summary = json.loads(path.read_text())
    rows = [{**row, "new": {"deep": [1]}} for row in summary["rows"]]
    path.write_text(json.dumps({**summary, "rows": rows, "newer": [1, 2], "format": 1}))
    assert gendistill("report", path.parent) == 0


def test_a_damaged_stage_record_is_named(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    (run / "refined" / "stage.json").write_text('{"stage": "refine", "seconds": "long"}')
    with pytest.raises(ArtifactError, match=r"refined/stage\.json is damaged: seconds is 'long'; expected a number"):
        read_finished(run)


@pytest.mark.slow
def test_files_of_lists_in_lists_are_one_message(tmp_path: Path, data: RealData) -> None:
    run = make_run(tmp_path / "run", data)
    (run / "log.jsonl").write_text("[" * 10**5 + "\n")
    assert read_finished(run).date
    (run / "config.yaml").write_text("[" * 10**4)
    with pytest.raises(ArtifactError, match=r"config\.yaml is damaged"):
        read_finished(run)


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, data: RealData, name: str) -> None:
    run = make_run(tmp_path / "run", data)
    (run / name).unlink()
    os.mkfifo(run / name)
    if name == "log.jsonl":
        assert read_finished(run).date
    else:
        with pytest.raises(ArtifactError):
            read_finished(run)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, data: RealData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluation(tmp_path, data)

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert gendistill("report", folder) == 2
    message = capsys.readouterr().err
    assert f"{folder} cannot be written: Read-only file system. Give another --output_dir." in message


def test_of_a_continual_evaluation_its_own_page_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "continual"
    folder.mkdir()
    for name in (CONTINUAL, CONTINUAL_PAGE, "stage.json"):
        (folder / name).write_text("{}")
    assert gendistill("report", folder) == 2
    message = capsys.readouterr().err
    assert f"open {folder / 'continual.html'}, whose numbers are in continual.json beside it." in message
    assert "run`" in message


def test_recorded_commands_are_read_from_where_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {name: images, image_size: 16}\nevaluate: {surrogate: set}\n")
    (tmp_path / "images").mkdir()
    found = recorded_options(
        "gendistill evaluate --config c.yaml --data.image_size=8 --output_dir a/ev", tmp_path / "a/ev"
    )
    config = recorded_data(found)
    assert config is not None
    assert (config.name, config.image_size) == (str(tmp_path / "images"), 8)
    assert recorded_paths(found, "surrogate") == [tmp_path / "set"]
    several = recorded_options("gendistill evaluate --surrogate a 'b c' --output_dir ev", tmp_path / "ev")
    assert recorded_paths(several, "surrogate") == [tmp_path / "a", tmp_path / "b c"]
    assert recorded_paths(several, "teacher") == []
    for other in ("python script.py --data.name x", "gendistill run --data.name x", "it's", ""):
        assert recorded_options(other, tmp_path) == {}
        assert recorded_data({}) is None
    assert recorded_data(recorded_options("gendistill evaluate --data.colour red", tmp_path)) is None
