"""Every method at every size under several networks: coresets, matching, WMDD and our default recipe.

    OMP_NUM_THREADS=1 python -m experiments.every_method --data digits --generator runs/digits/generator \\
        --teacher_steps 400 --judge_steps 100 --ipc 1 10 --seeds 0 1 2 --runs 3 \\
        --networks convnet timm:mobilenetv3_small_050 --output methods.jsonl --sets sets

Machine: one thread of an AMD EPYC (avx2 avx512f avx512_bf16 avx512_vnni, no amx), beside other work. It took 1375
seconds of a processor.

Result (docs/results.md#every-method-under-two-networks): on digits our recipe is ahead of every coreset on average, at
1 image a class by 3 points, at 10 by less than the seeds can show (96.9 against 96.1 % of k-means on pixels).

``ours`` is one rule for all collections: five samples of a generator, or random photographs, for each image wanted, of
which refinement selects and moves images; from 5 images a class on 100 iterations of matching follow (``refine
--match_iterations 100``). Herding, k-centre and the second k-means compare the features of the teacher that guides
``ours`` and wmdd. Matching methods have the budgets below, which a CPU pays in minutes. Nothing was chosen by a test
image. Every seed has its own teacher and sets, all judged by the same training runs. Finished seeds are read from the
output file, and sets from ``--sets``. Test images are read once a training, after its last step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import gendistill as gd
from experiments.refinement import POOL, baseline, made_once, options, over_seeds, sampled, teacher_of, training

NETWORKS = ("convnet", "resnet10", "timm:mobilenetv3_small_050")  # the last one has made no set
SMALL = {"real_batch": 32, "width": 64}
BUDGETS = {  # iterations of a method, and its options
    "dm": (200, {"learning_rate": 0.125}),
    "idc": (8, {"inner_steps": 10, "train_steps": 8}),
}


def sets(
    data: gd.RealData, teacher: gd.Teacher, generator: gd.Generator | None, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """(name, set) of every method at every number of images."""
    features = teacher.statistics.features
    config = gd.RefineConfig(ipc=1, steps=args.steps, flip=args.flip, match_iterations=100)
    space = gd.ground_space([teacher], data, config)
    for ipc in args.ipc:
        yield "k-means (pixels)", gd.distill(data, "kmeans", ipc, seed=seed)
        for name in ("kmeans", "herding", "kcenter"):
            yield f"{name} (teacher features)", gd.distill(data, name, ipc, seed=seed, features=features)
        yield "difficulty", gd.distill(data, "difficulty", ipc, seed=seed, options=gd.DifficultyConfig(flip=args.flip))
        yield "wmdd", gd.wmdd(data, teacher, ipc, gd.WmddConfig(steps=args.steps, flip=args.flip), seed=seed)
        least = min(data.train.counts(len(data.classes)))
        for name, (iterations, own) in BUDGETS.items():
            if name == "idc" and least < 4 * ipc:
                continue  # it starts from four real images in each stored one
            matching = gd.MatchingConfig(
                flip=args.flip and name != "idc",
                compile=args.compile,
                mixed_precision=args.mixed_precision,
                **SMALL,
                **own,
            )
            wanted = gd.DistillConfig(method=name, ipc=ipc, iterations=iterations, matching=matching)
            yield name, gd.distill(data, name, ipc, config=wanted, seed=seed)
        pools = {"ours, from photographs": gd.distill(data, "random", min(POOL * ipc, least), seed=seed + 1000)}
        if generator is not None:
            pools["ours, generated"] = sampled(generator, POOL * ipc, data, seed)
        for name, pool in pools.items():
            yield name, gd.refine_set(pool, teacher, data, ipc, config, seed=seed, space=space)[1]


def one_seed(data: gd.RealData, generator: gd.Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed under every network."""
    teacher = teacher_of(data, args, seed)
    made = made_once(lambda: sets(data, teacher, generator, args, seed), args, seed)
    config = gd.EvaluateConfig(
        network=tuple(args.networks),
        runs=args.runs,
        steps=args.judge_steps,
        baselines=("random", "full"),
        describe=False,
        **training(args),
    )
    names: dict[str, list[str]] = {}  # of the same images, such as the one that k-means and herding take
    for name, one in made:
        names.setdefault(one.content_hash(), []).append(name)
    rows = gd.evaluate(data, [one for _, one in made], config, seed=seed, teacher=teacher).rows
    columns = ("ipc", "labels", "network", "accuracy", "seconds")
    return [
        {"seed": seed, "name": name, **{key: row.get(key) for key in columns}}
        for row in rows
        for name in names.get(row["set"] or "", [baseline(row)])
    ]


def table(rows: list[dict]) -> str:
    """Accuracy of every method, network and size: mean and spread over the seeds."""
    sizes = sorted({row["ipc"] or 0 for row in rows})
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        lines.append(f"{network:<32}" + "".join(f"{f'IPC {ipc}' if ipc else 'all':>16}" for ipc in sizes))
        own = [row for row in rows if row["network"] == network]
        for name in dict.fromkeys(row["name"] for row in own):
            lines.append(f"  {name:<30}" + "".join(f"{cell(own, name, ipc):>16}" for ipc in sizes))
    return "\n".join(lines)


def cell(rows: list[dict], name: str, ipc: int) -> str:
    values = [100 * np.mean(row["accuracy"]) for row in rows if (row["name"], row["ipc"] or 0) == (name, ipc)]
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else " (1 seed)")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    print(table(over_seeds(parser.parse_args(), one_seed)))


if __name__ == "__main__":
    main()
