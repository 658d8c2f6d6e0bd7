"""Refine stage: surrogate set + teachers -> the chosen ``selected/ipc-K`` and the refined ``ipc-K``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config import (
    DistillConfig,
    MatchingConfig,
    RefineConfig,
    ipc_sizes,
    require,
    stage_options,
)
from gendistill.config.commands import RefineCommand
from gendistill.data.dataset import RealData
from gendistill.generator.codec import Codec
from gendistill.generator.generator import load_generator_codec
from gendistill.matching.distiller import CHECKPOINTS, match
from gendistill.matching.methods import plan_runs
from gendistill.networks.teacher import Teacher, teacher_data
from gendistill.progress import follow
from gendistill.refine.checks import check_count, check_held_out, check_inputs
from gendistill.refine.feature_space import FeatureSpace, ground_space
from gendistill.refine.objective import class_w2
from gendistill.refine.pack import pack
from gendistill.refine.patches import ROWS, best_patches
from gendistill.refine.refiner import CHUNKS, latent_region, refine_images, with_meta
from gendistill.refine.select import select
from gendistill.report.terminal import w2_lines
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings
from gendistill.surrogate.hub import find_surrogate
from gendistill.surrogate.set import SurrogateSet


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
    space: FeatureSpace | None = None,
    codec: Codec | None = None,
) -> tuple[SurrogateSet, SurrogateSet]:
    """(selected, refined): one image of the pool for each barycenter atom, then the same images refined.

    With ``config.pack`` f, ipc * f^2 images are selected and refined, and the second set stores them f x f in one. With
    ``config.patches`` above 1 the pool's images are cut to their best crops first. With ``codec``, a generator's,
    images are refined in its latents. With ``config.match_iterations`` distribution matching carries the second set on,
    in the main process alone.
    """
    config, teachers = config or RefineConfig(), [teacher] if isinstance(teacher, Teacher) else list(teacher)
    check_inputs(pool, teachers, data, config, codec)
    check_count(pool, data, ipc, config.pack)
    if held_out:
        check_held_out(held_out, teachers, data, config)
    space = space or ground_space(teachers, data, config)
    pool = crop_pool(drop_soft_labels(pool), teachers, config, seed=seed, folder=folder)
    pool = replace(pool, meta={"data": data.describe(), **pool.meta})
    selected = select_images(pool, teachers, space, ipc, config, seed=seed, folder=folder)
    start = time.perf_counter()
    region = latent_region(config, codec) if codec else None
    refined = refine_images(
        selected, space, config, seed=seed, held_out=held_out, folder=folder, label=f"ipc {ipc}", region=region
    )
    refined.meta.update(_latent_space(config, codec))
    stage, name = ("refined", "barycenter") if config.steps else (selected.meta["stage"], None)
    made = with_meta(refined, teachers, stage, name, start)
    if config.pack > 1:
        start = time.perf_counter()
        made = with_meta(packed(made, space, config.pack), teachers, stage, "pack", start)
    if config.match_iterations and runtime.processes().is_main_process:  # which writes the set
        start = time.perf_counter()
        made = with_meta(match_further(made, data, space, config, seed, folder), teachers, "refined", "match", start)
    return selected, made


def drop_soft_labels(pool: SurrogateSet) -> SurrogateSet:
    """The pool without soft labels and weights, in its provenance too: refinement makes other images."""
    meta = {k: v for k, v in pool.meta.items() if k not in ("soft_labels", "label_teacher_hash")}
    meta["stages"] = [stage for stage in meta.get("stages", []) if stage != "label"]
    meta["seconds"] = {stage: s for stage, s in meta.get("seconds", {}).items() if stage != "label"}
    return replace(pool, soft_labels=None, weights=None, meta=meta)


def crop_pool(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    config: RefineConfig,
    *,
    seed: int,
    folder: StageFolder | None = None,
) -> SurrogateSet:
    """The pool with every image replaced by its best crop, or as it is where ``config.patches`` is 1."""
    if config.patches == 1:
        return pool
    start, shown = time.perf_counter(), runtime.processes().is_main_process
    networks, log = [teacher.network for teacher in teachers], folder.log if folder and shown else None
    options: dict[str, Any] = {"patches": config.patches, "min_patch": config.min_patch, "factor": config.pack}
    loop = best_patches(pool, networks, seed=seed, **options)
    made = follow(loop, "patches", -(-len(pool.labels) // ROWS), log=log, every=1, shown=shown, stage="patches")
    return with_meta(made, teachers, pool.meta.get("stage"), "patches", start)


def select_images(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    space: FeatureSpace,
    ipc: int,
    config: RefineConfig,
    *,
    seed: int,
    folder: StageFolder | None = None,
) -> SurrogateSet:
    """The pool's images that are refined to ``ipc`` stored ones a class: selected, or its first."""
    start, count, main_process = time.perf_counter(), ipc * config.pack**2, runtime.processes().is_main_process
    if not config.select:
        return with_meta(pool.prefix(count), teachers, pool.meta.get("stage"), None, start)
    log = folder.log if folder and main_process else None
    loop = select(pool, space, ipc=count, seed=seed, weights=config.weights, solver=config.solver)
    chosen = follow(loop, f"select ipc {ipc}", len(pool.classes), log=log, every=1, stage="select", ipc=ipc)
    return with_meta(chosen, teachers, "select", "select", start)


def packed(whole: SurrogateSet, space: FeatureSpace, factor: int) -> SurrogateSet:
    """The set packed, with the mean class W2 of what comes back from its tiles."""
    made = pack(whole, factor)
    views = made.split
    w2 = class_w2(space.points(views.images, views.labels), views.labels, space)
    return replace(made, meta=made.meta | {"w2": {**made.meta["w2"], "packed": float(w2.mean())}})


def match_further(
    made: SurrogateSet,
    data: RealData,
    space: FeatureSpace,
    config: RefineConfig,
    seed: int,
    folder: StageFolder | None = None,
) -> SurrogateSet:
    """The set after distribution matching from where it stands, with the mean class W2 that this leaves."""
    matching = MatchingConfig(factor=config.pack, flip=config.flip, mixed_precision=config.mixed_precision)
    wanted = DistillConfig(method="dm", ipc=made.ipc, iterations=config.match_iterations, matching=matching)
    (run,) = plan_runs(wanted, data)
    (matched,) = match(data, run, seed=seed, given=made, folder=folder)
    views = matched.split
    w2 = float(class_w2(space.points(views.images, views.labels), views.labels, space).mean())
    options = {**matched.meta["matching"], "start": "set"}
    told = {"w2": {**made.meta.get("w2", {}), "matched": w2}, "matching": options}
    return replace(made, images=matched.images, meta=made.meta | told)


def _latent_space(config: RefineConfig, codec: Codec | None) -> dict[str, Any]:
    """What the manifest tells of the latents that were refined."""
    if codec is None or not config.steps:
        return {}
    told = {"codec": codec.name, "hash": codec.hash(), "trust_region": config.latent_trust_region}
    return {"latent_space": told}


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
    statistics_cache: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; several processes share the chunks."""
    pool, teachers = SurrogateSet.load(surrogate), [Teacher.from_pretrained(path) for path in teacher_dirs]
    held_out = Teacher.from_pretrained(held_out_dir) if held_out_dir else None
    codec = load_generator_codec(generator_dir, data.channels) if generator_dir else None
    check_inputs(pool, teachers, data, config, codec)
    for ipc in ipc_sizes(config.ipc):
        check_count(pool, data, ipc, config.pack)
    if held_out:
        check_held_out(held_out, teachers, data, config)
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
        space = ground_space(teachers, data, config, cache=statistics_cache)
        pool = crop_pool(drop_soft_labels(pool), teachers, config, seed=seed, folder=folder)
        config = replace(config, patches=1, min_patch=RefineConfig.min_patch)  # crops are the same at every IPC
        for ipc in ipc_sizes(config.ipc):
            selected, refined = refine_set(
                pool, teachers, data, ipc, config, seed=seed, held_out=held_out, folder=folder, space=space,
                codec=codec,
            )  # fmt: skip
            if main_process:
                save_anew(selected, folder.path / "selected" / f"ipc-{selected.ipc}")
                save_anew(refined, folder.path / f"ipc-{ipc}")
                folder.facts.setdefault("w2", {})[str(ipc)] = refined.meta["w2"]
        folder.scaffold = (CHUNKS, CHECKPOINTS)
    return target


def save_anew(made: SurrogateSet, target: Path) -> None:
    """Save anew: an interrupted stage may have left a part of it."""
    shutil.rmtree(target, ignore_errors=True)
    made.save(target)


def main(command: RefineCommand) -> None:
    runtime.check_processes(command.num_processes)
    state = runtime.processes()
    teachers = command.teacher if isinstance(command.teacher, list) else [command.teacher]
    require(bool(teachers), "teacher", teachers, "a folder or some")
    inputs = (command.surrogate, *teachers, command.generator, command.held_out, command.statistics_cache)
    with output(command, *inputs) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        data, config = teacher_data(teachers[0]), stage_options(command, RefineConfig)
        run_stage(
            find_surrogate(command.surrogate, command.revision),
            teachers,
            data,
            config,
            command.output_dir,
            seed=command.seed,
            held_out_dir=command.held_out,
            generator_dir=command.generator,
            statistics_cache=command.statistics_cache,
        )
    if state.is_main_process:
        print("\n".join(w2_lines(command.output_dir)))
