"""Files are written completely or not at all, and what cannot be read is said in one way."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import pytest
import torch

from gendistill.errors import ArtifactError
from gendistill.io import atomic, mismatch, read_json, read_tensors, write_json, write_tensors, write_text
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
    "change",
    [{"size": 4}, {"size": 3.0}, {"parts": ["b", "a"]}, {"more": None}, {"nested": {"10": 1}}, {"blake2b": "0"}],
)
def test_a_changed_field_of_a_hashed_file_is_noticed(tmp_path: Path, change: dict[str, object]) -> None:
    path, value = tmp_path / "a", {"size": 3, "parts": ("a", "b"), "nested": {9: 1, 10: 2}, "at": Path("c")}
    write_json(path, value, default=str, hashed=True)
    found = read_json(path, kind="a shelf", fix="Build one.")
    assert found == {"size": 3, "parts": ["a", "b"], "nested": {"9": 1, "10": 2}, "at": "c"}
    changed = json.loads(path.read_text()) | change
    path.write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=r"was changed after it was written: its key blake2b is .*Build one"):
        read_json(path, kind="a shelf", fix="Build one.")
    del changed["blake2b"]  # as the message says
    path.write_text(json.dumps(changed))
    assert read_json(path, kind="a shelf", fix="Build one.") == changed


@pytest.mark.parametrize(
    "read", [lambda path: read_tensors(path, fix=""), lambda path: read_json(path, kind="", fix="")]
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ArtifactError, match="a is no file"):
        read(tmp_path / "a")


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


class Inner(TypedDict):
    """Every key is there."""

    name: str
    parts: list[float]


class Record(TypedDict, total=False):
    """One key is there."""

    count: Required[int]
    inner: Inner
    choice: Literal["a", "b"] | None
    by_name: dict[str, int]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"count": 1, "inner": {"name": "x", "parts": [1, 2.5]}, "choice": None, "by_name": {"y": 2}, "new": []}, ""),
        ({}, "it lacks count"),
        ({"count": 1, "inner": {}}, "it lacks inner.name, inner.parts"),
        ({"count": True}, "count is True; expected a whole number"),
        ({"count": 1.0}, "count is 1.0; expected a whole number"),
        ({"count": 1, "inner": {"name": "x", "parts": [1, "2"]}}, "inner.parts.1 is '2'; expected a number"),
        ({"count": 1, "inner": []}, "inner is []; expected an object"),
        ({"count": 1, "choice": "c"}, "choice is 'c'; expected 'a' or 'b' or null"),
        ({"count": 1, "choice": ["a"]}, "choice is ['a']; expected 'a' or 'b' or null"),
        ({"count": 1, "by_name": {"y": None}}, "by_name.y is None; expected a whole number"),
    ],
)
def test_a_value_of_json_is_compared_with_its_type(value: Any, said: str, tmp_path: Path) -> None:
    assert mismatch(Record, value) == said
    write_json(tmp_path / "a", value)
    if said:
        with pytest.raises(ArtifactError, match=re.escape(f"a is damaged: {said}. Build one.")):
            read_json(tmp_path / "a", schema=Record, **NOTHING)
    else:
        assert read_json(tmp_path / "a", schema=Record, **NOTHING) == value


def test_tensors_that_were_changed_do_not_match_their_hash(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(4)}, {"from": "b"}, hashed=True)
    assert read_tensors(tmp_path / "a", fix="Build one.")[1] == {"from": "b"}
    data = bytearray((tmp_path / "a").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"do not match their hash\. Build one\.$"):
        read_tensors(tmp_path / "a", fix="Build one.")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ArtifactError, match="a is no file"):
        read_json(tmp_path / "a", **NOTHING)


def test_tensors_with_their_metadata(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.arange(6).view(2, 3).T}, {"from": "b"})
    tensors, metadata = read_tensors(tmp_path / "a", fix="Build one.")
    assert tensors["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert metadata == {"from": "b"}
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    for name in ("a", "b"):
        with pytest.raises(ArtifactError, match=rf"{name} is missing or damaged: .*\. Build one\.$"):
            read_tensors(tmp_path / name, fix="Build one.")
