"""Threads of a CPU: the environment that torch reads, what the command says, and the memory that is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gendistill import threads
from gendistill.cli import main
from tests.helpers import environment

ROOT = Path(__file__).parents[1]
SHOW = """
import sys
from gendistill.cli import main
assert "torch" not in sys.modules
code = main(sys.argv[1:] + ["config", "list", "--quiet"])
import os, torch
print(code, torch.get_num_threads(), *(os.environ.get(name) for name in {names!r}))
"""


def shown(arguments: list[str], **variables: str) -> list[str]:
    """Exit code, threads and the variables that the process has after a command."""
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    plain = {k: v for k, v in environment().items() if k not in (*names, "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(names=names), *arguments],
        env=plain | variables, cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1].split()


@pytest.mark.slow
def test_threads_sleep_soon_unless_the_user_says_how_they_wait() -> None:
    assert shown([])[2:] == [threads.SPINS, "0", "None"]
    assert shown([], OMP_WAIT_POLICY="active")[2:] == ["None", "None", "active"]
    assert shown([], GOMP_SPINCOUNT="7")[2:] == ["7", "None", "None"]


@pytest.mark.slow
def test_the_option_says_how_many() -> None:
    assert shown(["--threads", "1"])[:2] == ["0", "1"]
    assert shown(["--threads=1"], OMP_NUM_THREADS="2")[:2] == ["0", "1"]  # MKL gives no more than there are cores
    assert shown([], OMP_NUM_THREADS="2")[:2] == ["0", "2"]


def test_the_option_counts_in_a_process_that_has_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back afterwards
    before = torch.get_num_threads()
    try:
        assert main(["--threads", str(before + 1), "--quiet", "config", "list"]) == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "100000", ""])
def test_a_wrong_number_is_one_message(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--threads={value}", "config", "list"]) == 2
    assert f"threads is {value!r}; expected a whole number from 1 to 1024." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("load", "running", "own", "threads_used", "says"),
    [
        (8.0, 9, 1, 4, True),
        (8.0, 8, 4, 4, True),
        (8.0, 1, 1, 4, False),
        (8.0, 5, 4, 4, False),
        (0.5, 9, 1, 4, False),
        (8.0, 9, 1, 1, False),
    ],
    ids=["crowded", "crowded beside our threads", "no longer", "only by our threads", "only now", "one thread"],
)
def test_a_crowded_machine_is_named(
    load: float, running: int, own: int, threads_used: int, says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    files = {f"{i}": f"{i} (a name) of it) {'R' if i < own else 'S'} 1" for i in range(6)}
    files["loadavg"] = f"{load} {load} {load} {running}/300 4711\n"
    monkeypatch.setattr(Path, "glob", lambda *_: [Path(str(i)) for i in range(6)])
    monkeypatch.setattr(Path, "read_text", lambda path: files[path.name])
    found = threads.crowded(threads_used)
    assert (found is not None) is says
    assert found is None or ("all 4 processors" in found and "--threads 1" in found)


def test_threads_of_ours_are_as_many_as_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, wanted in (("3", 3), ("3,2", 3), ("", threads.usable_processors()), ("no", threads.usable_processors())):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads.usual_threads() == wanted


FAULTS = """
import resource
from gendistill.cli import main
main(["config", "list", "--quiet"])
import torch
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**18) for _ in range(16)]
    del kept
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_small_tensors_of_a_step_reuse_the_memory_of_the_step_before() -> None:
    def faults(**variables: str) -> float:
        plain = {k: v for k, v in environment().items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=plain | variables, cwd=ROOT, check=True, capture_output=True, text=True
        )
        return float(done.stdout.splitlines()[-1])

    pages = 16 * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert faults() < pages / 10
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > pages / 2  # as the user wishes
