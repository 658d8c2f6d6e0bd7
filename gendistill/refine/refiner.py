"""Refining a set by chunks of images, which several processes share and a killed stage finds again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gendistill import runtime
from gendistill.config import ObjectiveConfig, RefineConfig
from gendistill.environment import command_line, versions
from gendistill.generator.codec import Codec
from gendistill.io import WorkFolder, atomic
from gendistill.networks.teacher import Teacher, trained_elsewhere
from gendistill.progress import follow
from gendistill.refine.acceptance import gate
from gendistill.refine.constraints import LatentRegion, PixelRegion, RefineAugmentation, TrustRegion, chunks
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.objective import BarycenterTargets, RefineObjective, matched_targets, refine_chunk
from gendistill.seeding import derive
from gendistill.surrogate.set import SurrogateSet

CHUNKS = "chunks"  # refined images of an interrupted stage


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
) -> SurrogateSet:
    """The set's images after ``config.steps`` steps; several processes share its chunks, and finished ones are kept.

    meta has the mean class W2 before and after, and what the gate refused. ``own`` as in ``matched_targets``;
    ``region`` is by default that of the config in pixels.

    Raises:
        ValueError: several processes without a ``folder`` to meet in.
    """
    state = runtime.processes()
    if folder is None and state.num_processes > 1:
        raise ValueError("Several processes refine one set through a folder; give one, or run one process.")
    region, images = region or pixel_region(config), start.images.clone()
    points = space.points(start.images, start.labels)
    options: dict[str, Any] = {"weights": config.weights, "solver": config.solver}
    targets = matched_targets(points, start.labels, space, own=own, seed=seed, **options)
    parts = list(chunks(start.labels, config.batch_size)) if config.steps else []
    store = folder.path / CHUNKS / label.replace(" ", "-") if folder else None
    total = config.steps * len(parts[state.process_index :: state.num_processes])
    done = 0
    for i, positions in list(enumerate(parts))[state.process_index :: state.num_processes]:
        kept = store / f"{i:05d}.safetensors" if store else None
        if kept is None or not kept.is_file():
            part = BarycenterTargets(targets.atoms[positions], targets.weights[positions])
            loop = _refine_chunk(start, part, space, config, region, positions, derive(seed, "refine"))
            log = folder.log if folder and state.is_main_process else None
            made = follow(
                loop,
                f"refine {label}",
                total,
                start=done,
                log=log,
                stage="refine",
                set=label,
                chunk=i,
                shown=state.is_main_process,
            )
            images[positions] = made
            if kept is not None:
                _keep(kept, made)
        done += config.steps
    state.wait_for_everyone()
    if store is not None:
        for i, positions in enumerate(parts):
            images[positions] = load_file(store / f"{i:05d}.safetensors")["images"]
        state.wait_for_everyone()  # or the main process would rename the folder under a reader
    made = _judged(start, images, targets, space, config, held_out.network if held_out else None)
    if not config.steps:
        return made
    bf16 = runtime.wants_bf16(config.mixed_precision, runtime.device())
    return replace(made, meta=made.meta | {"mixed_precision": "bf16" if bf16 else "no"})


def _refine_chunk(
    start: SurrogateSet,
    targets: BarycenterTargets,
    space: FeatureSpace,
    config: ObjectiveConfig,
    region: TrustRegion,
    positions: Tensor,
    seed: int,
) -> Any:
    device = runtime.device()
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
        bf16=runtime.wants_bf16(config.mixed_precision, device),
    )


def pixel_region(config: ObjectiveConfig) -> PixelRegion:
    return PixelRegion(
        bound=config.trust_region, size=config.delta_size, blend_every=config.blend_every, blend=config.blend
    )


def latent_region(config: RefineConfig, codec: Codec) -> LatentRegion:
    """Its codec on this process's device."""
    return LatentRegion(
        codec=codec.to(runtime.device()),
        bound=config.latent_trust_region,
        change=config.trust_region,
        blend_every=config.blend_every,
        blend=config.blend,
    )


def _keep(path: Path, images: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        save_file({"images": images.contiguous()}, partial)


def _judged(
    start: SurrogateSet,
    images: Tensor,
    targets: BarycenterTargets,
    space: FeatureSpace,
    config: ObjectiveConfig,
    held_out: nn.Module | None,
) -> SurrogateSet:
    """The set with its W2 in meta, and with the images that the gate keeps where there is one."""
    weights = targets.weights if config.weights == "free" else None
    verdict = gate(start.images, images, start.labels, space, weights=weights, held_out=held_out)
    meta: dict[str, Any] = {**start.meta, "w2": {"before": verdict.before, "after": verdict.ungated}}
    if isinstance(config, RefineConfig) and config.gate and config.steps:
        images = torch.where(verdict.kept[:, None, None, None], images, start.images)
        meta["w2"]["after"] = verdict.after
        meta["gate"] = {
            "images": len(images),
            "kept": int(verdict.kept.sum()),
            "refused_images": verdict.images,
            "refused_classes": verdict.classes,
        }
    return replace(start, images=images, meta=meta, soft_labels=None, weights=weights)


def with_meta(
    made: SurrogateSet, teachers: Sequence[Teacher], stage: str | None, name: str | None, start: float
) -> SurrogateSet:
    """The set with this step, its seconds since ``start`` and its teachers in the provenance.

    ``teacher_data`` names what a teacher was trained on where that is not the set's own data.
    """
    fingerprint = made.meta.get("data", {}).get("fingerprint")
    others = [teacher.meta["data"] for teacher in teachers if trained_elsewhere(teacher, fingerprint)]
    meta = made.meta | {
        "stage": stage,
        "stages": [*made.meta.get("stages", []), *([name] if name else [])],
        "teacher_hash": teachers[0].hash() if len(teachers) == 1 else [teacher.hash() for teacher in teachers],
        "seconds": {**made.meta.get("seconds", {}), **({name: round(time.perf_counter() - start, 2)} if name else {})},
        "command": command_line(),
        "versions": versions(),
        **({"teacher_data": others} if others else {}),
    }
    return replace(made, meta=meta)
