"""The ``select`` refiner: each barycenter atom of a class takes its own image from the pool."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendistill.config import BarycenterSolver, BarycenterWeights
from gendistill.errors import ConfigError
from gendistill.networks.training import is_correct
from gendistill.refine.feature_space import FeatureSpace
from gendistill.surrogate.set import SurrogateSet
from gendistill.transport.barycenter import assign, class_barycenters, kmeans_atoms


def select(
    pool: SurrogateSet,
    space: FeatureSpace,
    *,
    ipc: int,
    seed: int = 0,
    weights: BarycenterWeights = "fixed",
    solver: BarycenterSolver = "exact",
) -> Generator[dict[str, Any], None, SurrogateSet]:
    """Choose ``ipc`` images of every class by one-to-one assignment to the atoms of the real images' barycenter.

    The atoms start at k-means centres. Images that a teacher misclassifies are taken only where others are too few.
    Yields a record a class, with the number left out for it; returns the chosen set, each image of the weight of its
    atom where weights are ``free``.

    Raises:
        ConfigError: a class has fewer than ``ipc`` images, of the pool or real ones.
    """
    classes = range(len(pool.classes))
    require_images(pool.split.counts(len(classes)), ipc, pool.classes, "in the set; sample a larger one")
    real = torch.bincount(space.labels, minlength=len(classes)).tolist()
    require_images(real, ipc, pool.classes, "to take atoms from")
    points = space.points(pool.images, pool.labels)
    right = torch.stack([is_correct(network, pool.split) for network in space.networks]).all(0)
    barycenters = class_barycenters(
        (space.of_class(c) for c in classes),
        [partial(kmeans_atoms, count=ipc, seed=seed) for _ in classes],
        names=pool.classes,
        max_iterations=100,
        tolerance=1e-9,
        weights=weights,
        solver=solver,
    )
    chosen, masses = [], []
    for label, found in zip(classes, barycenters, strict=True):
        members = torch.nonzero(pool.labels == label).flatten()
        picks = members[torch.from_numpy(assign(*_wrong_last(found.atoms, points[members].numpy(), right[members])))]
        chosen.append(picks)
        masses.append(torch.from_numpy(found.weights * ipc).float())
        yield {"class": pool.classes[label], "left_out": int((~right[members]).sum() - (~right[picks]).sum())}
    taken = replace(pool.take(torch.cat(chosen)), soft_labels=None)
    return replace(taken, weights=torch.cat(masses)) if weights == "free" else taken


def _wrong_last(atoms: np.ndarray, points: np.ndarray, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and points with a coordinate more, in which wrong images are farther away than all others together."""
    reach = np.linalg.norm(atoms, axis=1).max() + np.linalg.norm(points, axis=1).max()
    far = np.where(right.numpy(), 0.0, (1 + reach) * len(atoms) ** 0.5)
    return np.pad(atoms, ((0, 0), (0, 1))), np.column_stack([points, far])


def require_images(counts: Sequence[int], ipc: int, classes: Sequence[str], where: str) -> None:
    """Raises ConfigError where a class has fewer images than ``ipc``."""
    name, count = min(zip(classes, counts, strict=True), key=lambda one: one[1])
    if count < ipc:
        raise ConfigError(f"ipc is {ipc} but class {name!r} has {count} images {where}.")
