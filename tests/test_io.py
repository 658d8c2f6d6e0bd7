"""Files are written completely or not at all, and what cannot be read is said in one way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gendistill.errors import ArtifactError
from gendistill.io import atomic, read_json, read_tensors, write_json, write_tensors, write_text
from tests.helpers import no_file_above

NOTHING = {"kind": "a shelf", "fix": "Build one."}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with no_file_above(1000), pytest.raises(OSError, match="File too large"):
        write_text(tmp_path / "a", "new" * 1000)
    with no_file_above(1000), pytest.raises(Exception, match="os error 27"):
        write_tensors(tmp_path / "a", {"x": torch.zeros(1000)})
    assert contents(tmp_path) == {"a": b"old"}


def test_what_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_text("half a fi")
    write_text(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"new"}


def test_processes_that_share_a_file_write_apart(tmp_path: Path) -> None:
    with atomic(tmp_path / "a", shared=True) as one, atomic(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert contents(tmp_path) == {"a": b"one"}


def test_json_is_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"name": "Ä", "path": Path("b")}, default=str)
    assert (tmp_path / "a").read_text(encoding="utf-8") == '{\n  "name": "Ä",\n  "path": "b"\n}\n'
    write_json(tmp_path / "a", {"name": "\udcff"})  # of a folder name that is no UTF-8
    assert json.loads((tmp_path / "a").read_text()) == {"name": "\udcff"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"is not a shelf: it has no a\. Build one\.$"),
        ("{", r"a is damaged: Expecting .*\. Build one\.$"),
        (b"\xff", r"a is damaged: .*codec.*\. Build one\.$"),
        ("[]", r"a is damaged: it holds list, expected an object\. Build one\.$"),
        ('{"x": 1, "y": 2}', r"a has format None; this version reads 3\. Build one\.$"),
        ('{"format": 3, "x": 1}', r"a is damaged: it lacks y\. Build one\.$"),
    ],
)
def test_what_is_wrong_with_json(text: str | bytes | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ArtifactError, match=said):
        read_json(tmp_path / "a", required=("x", "y"), format=3, **NOTHING)


def test_tensors_with_their_metadata(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.arange(6).view(2, 3).T}, {"from": "b"})
    tensors, metadata = read_tensors(tmp_path / "a", fix="Build one.")
    assert tensors["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert metadata == {"from": "b"}
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    for name in ("a", "b"):
        with pytest.raises(ArtifactError, match=rf"{name} is missing or damaged: .*\. Build one\.$"):
            read_tensors(tmp_path / name, fix="Build one.")
