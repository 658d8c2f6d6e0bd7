"""Everything that is to be measured on a GPU, in one run of at most nine minutes, as JSON.

    python -m tests.gpu.measure --output_dir gpu-results

Parts run in order, each only if its time is left: tests (tests/gpu), products, DiT-XL/2 steps, one whole tiny run in
bf16 and in fp32, ratios of tests/benchmarks. Each writes its own file as soon as it ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu import work

ROOT = Path(__file__).resolve().parents[2]


def machine(_: Path, __: float) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(0)
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": about.name,
        "memory_bytes": about.total_memory,
        "capability": [about.major, about.minor],
    }


def tests(_: Path, left: float) -> dict[str, Any]:
    return command([sys.executable, "-m", "pytest", "-q", "-rA", "tests/gpu"], left)


def products(_: Path, __: float) -> dict[str, Any]:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return {name: work.matmul_peak(kind) for name, kind in kinds.items()}


def xl_steps(_: Path, __: float) -> dict[str, Any]:
    peak = work.matmul_peak(torch.bfloat16)
    found: dict[str, Any] = {"bf16_peak": peak}
    for batch in (8, 32, 64):
        try:
            step = work.xl_step(batch)
        except torch.OutOfMemoryError as error:  # the smaller batches are kept
            found[f"batch {batch}"] = {"error": str(error)}
            break
        found[f"batch {batch}"] = {**step, "share_of_peak": step["flop_per_second"] / peak}
    return found


def whole_runs(folder: Path, left: float) -> dict[str, Any]:
    found = {}
    for precision in ("bf16", "no"):
        out = folder / f"run-{precision}"
        flags = [f"--{stage}.mixed_precision={precision}" for stage in ("teacher", "finetune", "refine", "evaluate")]
        line = [sys.executable, "-m", "gendistill", "run", "--config", "tests/tiny.yaml", *flags]
        found[precision] = command([*line, "--output_dir", str(out)], left / 2)
        summary = out / "evaluation" / "summary.json"
        if summary.is_file():
            rows = json.loads(summary.read_text(encoding="utf-8"))["rows"]
            found[precision]["rows"] = {f"{row['method']} {row['ipc']}": row["mean"] for row in rows}
    return found


def ratios(folder: Path, left: float) -> dict[str, Any]:
    kept = folder / "benchmarks.json"
    files = ["tests/benchmarks/test_training.py", "tests/benchmarks/test_matching.py"]
    line = [sys.executable, "-m", "pytest", *files, "--benchmark-only", f"--benchmark-json={kept}"]
    found = command(line, left)
    if kept.is_file():
        runs = json.loads(kept.read_text(encoding="utf-8"))["benchmarks"]
        found["ratios"] = {one["name"]: one["extra_info"] for one in runs}
    return found


def command(line: list[str], left: float) -> dict[str, Any]:
    """Run a command for at most so many seconds; its exit code, seconds and last lines."""
    start = time.perf_counter()
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=max(left, 1), check=False)
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, text = 124, str(error)
    return {"exit_code": code, "seconds": time.perf_counter() - start, "output": text[-6000:]}


PARTS: dict[str, tuple[Callable[[Path, float], dict[str, Any]], float]] = {  # with the seconds that each may take
    "machine": (machine, 10),
    "tests": (tests, 150),
    "products": (products, 10),
    "xl_steps": (xl_steps, 90),
    "runs": (whole_runs, 120),
    "ratios": (ratios, 150),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("tests.gpu.measure: there is no GPU here.", file=sys.stderr)
        return 2
    options.output_dir.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    for name in options.parts:
        part, most = PARTS[name]
        left = min(most, end - time.monotonic())
        start = time.perf_counter()
        try:
            found = part(options.output_dir, left) if left > 5 else {"skipped": "no time left"}
        except (RuntimeError, ValueError, OSError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        taken = round(time.perf_counter() - start, 1)
        path = options.output_dir / f"{name}.json"
        path.write_text(json.dumps({"part_seconds": taken, **found}, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {taken} s, {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
