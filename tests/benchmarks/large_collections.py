"""Processor seconds and memory of stages on collections that lie in a file, by the number of images or of classes.

    python tests/benchmarks/large_collections.py [--images 20000 80000 320000] [--stages evaluate describe ...]
    python tests/benchmarks/large_collections.py --classes 10 100 1000 --per_class 64 --side 16

Each stage runs in a process of its own. Memory is the peak of RssAnon, what the process itself holds; the pages of the
file, which the system takes back when it needs room, are not among it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gendistill.config import DistillConfig, EvaluateConfig, MatchingConfig, RefineConfig
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float
from gendistill.data.sources import load_data
from gendistill.data.store import write_store
from gendistill.distillers import distill
from gendistill.evaluation.evaluate import describe, evaluate
from gendistill.generator.batch_source import PixelLatents
from gendistill.generator.surrogate_sets import prototypes
from gendistill.networks.factories import build_network
from gendistill.networks.feature_extractors import FeatureExtractor, features_of
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import train_classifier
from gendistill.refine.refiner import refine_set
from gendistill.report.show import show
from gendistill.surrogate.set import SurrogateSet
from gendistill.transport.barycenter import class_barycenters

PART = 10_000
MEMORY = 0.5  # GiB, beyond which features lie in a file


def batches(count: int, classes: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random images, class by class."""
    rng, labels = np.random.default_rng(0), torch.arange(count) * classes // count
    for own in labels.split(PART):
        images = rng.integers(0, 256, (len(own), 3, side, side), dtype=np.uint8)
        yield torch.from_numpy(images), own


def collection(folder: Path, count: int, classes: int, side: int) -> RealData:
    """Of ``count`` images about 8/10 are for training, 1/10 each for validation and test."""
    place = folder / f"{count}-{classes}-{side}"
    if not place.exists():
        write_store(place, [f"class {c}" for c in range(classes)], {"train": batches(count, classes, side)})
    return load_data(name=str(place), test_fraction=0.1, validation_fraction=0.11, in_memory_gib=MEMORY)


Stage = Callable[[RealData, SurrogateSet, Path], None]


def network(data: RealData) -> torch.nn.Module:
    size, classes = data.image_size, len(data.classes)
    return build_network("convnet_bn", channels=3, image_size=size, classes=classes, width=8).eval()


def run_evaluate(data: RealData, made: SurrogateSet, folder: Path) -> None:
    options = EvaluateConfig(runs=3, steps=20, width=8, baselines=("random", "kmeans", "full"), describe=False)
    evaluate(data, made, EvaluateConfig(**{**vars(options), "baseline_cache": None}))


def run_describe(data: RealData, made: SurrogateSet, folder: Path) -> None:
    net = network(data)
    features = features_of(net)
    describe(data, {"set": made}, FeatureExtractor("tiny", features, lambda x: net.classify(features(x)).softmax(1)))


def run_show(data: RealData, made: SurrogateSet, folder: Path) -> None:
    show({"set": made}, folder / "shown", data=data)


def teacher_of(data: RealData) -> Teacher:
    """Without training."""
    net, size, classes = network(data), data.image_size, len(data.classes)
    spec = {"name": "convnet_bn", "channels": 3, "image_size": size, "classes": classes, "width": 8, "depth": None}
    return Teacher(net, collect_statistics(net, data.train, classes), data.classes, spec, {"data": data.describe()})


def run_refine(data: RealData, made: SurrogateSet, folder: Path) -> None:
    refine_set(distill(data, "random", 2), teacher_of(data), data, 1, RefineConfig(steps=2))


def run_modes(data: RealData, made: SurrogateSet, folder: Path) -> None:
    prototypes(PixelLatents(data.train), data.classes, 2, 0)


def run_train(data: RealData, made: SurrogateSet, folder: Path) -> None:
    steps = len(data.train) // 256  # an epoch
    for _ in train_classifier(
        network(data), data.train, steps=steps, batch_size=256, learning_rate=1e-3, weight_decay=0.0
    ):
        pass


def run_statistics(data: RealData, made: SurrogateSet, folder: Path) -> None:
    collect_statistics(network(data), data.train, len(data.classes))


def run_select(data: RealData, made: SurrogateSet, folder: Path) -> None:
    """Two of four images a class: features, a barycenter of each class and the images nearest to it."""
    refine_set(distill(data, "random", 4), teacher_of(data), data, 2, RefineConfig(steps=0))


def run_barycenters(data: RealData, made: SurrogateSet, folder: Path) -> None:
    """Ten atoms for the pixels of every class."""
    points = (to_float(data.train.images[own]).flatten(1).double().numpy() for own in by_class(data))
    class_barycenters(points, 10, workers=1)


def by_class(data: RealData) -> Iterator[Tensor]:
    return (data.train.of_class(c) for c in range(len(data.classes)))


def run_coreset(method: str) -> Stage:
    return lambda data, made, folder: distill(data, method, 1) and None


def run_dm(data: RealData, made: SurrogateSet, folder: Path) -> None:
    """Two iterations of 8 real images a class: their cost is that of the classes, whatever the number of images."""
    options = MatchingConfig(width=8, depth=2, real_batch=8)
    distill(data, "dm", 1, config=DistillConfig(method="dm", iterations=2, matching=options))


def run_label(data: RealData, made: SurrogateSet, folder: Path) -> None:
    label_set(made, teacher_of(data))


STAGES: dict[str, Stage] = {
    "train": run_train,
    "statistics": run_statistics,
    "random": run_coreset("random"),
    "kmeans": run_coreset("kmeans"),
    "herding": run_coreset("herding"),
    "kcenter": run_coreset("kcenter"),
    "select": run_select,
    "barycenters": run_barycenters,
    "dm": run_dm,
    "label": run_label,
    "evaluate": run_evaluate,
    "describe": run_describe,
    "show": run_show,
    "refine": run_refine,
    "modes": run_modes,
}


def own_memory() -> int:
    """RssAnon in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def measure(stage: str, count: int, classes: int, side: int, folder: Path) -> dict[str, float]:
    data = collection(folder, count, classes, side)
    made, peak, done = distill(data, "random", 1, seed=3), [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, start = time.process_time(), time.perf_counter()
    with torch.no_grad() if stage == "describe" else torch.enable_grad():
        STAGES[stage](data, made, folder)
    spent, seconds = time.process_time() - before, time.perf_counter() - start
    done.set()
    watcher.join()
    return {"cpu": spent, "seconds": seconds, "gib": peak[0] / 2**30}


def sizes_of(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Numbers of images and of classes that are measured."""
    for classes in options.classes:
        for count in options.images if options.per_class is None else [options.per_class * classes]:
            yield count, classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 80_000, 320_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[1000])
    parser.add_argument("--per_class", type=int, help="images of a class, in place of --images")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--stages", nargs="+", default=[*STAGES], choices=[*STAGES])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "large-collections")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        sizes = options.images[0], options.classes[0], options.side
        print(json.dumps(measure(options.stages[0], *sizes, options.folder)))
        return
    for stage in options.stages:
        for count, classes in sizes_of(options):
            arguments = ["--one", "--stages", stage, "--images", str(count), "--folder", str(options.folder)]
            arguments += ["--classes", str(classes), "--side", str(options.side)]
            run = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
            if run.returncode:
                print(f"{stage} {count} images, {classes} classes: {run.stderr[-2000:]}")
                continue
            found = json.loads(run.stdout.splitlines()[-1])
            print(
                f"{stage:11} {count:9,} images  {classes:5,} classes  {found['cpu']:8.1f} CPU s  "
                f"{found['seconds']:8.1f} s  {found['gib']:6.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
