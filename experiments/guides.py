"""What else may guide refinement: half-trained and several teachers, real images as atoms, a matching objective.

    python -m experiments.guides --data ../shared/data/cifar10 --max_per_class 1000 --network convnet_bn --width 64 \\
        --teacher_steps 800 --steps 200 --judge_steps 200 --ipc 1 10 --seeds 0 1 2 --runs 3 --flip --shift 4 \\
        --compile --mixed_precision auto --output out.jsonl

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#other-guides-and-matching-afterwards): refinement and then distribution matching is best,
45.2 ± 0.4 % at IPC 10 from generated images, where refinement alone has 37.9 and matching alone 37.8. A second teacher
adds 0.9 points at IPC 10; a half-trained one is no better; real images as atoms gain 1.3 at IPC 10, lose 3 at IPC 1.

Each synthesis seed selects with its own teacher from a pool of random real images, or of samples with --generator, then
moves the same images in every way, so that rows of a seed differ in the guide alone. Otherwise as
experiments.refinement, whose options these are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import gendistill as gd
from experiments.refinement import POOL, judged, options, over_seeds, sampled, table, teacher_of
from gendistill.transport.barycenter import assign, solve_barycenter

HALF = 8  # a half-trained teacher has this part of the steps
DM_STEPS = 100


def ways(
    selected: gd.SurrogateSet,
    teachers: dict[str, list[gd.Teacher]],
    data: gd.RealData,
    args: argparse.Namespace,
    seed: int,
) -> Iterator[tuple[str, gd.SurrogateSet]]:
    """(name, set) of every way that is asked for to move the selected images."""
    config = gd.RefineConfig(ipc=1, steps=args.steps, flip=args.flip, select=False, pixel_weight=args.pixel_weight)

    @cache
    def guided(name: str) -> gd.SurrogateSet:
        return gd.refine_set(selected, teachers[name], data, selected.ipc, config, seed=seed)[1]

    made: dict[str, Callable[[], gd.SurrogateSet]] = {
        "selected": lambda: selected,
        **{name: partial(guided, name) for name in teachers},
        "real images as atoms": lambda: to_real(selected, teachers["one teacher"], data, config, seed),
        "dm": lambda: matched(selected, data, args, seed),
        "one teacher, then dm": lambda: matched(guided("one teacher"), data, args, seed),
    }
    yield from ((name, make()) for name, make in made.items() if name in (args.only or made))


def to_real(
    selected: gd.SurrogateSet, teachers: list[gd.Teacher], data: gd.RealData, config: gd.RefineConfig, seed: int
) -> gd.SurrogateSet:
    """Refined toward the real image of its class that is nearest to each atom, each taken once."""
    space, labels = gd.ground_space(teachers, data, config), selected.labels
    points = space.points(selected.images, labels)
    atoms = torch.empty_like(points)
    for label in labels.unique().tolist():
        real, own = space.of_class(label), labels == label
        means = solve_barycenter(real, points[own].numpy()).atoms
        atoms[own] = torch.from_numpy(real[assign(means, real)])
    return gd.refine_images(selected, space, config, seed=seed, atoms=atoms)


def matched(
    selected: gd.SurrogateSet, data: gd.RealData, args: argparse.Namespace, seed: int, **options: Any
) -> gd.SurrogateSet:
    """Carried on by distribution matching, on fresh networks, with these options of it."""
    with tempfile.TemporaryDirectory() as folder:
        selected.save(Path(folder) / "set")
        matching = gd.MatchingConfig(
            start=Path(folder) / "set",
            width=64,
            factor=selected.factor,
            flip=args.flip,
            mixed_precision=args.mixed_precision,
            compile=args.compile,
            **options,
        )
        config = gd.DistillConfig(method="dm", iterations=DM_STEPS, matching=matching)
        return gd.distill(data, "dm", selected.ipc, config=config, seed=seed)


def one_seed(data: gd.RealData, generator: gd.Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed, of samples where there is a generator."""
    few = argparse.Namespace(**{**vars(args), "teacher_steps": args.teacher_steps // HALF})
    teacher = teacher_of(data, args, seed)
    teachers = {"one teacher": [teacher]}
    if not args.only or "two teachers" in args.only:
        teachers["two teachers"] = [teacher, teacher_of(data, args, seed + 100)]
    if not args.only or "a half-trained teacher" in args.only:
        teachers["a half-trained teacher"] = [teacher_of(data, few, seed)]
    made = []
    for ipc in args.ipc:
        if generator is None:
            pool = gd.distill(data, "random", POOL * ipc, seed=seed + 1000)
        else:
            pool = sampled(generator, POOL * ipc, data, seed)
        config = gd.RefineConfig(ipc=1, steps=0, pixel_weight=args.pixel_weight)
        selected = gd.refine_set(pool, teacher, data, ipc, config, seed=seed)[0]
        made += ways(selected, teachers, data, args, seed)
    return judged(made, data, teacher, args, seed)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", help="names of rows; all of them if left out")
    print(table(over_seeds(parser.parse_args(), one_seed)))


if __name__ == "__main__":
    main()
