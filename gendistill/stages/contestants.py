"""Who is evaluated: the sets, beside them random draws and k-means; with hard labels and with the sets' soft ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gendistill import runtime
from gendistill.config import EvaluateConfig
from gendistill.data.real import RealData, Split
from gendistill.evaluate.judge import RANDOM, Contestant, Targets
from gendistill.hashing import hash_tensors
from gendistill.networks.labelling import fill, soft_batches
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish, track
from gendistill.seeding import derive
from gendistill.stages.distill import distill
from gendistill.surrogate.soft_labels import SoftLabels
from gendistill.surrogate.surrogate import SurrogateSet

RANDOM_DRAWS = 5


def of_sets(surrogates: Sequence[SurrogateSet]) -> list[Contestant]:
    """The sets' rows with hard labels; one row for sets that differ in their soft labels alone."""
    rows: dict[str, Contestant] = {}
    for surrogate in surrogates:
        plain = replace(surrogate, soft_labels=None)
        rows.setdefault(f"{plain.content_hash()} {plain.meta.get('stage')}", _of_set(surrogate))
    return list(rows.values())


def _of_set(surrogate: SurrogateSet) -> Contestant:
    meta = surrogate.meta
    named = meta.get("method", "unknown"), meta.get("stage"), surrogate.ipc, (surrogate.split,), meta.get("space")
    targets = () if surrogate.weights is None else (_weighted(surrogate, surrogate.weights),)
    return Contestant(*named, targets=targets, identity=surrogate.content_hash())


def _weighted(surrogate: SurrogateSet, weights: torch.Tensor) -> Targets:
    """Hard labels that count as much as the images' weights."""
    onehot = torch.nn.functional.one_hot(surrogate.split.labels, len(surrogate.classes)).float()
    return Targets(hash_tensors({"weights": weights}), 1.0, table=_shares(surrogate) * onehot)


def _shares(surrogate: SurrogateSet) -> torch.Tensor:
    """(N,1): what each view's targets are multiplied by to count as its weight, cross-entropy being linear in them."""
    weights = torch.ones(len(surrogate.labels)) if surrogate.weights is None else surrogate.weights
    return weights.repeat_interleave(surrogate.factor**2)[:, None]


def baselines(data: RealData, ipc: int, config: EvaluateConfig, seed: int, teacher: Teacher | None) -> list[Contestant]:
    """Random draws (one for each run, at least five) and k-means at one IPC."""
    draws = [
        distill(data, RANDOM, ipc, seed=derive(seed, "random draw", r)).split
        for r in range(max(RANDOM_DRAWS, config.runs))
    ]
    found = [Contestant(RANDOM, None, ipc, tuple(draws))]
    spaces = [None] + ([teacher.statistics.features] if teacher else [])
    for features in spaces:
        picked = distill(data, "kmeans", ipc, seed=seed, features=features)
        found.append(Contestant("kmeans", None, ipc, (picked.split,), picked.meta["space"]))
    return found


def with_soft_labels(
    labelled: Sequence[SurrogateSet], baselines: Sequence[Contestant], teacher: Teacher | None
) -> list[Contestant]:
    """For each recipe and IPC of the labelled sets the baselines of that IPC, then the sets themselves."""
    assert teacher is not None
    network = teacher.network.to(runtime.device())
    found, done = [], set()
    for surrogate in track(labelled, "soft labels"):
        soft = surrogate.soft_labels
        assert soft is not None
        if (surrogate.ipc, soft.recipe) not in done:
            done.add((surrogate.ipc, soft.recipe))
            same = [b for b in baselines if b.ipc == surrogate.ipc]
            found += [_labelled(b, surrogate.classes, soft, network) for b in same]
        found.append(_with(_of_set(surrogate), soft, (_targets(surrogate, network),)))
    return found


def _labelled(baseline: Contestant, classes: tuple[str, ...], soft: SoftLabels, network: torch.nn.Module) -> Contestant:
    """Its draws with labels of that recipe, made now: batches of stored and online labels are the same."""
    mode = "online" if soft.mode == "per_view" else soft.mode
    recipe = replace(soft, mode=mode, values=None, indices=None)
    targets = []
    for draw in baseline.draws:
        labels = finish(fill(recipe, network, draw.images, 0))
        targets.append(_targets(_as_set(draw, classes, labels), network))
    return _with(baseline, soft, tuple(targets))


def _as_set(draw: Split, classes: tuple[str, ...], labels: SoftLabels) -> SurrogateSet:
    return SurrogateSet(draw.images, draw.labels, classes, soft_labels=labels)


def _with(row: Contestant, soft: SoftLabels, targets: tuple[Targets, ...]) -> Contestant:
    return replace(row, labels="online" if soft.mode == "online" else "soft", recipe=soft.recipe, targets=targets)


def _targets(surrogate: SurrogateSet, network: torch.nn.Module) -> Targets:
    soft = surrogate.soft_labels
    assert soft is not None
    weights = {} if surrogate.weights is None else {"weights": surrogate.weights}
    key = hash_tensors({**soft.fingerprint(), **weights})
    if soft.mode == "per_image":
        table = soft.probabilities(torch.arange(len(surrogate.images) * surrogate.factor**2))
        return Targets(key, soft.temperature, table=table * _shares(surrogate))
    augmented = soft.views.min_crop < 1 or soft.views.flip or soft.views.cutmix > 0
    return Targets(key, soft.temperature, batches=soft_batches(surrogate, network), augmented=augmented)
