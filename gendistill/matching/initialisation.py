"""Where the stored images begin: noise, random real images, representatives of their class, or another set's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from gendistill.config import MatchingStart
from gendistill.data.dataset import RealData, Split
from gendistill.errors import ArtifactError, ConfigError
from gendistill.matching.network_pool import Build
from gendistill.matching.selection import embed, representatives
from gendistill.matching.synthetic import SyntheticImages, noise, of_images, of_picks
from gendistill.progress import track
from gendistill.seeding import derive, torch_rng
from gendistill.surrogate.multi_formation import Factor, factor_name, sides
from gendistill.surrogate.set import SurrogateSet


def starts(
    data: RealData, ipcs: Sequence[int], factor: Factor, kind: MatchingStart, build: Build, *, seed: int
) -> list[SyntheticImages]:
    """One start for each of ``ipcs``, the same whichever others there are; ``build`` makes the network of a clustered
    one, which embeds the real images once for all.

    Raises:
        ConfigError: a class has fewer images than ipc x factor^2, or ``kind`` is a folder, whose set ``of_set`` takes.
    """
    classes = len(data.classes)
    if kind not in get_args(MatchingStart):
        raise ConfigError(f"start is {str(kind)!r}; expected {', '.join(get_args(MatchingStart))}, or its set given.")
    if kind == "noise":
        return [noise(data.train, classes, ipc, factor, seed) for ipc in ipcs]
    picks: dict[int, list[Tensor]] = {ipc: [] for ipc in ipcs}
    tiles = max(sides(factor)) ** 2
    network = build(derive(seed, "start network")) if kind == "clustered" else None
    for label in track(range(classes), "clustered start", classes) if network else range(classes):
        index = data.train.of_class(label)
        if network is not None and len(index) < max(ipcs) * tiles:
            raise ConfigError(
                f"A clustered start needs {max(ipcs) * tiles} images of every class (ipc x factor^2), but "
                f"class {data.classes[label]!r} has {len(index)}; lower ipc or factor, or take --matching.start noise."
            )
        if network is not None:
            features, own = embed(network, data.train, index), derive(seed, "clustered start", label)
            chosen = {ipc: representatives(features, ipc * tiles, own) for ipc in ipcs}
        else:
            order = torch.randperm(len(index), generator=torch_rng(seed, "random start", label))
            chosen = {ipc: order[: ipc * tiles] for ipc in ipcs}
        for ipc in ipcs:
            picks[ipc].append(index[chosen[ipc]])
    return [of_picks(data.train, picks[ipc], ipc, factor, data.classes) for ipc in ipcs]


def of_set(given: SurrogateSet, data: RealData, ipc: int, factor: Factor) -> SyntheticImages:
    """From another set's images: as they are stored where factors agree, else from its whole images, shrunk.

    Raises:
        ArtifactError: it has other classes or another size, too few images, or views that would have to be re-cut.
    """
    if given.classes != data.classes or given.images.shape[1:] != data.train.images.shape[1:]:
        raise ArtifactError(
            f"The set to start from has {len(given.classes)} classes and images {tuple(given.images.shape[1:])}, the "
            f"data {len(data.classes)} and {tuple(data.train.images.shape[1:])}; expected the same."
        )
    if given.factor == factor:
        return of_images(given.prefix(ipc).images, ipc, factor)
    if given.factor != 1:
        expected = f"whole images or {factor_name(factor)} views" if factor != 1 else "whole images"
        raise ArtifactError(
            f"The set to start from holds {factor_name(given.factor)} views in an image; expected {expected}."
        )
    wanted = ipc * max(sides(factor)) ** 2
    if min(given.counts) < wanted:
        raise ArtifactError(
            f"ipc {ipc} with factor {factor} starts from {wanted} images of every class (ipc x factor^2), but "
            f"class {given.classes[given.counts.index(min(given.counts))]!r} of the set has {min(given.counts)}; lower "
            "ipc or factor."
        )
    whole = given.prefix(wanted)
    picks = [torch.nonzero(whole.labels == label).flatten() for label in range(len(given.classes))]
    return of_picks(Split(whole.images, whole.labels), picks, ipc, factor, given.classes)
