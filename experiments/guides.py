"""What else may guide refinement: half-trained and several teachers, real images as atoms, a matching objective.

    python -m experiments.guides --data ../shared/data/cifar10 --max_per_class 1000 --output out.jsonl --sets sets

Each synthesis seed selects with its own teacher from a pool of random real images, or of samples with --generator, then
moves the same images in every way, so that rows of a seed differ in the guide alone. Otherwise as
experiments.refinement, whose options these are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch

import gendistill as gd
from experiments.refinement import POOL, judged, options, over_seeds, sampled, table, teacher_of
from gendistill.config import DistillConfig, MatchingConfig, RefineConfig
from gendistill.data.dataset import RealData
from gendistill.generator.generator import Generator
from gendistill.matching.distiller import match
from gendistill.matching.methods import plan_runs
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.refine.constraints import chunks
from gendistill.refine.feature_space import FeatureSpace, ground_space
from gendistill.refine.objective import BarycenterTargets, matched_targets
from gendistill.refine.optimization import pixel_region, refine_part
from gendistill.seeding import derive
from gendistill.surrogate.set import SurrogateSet
from gendistill.transport.barycenter import assign

HALF = 8  # a half-trained teacher has this part of the steps
DM_STEPS = 100


def ways(
    selected: SurrogateSet, teachers: dict[str, list[Teacher]], data: RealData, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, SurrogateSet]]:
    """(name, set) of every way that is asked for to move the selected images."""
    config = RefineConfig(ipc=1, steps=args.steps, flip=args.flip, select=False, pixel_weight=args.pixel_weight)
    space = ground_space(teachers["one teacher"], data, config)

    @cache
    def guided(name: str) -> SurrogateSet:
        return gd.refine_set(selected, teachers[name], data, selected.ipc, config, seed=seed)[1]

    made: dict[str, Callable[[], SurrogateSet]] = {
        "selected": lambda: selected,
        **{name: partial(guided, name) for name in teachers},
        "real images as atoms": lambda: to_real(selected, space, config, seed),
        "dm": lambda: matched(selected, data, args, seed),
        "one teacher, then dm": lambda: matched(guided("one teacher"), data, args, seed),
    }
    yield from ((name, make()) for name, make in made.items() if name in (args.only or made))


def to_real(selected: SurrogateSet, space: FeatureSpace, config: RefineConfig, seed: int) -> SurrogateSet:
    """Refined toward the real image of its class that is nearest to each atom, each taken once."""
    points, labels = space.points(selected.images, selected.labels), selected.labels
    means = matched_targets(points, labels, space).atoms
    atoms, images = torch.empty_like(means), selected.images.clone()
    for label in labels.unique().tolist():
        real, own = space.of_class(label), labels == label
        atoms[own] = torch.from_numpy(real[assign(means[own].numpy(), real)])
    for place in chunks(labels, config.batch_size):
        targets = BarycenterTargets(atoms[place], torch.ones(len(place)))
        loop = refine_part(selected, place, targets, space, config, pixel_region(config), derive(seed, "refine"))
        images[place] = follow(loop, "refine", config.steps)
    return replace(selected, images=images)


def matched(selected: SurrogateSet, data: RealData, args: argparse.Namespace, seed: int) -> SurrogateSet:
    """Carried on by distribution matching, on fresh networks."""
    matching = MatchingConfig(
        width=64,
        factor=selected.factor,
        flip=args.flip,
        mixed_precision=args.mixed_precision,
        compile=args.compile,
    )
    config = DistillConfig(method="dm", ipc=selected.ipc, iterations=DM_STEPS, matching=matching)
    (run,) = plan_runs(config, data)
    return match(data, run, seed=seed, given=selected)[0]


def one_seed(data: RealData, generator: Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
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
        config = RefineConfig(ipc=1, steps=0, pixel_weight=args.pixel_weight)
        selected = gd.refine_set(pool, teacher, data, ipc, config, seed=seed)[0]
        made += ways(selected, teachers, data, args, seed)
    return judged(made, data, teacher, args, seed)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", help="names of rows; all of them if left out")
    print(table(over_seeds(parser.parse_args(), one_seed)))


if __name__ == "__main__":
    main()
