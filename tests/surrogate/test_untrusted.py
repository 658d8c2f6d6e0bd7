"""Sets of others: no name and no link in one leaves its folder, whatever field it is in; damage is one message."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gendistill.errors import ArtifactError
from gendistill.hashing import hash_bytes
from gendistill.io import inside
from gendistill.surrogate.card.card import add_evidence
from gendistill.surrogate.card.entry import read_evidence
from gendistill.surrogate.export import export
from gendistill.surrogate.manifest import verify
from gendistill.surrogate.set import SurrogateSet, SurrogateWriter
from gendistill.surrogate.soft_labels import SoftLabels, read_record
from tests.helpers import edit, gendistill, messages
from tests.surrogate.sets import make


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make().save(tmp_path / "set")
    (tmp_path / "marker.png").write_text("mine")
    return tmp_path / "set"


def readers(folder: Path) -> list[Callable[[], object]]:
    return [lambda: SurrogateSet.load(folder), lambda: export(folder, folder.parent / "out")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ipc", "2/../../marker"),
        ("ipc", 3),
        ("ipc", None),
        ("counts", [10**12, 2, 2]),
        ("counts", [True, 2, 2]),
        ("stored_images", 10**15),
        ("decoded_images", 7),
        ("image_size", 10**9),
        ("factor", 10**6),
        ("factor", [1, "2"]),
        ("classes", ["ant", 1, "cow"]),
        ("data", "digits"),
        ("data", {"counts": {"train": ["many"]}}),
        ("seconds", [1]),
        ("stages", "sample"),
        ("bytes", {"images": "many"}),
        ("checksums", 5),
        ("weights", [1, 1, 1, 1, 1, float("nan")]),
        ("soft_labels", {"mode": "other"}),
    ],
)
def test_a_field_of_another_type_or_value_is_named(saved: Path, field: str, value: Any) -> None:
    edit(saved / "manifest.json", **{field: value})
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged: .*(expected|lacks)|image\(s\) missing|says"):
        SurrogateSet.load(saved)
    if field not in ("counts", "image_size"):
        with pytest.raises(ArtifactError, match=field):
            verify(saved)


@pytest.mark.parametrize("name", ["manifest.json", "evidence.json"])
def test_a_changed_record_of_a_set_is_noticed(saved: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"method": "random", "ipc": 2, "mean": 0.5, "std": 0.1}
    add_evidence(saved, evaluation={"protocol": "p", "data": "d", "command": "c", "rows": [row]})
    record = json.loads((saved / name).read_text())
    changed = {"seed": 77} if name == "manifest.json" else {"evaluation": {**record["evaluation"], "data": "e"}}
    (saved / name).write_text(json.dumps({**record, **changed}))
    assert gendistill("export", "--surrogate", saved, "--output_dir", saved.parent / "out") == 2
    [message] = messages(capsys.readouterr().err)
    assert f"{name} was changed after it was written" in message
    assert gendistill("verify", saved) == (2 if name == "manifest.json" else 0)


def test_keys_of_a_newer_version_are_kept(saved: Path) -> None:
    edit(saved / "manifest.json", later={"a": 1})
    assert SurrogateSet.load(saved).meta["later"] == {"a": 1}  # type: ignore[typeddict-item]
    assert verify(saved) == []


def test_a_linked_class_folder_is_refused(saved: Path) -> None:
    shutil.move(saved / "train" / "ant", saved.parent / "away")
    (saved / "train" / "ant").symlink_to(saved.parent / "away")
    for read in readers(saved):
        with pytest.raises(ArtifactError, match=r"which is not in it|is a link that leads out"):
            read()
    assert verify(saved) == [f"train/ant/0000{i}.png is a link that leads out of the set" for i in (0, 1)]


@pytest.mark.parametrize("make_one", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_no_image(saved: Path, make_one: Callable[[Path], None]) -> None:
    path = next((saved / "train").rglob("*.png"))
    path.unlink()
    make_one(path)
    for read in readers(saved):
        with pytest.raises(ArtifactError, match=r"1 image\(s\) missing|png is missing"):
            read()


def test_a_linked_image_is_refused(saved: Path) -> None:
    image = saved / "train" / "ant" / "00000.png"
    shutil.move(image, saved.parent / "away")
    image.symlink_to(saved.parent / "away")
    for read in readers(saved):
        with pytest.raises(ArtifactError, match="is a link that leads out"):
            read()
    assert verify(saved) == ["train/ant/00000.png is a link that leads out of the set"]


@pytest.mark.parametrize(
    "name", ["manifest.json", "CHECKSUMS", "closest_pairs.png", "evidence.json", "soft_labels.json"]
)
def test_other_linked_files_are_not_copied(saved: Path, name: str) -> None:
    away = saved.parent / "away"
    if (saved / name).exists():
        shutil.move(saved / name, away)
    else:
        away.write_text("{}")
    (saved / name).symlink_to(away)
    with pytest.raises(ArtifactError, match=r"which is not in it|does not belong to the set"):
        export(saved, saved.parent / "out")
    assert not (saved.parent / "out").exists()


@pytest.mark.parametrize(
    "line",
    ["{digest}  ../marker.png", "{digest}  /etc/hostname", "{digest}  train/../../marker.png", "{digest}", "no line",
     "{digest}  README.md", "{digest}  train/ant/00007.png"],
)  # fmt: skip
def test_checksums_list_files_of_the_set_alone(saved: Path, line: str) -> None:
    text = (saved / "CHECKSUMS").read_text() + line.format(digest="0" * 32) + "\n"
    (saved / "CHECKSUMS").write_text(text)
    edit(saved / "manifest.json", checksums=hash_bytes(text.encode()))
    with pytest.raises(ArtifactError, match=r"line 7 is .*; expected a checksum and an image"):
        verify(saved)


def test_checksums_that_leave_an_image_out_are_refused(saved: Path) -> None:
    text = "".join((saved / "CHECKSUMS").read_text().splitlines(keepends=True)[1:])
    (saved / "CHECKSUMS").write_text(text)
    edit(saved / "manifest.json", checksums=hash_bytes(text.encode()))
    with pytest.raises(ArtifactError, match="lists 5 files; expected 6 images"):
        verify(saved)


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a//b", "./a", "a\\b", "a\0b"])
def test_names_that_leave_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="is not in it"):
        inside(tmp_path, name)


def test_files_of_the_hubs_cache_are_links_to_its_own(saved: Path) -> None:
    """huggingface_hub stores a file once, in ``blobs``, and links to it."""
    snapshot, blobs = saved.parent / "data" / "snapshots" / "abc", saved.parent / "data" / "blobs"
    shutil.copytree(saved, snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        shutil.move(path, blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert verify(snapshot) == []
    assert SurrogateSet.load(snapshot).content_hash() == make().content_hash()


@pytest.mark.parametrize(
    "text",
    ['{"copies": {"space": 3}}', '{"evaluation": {"protocol": "p", "data": "d", "command": "c", "rows": [{"ipc": 1}]}}',
     "[" * 10**5],
)  # fmt: skip
def test_damaged_evidence_is_one_message(saved: Path, text: str) -> None:
    (saved / "evidence.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"evidence\.json is damaged"):
        read_evidence(saved)


@pytest.mark.parametrize(
    "fields", [{"classes": "3"}, {"views": {}}, {"views": {"seed": 0, "batch_size": 0}}, {"top_k": 9}, {"averaged": 0},
               {"teacher": []}, {"steps": -1}],
)  # fmt: skip
def test_damaged_records_of_soft_labels_are_one_message(tmp_path: Path, fields: dict[str, Any]) -> None:
    from gendistill.data.crops import Views

    SoftLabels("online", 3, 1.0, Views(seed=0, batch_size=2)).save(tmp_path)
    edit(tmp_path / "soft_labels.json", **fields)
    with pytest.raises(ArtifactError, match=r"soft_labels\.json is damaged"):
        read_record(tmp_path)


def test_a_flipped_bit_in_soft_labels_is_noticed(tmp_path: Path) -> None:
    import torch

    from gendistill.data.crops import Views

    images = make()
    soft = SoftLabels("per_image", 3, 1.0, Views(seed=0, batch_size=2), values=torch.full((6, 3), 1 / 3).half())
    SurrogateSet(images.images, images.labels, images.classes, {}, 1, soft).save(tmp_path / "set")
    path = tmp_path / "set" / "soft_labels.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"soft_labels\.safetensors was changed"):
        SurrogateSet.load(tmp_path / "set")


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_an_image_that_a_loss_of_power_cut_short_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    import torch

    with SurrogateWriter(tmp_path, ["a"]) as writer:
        writer.put(0, 0, torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert writer.has(0, 0)
    path = writer.path(0, 0)
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert not writer.has(0, 0)
    assert not writer.has(0, 1)


def test_text_of_a_set_cannot_steer_the_terminal(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(saved / "manifest.json", command="gendistill \x1b[2Jrun\n/set: complete\r\u202e")
    assert gendistill("verify", saved) == 0
    assert r"made by: gendistill \x1b[2Jrun\n/set: complete\r\u202e" in capsys.readouterr().out
    (saved / "train" / "ant" / "x\x1b[2J.png").touch()
    assert gendistill("verify", saved) == 2
    said = capsys.readouterr().err
    assert r"x\x1b[2J.png does not belong to the set" in said
    assert "\x1b" not in said
    assert messages(said)
