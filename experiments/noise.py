"""WMDD from noise: which noise, and whether pixels count, so that other networks than the teacher learn from it.

    OMP_NUM_THREADS=1 python -m experiments.noise --data ../shared/data/fashion-mnist --max_per_class 700 --flip \\
        --output noise.jsonl

Machine: one thread of an AMD EPYC (avx2 avx512f avx512_bf16 avx512_vnni, no amx), beside other work. It took 862
seconds of a processor on Fashion-MNIST, 722 on CIFAR-10 and 115 on digits.

Result (docs/results.md#noise-that-wmdd-starts-from): from noise of one grey level, without pixels, grey images fall
below random ones at 10 a class (63.8 against 72.5 %); from noise with the pixels' moments of the class, with pixels,
they reach 78.2 ± 0.2 %.

Every seed trains its own teacher. Three in ten training images are validation images, on which ConvNets with instance
norm are judged; the test images are not read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gendistill as gd
from experiments.refinement import baseline, data_of, figures

VARIANTS: dict[str, dict[str, Any]] = {
    "noise": {"start": "noise", "pixel_weight": 0.0},
    "noise, pixels": {"start": "noise"},
    "class noise": {"pixel_weight": 0.0},
    "class noise, pixels": {},  # the default
    "real images, pixels": {"start": "real"},
}


def one_seed(data: gd.RealData, args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Rows of one synthesis seed: a set of each variant and number of images, and the random ones beside it."""
    shared = {"width": args.width, "flip": args.flip}
    config = gd.TeacherConfig(network="convnet_bn", steps=args.teacher_steps, **shared)
    teacher = gd.train_teacher(data, config, seed=seed)
    names: dict[str, str] = {}
    made = []
    for name in args.only:
        for ipc in args.ipc:
            options = gd.WmddConfig(steps=args.steps, flip=args.flip, **VARIANTS[name])
            one = gd.wmdd(data, teacher, ipc, options, seed=seed)
            made.append(one)
            names[one.content_hash()] = name
    judge = gd.EvaluateConfig(
        runs=args.runs, steps=args.judge_steps, baselines=("random",), describe=False, **{**shared, "width": 32}
    )
    rows = gd.evaluate(data, made, judge, seed=seed).rows
    return [
        {
            "seed": seed,
            "name": names.get(row["set"] or "", "") or baseline(row),
            **{key: row[key] for key in ("ipc", "labels", "accuracy")},
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--teacher_steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=64, help="of the teacher; the judge has 32")
    parser.add_argument("--judge_steps", type=int, default=100)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    parser.set_defaults(validation=True)
    args = parser.parse_args()
    data = data_of(args)
    rows: list[dict[str, Any]] = []
    with gd.show_progress():
        for seed in args.seeds:
            rows += one_seed(data, args, seed)
    args.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for ipc, _, name, mean, gain in figures(rows):
        print(f"{ipc:>4} {name:<24} {mean}  {gain}")


if __name__ == "__main__":
    main()
