"""Launch scripts in two processes each, as torchrun does, but with torch and diffusers imported once for all of them.

    python -m tests.processes '[["sample/generate.py", "--num_processes", "2"], ["train/finetune.py"]]'

For every script a JSON line comes out: the exit code, that of the first process to fail, and what went to stderr.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass

from tests.helpers import ROOT, environment

PROCESSES = 2


@dataclass(frozen=True)
class Ended:
    returncode: int
    stderr: str


def launch(*scripts: tuple[object, ...], timeout: float = 300) -> list[Ended]:
    """Run scripts with their arguments, one after another, each in two processes on CPU (gloo)."""
    text = json.dumps([[str(a) for a in script] for script in scripts])
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes", text], capture_output=True, text=True, cwd=ROOT, timeout=timeout,
        check=True, env={**environment(), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [Ended(**json.loads(line)) for line in done.stdout.splitlines()]


def main() -> None:
    import gendistill.stages.distill
    import gendistill.stages.finetune
    import gendistill.stages.sample  # noqa: F401  (what the forked processes find imported)

    for script in json.loads(sys.argv[1]):
        with tempfile.TemporaryFile("w+") as log:
            code = _together(script, log.fileno())
            log.seek(0)
            print(json.dumps({"returncode": code, "stderr": log.read()}), flush=True)


def _together(script: list[str], log: int) -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    running = {_fork(script, log, rank, port) for rank in range(PROCESSES)}
    first = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in running:
                os.kill(other, signal.SIGTERM)
    return first


def _fork(script: list[str], log: int, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
        os.environ |= {k: str(v) for k, v in {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()}
        sys.argv = script
        runpy.run_path(str(ROOT / script[0]), run_name="__main__")
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
