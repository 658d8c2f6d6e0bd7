"""Progress: lines where standard error is no terminal, bars that go where it is one, silence where asked for."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator

import pytest

from gendistill import progress
from gendistill.progress import follow, note, numbered_stage, show_progress, track


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines at every tenth, however soon."""
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(count: int) -> Iterator[dict[str, float]]:
    for step in range(count):
        yield {"step": step, "loss": 0.5}


def test_without_a_terminal_there_is_a_line_every_tenth(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        assert list(track(range(200), "count")) == list(range(200))
        follow(steps(50), "train", 50)
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert len(lines) == 20
    assert re.fullmatch(r"gendistill: count: 20 of 200 \(10 %\), \d+ s left", lines[0])
    assert lines[-1].startswith("gendistill: train: 50 of 50 (100 %), 0 s left; loss 0.5")


def test_short_work_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with show_progress():
        list(track(range(200), "count"))
    assert capsys.readouterr().err == ""


def test_a_line_comes_after_a_while_whatever_the_share(often: None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "RARELY", 0.0)
    with show_progress():
        list(track(iter(range(3)), "unknown length"))
    assert capsys.readouterr().err.splitlines()[-1] == "gendistill: unknown length: 3"


@pytest.mark.parametrize("value", ["1", "true"])
def test_tqdms_own_switch_is_honoured(value: str, often: None, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TQDM_DISABLE", value)
    with show_progress():
        list(track(range(200), "count"))
        follow(steps(50), "train", 50)
        note("kept")
    assert capsys.readouterr().err == "gendistill: kept\n"


def test_nothing_is_said_outside_or_for_one_item(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(200), "count"))
    with show_progress():
        list(track(range(1), "one"))
        with show_progress(False):
            list(track(range(200), "count"))
            note("hidden")
    assert capsys.readouterr().err == ""


def test_a_terminal_keeps_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress(), numbered_stage("count", 3, 5):
        list(track(range(200), "count"))
    *bars, last = terminal.getvalue().split("\r")
    assert any("stage 3 of 5, count" in bar for bar in bars)
    assert last.strip() == "gendistill: stage 3 of 5, count: done in 0 s"


def test_records_go_to_the_log_whether_shown_or_not(often: None) -> None:
    logged: list[dict[str, float]] = []
    follow(steps(25), "train", 25, log=logged.append, stage="x")
    assert [record["step"] for record in logged] == [9, 19, 24]
