"""The memory that a stage takes beside the program and the file of the images: ``python -m tests.data.peak_memory``.

The images are noise of 224 px in two classes. Memory is RssAnon, what the process itself holds, watched while the
stage works; a first call on few images loads what has to be imported.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import gendistill as gd
from gendistill.data.dataset import RealData
from gendistill.data.store import write_store
from gendistill.networks.factories import build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.seeding import torch_rng

SIDE, IMAGES, HELD_OUT = 224, 600, 20
CLASSES = ("cat", "dog")


def write_noise(folder: Path) -> Path:
    """A store of ``IMAGES`` training images, 86 MiB of pixels."""

    def images(count: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch_rng(0, name), dtype=torch.uint8)
        return pixels, torch.arange(count) % 2

    sizes = {"train": IMAGES, "validation": HELD_OUT, "test": HELD_OUT}
    return write_store(folder / "noise", CLASSES, {name: [images(n, name)] for name, n in sizes.items()}).folder


def statistics(data: RealData) -> None:
    network = build_network("convnet_bn", channels=3, image_size=SIDE, classes=2, width=8).eval()
    collect_statistics(network, data.train, 2)


def kmeans(data: RealData) -> None:
    gd.distill(data, "kmeans", 2)


def evaluate(data: RealData) -> None:
    config = gd.EvaluateConfig(
        runs=3,
        steps=2,
        width=4,
        depth=2,
        batch_size=4,
        baselines=("random", "kmeans", "full"),
        describe=False,
        baseline_cache=None,
    )
    gd.evaluate(data, gd.distill(data, "random", 1, seed=1), config)


STAGES: dict[str, Callable[[RealData], None]] = {"statistics": statistics, "kmeans": kmeans, "evaluate": evaluate}


def held() -> int:
    """RssAnon in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def peak(work: Callable[[], None]) -> int:
    """Bytes that ``work`` holds at most beside what was there before."""
    before, most, done = held(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], held())
            time.sleep(0.001)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return most[0] - before


def main(stage: str, folder: str) -> None:
    torch.set_num_threads(1)
    data = gd.load_data(name=folder)
    few = replace(data, train=data.train.take(torch.arange(8)))
    STAGES[stage](few)
    print(peak(lambda: STAGES[stage](data)))


if __name__ == "__main__":
    main(*sys.argv[1:])
