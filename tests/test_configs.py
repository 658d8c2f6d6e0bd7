"""Every YAML that we ship is taken by the command it names."""

import re

import pytest

from gendistill.cli import COMMANDS, parse
from tests.helpers import ROOT

FILES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "launch")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_config_is_taken_by_its_command(path, tmp_path):
    named = re.search(rf"gendistill (\w+) --config {path.relative_to(ROOT)}", path.read_text(encoding="utf-8"))
    assert named, "its header names no command"
    teacher = ["--teacher", "TEACHER"] if "--teacher TEACHER" in path.read_text(encoding="utf-8") else []
    options = parse(named[1], ["--config", str(path), *teacher, "--output_dir", str(tmp_path)])
    assert isinstance(options, COMMANDS[named[1]].options)
