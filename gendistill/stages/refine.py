"""Refine stage: surrogate set + teachers -> ``selected/ipc-K`` and the refined ``ipc-K``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gendistill import runtime
from gendistill.commands import RefineCommand
from gendistill.config import DataConfig, ObjectiveConfig, RefineConfig, need, section, sizes
from gendistill.data.real import RealData
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.codec import PIXELS, Codec
from gendistill.generator.generator import load_generator_codec
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.refine.barycenter import Objective, Targets, matched_targets, refine_chunk, require_batch_norm
from gendistill.refine.gate import gate
from gendistill.refine.latent import LatentRegion
from gendistill.refine.pack import pack
from gendistill.refine.region import Crops, PixelRegion, Region, chunks
from gendistill.refine.select import select
from gendistill.refine.space import GroundSpace
from gendistill.seeding import derive
from gendistill.stages.folders import (
    StageFolder,
    command_line,
    finished,
    read_data,
    stage_folder,
    stage_settings,
    versions,
)
from gendistill.stages.output import output
from gendistill.surrogate.hub import find_surrogate
from gendistill.surrogate.png import whole
from gendistill.surrogate.surrogate import SurrogateSet

CHUNKS = "chunks"  # refined images of an interrupted stage


def refine_set(
    pool: SurrogateSet,
    teacher: Teacher | Sequence[Teacher],
    data: RealData,
    ipc: int,
    config: RefineConfig | None = None,
    *,
    seed: int = 0,
    held_out: Teacher | None = None,
    folder: StageFolder | None = None,
    space: GroundSpace | None = None,
    codec: Codec | None = None,
) -> tuple[SurrogateSet, SurrogateSet]:
    """(selected, refined): one image of the pool for each barycenter atom, then the same images refined.

    With ``config.pack`` f, ipc * f^2 images are selected and refined, and the second set stores them f x f in one.
    With ``codec``, a generator's, images are refined in its latents.
    """
    config, teachers = config or RefineConfig(), [teacher] if isinstance(teacher, Teacher) else list(teacher)
    check_inputs(pool, teachers, data, config, codec)
    if space is None:
        space = ground_space(teachers, data, config)
    main_process = runtime.processes().is_main_process
    log, start, count = folder.log if folder and main_process else None, time.perf_counter(), ipc * config.pack**2
    if config.select:
        loop = select(pool, space, ipc=count, seed=seed)
        chosen = follow(loop, f"select ipc {ipc}", len(pool.classes), log=log, every=1, stage="select", ipc=ipc)
    else:
        chosen = replace(pool.prefix(count), soft_labels=None)
    name = "select" if config.select else None
    selected = with_meta(chosen, teachers, "select" if config.select else chosen.meta.get("stage"), name, start)
    start = time.perf_counter()
    region = latent_region(config, codec) if codec else None
    refined = refine_images(
        selected, space, config, seed=seed, held_out=held_out, folder=folder, label=f"ipc {ipc}", region=region
    )
    refined.meta.update(_latent_space(config, codec))
    made = with_meta(refined, teachers, "refined", "barycenter" if config.steps else None, start)
    if config.pack > 1:
        made = with_meta(pack(made, config.pack), teachers, "refined", "pack", time.perf_counter())
    return selected, made


def ground_space(teachers: Sequence[Teacher], data: RealData, config: ObjectiveConfig) -> GroundSpace:
    """The space of these teachers, their networks on this process's device."""
    for teacher in teachers:
        teacher.network.to(runtime.device())
    return GroundSpace.build(teachers, data.train, config.pixel_weight, scaled=config.feature_loss == "squared")


def refine_images(
    start: SurrogateSet,
    space: GroundSpace,
    config: ObjectiveConfig,
    *,
    seed: int,
    held_out: Teacher | None = None,
    folder: StageFolder | None = None,
    label: str = "",
    own: bool = True,
    region: Region | None = None,
) -> SurrogateSet:
    """The set's images after ``config.steps`` steps; several processes share its chunks, and finished ones are kept.

    meta has the mean class W2 before and after, and what the gate refused. ``own`` as in ``matched_targets``;
    ``region`` is by default that of the config in pixels.
    """
    region = region or pixel_region(config)
    points = space.points(start.images, start.labels)
    targets = matched_targets(
        points, start.labels, space, own=own, seed=seed, weights=config.weights, solver=config.solver
    )
    images = start.images.clone()
    parts = list(chunks(start.labels, config.batch_size))
    state, store = runtime.processes(), folder.path / CHUNKS / label.replace(" ", "-") if folder else None
    total = config.steps * len(parts[state.process_index :: state.num_processes])
    done = 0
    for i, positions in list(enumerate(parts))[state.process_index :: state.num_processes]:
        kept = store / f"{i:05d}.safetensors" if store else None
        if kept is None or not kept.is_file():
            part = Targets(targets.atoms[positions], targets.weights[positions])
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
    return _judged(start, images, targets, space, config, held_out.network if held_out else None)


def _refine_chunk(
    start: SurrogateSet,
    targets: Targets,
    space: GroundSpace,
    config: ObjectiveConfig,
    region: Region,
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
        objective=Objective(
            features=config.feature_weight,
            batch_norm=config.batch_norm_weight,
            cross_entropy=config.cross_entropy_weight,
            feature_form=config.feature_loss,
            batch_norm_form=config.batch_norm_loss,
        ),
        region=region,
        crops=Crops(seed=seed, min_crop=config.min_crop, flip=config.flip, roll=config.roll),
        positions=positions,
        total=len(start.labels),
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


def _latent_space(config: RefineConfig, codec: Codec | None) -> dict[str, Any]:
    """What the manifest tells of the latents that were refined."""
    if codec is None or not config.steps:
        return {}
    told = {"codec": codec.name, "hash": codec.hash(), "trust_region": config.latent_trust_region}
    return {"latent_space": told}


def _keep(path: Path, images: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        save_file({"images": images.contiguous()}, partial)


def _judged(
    start: SurrogateSet,
    images: Tensor,
    targets: Targets,
    space: GroundSpace,
    config: ObjectiveConfig,
    held_out: nn.Module | None,
) -> SurrogateSet:
    """The set with its W2 in meta, and with the images that the gate keeps where there is one."""
    weights = targets.weights if config.weights == "free" else None
    verdict = gate(start.images, images, start.labels, space, weights=weights, held_out=held_out)
    meta: dict[str, Any] = {**start.meta, "w2": {"before": verdict.before, "after": verdict.ungated}}
    if isinstance(config, RefineConfig) and config.gate:
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
    """The set with this step, its seconds since ``start`` and its teachers in the provenance."""
    meta = made.meta | {
        "stage": stage,
        "stages": [*made.meta.get("stages", []), *([name] if name else [])],
        "teacher_hash": teachers[0].hash() if len(teachers) == 1 else [teacher.hash() for teacher in teachers],
        "seconds": {**made.meta.get("seconds", {}), **({name: round(time.perf_counter() - start, 2)} if name else {})},
        "command": command_line(),
        "versions": versions(),
    }
    return replace(made, meta=meta)


def check_inputs(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    data: RealData,
    config: ObjectiveConfig,
    codec: Codec | None = None,
) -> None:
    """Refuse sets, teachers and a codec that do not belong together, before any work."""
    for teacher in teachers:
        if config.steps:
            require_batch_norm(teacher.network, config.batch_norm_weight)
        if pool.classes != teacher.classes:
            raise ArtifactError(
                f"The surrogate set has classes {', '.join(pool.classes)}, the teacher {', '.join(teacher.classes)}; "
                "expected the same in the same order."
            )
    if pool.factor > 1:
        raise ArtifactError(
            f"Every stored image of the surrogate set holds {pool.factor}x{pool.factor} views; refinement takes whole "
            "images. Refine first and pack afterwards."
        )
    shape, wanted = tuple(pool.images.shape[1:]), (data.channels, data.image_size, data.image_size)
    if shape != wanted:
        raise ArtifactError(f"The surrogate images are {shape} (C,H,W), the teacher's {wanted}; expected the same.")
    if codec is not None:
        _check_codec(codec, data, config)


def _check_codec(codec: Codec, data: RealData, config: ObjectiveConfig) -> None:
    if codec.name == PIXELS:
        raise ConfigError("The generator works in pixels, as refinement does without one; leave --generator out.")
    if codec.channels != data.channels:
        raise ArtifactError(
            f"The codec was loaded for images of {codec.channels} channel(s), the data have {data.channels}; load it "
            "for these."
        )
    codec.latent_shape(data.image_size)
    need(config.delta_size is None, "delta_size", config.delta_size, "null with a codec, whose latents are small")


def run_stage(
    surrogate: Path,
    teacher_dirs: Sequence[Path],
    data: RealData,
    config: RefineConfig,
    target: Path,
    *,
    seed: int,
    held_out_dir: Path | None = None,
    generator_dir: Path | None = None,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; several processes share the chunks."""
    pool, teachers = SurrogateSet.load(surrogate), [Teacher.from_pretrained(path) for path in teacher_dirs]
    held_out = Teacher.from_pretrained(held_out_dir) if held_out_dir else None
    codec = load_generator_codec(generator_dir, data.channels) if generator_dir else None
    check_inputs(pool, teachers, data, config, codec)
    hashes = [teacher.hash() for teacher in teachers]
    settings = stage_settings(
        config,
        seed,
        surrogate=pool.content_hash(),
        teacher=hashes[0] if len(hashes) == 1 else hashes,
        held_out=held_out.hash() if held_out else None,
        codec=codec.hash() if codec else None,
    )
    if finished(target, "refine", settings):
        return target
    main_process = runtime.processes().is_main_process
    with stage_folder(
        target, "refine", settings, keep_partial=True, log_path=log_path, main_process=main_process
    ) as folder:
        runtime.processes().wait_for_everyone()
        space = ground_space(teachers, data, config)
        for ipc in sizes(config.ipc):
            selected, refined = refine_set(
                pool, teachers, data, ipc, config, seed=seed, held_out=held_out, folder=folder, space=space,
                codec=codec,
            )  # fmt: skip
            if main_process:
                save_anew(selected, folder.path / "selected" / f"ipc-{ipc}")
                save_anew(refined, folder.path / f"ipc-{ipc}")
                folder.facts.setdefault("w2", {})[str(ipc)] = refined.meta["w2"]
        folder.scaffold = (CHUNKS,)
    return target


def save_anew(made: SurrogateSet, target: Path) -> None:
    """Save anew: an interrupted stage may have left a part of it."""
    shutil.rmtree(target, ignore_errors=True)
    made.save(target)


def teacher_data(folder: Path) -> RealData:
    """The real images a teacher was trained on, read again and checked by fingerprint."""
    teacher = Teacher.from_pretrained(folder)
    if "data_config" not in teacher.meta:
        raise ArtifactError(
            f"{folder} does not say where its images are (it was saved from Python); make it with `gendistill teacher`."
        )
    data = read_data(DataConfig(**teacher.meta["data_config"]))
    if data.fingerprint() != teacher.meta["data"]["fingerprint"]:
        raise ArtifactError(
            f"The images at {data.name} changed since {folder} was trained on them; run `gendistill teacher` again."
        )
    return data


def main(command: RefineCommand) -> None:
    runtime.check_processes(command.num_processes)
    state = runtime.processes()
    teachers = command.teacher if isinstance(command.teacher, list) else [command.teacher]
    inputs = (command.surrogate, *teachers, command.generator, command.held_out)
    with output(command, *inputs) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        data, config = teacher_data(teachers[0]), section(command, RefineConfig)
        run_stage(
            find_surrogate(command.surrogate, command.revision),
            teachers,
            data,
            config,
            command.output_dir,
            seed=command.seed,
            held_out_dir=command.held_out,
            generator_dir=command.generator,
        )
