"""Refine stage: surrogate set + teacher -> ``selected/ipc-K`` and the refined ``ipc-K``."""

from __future__ import annotations

import time
from pathlib import Path

from gendistill import runtime
from gendistill.commands import RefineCommand
from gendistill.config import DataConfig, RefineConfig, section, sizes
from gendistill.data.real import RealData
from gendistill.errors import ArtifactError
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.refine.barycenter import refine as refine_loop
from gendistill.refine.barycenter import require_batch_norm
from gendistill.refine.select import select
from gendistill.refine.space import GroundSpace
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
from gendistill.surrogate.surrogate import SurrogateSet


def refine_set(
    pool: SurrogateSet,
    teacher: Teacher,
    data: RealData,
    ipc: int,
    config: RefineConfig | None = None,
    *,
    seed: int = 0,
    folder: StageFolder | None = None,
) -> tuple[SurrogateSet, SurrogateSet]:
    """(selected, refined): one image of the pool for each barycenter atom, then the same images refined."""
    config = config or RefineConfig()
    check_inputs(pool, teacher, data, config)
    log = folder.log if folder else None
    start = time.perf_counter()
    network = teacher.network.to(runtime.device())
    space = GroundSpace.build(teacher.statistics, data.train, config.pixel_weight)
    loop = select(pool, network, space, ipc=ipc, seed=seed)
    chosen = follow(loop, f"select ipc {ipc}", len(pool.classes), log=log, every=1, stage="select", ipc=ipc)
    selected = _with_meta(chosen, teacher, "select", start)
    start = time.perf_counter()
    steps = refine_loop(
        selected,
        network,
        teacher.statistics,
        space,
        steps=config.steps,
        learning_rate=config.learning_rate,
        trust_region=config.trust_region,
        feature_weight=config.feature_weight,
        batch_norm_weight=config.batch_norm_weight,
        cross_entropy_weight=config.cross_entropy_weight,
    )
    refined = follow(steps, f"refine ipc {ipc}", config.steps, log=log, stage="refine", ipc=ipc)
    return selected, _with_meta(refined, teacher, "refined", start)


def _with_meta(made: SurrogateSet, teacher: Teacher, stage: str, start: float) -> SurrogateSet:
    name = "select" if stage == "select" else "barycenter"
    meta = made.meta | {
        "stage": stage,
        "stages": [*made.meta.get("stages", []), name],
        "teacher_hash": teacher.hash(),
        "seconds": {**made.meta.get("seconds", {}), name: round(time.perf_counter() - start, 2)},
        "command": command_line(),
        "versions": versions(),
    }
    return SurrogateSet(made.images, made.labels, made.classes, meta)


def check_inputs(pool: SurrogateSet, teacher: Teacher, data: RealData, config: RefineConfig) -> None:
    """Refuse sets and teachers that do not belong together, before any work."""
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


def run_stage(
    surrogate: Path,
    teacher_dir: Path,
    data: RealData,
    config: RefineConfig,
    target: Path,
    *,
    seed: int,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    pool, teacher = SurrogateSet.load(surrogate), Teacher.from_pretrained(teacher_dir)
    check_inputs(pool, teacher, data, config)
    settings = stage_settings(config, seed, surrogate=pool.content_hash(), teacher=teacher.hash())
    if finished(target, "refine", settings):
        return target
    with stage_folder(target, "refine", settings, log_path=log_path) as folder:
        for ipc in sizes(config.ipc):
            selected, refined = refine_set(pool, teacher, data, ipc, config, seed=seed, folder=folder)
            selected.save(folder.path / "selected" / f"ipc-{ipc}")
            refined.save(folder.path / f"ipc-{ipc}")
            folder.facts.setdefault("w2", {})[str(ipc)] = refined.meta["w2"]
    return target


def teacher_data(folder: Path) -> RealData:
    """The real images a teacher was trained on, read again and checked by fingerprint."""
    teacher = Teacher.from_pretrained(folder)
    data = read_data(DataConfig(**teacher.meta["data_config"]))
    if data.fingerprint() != teacher.meta["data"]["fingerprint"]:
        raise ArtifactError(
            f"The images at {data.name} changed since {folder} was trained on them; run `gendistill teacher` again."
        )
    return data


def main(command: RefineCommand) -> None:
    runtime.check_processes(1)
    with output(command, command.surrogate, command.teacher):
        data, config = teacher_data(command.teacher), section(command, RefineConfig)
        run_stage(command.surrogate, command.teacher, data, config, command.output_dir, seed=command.seed)
