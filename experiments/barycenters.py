"""What barycenters cost and reach: atoms x dimension x solver, on real images, one thread.

    OMP_NUM_THREADS=1 python -m experiments.barycenters --data ../shared/data/cifar10 --teacher TEACHER

Machine: one core of an AMD EPYC (AVX512_BF16), no GPU, beside other work, so times are upper bounds. Total time not
recorded; a row has its seconds.

Result (docs/results.md#barycenters): 1000 classes of 1300 points in 512 dimensions take 5, 9 and 12 minutes for 10, 50
and 100 atoms, extrapolated from 20 classes. Most of that is the k-means start; from random points, which end 0.2 %
higher at 10 atoms, it is 1 to 2 minutes. Free weights lower W2 by 0.3 to 1.8 %.

Rows are means over a few timed classes. "Of 1000" multiplies a row's seconds by 1000 classes: the cost of ImageNet-1K,
whose classes have about 1300 images, is extrapolated from those. Points are a class's pixels, their first 512
principal components (in place of 512 features), both side by side (3584 numbers, the ground space of refinement), and
normal random numbers; with ``--teacher``, that network's features too. W2 is squared, in units of the class's
variance, from k-means centres unless the row says otherwise; "to fixed" compares it with exact plans at fixed weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ot
import sklearn
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

import gendistill as gd
from gendistill.data.pixels import to_float
from gendistill.seeding import numpy_rng
from gendistill.transport.barycenter import solve_barycenter
from gendistill.transport.kmeans import kmeans_atoms

FIXED = "fixed, exact"
SINKHORN = "fixed, Sinkhorn"


@dataclass(frozen=True)
class Row:
    """Means over ``classes``: seconds of the start and of the solver, W2^2 / variance, and its ratio to FIXED - 1."""

    space: str
    n: int
    d: int
    k: int
    solver: str
    classes: int
    start_seconds: float
    seconds: float
    iterations: float
    w2: float
    to_fixed: float


def timed(call: Callable[[], object]) -> tuple[object, float]:
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def solve_all(points: np.ndarray, k: int, sinkhorn: bool) -> Iterator[tuple[str, float, float, int, float]]:
    """(solver, seconds of its start, seconds, iterations, W2^2 / variance) for one class."""
    variance = np.square(points - points.mean(0)).sum(1).mean()
    centres, started = timed(lambda: kmeans_atoms(points, k))
    drawn = points[numpy_rng(0, "start", k).permutation(len(points))[:k]]
    runs = {
        FIXED: (centres, started, {}),
        "fixed, exact, from random points": (drawn, 0.0, {}),
        "free, k-means": (centres, started, {"weights": "free"}),
        "free, k-means, from random points": (drawn, 0.0, {"weights": "free"}),
    }
    if sinkhorn:
        runs[SINKHORN] = (centres, started, {"solver": "sinkhorn"})
    for name, (start, start_seconds, options) in runs.items():
        found, seconds = timed(lambda start=start, options=options: solve_barycenter(points, start, **options))
        yield name, start_seconds, seconds, found.iterations, found.w2 / variance
        if name == SINKHORN:
            after, more = timed(lambda found=found: solve_barycenter(points, found.atoms))
            yield (
                "fixed, exact, from Sinkhorn's atoms",
                start_seconds + seconds,
                more,
                after.iterations,
                after.w2 / variance,
            )


def rows(space: str, classes: list[np.ndarray], k: int, sinkhorn: int) -> Iterator[Row]:
    """One row a solver; Sinkhorn runs on the first ``sinkhorn`` classes only."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for label, points in enumerate(classes):
        fixed = None
        for name, *figures in solve_all(points, k, label < sinkhorn):
            fixed = figures[-1] if fixed is None else fixed
            found.setdefault(name, []).append((*figures, figures[-1] / fixed - 1))
    for name, figures in found.items():
        yield Row(space, len(classes[0]), classes[0].shape[1], k, name, len(figures), *np.mean(figures, 0).tolist())


def unit(points: np.ndarray) -> np.ndarray:
    centred = points - points.mean(0)
    return centred / np.sqrt(np.square(centred).sum(1).mean())


def pixels(images: torch.Tensor) -> np.ndarray:
    return to_float(images).flatten(1).double().numpy()


def components(images: torch.Tensor) -> np.ndarray:
    return PCA(512, svd_solver="covariance_eigh").fit_transform(pixels(images))


def normal(images: torch.Tensor) -> np.ndarray:
    return numpy_rng(0, "normal", int(images.sum())).normal(size=(len(images), 512))


def both(images: torch.Tensor) -> np.ndarray:
    return np.hstack([unit(components(images)), unit(pixels(images))])


def spaces(images: torch.Tensor, teacher: gd.Teacher | None) -> dict[str, Callable[[torch.Tensor], np.ndarray]]:
    """uint8 images (n,C,H,W) of a class -> points (n,d), by name; small images have no 512 components."""
    found: dict[str, Callable[[torch.Tensor], np.ndarray]] = {}
    if teacher is not None:
        found["teacher features"] = lambda x: teacher.network.eval().features(to_float(x)).detach().double().numpy()
    if min(len(images), images[0].numel()) < 512:
        return {**found, "pixels": pixels}
    return {**found, "512 components": components, "normal numbers": normal, "components + pixels": both}


def blocks(data: gd.RealData, size: int, count: int) -> list[torch.Tensor]:
    """``count`` stand-in classes of ``size`` images, each of one real class (training and validation images)."""
    found = []
    for label in range(len(data.classes)):
        images = torch.cat([split.images[split.of_class(label)] for split in (data.train, data.validation)])
        found += [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
    if not found:
        raise SystemExit(f"no class of {data.name!r} has {size} images.")
    return found[:: max(1, len(found) // count)][:count]


def table(found: list[Row]) -> str:
    head = (
        "| points | n | d | atoms | solver | classes | start s | solver s | of 1000: min | iterations | W2 | to fixed |"
    )
    lines = [head, "|---" + "|---:" * 3 + "|---" + "|---:" * 7 + "|"]
    for r in found:
        minutes = (r.start_seconds + r.seconds) * 1000 / 60
        lines.append(
            f"| {r.space} | {r.n} | {r.d} | {r.k} | {r.solver} | {r.classes} | {r.start_seconds:.2f} | {r.seconds:.2f} "
            f"| {minutes:.0f} | {r.iterations:.0f} | {r.w2:.4f} | {100 * r.to_fixed:+.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--points", type=int, nargs="+", default=[1300, 5000], help="images a class")
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 2], help="classes timed, by --points")
    parser.add_argument("--atoms", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--sinkhorn", type=int, default=1, help="classes that Sinkhorn is timed on")
    parser.add_argument("--space", nargs="*", help="only these points, by name")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = gd.load_data(gd.DataConfig(name=options.data, image_size=options.image_size))
    teacher = None if options.teacher is None else gd.Teacher.from_pretrained(options.teacher)
    found: list[Row] = []
    warnings.filterwarnings("ignore", message="The barycenter stopped")
    with threadpool_limits(1), gd.show_progress():
        for size, count in zip(options.points, options.classes, strict=True):
            images = blocks(data, size, count)
            for space, embed in spaces(images[0], teacher).items():
                if options.space and space not in options.space:
                    continue
                points = [embed(x) for x in images]
                for k in options.atoms:
                    found += rows(space, points, k, options.sinkhorn)
                    print(table(found[-6:]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in found], indent=2) + "\n", encoding="utf-8")
    print(f"\n{platform.processor() or platform.machine()}, one thread; POT {ot.__version__}, ", end="")
    print(f"scikit-learn {sklearn.__version__}, NumPy {np.__version__}\n\n{table(found)}")


if __name__ == "__main__":
    main()
