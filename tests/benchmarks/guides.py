"""What else may guide refinement: half-trained and several teachers, real images as atoms, a matching objective.

    python -m tests.benchmarks.guides --data ../shared/data/cifar10 --max_per_class 1000 --output out.jsonl --sets sets

Each synthesis seed selects from one random pool with its own teacher, then moves the same images in every way, so that
rows of a seed differ in the guide alone. Otherwise as tests.benchmarks.refinement, whose options these are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

import gendistill as gd
from gendistill.config import DistillConfig, MatchingConfig, RefineConfig
from gendistill.data.real import RealData
from gendistill.generator.generator import Generator
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.refine.barycenter import Targets, matched_targets
from gendistill.refine.region import chunks
from gendistill.refine.space import GroundSpace
from gendistill.seeding import derive
from gendistill.stages.chunks import _refine_chunk, pixel_region
from gendistill.stages.matching import match, plan_runs
from gendistill.stages.refine import ground_space
from gendistill.surrogate.surrogate import SurrogateSet
from gendistill.transport.barycenter import assign
from tests.benchmarks.refinement import POOL, judged, options, over_seeds, table, teacher_of

HALF = 8  # a half-trained teacher has this part of the steps


def ways(
    selected: SurrogateSet, teachers: dict[str, list[Teacher]], data: RealData, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, SurrogateSet]]:
    """(name, set) of every way to move the selected images."""
    config = RefineConfig(ipc=1, steps=args.steps, flip=args.flip, select=False, pixel_weight=args.pixel_weight)
    yield "selected", selected
    for name, guides in teachers.items():
        yield name, gd.refine_set(selected, guides, data, selected.ipc, config, seed=seed)[1]
    space = ground_space(teachers["one teacher"], data, config)
    yield "real images as atoms", to_real(selected, space, config, seed)
    yield "dm, 100 iterations", matched(selected, data, args, seed)


def to_real(selected: SurrogateSet, space: GroundSpace, config: RefineConfig, seed: int) -> SurrogateSet:
    """Refined toward the real image of its class that is nearest to each atom, each taken once."""
    points, labels = space.points(selected.images, selected.labels), selected.labels
    means = matched_targets(points, labels, space).atoms
    atoms, images = torch.empty_like(means), selected.images.clone()
    for label in labels.unique().tolist():
        real, own = space.of_class(label), labels == label
        atoms[own] = torch.from_numpy(real[assign(means[own].numpy(), real)])
    for place in chunks(labels, config.batch_size):
        targets = Targets(atoms[place], torch.ones(len(place)))
        loop = _refine_chunk(selected, targets, space, config, pixel_region(config), place, derive(seed, "refine"))
        images[place] = follow(loop, "refine", config.steps)
    return replace(selected, images=images)


def matched(selected: SurrogateSet, data: RealData, args: argparse.Namespace, seed: int) -> SurrogateSet:
    """Carried on by distribution matching, on fresh networks of half the width."""
    matching = MatchingConfig(width=64, flip=args.flip, mixed_precision=args.mixed_precision, compile=args.compile)
    config = DistillConfig(method="dm", ipc=selected.ipc, iterations=100, matching=matching)
    (run,) = plan_runs(config, data)
    return match(data, run, seed=seed, given=selected)[0]


def one_seed(data: RealData, generator: Generator | None, args: argparse.Namespace, seed: int) -> list[dict]:
    """Rows of one synthesis seed."""
    few = argparse.Namespace(**{**vars(args), "teacher_steps": args.teacher_steps // HALF})
    teacher, other, half = teacher_of(data, args, seed), teacher_of(data, args, seed + 100), teacher_of(data, few, seed)
    teachers = {"one teacher": [teacher], "two teachers": [teacher, other], "a half-trained teacher": [half]}
    made = []
    for ipc in args.ipc:
        pool = gd.distill(data, "random", POOL * ipc, seed=seed + 1000)
        config = RefineConfig(ipc=1, steps=0, pixel_weight=args.pixel_weight)
        selected = gd.refine_set(pool, teacher, data, ipc, config, seed=seed)[0]
        made += ways(selected, teachers, data, args, seed)
    return judged(made, data, teacher, args, seed)


def main() -> None:
    print(table(over_seeds(options(__doc__).parse_args(), one_seed)))


if __name__ == "__main__":
    main()
