"""The optimisation of images: Adam on the refinement objective, in chunks of whole classes.

Several processes share the chunks of a set, and finished chunks in a work folder are not computed again.

Legend: N images of the set, B of the chunk, (C,H,W) an image, D dimensions of the feature space.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Required, TypedDict, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gendistill import runtime
from gendistill.config import LossyFormat, ObjectiveConfig, RefineConfig, to_dict
from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ArtifactError
from gendistill.generator.codec import Codec
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import WorkFolder, read_tensors, write_tensors
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import cosine
from gendistill.objectives.refinement import feature_loss, released_feature_loss
from gendistill.progress import follow
from gendistill.refine.constraints import PixelRegion, RefineAugmentation, TrustRegion, augmented, chunks
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.objective import (
    BarycenterTargets,
    RefineObjective,
    TeacherTerms,
    TeacherView,
    gate,
    matched_targets,
)
from gendistill.seeding import derive
from gendistill.surrogate.image_files import recode
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.manifest import GateCounts, Provenance, with_step_coding
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.straight_through import as_coded


class RefineRecord(TypedDict, total=False):
    """A step's number and its weighted terms, scalars on the device."""

    step: Required[int]
    atoms: Required[Tensor]
    batch_norm: Tensor
    cross_entropy: Tensor


CHUNKS = "chunks"  # folder of the refined images of an interrupted computation


def refine_images(
    start: SurrogateSet,
    space: FeatureSpace,
    config: ObjectiveConfig,
    *,
    seed: int,
    held_out: Teacher | None = None,
    folder: WorkFolder | None = None,
    label: str = "",
    own: bool = True,
    region: TrustRegion | None = None,
    atoms: Tensor | None = None,
    image_format: LossyFormat | None = None,
) -> SurrogateSet:
    """Move a set's images toward the barycenter of their class, or toward atoms of your own; ``refine_set`` without
    selection.

    Args:
        start: The images to begin with.
        space: The teachers, and the real images' points.
        config: Weights of the objective, steps, bounds.
        seed: Of the atoms and the augmentation.
        held_out: A classifier that the acceptance gate uses as well.
        folder: Keeps finished chunks and the log; several processes need it.
        label: Of the set, in the log and the progress bar.
        own: As in ``matched_targets``.
        region: Where images may go; that of the config in pixels where None.
        atoms: Points (N,D) of ``space`` that the images move toward, in their order, each of the same weight; None
            computes the barycenters.
        image_format: Of the files that the set is stored as afterwards: every step sees the images as these hold them
            (``as_coded``). None sees them as they are.

    Returns:
        The refined set, not yet stored in any format. ``meta`` has the mean class W2 before and after, and what the
        gate refused; with ``image_format`` both are of the images that its files hold.

    Raises:
        ValueError: several processes without a ``folder``, or atoms of another shape than the images' points.
        DivergenceError: images that are not finite.

    Example:
        >>> space = gd.ground_space([teacher], data, gd.RefineConfig())
        >>> moved = gd.refine_images(made, space, gd.RefineConfig(steps=100), seed=0)
    """
    state = runtime.processes()
    if folder is None and state.num_processes > 1:
        raise ValueError("Several processes refine one set through a folder; pass one, or run one process.")
    points = space.points(start.images, start.labels)
    if atoms is None:
        options = {"weights": config.weights, "solver": config.solver}
        targets = matched_targets(points, start.labels, space, own=own, seed=seed, **options)
    elif atoms.shape == points.shape:
        targets = BarycenterTargets(atoms, torch.ones(len(atoms)))
    else:
        raise ValueError(f"atoms are {tuple(atoms.shape)}; expected {tuple(points.shape)}: one point for each image.")
    region, coding = region or pixel_region(config), Coding.of_steps(image_format, int(start.images.shape[-1]))
    store = folder.path / CHUNKS / _identity(start, space, config, region, seed, own, atoms, coding) if folder else None
    log, shown = folder.log if folder and state.is_main_process else None, state.is_main_process
    parts = list(chunks(start.labels, config.batch_size)) if config.steps else []
    mine = range(state.process_index, len(parts), state.num_processes)
    images, computed = start.images.clone(), set()
    for count, i in enumerate(mine):
        if store is None or not _chunk(store, i).is_file():
            own_targets, stream = targets.take(parts[i]), derive(seed, "refine")
            loop = refine_part(start, parts[i], own_targets, space, config, region, stream, coding)
            fields = {"log": log, "stage": "refine", "set": label, "chunk": i, "shown": shown}
            total, done = config.steps * len(mine), config.steps * count
            images[parts[i]] = follow(loop, f"refine {label}", total, start=done, **fields)
            computed.add(i)
            if store is not None:
                store.mkdir(parents=True, exist_ok=True)
                write_tensors(_chunk(store, i), {"images": images[parts[i]]}, hashed=True)
    state.wait_for_everyone()
    for i, positions in enumerate(parts):
        if store is not None and i not in computed:
            images[positions] = _read_chunk(_chunk(store, i), images[positions])
    state.wait_for_everyone()  # or the main process would rename the folder while another one reads it
    made = _accepted(start, points, images, targets, space, config, held_out, coding)
    if not config.steps:
        return made
    bf16 = runtime.wants_bf16(config.mixed_precision, runtime.device())
    meta: Provenance = made.meta | {"mixed_precision": "bf16" if bf16 else "no"}
    return replace(made, meta=with_step_coding(meta, coding))


def _chunk(store: Path, index: int) -> Path:
    return store / f"{index:05d}.safetensors"


def _read_chunk(path: Path, like: Tensor) -> Tensor:
    """The images of a finished chunk, as many and of the kind of ``like``."""
    fix = "Delete it and resume."
    images = read_tensors(path, fix=fix)[0].get("images")
    if images is None or (images.shape, images.dtype) != (like.shape, like.dtype):
        found = None if images is None else f"{images.dtype} {tuple(images.shape)}"
        raise ArtifactError(f"{path} has images {found}; expected {like.dtype} {tuple(like.shape)}. {fix}")
    return images


def _identity(
    start: SurrogateSet,
    space: FeatureSpace,
    config: ObjectiveConfig,
    region: TrustRegion,
    seed: int,
    own: bool,
    atoms: Tensor | None,
    coding: Coding | None,
) -> str:
    """A hash of everything that decides the refined images, so that no other computation takes their chunks."""
    tensors = {"images": start.images, "labels": start.labels, **({} if atoms is None else {"atoms": atoms})}
    bounds = {name: value.hash() if isinstance(value, Codec) else value for name, value in vars(region).items()}
    flat = {name: value for name, value in to_dict(config).items() if name != "compression_aware"}
    options = [type(region).__name__, bounds, flat, seed, own, *([coding.record()] if coding else [])]
    return hash_json([hash_tensors(tensors), space.identity, options])


def refine_part(
    start: SurrogateSet,
    positions: Tensor,
    targets: BarycenterTargets,
    space: FeatureSpace,
    config: ObjectiveConfig,
    region: TrustRegion,
    seed: int,
    coding: Coding | None = None,
) -> Generator[RefineRecord, None, Tensor]:
    """``refine_chunk`` of the set's images at ``positions`` (B,), as the config says."""
    return refine_chunk(
        start.images[positions],
        start.labels[positions],
        targets,
        space,
        steps=config.steps,
        learning_rate=config.learning_rate,
        objective=RefineObjective(
            features=config.feature_weight,
            batch_norm=config.batch_norm_weight,
            cross_entropy=config.cross_entropy_weight,
            feature_form=config.feature_loss,
            batch_norm_form=config.batch_norm_loss,
        ),
        region=region,
        crops=RefineAugmentation(seed=seed, min_crop=config.min_crop, flip=config.flip, roll=config.roll),
        positions=positions,
        total=len(start.labels),
        rows=config.batch_size,
        bf16=runtime.wants_bf16(config.mixed_precision, runtime.device()),
        coding=coding,
    )


def pixel_region(config: ObjectiveConfig) -> PixelRegion:
    every, blend = config.blending
    return PixelRegion(bound=config.trust_region, size=config.delta_size, blend_every=every, blend=blend)


def refine_chunk(
    start: Tensor,
    labels: Tensor,
    targets: BarycenterTargets,
    space: FeatureSpace,
    *,
    steps: int,
    learning_rate: float,
    objective: RefineObjective,
    region: TrustRegion,
    crops: RefineAugmentation,
    positions: Tensor,
    total: int,
    rows: int | None = None,
    bf16: bool = False,
    coding: Coding | None = None,
) -> Generator[RefineRecord, None, Tensor]:
    """Adam(0.5, 0.9) with a cosine rate on uint8 images ``start`` (B,C,H,W); yields {step, terms}; returns uint8.

    ``positions`` (B,) are the images' places among ``total``, which choose their crops. Terms are sums over classes of
    the means of their images, so the gradient of an image depends on its own class alone, except with ``released``
    features, whose norm is over the whole chunk. More than ``rows`` images go through the networks in micro-batches,
    twice (activation checkpointing), and still count as one batch. With a ``coding`` the networks see the images as its
    files hold them; those that are returned are not coded yet. Deterministic.

    Raises:
        DivergenceError: the images are not finite in the end.
    """
    device = next(space.networks[0].parameters()).device
    labels, x0, atoms = labels.to(device), to_float(start).to(device), targets.atoms.to(device)
    teachers = [TeacherTerms.of(teacher, labels, objective, bf16) for teacher in space.teachers]
    batches = [
        MicroBatch(*region.around(x0[part]), labels[part], space.factors(labels[part]), part, coding)
        for part in torch.arange(len(labels)).tensor_split(-(-len(labels) // (rows or len(labels))))
    ]
    optimizer = torch.optim.Adam([one.delta for one in batches], lr=learning_rate, betas=(0.5, 0.9), fused=True)
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    rate, classes = cosine(steps), len(counts)
    balance = len(labels) / (classes * counts[place])  # 1 where classes have as many images
    released = objective.feature_form == "released"
    distance = released_feature_loss if released else partial(feature_loss, scale=1 / balance)
    for step in range(steps):  # nothing in here waits for the device
        optimizer.param_groups[0]["lr"] = learning_rate * rate(step)
        points, views = forward(batches, teachers, space, [one[positions] for one in crops.draw(total, step)])
        terms = {"atoms": objective.features * distance(points, atoms)}
        found = [teacher.terms(view, balance) for teacher, view in zip(teachers, views, strict=True)]
        for name in found[0]:
            terms[name] = torch.stack([one[name] for one in found]).mean()
        loss = classes * torch.stack([*terms.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for one in batches:
            region.project(one.delta, step + 1, steps)
        record = {"step": step + 1, **{name: value.detach() for name, value in terms.items()}}
        yield cast(RefineRecord, record)
    with torch.no_grad():
        remedy = (
            "Lower the learning rate and the weights of the objective, and look whether the teacher recognises its own "
            "images."
        )
        runtime.refuse_divergence("Refinement ended in images that are", (one.delta for one in batches), remedy)
        return torch.cat([to_uint8(one.images(one.delta)).cpu() for one in batches])


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Images that go through the networks together.

    Attributes:
        delta: The free variable.
        images: delta -> images in [-1, 1].
        labels: (B,).
        factors: What each part of their points is multiplied with.
        rows: (B,) their places in the chunk.
        coding: As which the networks see the images; None for as they are.
    """

    delta: Tensor
    images: Callable[[Tensor], Tensor]
    labels: Tensor
    factors: list[Tensor]
    rows: Tensor
    coding: Coding | None = None

    def seen(self, delta: Tensor) -> Tensor:
        """delta -> the images that the networks see."""
        images = self.images(delta)
        return images if self.coding is None else as_coded(images, self.coding)


def forward(
    batches: Sequence[MicroBatch],
    teachers: Sequence[TeacherTerms],
    space: FeatureSpace,
    drawn: Sequence[Tensor],
) -> tuple[Tensor, list[TeacherView]]:
    """Points (B,D) of all images, and what each teacher's terms need of them augmented as ``drawn``, a row an image."""

    def one(delta: Tensor, batch: MicroBatch) -> tuple[Tensor, list[TeacherView]]:
        x = batch.seen(delta)
        seen = augmented(x, *(part[batch.rows] for part in drawn)).contiguous(memory_format=torch.channels_last)
        features, views = zip(*(teacher.view(seen, batch.labels) for teacher in teachers), strict=True)
        return space.embed(features, x, batch.factors), list(views)

    if len(batches) == 1:
        return one(batches[0].delta, batches[0])
    found = [checkpoint(one, b.delta, b, use_reentrant=False, preserve_rng_state=False) for b in batches]
    points, views = zip(*found, strict=True)
    return torch.cat(points), [
        {name: torch.cat([part[name] for part in same]) for name in same[0]} for same in zip(*views, strict=True)
    ]


def _accepted(
    start: SurrogateSet,
    points: Tensor,
    images: Tensor,
    targets: BarycenterTargets,
    space: FeatureSpace,
    config: ObjectiveConfig,
    held_out: Teacher | None,
    coding: Coding | None,
) -> SurrogateSet:
    """The set with its W2 in meta, and with the images that the gate accepts where there is one."""
    weights = targets.weights if config.weights == "free" else None
    network = held_out.network if held_out else None
    before, after = start.images, images
    if coding:
        before, after = (recode(one, coding)[0] for one in (before, after))
        points = space.points(before, start.labels)
    verdict = gate(before, points, after, start.labels, space, weights=weights, held_out=network)
    meta = start.meta | {"w2": {"before": verdict.before, "after": verdict.ungated}}
    if isinstance(config, RefineConfig) and config.gate and config.steps:
        images = torch.where(verdict.kept[:, None, None, None], images, start.images)
        counts: GateCounts = {
            "images": len(images),
            "kept": int(verdict.kept.sum()),
            "refused_images": verdict.images,
            "refused_classes": verdict.classes,
        }
        meta |= {"w2": {"before": verdict.before, "after": verdict.after}, "gate": counts}
    return replace(start, images=images, meta=meta, soft_labels=None, weights=weights)
