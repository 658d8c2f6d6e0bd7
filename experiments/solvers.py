"""How many steps each solver needs for the quality of 50-step DDPM, by per-class MMD to the real images.

    OMP_NUM_THREADS=1 python -m experiments.solvers --generator runs/digits/generator --teacher runs/digits/teacher \\
        --ipc 40 --seeds 2

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#solvers-and-steps): DPM-Solver++ and UniPC reach in 8 steps what DDPM reaches in 50, within the
spread; DDIM needs about 25. MMD x 1000 in teacher features: 14.5 ± 3.4 and 13.6 ± 2.5 against 11.2 ± 4.8.

For every solver and number of steps: ``ipc`` samples a class, their unbiased squared MMD (cubic kernel) to the class's
training images in teacher features and in pixels, averaged over the classes; mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import gendistill as gd
from experiments.criteria import describe

STEPS = (5, 8, 10, 15, 25, 50)
SOLVERS = ("dpmsolver++", "unipc", "ddim", "heun", "ddpm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--ipc", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = gd.load_data(gd.DataConfig(name=options.data, image_size=options.image_size))
    generator, teacher = gd.Generator.from_pretrained(options.generator), gd.Teacher.from_pretrained(options.teacher)
    teacher.network.eval()
    rows = []
    for solver in SOLVERS:
        for steps in STEPS:
            config = gd.SampleConfig(scheduler=solver, num_inference_steps=steps, mixed_precision="no")
            found = [
                describe(gd.sample_set(generator, options.ipc, config, seed=seed), data, teacher)
                for seed in range(options.seeds)
            ]
            row: dict[str, object] = {"solver": solver, "steps": steps}
            for space in ("features", "pixels"):
                values = torch.tensor([f[f"MMD2 ({space})"] for f in found])
                row[space] = [values.mean().item(), values.std().item()]
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
