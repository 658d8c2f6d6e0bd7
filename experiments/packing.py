"""What the same bytes buy: k whole images a class, or k stored ones of f x f smaller images, whole ones or patches.

    python -m experiments.packing --data ../shared/data/cifar10 --max_per_class 1000 --network convnet_bn --width 64 \\
        --teacher_steps 800 --steps 200 --judge_steps 200 --ipc 10 --seeds 0 1 --runs 3 --flip --shift 4 --compile \\
        --mixed_precision auto --generator GENERATOR --output out.jsonl

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#the-same-bytes-whole-images-or-four-in-each): four smaller images in the bytes of one are
worth 5 to 10 points to random, selected and k-means images. Refinement of packed images pays for generated ones (30.3
to 40.2 %), not for photographs (44.4 to 41.2 %). With matching afterwards they reach 48.1 ± 0.4 %, whole ones 46.1.

Every synthesis seed trains its own teacher and draws its own pools, and all its sets are judged with the same
training runs. A row has the bytes of its PNG files, of random images the mean of the draws: k stored images take
about the same, but packed ones compress less. Rows "then dm" are carried on by distribution matching, as in
experiments.guides. Finished seeds are read from the output file. Test images are read once a training, after its last
step; the settings are fixed before any of it is seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import gendistill as gd
from experiments.guides import matched
from experiments.refinement import POOL, figures, judged, options, over_seeds, sampled, teacher_of


def sets(
    data: gd.RealData, teacher: gd.Teacher, generator: gd.Generator | None, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """(name, set), each with as many stored images as its IPC says."""
    tiles, least = args.pack**2, min(data.train.counts(len(data.classes)))
    for ipc in args.ipc:
        random = gd.pack(gd.distill(data, "random", ipc * tiles, seed=seed), args.pack)
        yield "random, packed", random
        yield "random, packed, then dm", matched(random, data, args, seed)
        for space, features in spaces(teacher).items():
            picked = gd.distill(data, "kmeans", ipc * tiles, seed=seed, features=features)
            yield f"kmeans ({space}), packed", gd.pack(picked, args.pack)
        wanted = POOL * ipc * tiles  # every form of a start chooses from the same pool
        pools = {}
        if "real" in args.starts:
            pools["real"] = gd.distill(data, "random", min(wanted, least), seed=seed + 1000)
        if generator is not None:
            pools["generated"] = sampled(generator, wanted, data, seed)
        for start, pool in pools.items():
            for name, made in forms(pool, teacher, data, ipc, args, seed):
                yield f"{start}: {name}", made


def forms(
    pool: gd.SurrogateSet, teacher: gd.Teacher, data: gd.RealData, ipc: int, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """Whole, packed, and packed from patches; each selected alone, and refined; the first two then matched as well."""
    plain = gd.RefineConfig(ipc=1, steps=args.steps, flip=args.flip)
    space = gd.ground_space([teacher], data, plain)
    tiled = replace(plain, pack=args.pack)
    patches = replace(tiled, patches=gd.Patches(count=args.patches, smallest=args.min_patch))
    for name, config in {"whole": plain, "packed": tiled, "packed patches": patches}.items():
        selected, refined = gd.refine_set(pool, teacher, data, ipc, config, seed=seed, space=space)
        yield f"{name}, selected", selected if config.pack == 1 else gd.pack(selected, config.pack)
        yield f"{name}, refined", refined
        if config.patches is None:
            yield f"{name}, refined, then dm", matched(refined, data, args, seed)


def spaces(teacher: gd.Teacher) -> dict:
    """Features of the training images by the name that rows give the space; None for pixels."""
    return {"pixels": None, "teacher features": teacher.statistics.features}


def one_seed(data: gd.RealData, generator: gd.Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed."""
    teacher = teacher_of(data, args, seed)
    return judged(list(sets(data, teacher, generator, args, seed)), data, teacher, args, seed)


def table(rows: list[dict]) -> str:
    """Accuracy beside the bytes of images, both means over the seeds."""
    lines = [f"{'IPC':>4} {'labels':<7} {'set':<38} {'bytes':>12} {'accuracy %':>13}  {'over random':>13}"]
    for ipc, labels, name, mean, gain in figures(rows):
        found = [row["bytes"] for row in rows if (row["ipc"] or 0, row["name"]) == (ipc, name)]
        lines.append(f"{ipc or '':>4} {labels:<7} {name:<38} {np.mean(found):>12,.0f} {mean}  {gain}")
    return "\n".join(lines)


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(starts=["real"])
    parser.add_argument("--pack", type=int, default=2)
    parser.add_argument("--patches", type=int, default=5)
    parser.add_argument("--min_patch", type=float, default=0.25)
    print(table(over_seeds(parser.parse_args(), one_seed)))


if __name__ == "__main__":
    main()
