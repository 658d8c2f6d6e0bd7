"""The ``select`` refiner: each barycenter atom of a class takes its own image from the pool."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from gendistill.errors import ConfigError
from gendistill.networks.training import recognised
from gendistill.refine.space import GroundSpace
from gendistill.surrogate.surrogate import SurrogateSet
from gendistill.transport.barycenter import assign, kmeans_atoms
from gendistill.transport.classes import class_barycenters


def select(
    pool: SurrogateSet, space: GroundSpace, *, ipc: int, seed: int = 0
) -> Generator[dict[str, Any], None, SurrogateSet]:
    """Choose ``ipc`` images of every class by one-to-one assignment to the atoms of the real images' barycenter.

    The atoms start at k-means centres. Images that a teacher misclassifies are left out where enough others remain.
    Yields a record a class, with the number left out; returns the chosen set.

    Raises:
        ConfigError: the pool or a real class has fewer than ``ipc`` images.
    """
    if pool.ipc < ipc:
        raise ConfigError(f"ipc is {ipc} but the pool has {pool.ipc} images a class; sample a larger pool.")
    classes = range(len(pool.classes))
    for label in classes:
        count = int((space.labels == label).sum())
        if count < ipc:
            name = pool.classes[label]
            raise ConfigError(f"ipc is {ipc} but class {name!r} has {count} training images to take atoms from.")
    points = space.points(pool.images, pool.labels)
    right = torch.stack([recognised(network, pool.split) for network in space.networks]).all(0)
    starts = (kmeans_atoms(space.of_class(c), ipc, seed) for c in classes)
    barycenters = class_barycenters(
        (space.of_class(c) for c in classes), starts, total=len(classes), max_iterations=100, tolerance=1e-9
    )
    chosen = []
    for label, found in zip(classes, barycenters, strict=True):
        members = torch.nonzero(pool.labels == label).flatten()
        usable = members[right[members]]
        candidates = usable if len(usable) >= ipc else members
        picks = assign(found.atoms, points[candidates].numpy())
        chosen.append(candidates[torch.from_numpy(picks)])
        yield {"class": pool.classes[label], "left_out": len(members) - len(usable)}
    keep = torch.cat(chosen)
    return replace(pool.take(keep), soft_labels=None)
