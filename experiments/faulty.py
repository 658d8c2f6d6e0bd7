"""Sets of known quality and sets with one fault each, as folders, for `gendistill evaluate` to say what they are.

    python -m experiments.faulty --data ../shared/data/cifar10 --max_per_class 1000 --sets sets
    gendistill evaluate --surrogate sets/* --data.name ../shared/data/cifar10 --data.max_per_class 1000 ...

Machine: two cores of an AMD EPYC (AVX512_BF16), no GPU. Time not recorded.

Result (docs/results.md#faults-that-are-found): the evaluation names every fault: 8 of 100 shuffled labels agree,
four classes are swapped, grey levels inverted, a class missing, 100 of 100 test images, 90 of 100 repeated ones. Of the
random set and of the k-means set it says nothing.

All but ``kmeans``, ``leaked`` and ``duplicates`` are the same random training images, written without any manifest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import gendistill as gd
from gendistill.seeding import torch_rng


def sets(data: gd.RealData, ipc: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, images (N, C, H, W) uint8, labels (N,))."""
    classes = len(data.classes)
    made = gd.distill(data, "random", ipc, seed=seed)
    images, labels = made.images, made.labels
    yield "random", images, labels
    picked = gd.distill(data, "kmeans", ipc, seed=seed)
    yield "kmeans", picked.images, picked.labels
    yield "shuffled", images, labels[torch.randperm(len(labels), generator=torch_rng(seed, "shuffled"))]
    yield "missing", images[labels != classes // 3], labels[labels != classes // 3]
    swapped = torch.arange(classes)
    swapped[[0, 1, -2, -1]] = swapped[[-2, -1, 0, 1]]
    yield "swapped", images, swapped[labels]
    yield "inverted", 255 - images, labels
    tested = torch.cat([data.test.of_class(label)[:ipc] for label in range(classes)])
    yield "leaked", data.test.images[tested], data.test.labels[tested]
    firsts = torch.stack([images[labels == label][0] for label in range(classes)])
    yield "duplicates", firsts.repeat_interleave(ipc, 0), torch.arange(classes).repeat_interleave(ipc)


def write(folder: Path, classes: Sequence[str], images: Tensor, labels: Tensor) -> None:
    """PNG files below ``train/``, a folder a class, empty where it has no image."""
    for label, name in enumerate(classes):
        place = folder / "train" / name
        place.mkdir(parents=True)
        for number, image in enumerate(images[labels == label].permute(0, 2, 3, 1).squeeze(-1).numpy()):
            Image.fromarray(image).save(place / f"{number:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--max_per_class", type=int)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    data = gd.load_data(gd.DataConfig(name=args.data, max_per_class=args.max_per_class))
    args.sets.mkdir(parents=True)
    for name, images, labels in sets(data, args.ipc, args.seed):
        write(args.sets / name, data.classes, images, labels)


if __name__ == "__main__":
    main()
