"""Checkpoints and merging where parameters are sharded over two processes (FSDP2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import launch

pytestmark = pytest.mark.slow


def test_a_sharded_training_is_the_whole_one(tmp_path: Path) -> None:
    (done,) = launch(("tests/sharded.py", tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gaps.json").read_text())
    assert set(found) == {"difffit root", "lora root", "full blocks"}
    for case, gaps in found.items():
        assert gaps.pop("moved") > 1e-4, case
        assert gaps.pop("sharded again, restored") == 0, case
        assert gaps.pop("whole again, restored") == 0, case
        assert max(gaps.values()) < 1e-5, (case, gaps)
