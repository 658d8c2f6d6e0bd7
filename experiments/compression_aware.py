"""Lossy image files: coded after the optimisation, or in every step of it, on validation images.

    python -m experiments.compression_aware --data ../shared/data/cifar10 --max_per_class 1000 --qualities 10 20 40 \\
        --output compression-aware.json

Machine: one thread of an AMD EPYC (avx512_bf16), two cores shared with other work. It took 13 minutes of a processor.

Result (docs/results.md#compression-aware-optimisation): with one seed, coding in every step gains 1 to 2 points at
qualities 10 and 20 and nothing at 40, and the files are 16 to 20 % larger.

Ten photographs of each class are refined and then matched, once for all qualities where they are coded afterwards, and
once for each quality where every step codes them. Three in ten training images are validation images, on which
everything is tested. The test images are not read.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import gendistill as gd


def named(made: gd.SurrogateSet, space: str) -> gd.SurrogateSet:
    """The set with a name of its own in the table, so that it has a row of its own."""
    return replace(made, meta=made.meta | {"space": space})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--pool", type=int, default=30)
    parser.add_argument("--qualities", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--teacher_steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--match_iterations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--judge_steps", type=int, default=200)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    begun = time.process_time()
    data = gd.load_data(args.data, max_per_class=args.max_per_class, validation_fraction=0.3)
    data = replace(data, test=data.validation)  # what evaluations test on
    teacher = gd.train_teacher(data, gd.TeacherConfig(steps=args.teacher_steps), seed=args.seed)
    pool = gd.distill(data, "random", args.pool, seed=args.seed)
    config = gd.RefineConfig(steps=args.steps, match_iterations=args.match_iterations, flip=True)
    space, sets = gd.ground_space([teacher], data, config), []
    _, plain = gd.refine_set(pool, teacher, data, args.ipc, config, seed=args.seed, space=space)
    print(f"plain: {time.process_time() - begun:.0f} s of a processor", flush=True)
    sets.append(named(plain, "png"))
    for quality in args.qualities:
        webp = gd.Webp(quality=quality)
        sets.append(named(plain.stored_as(webp), f"afterwards, {quality}"))
        own = replace(config, image_format=webp, compression_aware=True)
        _, aware = gd.refine_set(pool, teacher, data, args.ipc, own, seed=args.seed, space=space)
        sets.append(named(aware, f"aware, {quality}"))
        sizes = " and ".join(f"{one.image_bytes:,}" for one in sets[-2:])
        print(f"{quality}: {sizes} bytes; {time.process_time() - begun:.0f} s of a processor", flush=True)
    judge = gd.EvaluateConfig(
        runs=args.runs, steps=args.judge_steps, width=args.width, flip=True, baselines=("random",), describe=False
    )
    result = gd.evaluate(data, sets, judge)
    print(gd.table(result))
    for row in result.rows:
        print(row["space"], row["accuracy"], row["bytes"], flush=True)
    print(f"{time.process_time() - begun:.0f} s of a processor")
    if args.output:
        args.output.write_text(json.dumps(result.rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
