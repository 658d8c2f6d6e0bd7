"""What each matching method reaches in the same seconds of a processor.

    OMP_NUM_THREADS=1 python -m experiments.equal_seconds --data ../shared/data/cifar10 --max_per_class 1000 --ipc 10 \\
        --seconds 90 --seeds 0 --runs 3 --flip --shift 4 --compile --validation --output seconds.jsonl

Machine: one thread of an AMD EPYC (avx2 avx512f avx512_bf16 avx512_vnni, no amx), beside two to four other processes.
It took 15 minutes of a processor until half of the first five recipes' trainings were done; the rest was not recorded.

Result (docs/results.md#matching-methods-in-the-same-seconds): in 90 seconds, on validation images, one seed: dm with
four views in a stored image 44.7 %, cf 43.3 %, dm 42.1 %, idm 40.9 %, idc 39.6 %, random images 30.9 %.

A short trial of every recipe and seed gives the seconds of an iteration and those before the first one (compiling,
clustering, the training of networks); the recipe then has as many iterations as fit. Its set, and snapshots after a
quarter and a half of the iterations, are judged with the same training runs beside random images. The factors of the
recipes are those of their methods. Finished seeds are read from the output file. Test images are read once a training,
after its last step; ``--validation`` judges on validation images instead, to choose settings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import gendistill as gd
from experiments.refinement import read, same_options

WIDTH = 64  # of the networks that are matched on
TRIAL = 2, 6  # iterations


def cf(rate: float, frequencies: int, pool_size: int, real_batch: int, **more: Any) -> tuple[str, dict[str, Any]]:
    own = {
        "real_batch": real_batch,
        "learning_rate": rate,
        "objective": gd.Characteristic(frequencies=frequencies),
        "networks": gd.Blended(pool_size=pool_size, pool_steps=100),
    }
    return "cf", {**own, **more}


RECIPES: dict[str, tuple[str, dict[str, Any]]] = {  # method, and what differs from its options for a short budget
    "dm, 32 real images": ("dm", {"real_batch": 32, "learning_rate": 0.125}),
    "dm, 32 real images, factor 2": ("dm", {"real_batch": 32, "learning_rate": 0.125, "factor": 2}),
    "idm": ("idm", {"real_batch": 64, "train_steps": 2}),
    "idc": ("idc", {"real_batch": 64, "inner_steps": 10, "train_steps": 8}),
    "cf": cf(0.01, 1024, 4, 64),
    "cf, two networks of small batches": cf(0.03, 1024, 2, 64, train_batch=64),
    "cf, few frequencies": cf(0.03, 256, 2, 32, train_batch=64),
    "cf, few frequencies, rate 0.1": cf(0.1, 256, 2, 32, train_batch=64),
}


def distilled(
    data: gd.RealData, name: str, iterations: int, args: argparse.Namespace, seed: int, folder: Path | None = None
) -> tuple[gd.SurrogateSet, float]:
    """The set of a recipe after so many iterations, with snapshots in the folder, and its processor seconds."""
    method, options = RECIPES[name]
    matching = gd.MatchingConfig(
        width=WIDTH,
        flip=args.flip and method != "idc",
        compile=args.compile,
        snapshot_every=max(1, iterations // 4) if folder else 0,
        **options,
    )
    work = gd.WorkFolder(folder, folder / "log.jsonl") if folder else None
    config = gd.DistillConfig(method=method, ipc=args.ipc, iterations=iterations, matching=matching)
    start = time.process_time()
    made = gd.distill(data, method, args.ipc, config=config, seed=seed, folder=work)
    return made, time.process_time() - start


def fitting(data: gd.RealData, name: str, args: argparse.Namespace, seed: int) -> int:
    """How many iterations of a recipe take ``--seconds``."""
    distilled(data, name, 1, args, seed)  # compiles, which the trials do not count twice
    few, more = (distilled(data, name, count, args, seed)[1] for count in TRIAL)
    each = max((more - few) / (TRIAL[1] - TRIAL[0]), 1e-3)
    return max(4, int((args.seconds - few) / each) + TRIAL[0])


def snapshots(
    data: gd.RealData, name: str, args: argparse.Namespace, seed: int
) -> Iterator[tuple[int, float, gd.SurrogateSet]]:
    """(iterations, processor seconds, set) after a quarter, a half and all of the seconds."""
    iterations = fitting(data, name, args, seed)
    with tempfile.TemporaryDirectory() as folder:
        made, seconds = distilled(data, name, iterations, args, seed, Path(folder))
        for place in sorted((Path(folder) / "snapshots").iterdir())[1:3]:  # the first one is the start
            one = gd.SurrogateSet.load(place / f"ipc-{args.ipc}")
            share = one.meta["seconds"]["distill"] / made.meta["seconds"]["distill"]
            yield one.meta["iterations"], share * seconds, one
    yield iterations, seconds, made


def one_seed(data: gd.RealData, args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Rows of one synthesis seed."""
    made = [(name, *one) for name in args.recipes for one in snapshots(data, name, args, seed)]
    config = gd.EvaluateConfig(
        runs=args.runs,
        steps=args.judge_steps,
        width=args.width,
        flip=args.flip,
        shift=args.shift,
        compile=args.compile,
        baselines=("random",),
        describe=False,
    )
    found = gd.evaluate(data, [one for *_, one in made], config, seed=seed).rows
    accuracy = {row["set"]: row["accuracy"] for row in found}
    rows = [
        {"recipe": name, "iterations": iterations, "seconds": seconds, "accuracy": accuracy[one.content_hash()]}
        for name, iterations, seconds, one in made
    ]
    random = [
        {"recipe": row["method"], "iterations": 0, "seconds": 0.0, "accuracy": row["accuracy"]}
        for row in found
        if not row["set"]
    ]
    return [{"seed": seed, **row} for row in (*random, *rows)]


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy beside seconds and iterations, means over the seeds."""
    lines = [f"{'recipe':<34} {'iterations':>10} {'seconds':>8} {'accuracy %':>13}"]
    by_seed: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in {row["seed"] for row in rows}:
        places: dict[str, int] = {}
        for row in (row for row in rows if row["seed"] == seed):
            place = places[row["recipe"]] = places.get(row["recipe"], -1) + 1
            by_seed.setdefault((row["recipe"], place), []).append(row)
    for (name, _), own in by_seed.items():
        values = 100 * np.array([np.mean(row["accuracy"]) for row in own])
        spread = f"± {values.std(ddof=1):3.1f}" if len(values) > 1 else "(1 seed)"
        means = [float(np.mean([row[key] for row in own])) for key in ("iterations", "seconds")]
        lines.append(f"{name:<34} {means[0]:>10.0f} {means[1]:>8.0f} {values.mean():7.1f} {spread}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seconds", type=float, default=120, help="of a processor, for one set")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="of the judge")
    parser.add_argument("--judge_steps", type=int, default=200)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    same_options(args)
    data = gd.load_data(gd.DataConfig(name=args.data, max_per_class=args.max_per_class))
    if args.validation:
        data = replace(data, test=data.validation)
    for seed in args.seeds:
        if seed not in {row["seed"] for row in read(args.output)}:
            with gd.show_progress():
                found = one_seed(data, args, seed)
            with args.output.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in found))
    print(table(read(args.output)))


if __name__ == "__main__":
    main()
