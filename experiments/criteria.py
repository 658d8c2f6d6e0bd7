"""What each minimax criterion does to the samples: fine-tuned with and without each, over seeds, on real images.

    OMP_NUM_THREADS=1 python -m experiments.criteria --seeds 5 --scales 1
    OMP_NUM_THREADS=1 python -m experiments.criteria --seeds 3 --scales 10 50 --mixed_precision bf16

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#what-the-two-minimax-criteria-do): each criterion does what its formula says. Representativeness
at 50 times its default weight raises centrality by 0.096, diversity lowers crowding by 0.369. Neither brings samples
nearer to the real distribution: where they visibly change, MMD grows; at the default weights the effect is small.

Every seed trains one generator with plain diffusion and continues from it with the same batches: without criteria, and
with each one and both at every weight. The figures (evaluation/set_metrics.py) are of the space that the criteria
see (pixels) and of a teacher's features, class by class, on ``ipc`` samples a class; random real images stand beside.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import gendistill as gd
from gendistill.data.pixels import to_float
from gendistill.evaluation.set_metrics import centrality, crowding, mmd2, representativeness

NONE = "no criterion"
VARIANTS = {"representativeness": (1.0, 0.0), "diversity": (0.0, 1.0), "both": (1.0, 1.0)}


def spaces(images: Tensor, teacher: gd.Teacher) -> dict[str, Tensor]:
    """uint8 images (N,C,H,W) -> points (N,D) by space."""
    with torch.no_grad():
        features = teacher.network.features(to_float(images))  # type: ignore[operator]
    return {"pixels": to_float(images).flatten(1), "features": features}


def describe(made: gd.SurrogateSet, data: gd.RealData, teacher: gd.Teacher) -> dict[str, float]:
    """Means over the classes."""
    found: dict[str, list[float]] = {}
    for label in range(len(data.classes)):
        real = spaces(data.train.images[data.train.of_class(label)], teacher)
        for name, points in spaces(made.of_class(label), teacher).items():
            found.setdefault(f"representativeness ({name})", []).append(representativeness(real[name], points).item())
            found.setdefault(f"centrality ({name})", []).append(centrality(real[name], points).item())
            found.setdefault(f"crowding ({name})", []).append(crowding(points).item())
            found.setdefault(f"MMD2 ({name})", []).append(mmd2(real[name], points).item())
    return {k: sum(v) / len(v) for k, v in found.items()}


def ablate(
    data: gd.RealData,
    teaching: gd.TeacherConfig,
    config: gd.FinetuneConfig,
    sampling: gd.SampleConfig,
    ipc: int,
    scales: list[float],
    seed: int,
) -> Iterator[tuple[str, dict[str, float]]]:
    """(variant, figures) for one seed."""
    teacher = gd.train_teacher(data, teaching, seed=seed)
    generator, _ = gd.finetune(data, replace(config, minimax_steps=0), seed=seed)
    yield "random real images", describe(gd.distill(data, "random", ipc, seed=seed), data, teacher)
    yield "before fine-tuning", describe(gd.sample_set(generator, ipc, sampling, seed=seed), data, teacher)
    runs = {NONE: (0.0, 0.0)} | {
        f"{name} x{scale:g}": (scale * near, scale * apart)
        for scale in scales
        for name, (near, apart) in VARIANTS.items()
    }
    for name, (near, apart) in runs.items():
        weights = replace(
            config.minimax,
            representativeness=near * config.minimax.representativeness,
            diversity=apart * config.minimax.diversity,
        )
        start = copy.deepcopy(generator)  # which is trained in place
        tuned, _ = gd.finetune(data, replace(config, base_steps=0, minimax=weights), seed=seed, generator=start)
        yield name, describe(gd.sample_set(tuned, ipc, sampling, seed=seed), data, teacher)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--max_per_class", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ipc", type=int, default=50)
    parser.add_argument("--teacher_steps", type=int, default=gd.TeacherConfig.steps)
    parser.add_argument("--base_steps", type=int, default=400)
    parser.add_argument("--minimax_steps", type=int, default=100)
    parser.add_argument("--representativeness", type=float, default=gd.MinimaxConfig.representativeness)
    parser.add_argument("--diversity", type=float, default=gd.MinimaxConfig.diversity)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--reduction", default=gd.MinimaxConfig.reduction)
    parser.add_argument("--json", type=Path, help="also write the figures of every seed here")
    options = parser.parse_args()
    minimax = gd.MinimaxConfig(
        representativeness=options.representativeness, diversity=options.diversity, reduction=options.reduction
    )
    config = gd.FinetuneConfig(
        base_steps=options.base_steps,
        minimax_steps=options.minimax_steps,
        minimax=minimax,
        mixed_precision=options.mixed_precision,
    )
    teaching = gd.TeacherConfig(steps=options.teacher_steps)
    data = gd.load_data(gd.DataConfig(name=options.data, max_per_class=options.max_per_class))
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        with gd.show_progress():
            for name, figures in ablate(data, teaching, config, gd.SampleConfig(), options.ipc, options.scales, seed):
                found.setdefault(name, []).append(figures)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over the seeds, and the paired difference from ``no criterion``."""
    columns = list(next(iter(found.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rows in found.items():
        cells = []
        for column in columns:
            values = torch.tensor([row[column] for row in rows], dtype=torch.float64)
            plain = torch.tensor([row[column] for row in found[NONE]], dtype=torch.float64)
            cell = f"{values.mean():.4f} ± {values.std():.4f}"
            if name.split(" x")[0] in VARIANTS:
                gap = values - plain
                cell += f" ({gap.mean():+.4f} ± {gap.std():.4f})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
