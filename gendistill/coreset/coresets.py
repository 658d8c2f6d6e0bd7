"""Coreset distillers: real images chosen by class. They are the baselines of every evaluation, too.

Each takes the features (n,d) of one class, the number k and a seed, and returns k different positions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import image_hashes
from gendistill.data.pixels import to_float
from gendistill.errors import ConfigError
from gendistill.registry import DISTILLERS, coresets, resolve
from gendistill.runtime import release_memory
from gendistill.seeding import derive, numpy_rng
from gendistill.surrogate.manifest import provenance
from gendistill.surrogate.set import SurrogateSet
from gendistill.transport.kmeans import kmeans_atoms
from gendistill.transport.plans import EQUAL, assign, one_thread

RELEASED = 2**27  # bytes of features that are compared before memory is given back
LARGE = 2**27  # bytes of a class's pixels in float64: beyond 128 MiB only their distances are compared
SLICE = 1024  # columns of pixels less 128 whose products fp32 adds exactly

Choice = Callable[[np.ndarray, int, int], np.ndarray]

_log = logging.getLogger("gendistill")


def random(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A uniform draw without replacement; smaller draws are prefixes of larger ones."""
    return numpy_rng(seed, "random").permutation(len(features))[:count]


def kmeans(features: np.ndarray, count: int, seed: int, dimensions: int | None = None) -> np.ndarray:
    """The real image nearest to each of k centres, no image twice (one-to-one assignment).

    ``dimensions`` is as in ``kmeans_centres``.
    """
    if count == len(features):
        return np.arange(count)
    return assign(kmeans_atoms(features, count, seed, dimensions=dimensions), features, EQUAL)


def herding(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Greedy matching of the class mean (Welling 2009; iCaRL, Rebuffi et al. 2017, algorithm 4). Deterministic."""
    mean, total = features.mean(0), np.zeros(features.shape[1])
    free, picks = np.ones(len(features), bool), []
    for k in range(1, count + 1):
        distance = np.square(mean - (total + features) / k).sum(1)
        pick = int(np.where(free, distance, np.inf).argmin())
        free[pick], total = False, total + features[pick]
        picks.append(pick)
    return np.array(picks)


def kcenter(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Greedy k-centre (Sener & Savarese 2018, algorithm 1) from the image nearest the class mean. Deterministic."""
    picks = [int(np.square(features - features.mean(0)).sum(1).argmin())]
    distance = np.square(features - features[picks[0]]).sum(1)
    while len(picks) < count:
        distance[picks] = -1
        picks.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(features - features[picks[-1]]).sum(1))
    return np.array(picks)


def coreset_set(
    data: RealData,
    method: str,
    ipc: int,
    *,
    seed: int = 0,
    features: Tensor | None = None,
    space: str = "teacher features",
    **options: Any,
) -> SurrogateSet:
    """``ipc`` training images of every class as a surrogate set.

    Args:
        data: The real images.
        method: Name of a coreset method.
        ipc: Images of each class.
        seed: Of the methods that draw.
        features: (N,D) of ``data.train``, which the method compares; null compares pixels.
        space: What the features are.
        options: Further arguments of the method.

    Raises:
        ConfigError: unknown method, or a class with fewer images than ``ipc``.
    """
    start = time.perf_counter()
    compared: str | None = "pixels" if features is None else space
    if method == "random":  # which reads no feature, so no pixel is turned into a float
        compared, features = None, torch.empty(len(data.train), 0)
    chosen = data.train.take(positions(method, data.train, features, data.classes, ipc, seed, **options))
    seconds = {"distill": time.perf_counter() - start}
    meta = provenance(method, seed=seed, data=data.describe(), seconds=seconds, space=compared)
    return SurrogateSet(chosen.pixels, chosen.labels, data.classes, meta)


OF_DISTANCES = (kmeans, herding, kcenter)  # which choose the same of all points with the same distances


def _choose_by_pixels(choose: Choice, pixels: Tensor, count: int, seed: int) -> np.ndarray:
    """What a method chooses by uint8 pixels (n,d): in [-1, 1], or where these are large by their distances."""
    images, values = pixels.shape
    if choose not in OF_DISTANCES or 8 * images * values <= LARGE or 2 * images > values:
        return choose(to_float(pixels).double().numpy(), count, seed)
    points = coordinates(pixels)
    return kmeans(points, count, seed, dimensions=values) if choose is kmeans else choose(points, count, seed)


def coordinates(pixels: Tensor) -> np.ndarray:
    """Points (n,r), r <= n, that have the distances of the rows of uint8 ``pixels`` (n,d), up to rounding.

    With X the rows less their mean, X X^T = L L^T for an L (n,r), its Cholesky factor with pivots, whose rows are such
    points. For 1 000 images of 224 px they take a 150th of the pixels' memory, and so does k-means' time. The products
    are exact: sums of whole numbers up to 2^24 in fp32, of ``SLICE`` columns, added in float64; NumPy computes them, so
    that autocast of the caller does not round them.
    """
    products = np.zeros((len(pixels), len(pixels)))
    for part in pixels.split(SLICE, 1):
        values = part.numpy().astype(np.float32) - 128
        products += values @ values.T
    mean = products.mean(0)
    products += mean.mean() - mean[:, None] - mean
    with one_thread():
        factor, order, rank, _ = dpstrf(products, lower=1)
    points = np.empty((len(pixels), max(1, rank)))
    points[order - 1] = np.tril(factor)[:, : points.shape[1]]
    return points


Size = int | Sequence[int]  # images of every class, or of each


def wanted_counts(split: Split, classes: tuple[str, ...], ipc: Size) -> list[int]:
    """The images to choose of each class.

    Raises:
        ConfigError: a class has fewer, or none are wanted at all.
    """
    wanted = [ipc] * len(classes) if isinstance(ipc, int) else list(ipc)
    found = zip(classes, split.counts(len(classes)), wanted, strict=True)
    small = [f"{name} has {count}" for name, count, most in found if count < most]
    if min(wanted) < 0 or not any(wanted) or small:
        raise ConfigError(
            f"ipc is {ipc}; expected 1 to the number of training images of the smallest class"
            + (f" ({'; '.join(small[:5])})." if small else ".")
        )
    return wanted


def positions(
    method: str,
    split: Split,
    features: Tensor | None,
    classes: tuple[str, ...],
    ipc: Size,
    seed: int,
    **options: Any,
) -> Tensor:
    """Of the images chosen, class by class: ``ipc`` of every class, or as many of each as it lists.

    The features (n,d) of one class are in memory at a time; without ``features`` (N,d) they are its pixels in [-1, 1].
    Of large images (``LARGE``) k-means, herding and k-centre get points with the same distances instead. ``options``
    are further arguments of a method that compares features.

    Raises:
        ConfigError: unknown method, a class with fewer images than ``ipc``, or none wanted at all.
    """
    if not DISTILLERS[method].coreset:
        raise ConfigError(f"method is {method!r}; expected a coreset: {', '.join(coresets())}.")
    choose, few = resolve(DISTILLERS[method].function), list[str]()
    picks, freed = [], 0
    for label, count in enumerate(wanted_counts(split, classes, ipc)):
        if not count:
            continue
        index = split.of_class(label)
        compared = split.images[index].flatten(1) if features is None else features[index]
        different = len({*map(bytes, image_hashes(compared))}) if method == "kmeans" else count
        few += [f"{classes[label]} ({different} for {count})"] * (different < count < len(index))
        own = derive(seed, method, label)
        if features is None:
            chosen = np.asarray(_choose_by_pixels(choose, compared, count, own))
        else:
            chosen = np.asarray(choose(compared.double().numpy(), count, own, **options))
        if len(set(chosen.tolist())) != count or chosen.ndim != 1:
            raise ConfigError(f"The method {method!r} chose {chosen}; expected {count} different positions.")
        picks.append(index[torch.from_numpy(chosen.copy())])  # which may be a reversed view
        freed += 4 * compared.numel()
        del compared
        if freed > RELEASED:  # or the pieces that the classes leave free add up to gigabytes
            release_memory()
            freed = 0
    if few:
        _log.warning(
            "gendistill: k-means has fewer different images than clusters in %s; some are alike.", ", ".join(few)
        )
    return torch.cat(picks)
