"""Selection from a pool: by the atoms of a class's Wasserstein barycenter, or by the error of the teachers.

Each atom takes its own image. Unlike WMDD (arXiv 2311.18531), which optimises images toward the atoms from noise, the
nearest images of a generated pool are chosen by a one-to-one assignment.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.config import BarycenterSolver, BarycenterWeights
from gendistill.coreset.difficulty import answers
from gendistill.errors import ConfigError
from gendistill.networks.training import is_correct
from gendistill.refine.feature_space import FeatureSpace
from gendistill.surrogate.set import SurrogateSet
from gendistill.transport.barycenter import assign, class_barycenters, kmeans_atoms

SelectRecord = TypedDict("SelectRecord", {"class": str, "left_out": int})  # left_out: misclassified and not taken


def select(
    pool: SurrogateSet,
    space: FeatureSpace,
    *,
    ipc: int,
    seed: int = 0,
    weights: BarycenterWeights = "fixed",
    solver: BarycenterSolver = "exact",
) -> Generator[SelectRecord, None, SurrogateSet]:
    """Choose ``ipc`` images of every class by one-to-one assignment to the atoms of the real images' barycenter.

        min over injections s of sum_j |atom_j - point(image_s(j))|^2

    The atoms descend from k-means centres. Images that a teacher misclassifies are taken only where others are too
    few.

    Args:
        pool: The set to choose from.
        space: The teachers, and the real images' points.
        ipc: Images per class to choose, at least 1.
        seed: Of k-means.
        weights: ``fixed`` at 1/ipc, or ``free``: each image weighs what its atom stands for.
        solver: ``exact`` plans, or entropic ones by ``sinkhorn``.

    Yields:
        A record a class, with the number of misclassified images that were not taken.

    Returns:
        The chosen set, without soft labels; with ``free`` weights, images have the weights of their atoms.

    Raises:
        ConfigError: a class has fewer than ``ipc`` images, in the pool or among the real ones.

    Example:
        >>> from gendistill.progress import finish
        >>> chosen = finish(select(pool, ground_space([teacher], data, gd.RefineConfig()), ipc=10))
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


def select_by_error(
    pool: SurrogateSet, networks: Sequence[nn.Module], *, ipc: int, prefer: Literal["easy", "hard"]
) -> Generator[SelectRecord, None, SurrogateSet]:
    """Choose ``ipc`` images of every class that the teachers find easy, or hard.

        error_i = mean over the teachers of |softmax(logits_i) - onehot(y_i)|, in [0, sqrt(2)]

    This is EL2N (arXiv 2107.07075) of trained networks, not of networks early in their training, because a pool has no
    training of its own. Images that a teacher misclassifies are taken only where others are too few, those of the
    least error first: in a pool of samples they are often of another class.

    Args:
        pool: The set to choose from.
        networks: The teachers' networks.
        ipc: Images per class to choose, at least 1.
        prefer: ``easy`` takes the smallest errors, ``hard`` the largest.

    Yields:
        A record a class, with the number of misclassified images that were not taken.

    Returns:
        The chosen set, without soft labels, class by class; smaller choices are prefixes of larger ones.

    Raises:
        ConfigError: a class of the pool has fewer than ``ipc`` images.
    """
    require_images(pool.split.counts(len(pool.classes)), ipc, pool.classes, "in the set; sample a larger one")
    found = torch.stack([answers(network, pool.split) for network in networks]).double()
    right, error = found[..., 2].bool().all(0), found[..., 1].mean(0)
    order = torch.where(right & (prefer == "hard"), -error, error)
    chosen = []
    for label, name in enumerate(pool.classes):
        members = torch.nonzero(pool.labels == label).flatten()
        ranked = np.lexsort((order[members].numpy(), ~right[members].numpy()))  # by the last key first
        picks = members[torch.from_numpy(ranked[:ipc])]
        chosen.append(picks)
        yield {"class": name, "left_out": int((~right[members]).sum() - (~right[picks]).sum())}
    return replace(pool.take(torch.cat(chosen)), soft_labels=None)


def _wrong_last(atoms: np.ndarray, points: np.ndarray, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and points with one more coordinate, in which misclassified images are farther than all others together."""
    reach = np.linalg.norm(atoms, axis=1).max() + np.linalg.norm(points, axis=1).max()
    far = np.where(right.numpy(), 0.0, (1 + reach) * len(atoms) ** 0.5)
    return np.pad(atoms, ((0, 0), (0, 1))), np.column_stack([points, far])


def require_images(counts: Sequence[int], ipc: int, classes: Sequence[str], where: str) -> None:
    """Raises ConfigError where a class has fewer images than ``ipc``."""
    name, count = min(zip(classes, counts, strict=True), key=lambda one: one[1])
    if count < ipc:
        raise ConfigError(f"ipc is {ipc} but class {name!r} has {count} images {where}.")
