"""Training of the generator by the command line: in several pieces of time as in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import TINY, files, gendistill, no_file_above

pytestmark = pytest.mark.slow

COMMAND = ("finetune", "--config", TINY, "--max_minutes", 1e-9)
LATEST = ("--resume_from_checkpoint", "latest")
VARYING = {"stage.json", "log.jsonl", "config.yaml"}


def test_time_that_is_over_leaves_a_generator_that_trains_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "pieces"
    assert gendistill("finetune", "--config", TINY, "--output_dir", whole) == 0
    assert gendistill(*COMMAND, "--output_dir", out) == 0
    assert "--resume_from_checkpoint latest trains on" in " ".join(capsys.readouterr().out.split())
    assert gendistill("sample", "--generator", out, "--ipc", 1, "--pool", 0, "--output_dir", tmp_path / "early") == 0
    assert gendistill(*COMMAND, "--output_dir", out) == 2  # without the option nothing is touched
    assert "--resume_from_checkpoint" in capsys.readouterr().err
    assert gendistill(*COMMAND, *LATEST, "--seed", 7, "--output_dir", out) == 2
    assert "seed: 0 there, 7 now" in capsys.readouterr().err
    first = json.loads((out / "stage.json").read_text())["stopped"]
    (tmp_path / "link").symlink_to(out)
    assert gendistill(*COMMAND, *LATEST, "--output_dir", tmp_path / "link") == 0
    second = json.loads((out / "stage.json").read_text())["stopped"]
    assert (first["phase"], first["step"], second["step"]) == ("base", 1, 2)
    assert gendistill("finetune", "--config", TINY, *LATEST, "--output_dir", out) == 0
    assert "stopped" not in json.loads((out / "stage.json").read_text())
    assert {k: v for k, v in files(out, "**/*.*").items() if k not in VARYING} == {
        k: v for k, v in files(whole, "**/*.*").items() if k not in VARYING
    }
    assert (tmp_path / "link").is_symlink()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".partial", ".replaced", ".new")]
    capsys.readouterr()
    assert gendistill("finetune", "--config", TINY, *LATEST, "--output_dir", out) == 0  # finished: nothing to do
    assert "trains on" not in capsys.readouterr().out


def test_a_disk_without_room_for_the_copy_leaves_the_generator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "generator"
    assert gendistill(*COMMAND, "--output_dir", out) == 0
    before = files(out, "**/*.*")
    with no_file_above(20_000):
        assert gendistill(*COMMAND, *LATEST, "--output_dir", out) == 2
    assert "has no room left" in capsys.readouterr().err
    assert files(out, "**/*.*") == before
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]
    assert gendistill(*COMMAND, *LATEST, "--output_dir", out) == 0


def test_a_generator_that_the_criteria_never_changed_is_stored_and_sampled_once(tmp_path: Path) -> None:
    out, sets = tmp_path / "generator", tmp_path / "sets"
    assert gendistill("finetune", "--config", TINY, "--minimax_steps", 0, "--output_dir", out) == 0
    assert [path.name for path in (out / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    assert json.loads((out / "gendistill.json").read_text())["optimizers"] == {
        "base": {"name": "muon", "learning_rate": 6e-3}
    }
    assert gendistill("sample", "--generator", out, "--ipc", 1, "--pool", 0, "--output_dir", sets) == 0
    assert not (sets / "base").exists()
