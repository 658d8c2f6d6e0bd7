"""Coreset distillers: real images chosen by class. The baselines that every report prints beside our rows.

Each takes the features (n,d) of one class, the number k and a seed, and returns k different positions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gendistill.data.real import Split
from gendistill.errors import ConfigError
from gendistill.seeding import derive, numpy_rng
from gendistill.transport.barycenter import assign, kmeans_atoms


def random(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A uniform draw without replacement; smaller draws are prefixes of larger ones."""
    return numpy_rng(seed, "random").permutation(len(features))[:count]


def kmeans(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The real image nearest to each of k centres, no image twice (one-to-one assignment)."""
    return assign(kmeans_atoms(features, count, seed), features)


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


CORESETS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "random": random,
    "kmeans": kmeans,
    "herding": herding,
    "kcenter": kcenter,
}


def choose(method: str, split: Split, features: Tensor, classes: tuple[str, ...], ipc: int, seed: int) -> Split:
    """``ipc`` images of every class of ``split`` by a coreset method on ``features`` (N,d); see ``positions``."""
    return split.take(positions(method, split, features, classes, ipc, seed))


def positions(method: str, split: Split, features: Tensor, classes: tuple[str, ...], ipc: int, seed: int) -> Tensor:
    """Of the images chosen, (K*ipc,), class by class.

    Raises:
        ConfigError: unknown method, or a class with fewer images than ``ipc``.
    """
    if method not in CORESETS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(CORESETS)}.")
    small = [f"{n} has {c}" for n, c in zip(classes, split.counts(len(classes)), strict=True) if c < ipc]
    if ipc < 1 or small:
        raise ConfigError(
            f"ipc is {ipc}; expected 1 to the number of training images of the smallest class"
            + (f" ({'; '.join(small[:5])})." if small else ".")
        )
    picks = []
    for label in range(len(classes)):
        index = split.of_class(label)
        chosen = CORESETS[method](features[index].double().numpy(), ipc, derive(seed, method, label))
        picks.append(index[torch.from_numpy(chosen)])
    return torch.cat(picks)
