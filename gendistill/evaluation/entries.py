"""What is evaluated: one entry for each row, with hard labels or with soft ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.data.crops import batch_indices
from gendistill.data.dataset import Split
from gendistill.evaluation.inputs import Counts, Pool, facts, size_of, uneven
from gendistill.evaluation.summary import CODED, EQUAL_BYTES, Labels, SetFacts
from gendistill.hashing import hash_tensors
from gendistill.networks.soft_labelling import Batches, generate_labels, soft_batches
from gendistill.networks.teacher import Teacher
from gendistill.progress import finish, track
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels


@dataclass(frozen=True)
class SoftTargets:
    """Targets of one training set in place of its hard labels.

    Attributes:
        key: Distinguishes them from other targets of the same images in a resumed evaluation.
        temperature: The temperature T of the softmax that made them.
        table: Targets (N,K) of images that the evaluation augments itself.
        batches: Or batches of images that come with targets of their own.
        augmented: Whether the images of ``batches`` are augmented.
    """

    key: str
    temperature: float
    table: Tensor | None = None
    batches: Batches | None = None
    augmented: bool = True


@dataclass(frozen=True)
class Entry:
    """What one row is trained on: run r takes ``draws[r % len(draws)]``.

    Attributes:
        method: As in ``Row``, and so are stage, ipc, space, labels and recipe.
        draws: The training sets: one, or several random ones, or those of several synthesis seeds.
        targets: Replace the hard labels, one for each draw.
        identity: Content hash of the set, or of each of the pooled sets; None for a baseline.
        counts: Images by class where they are not ``ipc`` for every class, or those of the sets that a baseline
            belongs to.
        synthesis_seeds: Sets that differ in their synthesis seed alone, each of them a draw.
        facts: Go into the row as they are.
    """

    method: str
    stage: str | None
    ipc: int | None
    draws: tuple[Split, ...]
    space: str | None = None
    labels: Labels = "hard"
    recipe: str | None = None
    targets: tuple[SoftTargets, ...] = ()
    identity: str | tuple[str, ...] | None = None
    counts: Counts | None = None
    synthesis_seeds: int = 1
    facts: SetFacts = field(default_factory=SetFacts)

    def count(self, runs: int) -> int:
        """Runs of this row: ``runs`` for every pooled set, else the larger of ``runs`` and the number of draws."""
        return runs * self.synthesis_seeds if self.synthesis_seeds > 1 else max(runs, len(self.draws))

    def run(self, number: int) -> tuple[Split, SoftTargets | None]:
        """What run ``number`` trains on."""
        which = number % len(self.draws)
        return self.draws[which], self.targets[which] if self.targets else None

    @property
    def has_views(self) -> bool:
        """Whether its targets belong to augmented views of the images."""
        return any(targets.batches is not None for targets in self.targets)


def pool_entry(pool: Pool, *, labels: bool = False) -> Entry:
    """The entry of sets that differ in their synthesis seed alone; ``labels`` says whether soft labels count."""
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


def _weighted(surrogate: SurrogateSet, weights: Tensor) -> SoftTargets:
    """Hard labels that count as much as the images' weights."""
    onehot = torch.nn.functional.one_hot(surrogate.split.labels, len(surrogate.classes)).float()
    return SoftTargets(hash_tensors({"weights": weights}), 1.0, table=_shares(surrogate) * onehot)


def _shares(surrogate: SurrogateSet) -> Tensor:
    """(N,1): what each view's targets are multiplied by to count as its weight, cross-entropy being linear in them."""
    weights = torch.ones(len(surrogate.labels)) if surrogate.weights is None else surrogate.weights
    return weights.repeat_interleave(surrogate.views)[:, None]


def soft_entries(labelled: Sequence[Pool], baselines: Sequence[Entry], teacher: Teacher | None) -> list[Entry]:
    """For each recipe and IPC of the labelled sets the baselines of that IPC, then the sets themselves."""
    assert teacher is not None  # check_soft_labels
    network = teacher.network.to(runtime.device())
    found, done = [], set()
    for pool in track(labelled, "soft labels"):
        soft, ipc = pool[0].soft_labels, size_of(pool[0])
        assert soft is not None
        row = pool_entry(pool, labels=True)
        kind = (ipc, row.counts, soft.recipe)
        if kind not in done:
            done.add(kind)
            same = [b for b in baselines if (b.ipc, b.counts) == kind[:2] and b.space not in (EQUAL_BYTES, CODED)]
            size = row.facts["bytes"]["labels"]
            found += [_labelled(b, pool[0].classes, soft, network, size) for b in same]
        found.append(_relabelled(row, soft, tuple(_targets(made, network) for made in pool)))
    return found


def _labelled(
    baseline: Entry, classes: tuple[str, ...], soft: SoftLabels, network: torch.nn.Module, size: int
) -> Entry:
    """The baseline with labels of that recipe and size in bytes, made now: stored and online labels are the same."""
    recipe = replace(soft, mode="online" if soft.mode == "per_view" else soft.mode, values=None, indices=None)
    targets = []
    for draw in baseline.draws:
        labels = finish(generate_labels(recipe, network, draw.pixels, 0))
        labelled = SurrogateSet(draw.pixels, draw.labels, classes, soft_labels=labels)
        targets.append(_targets(labelled, network))
    stored: SetFacts = {**baseline.facts, "bytes": {**baseline.facts["bytes"], "labels": size}}
    return replace(_relabelled(baseline, soft, tuple(targets)), facts=stored)


def _relabelled(row: Entry, soft: SoftLabels, targets: tuple[SoftTargets, ...]) -> Entry:
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

    def weighted(step: int) -> tuple[Tensor, Tensor]:
        images, targets = batches(step)
        index = batch_indices(len(shares), views.batch_size, step, views.seed)
        shown = views.of(shares[index, :, None, None].expand(-1, -1, side, side), step)
        return images, targets * runtime.to_device(shown.mean((1, 2, 3)), targets.device)[:, None]

    return weighted
