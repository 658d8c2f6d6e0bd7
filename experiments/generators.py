"""What a generator's images are worth beside photographs: as they are, selected, refined, then matched.

    python -m experiments.generators --data ../shared/data/cifar10 --generators generator=GENERATOR minimax=MINIMAX \\
        --network convnet_bn --width 64 --teacher_steps 800 --steps 200 --judge_steps 200 --ipc 1 10 --seeds 0 1 2 \\
        --runs 3 --flip --shift 4 --compile --mixed_precision auto --output out.jsonl --sets sets

Machine: one thread of an AMD EPYC (avx2 avx512f avx512_bf16 avx512_vnni, no amx), beside other work. A seed of CIFAR-10
took 21 minutes of processor time.

Result (docs/results.md#generated-images-beside-photographs): on CIFAR-10 sets from generated images are as good as sets
from photographs, at ten a class 37 and 38 % refined, 44 and 45 % matched; minimax fine-tuning does not pay.

Each synthesis seed has its own teacher and, from each start, a pool of ``--pool`` images a class: photographs, or
samples with mode and classifier-free guidance. From every pool come sets of its first images, of selected, of refined
and of matched ones. Otherwise as experiments.refinement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gendistill as gd
from experiments.guides import matched
from experiments.refinement import judged, made_once, options, over_seeds, table, teacher_of

PHOTOGRAPHS = "photographs"
STEPS = ("unchanged", "selected", "refined", "matched")  # each from the one before, but for the first
MATCHING = {"real_batch": 32, "learning_rate": 0.125}  # as of refine --match_iterations
GUIDED = gd.ModeGuidance(modes=10, scale=0.3, guidance_scale=3.0)


def pool_of(start: str, data: gd.RealData, count: int, args: argparse.Namespace, seed: int) -> gd.SurrogateSet:
    """``count`` images a class: random photographs, or guided samples of the generator of this name."""
    if start == PHOTOGRAPHS:
        return gd.distill(data, "random", count, seed=seed + 1000)
    generator = gd.Generator.from_pretrained(str(args.generators[start]))
    config = gd.SampleConfig(num_inference_steps=20, guidance="none" if args.unguided else GUIDED)
    drawn = gd.sample_set(generator, count, config, seed=seed, data=None if args.unguided else data)
    return replace(drawn, meta=drawn.meta | {"data": data.describe()})


def sets(
    data: gd.RealData, teacher: gd.Teacher, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """(name, set) after every step from every start that is asked for."""
    config = gd.RefineConfig(ipc=1, steps=args.steps, flip=args.flip, pixel_weight=args.pixel_weight)
    for start in (PHOTOGRAPHS, *args.generators):
        names = [name for name in STEPS if not args.only or f"{start}: {name}" in args.only]
        if not names:
            continue
        pool = pool_of(start, data, max(args.ipc) if names == ["unchanged"] else args.pool, args, seed)
        for ipc in args.ipc:
            made = {"unchanged": pool.prefix(ipc)}
            if names != ["unchanged"]:
                made["selected"], made["refined"] = gd.refine_set(pool, teacher, data, ipc, config, seed=seed)
            if "matched" in names:
                made["matched"] = matched(made["refined"], data, args, seed, **MATCHING)
            yield from ((f"{start}: {name}", made[name]) for name in names)


def one_seed(data: gd.RealData, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed."""
    teacher = teacher_of(data, args, seed)
    made = made_once(lambda: sets(data, teacher, args, seed), args, seed)
    return judged(made, data, teacher, args, seed)


def main() -> None:
    parser = options(__doc__, generators=True)
    parser.add_argument("--pool", type=int, default=50, help="images a class from which a set is selected")
    parser.add_argument("--unguided", action="store_true", help="samples without guidance")
    parser.add_argument("--only", nargs="*", help="rows, such as 'photographs: refined'; all if left out")
    args = parser.parse_args()
    args.generators = {name: Path(folder) for name, _, folder in (one.partition("=") for one in args.generators)}
    print(table(over_seeds(args, lambda data, _, args, seed: one_seed(data, args, seed))))


if __name__ == "__main__":
    main()
