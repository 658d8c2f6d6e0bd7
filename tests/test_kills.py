"""Two kills of a short training; ``python -m tests.kills --kills 10`` has more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import prove

pytestmark = pytest.mark.slow


def test_a_training_killed_twice_ends_with_the_same_bytes(tmp_path: Path) -> None:
    records = prove(tmp_path, kills=2, seed=0, steps=24)
    assert all(record["killed"] for record in records)
    assert 0 < records[0]["checkpoint"] <= records[1]["checkpoint"] <= 24  # type: ignore[operator]
