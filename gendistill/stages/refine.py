"""Refine stage: surrogate set + teachers -> the selected ``selected/ipc-K`` and the refined ``ipc-K``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gendistill import runtime
from gendistill.config import RefineConfig, as_tuple, ipc_sizes, stage_options
from gendistill.config.commands import RefineCommand
from gendistill.data.dataset import RealData
from gendistill.evaluation.validation import validation_accuracies
from gendistill.generator.generator import load_generator_codec
from gendistill.matching.distiller import CHECKPOINTS
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_images import real_images
from gendistill.progress import note
from gendistill.refine.checks import check_refinement
from gendistill.refine.feature_space import ground_space
from gendistill.refine.optimization import CHUNKS
from gendistill.refine.refiner import crop_pool, pack, refine_set
from gendistill.report.terminal import describe_sets
from gendistill.stages import Outcome
from gendistill.stages.folder import finished, stage_folder, stage_settings, training_time
from gendistill.stages.output import output
from gendistill.surrogate.hub_datasets import find_surrogate
from gendistill.surrogate.set import SurrogateSet


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
    validate: bool = False,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; several processes share the chunks.

    ``validate`` records what a small classifier learns from each set (``evaluation.validation``).
    """
    pool, teachers = SurrogateSet.load(surrogate), [Teacher.from_pretrained(path) for path in teacher_dirs]
    for teacher, path in zip(teachers, teacher_dirs, strict=True):
        teacher.meta |= training_time(path)
    held_out = Teacher.from_pretrained(held_out_dir) if held_out_dir else None
    codec = load_generator_codec(generator_dir, data.channels) if generator_dir else None
    check_refinement(pool, teachers, data, config, ipc_sizes(config.ipc), held_out, codec)
    hashes = [teacher.hash() for teacher in teachers]
    settings = stage_settings(
        config,
        seed,
        surrogate=pool.content_hash(),
        data=data.fingerprint(),
        teacher=hashes[0] if len(hashes) == 1 else hashes,
        held_out=held_out.hash() if held_out else None,
        codec=codec.hash() if codec else None,
    )
    if finished(target, "refine", settings):
        return target
    with stage_folder(target, "refine", settings, keep_partial=True, log_path=log_path) as folder:
        space = ground_space(teachers, data, config, cache=statistics_cache)
        pool = crop_pool(pool, teachers, config, seed=seed, folder=folder)
        config = replace(config, patches=None)  # crops are the same at every IPC
        w2: dict[str, dict[str, float]] = {}
        for ipc in ipc_sizes(config.ipc):
            if config.match_iterations and not config.is_matched(ipc):
                views = "" if config.pack == 1 else f" of {ipc * config.pack**2} views a class"
                uncoded = ", so no step of it is compression-aware" if config.step_format and config.pack > 1 else ""
                note(f"refine ipc {ipc}{views}: not matched, as it is below --match_from {config.match_from}{uncoded}")
            selected, refined = refine_set(
                pool, teachers, data, ipc, config, seed=seed, held_out=held_out, folder=folder, space=space,
                codec=codec,
            )  # fmt: skip
            if validate:
                compared = {"set": refined}
                if refined.meta["stage"] == "refined":
                    compared["start"] = selected if config.pack == 1 else pack(selected, config.pack)
                refined.meta["validation"] = validation_accuracies(data, compared, seed=seed)
            folder.save(selected, f"selected/ipc-{selected.ipc}")
            folder.save(refined, f"ipc-{ipc}")
            w2[str(ipc)] = refined.meta["w2"]
        folder.facts["w2"] = w2
        folder.temporary = (CHUNKS, CHECKPOINTS)
    return target


def main(command: RefineCommand) -> Outcome:
    runtime.check_processes(command.num_processes)
    teachers = list(as_tuple(command.teacher))
    images = command.data.folder if command.data else None
    inputs = (command.surrogate, *teachers, images, command.generator, command.held_out, command.statistics_cache)
    with output(command, *inputs):
        data, _ = real_images(command.data, teachers[0])
        run_stage(
            find_surrogate(command.surrogate, command.revision),
            teachers,
            data,
            stage_options(command, RefineConfig),
            command.output_dir,
            seed=command.seed,
            held_out_dir=command.held_out,
            generator_dir=command.generator,
            statistics_cache=command.statistics_cache,
            validate=command.validate,
        )
    return Outcome(*describe_sets(command.output_dir)) if runtime.processes().is_main_process else Outcome("")
