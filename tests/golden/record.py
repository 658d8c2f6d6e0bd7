"""What a tiny run of every stage and method makes: bytes of images, rows, manifests.

`python -m tests.golden.record` records it anew, which is right only where a change of results was meant.

The same bytes come only from the same arithmetic, so the record names it (`arithmetic`): on another processor or with
other libraries the test compares what is in every set and row, and numbers only roughly.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("golden.json")
PINNED = {  # one thread and the oldest instructions, so that most machines compute alike
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
CHANGING = {
    "seconds", "synthesis_seconds", "command", "versions", "time", "cached", "peak_memory_mib", "resumed", "device",
    "shared_seconds", "options", "blake2b",
}  # fmt: skip
FEW = "few-digits"  # a source of 40 digits of each class, in all splits together
ALONE = ("--validate", "false")  # its trainings record no more than those of the evaluations
DIGITS = ("--data.name", FEW)
SMALL = ("--matching.width", "8", "--matching.mixed_precision", "no", "--matching.compile", "false")
QUICK = ("--runs", "3", "--steps", "6", "--width", "8", "--baseline_cache", "null")


def commands(out: Path) -> list[tuple[str, ...]]:
    """The command lines, in order; later ones read what earlier ones made."""
    run, tiny = out / "run", str(Path(__file__).with_name("tiny.yaml"))

    def distil(name: str, method: str, *options: str, ipc: str = "2") -> tuple[str, ...]:
        return ("distill", "--method", method, "--ipc", ipc, *DIGITS, *options, *ALONE, "--output_dir", str(out / name))

    def match(name: str, method: str, *options: str, ipc: str = "2") -> tuple[str, ...]:
        steps = ("--iterations", "2", *SMALL)
        return distil(name, method, *steps, *options, ipc=ipc)

    one_step = ("--matching.inner_steps", "2", "--matching.train_steps", "1", "--matching.real_batch", "8")
    few = ("--matching.real_batch", "8")
    pool, teacher = str(run / "samples" / "pool"), str(run / "teacher")
    return [
        ("run", "--config", tiny, *DIGITS, "--data.max_per_class", "null", "--output_dir", str(run)),
        *(distil(name, name, ipc="[1,3]") for name in ("random", "kmeans", "herding", "kcenter")),
        match("dc", "dc", *one_step),
        match("dsa", "dsa", *one_step, "--matching.flip", "true"),
        match("dm", "dm", *few, ipc="[1,2]"),
        match("dream", "dm", "--selection", "representative", *few, "--matching.candidates", "16"),
        match("idc", "idc", *one_step, "--matching.warm_steps", "1", "--matching.factor", "[1,2]",
              "--matching.augmentation", "all", "--matching.cutmix", "0.5"),
        match("idm", "idm", *few, "--matching.train_steps", "1", "--matching.queue_size", "2"),
        distil("wmdd", "wmdd", "--teacher", teacher, "--wmdd.steps", "4", "--wmdd.mixed_precision", "no"),
        ("sample", "--generator", str(run / "generator"), "--ipc", "2", "--pool", "0", "--base", "false",
         "--num_inference_steps", "3", "--guidance", "mode", "--guidance_scale", "2", "--modes", "2", *DIGITS,
         "--output_dir", str(out / "guided")),
        ("refine", "--surrogate", pool, "--teacher", teacher, "--ipc", "2", "--steps", "4", "--pixel_weight", "1",
         "--gate", "true", "--patches", "3", "--flip", "true", "--mixed_precision", "no",
         *ALONE, "--output_dir", str(out / "gated")),
        ("refine", "--surrogate", pool, "--teacher", teacher, "--ipc", "1", "--steps", "3", "--pack", "2",
         "--match_iterations", "1", "--match_from", "1", "--mixed_precision", "no",
         *ALONE, "--output_dir", str(out / "packed")),
        *(("label", "--surrogate", str(run / "refined" / "ipc-2"), "--teacher", teacher, "--mode", mode, *options,
           "--output_dir", str(out / mode))
          for mode, options in (("per_image", ()), ("per_view", ("--steps", "6", "--cutmix", "1")), ("online", ()))),
        ("evaluate", "--surrogate", str(out / "per_view"), "--labels", "soft", "--teacher", teacher, *DIGITS, *QUICK,
         "--output_dir", str(out / "soft")),
        ("evaluate", "--surrogate", str(run / "refined" / "ipc-2"), "--task", "continual", "--continual.steps", "2",
         *DIGITS, *QUICK, "--output_dir", str(out / "continual")),
        *(("export", "--surrogate", str(out / "per_image"), "--format", kind, "--output_dir", str(out / kind))
          for kind in ("imagefolder", "parquet", "webdataset", "ddranking")),
        ("verify", str(run / "refined" / "ipc-2")),
        ("show", str(run / "refined" / "ipc-2"), "--teacher", teacher, "--output_dir", str(out / "shown")),
        ("report", str(run), str(out / "soft"), "--output_dir", str(out / "reported")),
    ]  # fmt: skip


def make(out: Path) -> dict[str, Any]:
    """Run every command into ``out`` in one process of its own; returns what they made."""
    cache = {"XDG_CACHE_HOME": str(out / "cache")}
    script = (
        "import json, sys, tests.golden.record as record\n"
        "arithmetic = record.arithmetic()\nrecord.register_few_digits()\n"
        "from gendistill.cli import main\nfor line in json.load(sys.stdin):\n"
        "    assert main(line) == 0, line\n"
        "print(json.dumps([arithmetic, record.old_fingerprints()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(commands(out)), capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **PINNED, **cache}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found, fingerprints = json.loads(done.stdout.splitlines()[-1])
    as_recorded.update(fingerprints)
    import torch

    where = {"arithmetic": found, "instructions": torch.backends.cpu.get_cpu_capability()}  # oneDNN's are not pinned
    return where | {"sets": sets(out), "evaluations": evaluations(out), "formats": formats(out)}


def register_few_digits() -> None:
    """The digits that the golden sets were made from: a draw of 40 of each class, before the splits."""
    from dataclasses import replace

    from gendistill import register_source
    from gendistill.data.sources import digits, limit

    @register_source(FEW)
    def few(config: Any) -> Any:
        source = digits(config)
        return replace(source, splits={"train": limit(source.splits["train"], 40, config.split_seed)})


as_recorded: dict[str, str] = {}  # fingerprints by those of the version that made the record


def old_fingerprints() -> dict[str, str]:
    from gendistill import load_data

    data = load_data(FEW)
    return {
        data.fingerprint(): data.old_fingerprints["fingerprint"],
        data.test_fingerprint: data.old_fingerprints["test_fingerprint"],
    }


def arithmetic() -> str:
    """A hash of what this machine's libraries make of a convolution, a product, exponentials and a decomposition."""
    import sklearn
    import torch

    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 3, 16, 16, generator=g), torch.randn(8, 3, 3, 3, generator=g)
    y = torch.nn.functional.conv2d(x, w, padding=1)
    parts = [y, y.flatten(1) @ y.flatten(1).T, torch.linalg.svd(y[0, 0])[1], y.exp(), y.sin(), y.mean((2, 3))]
    data = b"".join(p.contiguous().numpy().tobytes() for p in parts)
    return hashlib.sha256(data + (torch.__version__ + sklearn.__version__).encode()).hexdigest()[:16]


def sets(out: Path) -> dict[str, Any]:
    """For every surrogate set: a hash of its images' bytes, how many, their mean level, and its manifest."""
    found = {}
    for path in sorted(out.rglob("manifest.json")):
        images = sorted(path.parent.rglob("*.png"))
        found[path.parent.relative_to(out).as_posix()] = {
            "images": _hash(images, path.parent),
            "count": len(images),
            "labels": _hash(path.parent.glob("soft_labels.safetensors"), path.parent),
            "manifest": steady(json.loads(path.read_text(encoding="utf-8")), out),
        }
    return found


def evaluations(out: Path) -> dict[str, Any]:
    """The rows of every evaluation, without what time it took."""
    found = {}
    for name in ("summary.json", "continual.json"):
        for path in sorted(out.rglob(name)):
            summary = steady(json.loads(path.read_text(encoding="utf-8")), out)
            kept = {k: summary[k] for k in ("rows", "scores", "sets", "findings") if k in summary}
            found[path.parent.relative_to(out).as_posix()] = kept
    return found


def formats(out: Path) -> dict[str, list[str]]:
    """Names of the files that exports, show and report write."""
    folders = ("imagefolder", "parquet", "webdataset", "ddranking", "shown", "reported")
    return {
        name: sorted(p.relative_to(out / name).as_posix() for p in (out / name).rglob("*") if p.is_file())
        for name in folders
    }


def steady(value: Any, out: Path) -> Any:
    """A record without what differs from run to run: times, versions, the folder."""
    if isinstance(value, dict):
        return {k: steady(v, out) for k, v in value.items() if k not in CHANGING}
    if isinstance(value, list):
        return [steady(v, out) for v in value]
    if not isinstance(value, str):
        return value
    return as_recorded.get(value, value).replace(str(out), "OUT").replace(FEW, "digits")


def _hash(paths: Any, folder: Path) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
    RECORD.write_text(json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(made['sets'])} sets, {len(made['evaluations'])} evaluations: {RECORD}")
