"""Two processes on CPU (gloo): both train, one generator comes out, and a wrong world size is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers import ROOT, TINY, environment, gendistill


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "train/finetune.py"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
        env={**environment(), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_processes_train_the_generator_of_one(tmp_path: Path) -> None:
    done = torchrun("--config", TINY, "--num_processes", 2, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "stage.json").read_text())["processes"] == 2
    assert gendistill("finetune", "--config", TINY, "--output_dir", tmp_path / "one") == 0
    two, one = (load_file(tmp_path / n / "unet" / "diffusion_pytorch_model.safetensors") for n in ("two", "one"))
    gap = max((two[k] - one[k]).abs().max().item() for k in one)
    assert gap < 1e-4  # the same global batches; sums in another order
    moved = load_file(tmp_path / "one" / "unet" / "diffusion_pytorch_model.base.safetensors")
    assert any(not torch.equal(moved[k], one[k]) for k in one)


def test_a_world_of_another_size_than_asked_for_is_refused(tmp_path: Path) -> None:
    done = torchrun("--config", TINY, "--num_processes", 3, "--output_dir", tmp_path / "three")
    assert done.returncode != 0
    assert "num_processes is 3 but 2 run" in done.stderr
    assert not (tmp_path / "three").exists()
    assert gendistill("finetune", "--config", TINY, "--num_processes", 2, "--output_dir", tmp_path / "x") == 2
