"""How good a generator's samples are after so many seconds of training, by recipe.

    OLD=optimizer=adamw,timesteps=uniform,loss_weighting=none,batch_size=128,block_out_channels=64-128-128
    OMP_NUM_THREADS=1 python -m experiments.generator_training --data ../shared/data/cifar10 --flip --judge JUDGE \\
        --recipes before:$OLD:65 now::133,440 --seeds 2 --output curve.jsonl

A recipe is its name, the options of ``finetune`` in which it differs from the defaults, and numbers of steps.

JUDGE is a teacher of the same images without batch norm, trained long, such as `gendistill teacher --network convnet
--width 128 --steps 2500 --batch_size 128 --flip true --shift 4`.

Machine: one thread of an AMD EPYC with AVX2 alone, beside one other process. 133 steps of the defaults took 3 minutes,
65 of the recipe before 10 (Fashion-MNIST) and 16 (CIFAR-10).

Result (docs/results.md#training-the-generator-from-scratch): on both collections the defaults reach in a fifth of the
seconds more than the recipe before; all are far from photographs.

For every recipe, number of steps and seed a UNet is trained from scratch, its rate falls to the end of these steps,
and ``ipc`` samples a class are compared with the held-out images of the class in the judge's features: unbiased squared
MMD (cubic kernel, features of mean square 1), precision, recall, and the share that the judge puts in the right class.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gendistill as gd
from gendistill.data.pixels import to_float
from gendistill.evaluation.set_metrics import mmd2, prdc

REAL = 300  # held-out images of a class, for precision and recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", required=True, help="NAME:OPTION=VALUE,...:STEPS,...")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ipc", type=int, default=40)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    data = gd.load_data(gd.DataConfig(name=options.data, max_per_class=options.max_per_class))
    judge = gd.Teacher.from_pretrained(options.judge)
    judge.network.eval()
    for seed in range(options.seeds):
        for recipe in options.recipes:
            name, chosen, counts = recipe.split(":")
            for steps in map(int, counts.split(",")):
                config = gd.FinetuneConfig(
                    base_steps=steps, minimax_steps=0, flip=options.flip, **recipe_options(chosen)
                )
                start = time.process_time()
                generator, _ = gd.finetune(data, config, seed=seed)
                seconds = time.process_time() - start
                made = gd.sample_set(generator, options.ipc, gd.SampleConfig(num_inference_steps=12), seed=seed)
                row = {"recipe": name, "steps": steps, "seed": seed, "seconds": round(seconds, 1)}
                row |= quality(judge, data.validation, made, len(data.classes))
                print(json.dumps(row), flush=True)
                with options.output.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")


def recipe_options(text: str) -> dict[str, Any]:
    """Options of ``finetune`` from ``optimizer=adamw,batch_size=64,block_out_channels=32-64-128``."""
    found: dict[str, Any] = {}
    for name, _, value in (pair.partition("=") for pair in filter(None, text.split(","))):
        if name == "block_out_channels":
            architecture = gd.UNet(block_out_channels=tuple(map(int, value.split("-"))))
            found["model"] = gd.ModelConfig(architecture=architecture)
        elif name == "timesteps":
            found[name] = gd.LogNormal() if value == "log_normal" else value
        elif name in ("optimizer", "loss_weighting"):
            found[name] = value
        else:
            found[name] = int(value) if value.isdecimal() else float(value)
    return found


@torch.no_grad()
def quality(judge: Any, held: gd.Split, made: gd.SurrogateSet, classes: int) -> dict[str, float]:
    """Means over the classes."""
    rows = []
    for label in range(classes):
        real, samples = (
            features(judge, images[labels == label])
            for images, labels in ((held.images, held.labels), (made.images, made.labels))
        )
        size = real.square().mean().sqrt()
        found = prdc(real[:REAL], samples)
        right = (judge.network.classify(samples).argmax(1) == label).float().mean()
        rows.append([mmd2(real / size, samples / size).item(), found.precision, found.recall, right.item()])
    means = torch.tensor(rows).mean(0).tolist()
    return {name: round(value, 4) for name, value in zip(("mmd2", "precision", "recall", "right"), means, strict=True)}


def features(judge: Any, images: Tensor) -> Tensor:
    return torch.cat([judge.network.features(to_float(part)) for part in images.split(100)])


if __name__ == "__main__":
    main()
