"""Commands in two processes each, as torchrun starts them, but with torch and diffusers imported once for all of them.

    python -m tests.processes '[[["sample", "--num_processes", "2"], null], [["train/finetune.py"], null]]'

Beside every command stands what makes one of its processes die: its rank, and a pattern of files that have to be there.
For every command a JSON line comes out: the exit code, that of the first process to fail, and what went to stderr.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from tests.helpers import ROOT, environment

PROCESSES = 2


@dataclass(frozen=True)
class Ended:
    returncode: int
    stderr: str


def launch(
    *commands: tuple[object, ...], kill: Mapping[int, tuple[int, Path]] | None = None, timeout: float = 300
) -> list[Ended]:
    """Run commands with their arguments, one after another, each in two processes on CPU (gloo).

    Args:
        commands: Words after ``gendistill``, or a launch script with its arguments.
        kill: By the number of a command, the rank of the process to kill and a pattern of files, one of which has to
            be there before.
        timeout: Seconds for all.
    """
    text = json.dumps(
        [[list(map(str, words)), [str(x) for x in (kill or {}).get(i, ())]] for i, words in enumerate(commands)]
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes", text], capture_output=True, text=True, cwd=ROOT, timeout=timeout,
        check=True, env={**environment(), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [Ended(**json.loads(line)) for line in done.stdout.splitlines()]


def main() -> None:
    import gendistill.stages.distill
    import gendistill.stages.evaluate
    import gendistill.stages.finetune
    import gendistill.stages.label
    import gendistill.stages.run
    import gendistill.stages.sample
    import gendistill.stages.teacher  # noqa: F401  (what the forked processes find imported)

    for words, kill in json.loads(sys.argv[1]):
        with tempfile.TemporaryFile("w+") as log:
            code = _together(words, log.fileno(), kill)
            log.seek(0)
            print(json.dumps({"returncode": code, "stderr": log.read()}), flush=True)


def _together(words: list[str], log: int, kill: list[str]) -> int:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent keeps one
    ranks = {_fork(words, log, rank, store.port): rank for rank in range(PROCESSES)}
    first = 0
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            if kill and glob(kill[1]):
                victim = next(pid for pid, rank in ranks.items() if rank == int(kill[0]))
                os.kill(victim, signal.SIGKILL)
                kill = []
            time.sleep(0.01)
            continue
        del ranks[pid]
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    return first


def _fork(words: list[str], log: int, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
        agent = {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {k: str(v) for k, v in {**world, **agent, **meeting}.items()}
        sys.argv = words
        if words[0].endswith(".py"):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        else:
            sys.argv = ["gendistill", *words]
            runpy.run_module("gendistill", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
