"""Kill -9 a training at random moments, resume it, and compare the generator's bytes with an uninterrupted one's.

    python -m tests.kills --kills 10 --seed 0

A kill falls on a random optimiser step (seen in log.jsonl) and then a random fraction of a second, so it also lands in
the middle of a checkpoint, of the phase change and of the final write.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.helpers import TINY, files, start

STEPS = 60
OPTIONS = ("--config", TINY, "--base_steps", STEPS // 2, "--minimax_steps", STEPS // 2, "--checkpointing_steps", 3)
WEIGHTS = "**/*.safetensors"


def train(folder: Path, *more: object) -> subprocess.Popen[str]:
    return start("finetune", *OPTIONS, "--output_dir", folder, *more)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}:\n{errors[-2000:]}")


def steps_done(folder: Path) -> int:
    """Optimiser steps that the newest checkpoint in the partial folder has, over both phases."""
    found = folder.with_name(folder.name + ".partial").glob("checkpoints/*/step-*")
    return max((int(p.name.split("-")[1]) + STEPS // 2 * (p.parent.name == "minimax") for p in found), default=0)


def kill_at(folder: Path, step: int, delay: float, *more: object) -> dict[str, object]:
    """Start or resume, kill -9 once the checkpoint of ``step`` is there and ``delay`` seconds have passed."""
    process = train(folder, *more)
    while process.poll() is None and steps_done(folder) < step:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return {"asked": step, "killed": process.returncode == -signal.SIGKILL, "checkpoint": steps_done(folder)}


def prove(root: Path, kills: int, seed: int) -> list[dict[str, object]]:
    """One record a kill; raises SystemExit where the bytes differ."""
    rng = random.Random(seed)
    finish(train(root / "whole"))
    points = sorted(rng.randrange(STEPS) for _ in range(kills))
    records = []
    for i, point in enumerate(points):
        more = ("--resume_from_checkpoint", "latest") if i else ()
        records.append(kill_at(root / "killed", point, rng.uniform(0, 0.5), *more))
    finish(train(root / "killed", "--resume_from_checkpoint", "latest"))
    whole, killed = files(root / "whole", WEIGHTS), files(root / "killed", WEIGHTS)
    if not whole or whole != killed:
        raise SystemExit(f"the bytes differ in {[k for k in whole if whole[k] != killed.get(k)]}")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for record in prove(Path(folder), options.kills, options.seed):
            print(json.dumps(record))
    print(f"{options.kills} kills, then the same bytes in every weight file")


if __name__ == "__main__":
    main()
