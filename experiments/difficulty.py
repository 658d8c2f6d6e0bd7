"""Easy or hard real images: which end of each score trains better, by images per class, on validation images.

    python -m experiments.difficulty --data ../shared/data/cifar10 --max_per_class 1000 --ipc 1 10 50 --seeds 0 1 \\
        --runs 3 --width 32 --judge_steps 100 --epochs 10 --flip --output easy-or-hard.json

Machine: one thread of an AMD EPYC (avx2, avx512f, avx512_bf16, avx512_vnni, no amx), no GPU, beside other work.
It took 16 minutes, of them 10 of a processor.

Result (docs/results.md#easy-or-hard-images): easy images by confidence are 7 points above random at 1
image a class, 5 at 10 and equal at 50. Hard images are far below random at each.

Every seed has one training, whose scores make all its sets. Three in ten training images are validation images, on
which everything is tested. The test images are not read.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import gendistill as gd

SCORES = ("confidence", "el2n", "variability", "forgetting")


def chosen(
    data: gd.RealData, curves: gd.LearningCurves, score: str, prefer: str, ipc: int, seed: int
) -> gd.SurrogateSet:
    """The set of ``gd.distill(data, "difficulty", ipc)`` with these options, from a training that is there."""
    order = np.lexsort(curves.ranking(score).numpy().T[::-1])  # type: ignore[arg-type]
    order = order[::-1] if prefer == "hard" else order
    labels = data.train.labels.numpy()[order]
    places = np.concatenate([order[labels == label][:ipc] for label in range(len(data.classes))])
    images = data.train.images[places.copy()]
    meta = {"method": "difficulty", "space": f"{score}, {prefer}", "seed": seed, "data": data.describe()}
    return gd.SurrogateSet(images, data.train.labels[places.copy()], data.classes, meta)


def sets_of_seed(data: gd.RealData, seed: int, args: argparse.Namespace) -> list[gd.SurrogateSet]:
    config = gd.DifficultyConfig(width=args.width, epochs=args.epochs, flip=args.flip)
    curves = gd.measure_difficulty(data, config, seed=seed)
    return [
        chosen(data, curves, score, prefer, ipc, seed)
        for score in args.scores
        for prefer in ("easy", "hard")
        for ipc in args.ipc
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--scores", nargs="+", default=SCORES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--judge_steps", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    data = gd.load_data(args.data, max_per_class=args.max_per_class, validation_fraction=0.3)
    data = replace(data, test=data.validation)  # what evaluations test on
    with gd.show_progress():
        sets = [made for seed in args.seeds for made in sets_of_seed(data, seed, args)]
        config = gd.EvaluateConfig(
            runs=args.runs,
            steps=args.judge_steps,
            width=args.width,
            flip=args.flip,
            baselines=("random", "kmeans"),
            describe=False,
        )
        result = gd.evaluate(data, sets, config)
    print(gd.table(result))
    if args.output:
        args.output.write_text(json.dumps(result.rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
