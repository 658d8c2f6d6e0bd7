"""Kill -9 a training at random moments, resume it, and compare the generator's bytes with an uninterrupted one's.

    python -m tests.kills --kills 10 --seed 0

A kill falls a random fraction of a second after the checkpoint of a random optimiser step, or after the first one that
is new, so it also lands in the middle of a checkpoint, of the phase change and of the final write.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.helpers import TINY, files, gendistill
from tests.processes import start

STEPS = 120
WEIGHTS = "**/*.safetensors"
RESUME = ("--resume_from_checkpoint", "latest")


def command(folder: Path, steps: int, *more: object) -> tuple[object, ...]:
    """Half of the steps in either phase."""
    phases = ("--base_steps", steps // 2, "--minimax_steps", steps // 2, "--checkpointing_steps", 3)
    return "finetune", "--config", TINY, *phases, "--output_dir", folder, *more


def finish(*arguments: object) -> None:
    if code := gendistill(*arguments):
        raise SystemExit(f"exit code {code}")


def steps_done(folder: Path, steps: int) -> int:
    """Optimiser steps that the newest checkpoint in the partial folder has, over both phases."""
    found = folder.with_name(folder.name + ".partial").glob("checkpoints/*/step-*")
    return max((int(p.name.split("-")[1]) + steps // 2 * (p.parent.name == "minimax") for p in found), default=0)


def kill_at(folder: Path, steps: int, step: int, delay: float, *more: object) -> dict[str, object]:
    """Start or resume, kill -9 once the checkpoint of ``step`` is there and ``delay`` seconds have passed."""
    step = max(step, steps_done(folder, steps) + 1)
    process = start(*command(folder, steps, *more))
    while process.poll() is None and steps_done(folder, steps) < step:
        time.sleep(0.01)
    time.sleep(delay)
    ended = process.kill()
    killed = ended.returncode == -signal.SIGKILL
    return {"asked": step, "killed": killed, "checkpoint": steps_done(folder, steps)}


def prove(root: Path, kills: int, seed: int, steps: int = STEPS) -> list[dict[str, object]]:
    """One record a kill; raises SystemExit where the bytes differ."""
    rng = random.Random(seed)
    finish(*command(root / "whole", steps))
    points = sorted(rng.randrange(steps) for _ in range(kills))
    records = []
    for i, point in enumerate(points):
        records.append(kill_at(root / "killed", steps, point, rng.uniform(0, 0.05), *(RESUME if i else ())))
    finish(*command(root / "killed", steps, *RESUME))
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
