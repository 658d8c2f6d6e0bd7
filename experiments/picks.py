"""What representative selection picks: MMD and gradients of its batches against random ones, as networks learn.

    python -m experiments.picks --data ../shared/data/cifar10 --max_per_class 1000 --classes 0 3 8 --networks 1 \\
        --width 64 --steps 100 --every 25 --seeds 0 1 2 --flip --compile --mixed_precision auto --output picks.svg

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#batches-as-networks-learn): batches of ``fixed`` clusters are nearer to their class than
random ones, by 7 to 14 % in MMD and 5 to 17 % in the gradient; those of ``free`` clusters are not. But random batches
are new in every step: ten of them together are three times nearer to the class than ten times the same picks.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import gendistill as gd
from experiments.curves import Line, Panel, svg
from gendistill.data.pixels import to_float
from gendistill.evaluation.set_metrics import batch_mmd
from gendistill.seeding import derive, torch_rng

RULES: dict[str, Any] = {"random": None, "free clusters": "free", "fixed clusters": "fixed"}
MEASURES = {
    "mmd": "MMD to the class",
    "norm": "gradient norm / the class's",
    "distance": "gradient distance / the class's norm",
    "together": "the same, steps of an interval together",
}
PART = 128  # images in one gradient: as many as in a batch

Row = tuple[int, str, dict[str, float]]  # training steps of the network, rule, measures


def measured(data: gd.RealData, args: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Every class, network and rule, at step 0, ``--every``, ... of the network's training."""
    config = gd.MatchingConfig(
        width=args.width,
        flip=args.flip,
        mixed_precision=args.mixed_precision,
        compile=args.compile,
        factor=1,
        inner_steps=args.steps + 1,
    )
    run = gd.DistillConfig(method="idc", ipc=1, iterations=args.networks, matching=config)
    for iteration, inner, network in gd.matching_networks(data, run, seed=seed):
        if inner % args.every == 0:
            for label in args.classes:
                whole = Whole(network, data, label, args, derive(seed, iteration, inner, label))
                yield from ((inner, rule, whole.measures(rule)) for rule in RULES)


class Whole:
    """A class on one network: the mean gradient and the features of all its images."""

    def __init__(self, network: Any, data: gd.RealData, label: int, args: argparse.Namespace, seed: int) -> None:
        self.network, self.data, self.label, self.args, self.seed = network, data, label, args, seed
        self.index = data.train.of_class(label)
        self.gradient = self._gradient(self.index)
        self.features = self._features()

    def _images(self, index: Tensor) -> Tensor:
        return to_float(self.data.train.images[index].to(next(self.network.parameters()).device))

    def _compared(self) -> list[Tensor]:
        """The weights whose gradients idc compares: of 2 or more dimensions, the classifier's left out."""
        weights = [p for p in self.network.parameters() if p.dim() >= 2]
        features = self.network.features(self._images(self.index[:2]))
        found = torch.autograd.grad(features.sum(), weights, allow_unused=True)
        return [p for p, gradient in zip(weights, found, strict=True) if gradient is not None]

    def _gradient(self, index: Tensor) -> Tensor:
        """Of the mean loss of these images, flat."""
        weights, total = self._compared(), torch.zeros(())
        for part in index.split(PART):
            logits = self.network(self._images(part))
            loss = F.cross_entropy(logits, torch.full((len(part),), self.label, device=logits.device))
            gradients = torch.autograd.grad(loss, weights)
            total = total + len(part) / len(index) * torch.cat([g.flatten().cpu() for g in gradients])
        return total

    @torch.no_grad()
    def _features(self) -> Tensor:
        """(n,d), projected to ``--dimensions`` as representative selection does."""
        found = torch.cat([self.network.features(self._images(part)).float().cpu() for part in self.index.split(PART)])
        size = found.shape[1], self.args.dimensions
        if not 0 < size[1] < size[0]:
            return found
        return found @ (torch.randn(size, generator=torch_rng(self.seed, "projection")) / size[1] ** 0.5)

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
        if RULES[rule] is None:
            return self._drawn(self.args.batch, "random", step)
        among = self._drawn(self.args.candidates or len(self.index), "candidates")
        return among[gd.representatives(self.features[among], self.args.batch, self.seed, weights=RULES[rule])]

    def _drawn(self, count: int, *name: object) -> Tensor:
        """Places without replacement; all, as they stand, where there are no more."""
        if count >= len(self.index):
            return torch.arange(len(self.index))
        return torch.randperm(len(self.index), generator=torch_rng(self.seed, *name))[:count]


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
    data = gd.load_data(gd.DataConfig(name=args.data, max_per_class=args.max_per_class))
    count = args.networks * (args.steps // args.every + 1) * len(args.classes) * len(RULES)
    by_seed = {seed: list(tqdm(measured(data, args, seed), f"seed {seed}", count)) for seed in args.seeds}
    print(table(by_seed))
    panels = [
        Panel(words, "inner steps of the network", "", [Line(rule, averaged(by_seed, rule, name)) for rule in RULES])
        for name, words in MEASURES.items()
    ]
    args.output.write_text(svg(panels, columns=2), encoding="utf-8")


if __name__ == "__main__":
    main()
