"""What representative selection picks: MMD and gradients of its batches against random ones, as networks learn.

    OMP_NUM_THREADS=1 python -m experiments.picks --data ../shared/data/cifar10 --max_per_class 1000 \\
        --classes 0 3 8 --networks 2 --seeds 0 1 2 --output picks.svg

Networks of idc's supply learn from real images; every few steps each rule picks a batch of every class, DREAM's with
``free`` clusters and with ``fixed`` ones of equal mass. Against the whole class: the MMD of the batch (biased, energy
kernel) on features projected as selection projects them, the norm of its gradient in the compared parameters as a share
of the class's, and the distance of the two gradients on the same scale, which is what a matching step inherits; then
that of the mean gradient of ``--interval`` steps: picks stay for so many, random batches are drawn anew in each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gendistill as gd
from experiments.curves import Line, Panel, svg
from gendistill import progress
from gendistill.config import DataConfig, DistillConfig, MatchingConfig
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float
from gendistill.matching.build import build
from gendistill.matching.gradient import GradientMatching
from gendistill.matching.methods import plan_runs
from gendistill.matching.selection import (
    Weights,
    batch_mmd,
    embed,
    representatives,
    sample_without_replacement,
    unchanged_buffers,
)
from gendistill.seeding import derive, torch_rng

RULES: dict[str, Weights | None] = {"random": None, "free clusters": "free", "fixed clusters": "fixed"}
MEASURES = {
    "mmd": "MMD to the class",
    "norm": "gradient norm / the class's",
    "distance": "gradient distance / the class's norm",
    "together": "the same, steps of an interval together",
}
PART = 128  # images in one gradient: as many as in a batch

Row = tuple[int, str, dict[str, float]]  # training steps of the network, rule, measures


def measured(data: RealData, args: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Every class, network and rule, at step 0, ``--every``, ... of the network's training."""
    config = MatchingConfig(
        width=args.width, flip=args.flip, mixed_precision=args.mixed_precision, compile=args.compile, factor=1
    )
    (run,) = plan_runs(DistillConfig(method="idc", ipc=1, matching=config), data)
    supply = build(data, run, seed=seed).supply
    for iteration in range(args.networks):
        network = supply.network(iteration)
        for inner in range(args.steps + 1):
            if inner % args.every == 0:
                for label in args.classes:
                    whole = Whole(network, data, label, args, derive(seed, iteration, inner, label))
                    yield from ((inner, rule, whole.measures(rule)) for rule in RULES)
            supply.between(iteration, inner, inner == args.steps, [])
        supply.after(iteration)


class Whole:
    """A class on one network: the mean gradient and the features of all its images."""

    def __init__(self, network: nn.Module, data: RealData, label: int, args: argparse.Namespace, seed: int) -> None:
        self.network, self.data, self.label, self.args, self.seed = network, data, label, args, seed
        self.index = data.train.of_class(label)
        self.objective = GradientMatching(parameters="no_head")
        self.gradient = self._gradient(self.index)
        with unchanged_buffers(network):
            self.features = embed(network, data.train, self.index, dimensions=args.dimensions or None, seed=seed)

    def _gradient(self, index: Tensor) -> Tensor:
        """Of the mean loss of these images, flat."""
        device = next(self.network.parameters()).device
        total = torch.zeros((), device=device)
        for part in index.split(PART):
            images = to_float(self.data.train.images[part].to(device))
            side = self.objective.prepared(self.network, [images], [self.label]).real[0]
            total = total + len(part) / len(index) * torch.cat([g.flatten() for g in side[0]])
        return total

    def measures(self, rule: str) -> dict[str, float]:
        batches = [self._picks(rule, step) for step in range(1 if RULES[rule] else self.args.interval)]
        gradients, norm = torch.stack([self._gradient(self.index[picks]) for picks in batches]), self.gradient.norm()
        return {
            "mmd": batch_mmd(self.features, self.features[batches[0]]).item(),
            "norm": (gradients[0].norm() / norm).item(),
            "distance": ((gradients[0] - self.gradient).norm() / norm).item(),
            "together": ((gradients.mean(0) - self.gradient).norm() / norm).item(),
        }

    def _picks(self, rule: str, step: int) -> Tensor:
        """Places in the class, as the selections choose them."""
        everyone, weights, count = torch.arange(len(self.index)), RULES[rule], self.args.batch
        if weights is None:
            return sample_without_replacement(everyone, count, torch_rng(self.seed, "random", step))
        among = sample_without_replacement(
            everyone, self.args.candidates or len(everyone), torch_rng(self.seed, "candidates")
        )
        return among[representatives(self.features[among], count, self.seed, weights=weights)]


def averaged(by_seed: dict[int, list[Row]], rule: str, measure: str) -> list[tuple[float, float, float]]:
    """(step, mean, spread over seeds) of one rule; a seed's value is its mean over classes and networks."""
    found = []
    for step in sorted({row[0] for rows in by_seed.values() for row in rows}):
        values = [
            np.mean([value[measure] for at, name, value in rows if (at, name) == (step, rule)])
            for rows in by_seed.values()
        ]
        found.append((float(step), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0))
    return found


def table(by_seed: dict[int, list[Row]]) -> str:
    lines = [f"{'step':>5} {'picked by':<16}" + "".join(f"{words:>38}" for words in MEASURES.values())]
    curves = {(rule, name): averaged(by_seed, rule, name) for rule in RULES for name in MEASURES}
    for place, (step, _, _) in enumerate(curves["random", "mmd"]):
        for rule in RULES:
            cells = [curves[rule, name][place][1:] for name in MEASURES]
            shown = "".join(f"{f'{mean:.3f} ± {std:.3f}':>38}" for mean, std in cells)
            lines.append(f"{step:>5.0f} {rule:<16}{shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 3, 8], help="those that are measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="inner steps, between which a network learns")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--interval", type=int, default=10, help="steps that picks stay for")
    parser.add_argument("--candidates", type=int, default=512)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, required=True, help="the picture")
    args = parser.parse_args()
    data = gd.load_data(DataConfig(name=args.data, max_per_class=args.max_per_class))
    count = args.networks * (args.steps // args.every + 1) * len(args.classes) * len(RULES)
    with progress.show_progress():
        by_seed = {seed: list(progress.track(measured(data, args, seed), f"seed {seed}", count)) for seed in args.seeds}
    print(table(by_seed))
    panels = [
        Panel(words, "inner steps of the network", "", [Line(rule, averaged(by_seed, rule, name)) for rule in RULES])
        for name, words in MEASURES.items()
    ]
    args.output.write_text(svg(panels, columns=2), encoding="utf-8")


if __name__ == "__main__":
    main()
