"""A tiny run of every stage and method makes what it made before: images to the byte, rows and manifests alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.record import RECORD, make

pytestmark = pytest.mark.slow

BY_RUN = (
    "runs",
    "std",
)  # of scores, which use all runs of rows with different numbers of them since the record was made
ONCE = ("value range", "not recognised", "shuffled labels")  # of generated sets, said once since the record was made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    found = json.loads(json.dumps(make(Path(tmp_path_factory.mktemp("golden")))))
    return json.loads(RECORD.read_text(encoding="utf-8")), found


def test_every_command_still_writes_its_sets_evaluations_and_files(pair: Any) -> None:
    golden, found = pair
    assert found["formats"] == golden["formats"]
    assert found["sets"].keys() == golden["sets"].keys()
    for name, expected in golden["sets"].items():
        one = found["sets"][name]
        assert one["count"] == expected["count"], name
        assert one["manifest"].keys() == expected["manifest"].keys(), name
    for name, expected in golden["evaluations"].items():
        rows, others = found["evaluations"][name]["rows"], expected["rows"]
        key = lambda row: tuple(row[k] for k in ("method", "stage", "space", "ipc", "labels", "augment", "network"))  # noqa: E731
        assert [key(row) for row in rows] == [key(row) for row in others], name
        assert [row.keys() for row in rows] == [row.keys() for row in others], name


def test_on_the_same_arithmetic_everything_is_the_same_to_the_byte(pair: Any) -> None:
    golden, found = pair
    for name in ("arithmetic", "instructions"):
        if found[name] != golden[name]:
            pytest.skip(f"recorded with {name} {golden[name]}, this machine's is {found[name]}")
    for name, expected in golden["sets"].items():
        assert found["sets"][name] == expected, name
    assert _without_once(found["evaluations"]) == _without_once(golden["evaluations"])


def _without_once(evaluations: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            **one,
            "findings": [f for f in one.get("findings", ()) if f["kind"] not in ONCE],
            "scores": [_without_runs(score) for score in one.get("scores", ())],
        }
        for name, one in evaluations.items()
    }


def _without_runs(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {
        name: entry[name] and {k: v for k, v in entry[name].items() if k not in BY_RUN} for name in ("lrs", "ars")
    }
