"""Who is evaluated: the sets, and the baselines beside them; with hard labels and with the sets' soft ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gendistill import runtime
from gendistill.config import EvaluateConfig
from gendistill.data.crops import batch_indices
from gendistill.data.dataset import RealData, Split
from gendistill.evaluation.baselines import Baselines
from gendistill.evaluation.evaluator import EQUAL_BYTES, Entry, SoftTargets
from gendistill.evaluation.inputs import Pool, by_counts, facts, pools, size_of, total_bytes, uneven
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.hashing import hash_tensors
from gendistill.networks.soft_labelling import Batches, generate_labels, soft_batches
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish, track
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels


def contestants(
    data: RealData, sets: Sequence[SurrogateSet], config: EvaluateConfig, seed: int, teacher: Teacher | None
) -> list[Entry]:
    """All rows: baselines by IPC, the sets with hard labels, labelled sets after baselines of their recipe, full data.

    Sets that differ in their synthesis seed alone share a row. Beside them are as many random draws as they have runs.
    """
    real, hard = Baselines(data, config, seed, teacher), pools(sets, labels=False)
    soft = pools([s for s in sets if s.soft_labels], labels=True) if resolve_protocol(config).labels == "soft" else []
    found = []
    for ipc in sorted({size_of(pool[0]) for pool in hard}):
        here = by_counts(pool[0] for pool in hard if size_of(pool[0]) == ipc)
        dear = [(pool, False) for pool in hard if size_of(pool[0]) == ipc and pool[0].factor != 1]
        dear += [(pool, True) for pool in soft if size_of(pool[0]) == ipc]
        most = max(len(pool) for pool in hard + soft if size_of(pool[0]) == ipc)
        totals = [total_bytes(pool, labels=labels) for pool, labels in dear]
        found += real.beside(ipc, most * config.runs, totals, here)
    beside = list(found)
    found += [_of_pool(pool) for pool in hard]
    if soft:
        found += with_soft_labels(soft, beside, teacher)
    return found + real.full()


def of_sets(sets: Sequence[SurrogateSet]) -> list[Entry]:
    """The sets with hard labels, each in a row of its own; those that differ in their soft labels alone are one."""
    return [_of_pool([made]) for pool in pools(sets, labels=False) for made in pool]


def _of_pool(pool: Pool, *, labels: bool = False) -> Entry:
    first, hashes = pool[0], tuple(made.content_hash() for made in pool)
    meta = first.meta
    targets = () if first.weights is None else tuple(_weighted(s, s.weights) for s in pool if s.weights is not None)
    return Entry(
        meta.get("method", "unknown"),
        meta.get("stage"),
        size_of(first),
        tuple(made.split for made in pool),
        meta.get("space"),
        targets=targets,
        identity=hashes if len(pool) > 1 else hashes[0],
        counts=uneven(first),
        synthesis_seeds=len(pool),
        facts=facts(pool, labels=labels),
    )


def _weighted(surrogate: SurrogateSet, weights: torch.Tensor) -> SoftTargets:
    """Hard labels that count as much as the images' weights."""
    onehot = torch.nn.functional.one_hot(surrogate.split.labels, len(surrogate.classes)).float()
    return SoftTargets(hash_tensors({"weights": weights}), 1.0, table=_shares(surrogate) * onehot)


def _shares(surrogate: SurrogateSet) -> torch.Tensor:
    """(N,1): what each view's targets are multiplied by to count as its weight, cross-entropy being linear in them."""
    weights = torch.ones(len(surrogate.labels)) if surrogate.weights is None else surrogate.weights
    return weights.repeat_interleave(surrogate.views)[:, None]


def with_soft_labels(labelled: Sequence[Pool], baselines: Sequence[Entry], teacher: Teacher | None) -> list[Entry]:
    """For each recipe and IPC of the labelled sets the baselines of that IPC, then the sets themselves."""
    assert teacher is not None
    network = teacher.network.to(runtime.device())
    found, done = [], set()
    for pool in track(labelled, "soft labels"):
        soft, ipc = pool[0].soft_labels, size_of(pool[0])
        assert soft is not None
        row = _of_pool(pool, labels=True)
        kind = (ipc, row.counts, soft.recipe)
        if kind not in done:
            done.add(kind)
            same = [b for b in baselines if (b.ipc, b.counts) == kind[:2] and b.space != EQUAL_BYTES]
            found += [_labelled(b, pool[0].classes, soft, network, row.facts["bytes"]["labels"]) for b in same]
        found.append(_with(row, soft, tuple(_targets(made, network) for made in pool)))
    return found


def _labelled(
    baseline: Entry, classes: tuple[str, ...], soft: SoftLabels, network: torch.nn.Module, size: int
) -> Entry:
    """Its draws with labels of that recipe, of as many bytes, made now: batches of stored and online labels are the
    same."""
    mode = "online" if soft.mode == "per_view" else soft.mode
    recipe = replace(soft, mode=mode, values=None, indices=None)
    targets = []
    for draw in baseline.draws:
        labels = finish(generate_labels(recipe, network, draw.images, 0))
        targets.append(_targets(_as_set(draw, classes, labels), network))
    stored = {**baseline.facts, "bytes": {**baseline.facts["bytes"], "labels": size}}
    return replace(_with(baseline, soft, tuple(targets)), facts=stored)


def _as_set(draw: Split, classes: tuple[str, ...], labels: SoftLabels) -> SurrogateSet:
    return SurrogateSet(draw.images, draw.labels, classes, soft_labels=labels)


def _with(row: Entry, soft: SoftLabels, targets: tuple[SoftTargets, ...]) -> Entry:
    return replace(row, labels="online" if soft.mode == "online" else "soft", recipe=soft.recipe, targets=targets)


def _targets(surrogate: SurrogateSet, network: torch.nn.Module) -> SoftTargets:
    soft = surrogate.soft_labels
    assert soft is not None
    weights = {} if surrogate.weights is None else {"weights": surrogate.weights}
    key = hash_tensors({**soft.fingerprint(), **weights})
    if soft.mode == "per_image":
        table = soft.probabilities(torch.arange(len(surrogate.images) * surrogate.views))
        return SoftTargets(key, soft.temperature, table=table * _shares(surrogate))
    augmented = soft.views.min_crop < 1 or soft.views.flip or soft.views.cutmix > 0
    return SoftTargets(key, soft.temperature, batches=_weighted_batches(surrogate, network), augmented=augmented)


def _weighted_batches(surrogate: SurrogateSet, network: torch.nn.Module) -> Batches:
    """Soft-labelled batches whose targets count as much as the weights of what a view shows, by area."""
    batches, soft = soft_batches(surrogate, network), surrogate.soft_labels
    if surrogate.weights is None or soft is None:
        return batches
    views, shares, side = soft.views, _shares(surrogate), surrogate.images.shape[-1]

    def weighted(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = batches(step)
        index = batch_indices(len(shares), views.batch_size, step, views.seed)
        shown = views.of(shares[index, :, None, None].expand(-1, -1, side, side), step)
        return images, targets * shown.mean((1, 2, 3))[:, None]

    return weighted
