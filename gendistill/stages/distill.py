"""Distill stage: real data -> surrogate sets by a distiller that needs no generator: coresets, WMDD, matching."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from gendistill import runtime
from gendistill.config import DistillConfig, ipc_sizes, stage_options, to_dict
from gendistill.config.commands import DistillCommand
from gendistill.coreset.coresets import CORESETS, coreset_set
from gendistill.data.dataset import RealData
from gendistill.data.sources import read_data
from gendistill.errors import ConfigError
from gendistill.matching.distiller import CHECKPOINTS, matched, start_set
from gendistill.matching.methods import MATCHING
from gendistill.networks.teacher import Teacher
from gendistill.progress import track
from gendistill.refine.feature_space import ground_space
from gendistill.refine.optimization import CHUNKS
from gendistill.refine.wmdd import wmdd
from gendistill.report.terminal import w2_lines
from gendistill.stages.folder import finished, output, stage_folder, stage_settings
from gendistill.stages.refine import save_anew
from gendistill.surrogate.set import SurrogateSet


def distill(
    data: RealData,
    method: str,
    ipc: int,
    *,
    seed: int = 0,
    features: Tensor | None = None,
    config: DistillConfig | None = None,
) -> SurrogateSet:
    """``ipc`` images of every class by the named coreset or matching method.

    ``features`` (N,D) of data.train, which coresets choose by, default to its pixels; ``config`` has the options of a
    matching method, its method and ipc aside.
    """
    if method in MATCHING:
        options = replace(config or DistillConfig(), method=cast(Any, method), ipc=ipc)
        (made,) = matched(data, options, seed=seed, given=start_set(options, data))
        return made
    return coreset_set(data, method, ipc, seed=seed, features=features)


def run_stage(
    data: RealData,
    config: DistillConfig,
    target: Path,
    *,
    seed: int,
    teacher_dirs: Sequence[Path] = (),
    statistics_cache: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; several processes share wmdd's chunks.

    Raises:
        ConfigError: method wmdd without a teacher, or another one with.
        ArtifactError: the data's test images are among those a teacher was trained on, or the two do not fit.
    """
    needs = config.method == "wmdd"
    if needs != bool(teacher_dirs):
        wanted = "a teacher folder with method wmdd" if needs else f"null with method {config.method}"
        raise ConfigError(f"teacher is {[str(p) for p in teacher_dirs] or None}; expected {wanted}.")
    teachers = [Teacher.from_pretrained(path) for path in teacher_dirs]
    given = start_set(config, data)
    inputs: dict[str, Any] = {"data": data.fingerprint(), "teacher": [t.hash() for t in teachers]}
    settings = stage_settings(_options(config), seed, **inputs, **({"start": given.content_hash()} if given else {}))
    if finished(target, "distill", settings):
        return target
    state, long = runtime.processes(), config.method not in CORESETS
    with stage_folder(target, "distill", settings, keep_partial=long, main_process=state.is_main_process) as folder:
        state.wait_for_everyone()
        ipcs = ipc_sizes(config.ipc)
        sets: Iterable[SurrogateSet]
        if needs:
            space = ground_space(teachers, data, config.wmdd, cache=statistics_cache)
            sets = (wmdd(data, teachers, n, config.wmdd, seed=seed, folder=folder, space=space) for n in ipcs)
        elif config.method in MATCHING:
            sets = matched(data, config, seed=seed, given=given, folder=folder)
        else:
            sets = _coresets(data, config.method, ipcs, seed)
        for made in sets:
            if state.is_main_process:
                save_anew(made, folder.path / f"ipc-{made.ipc}")
        folder.scaffold = (CHUNKS, CHECKPOINTS)
    return target


def _coresets(data: RealData, method: str, ipcs: Sequence[int], seed: int) -> Iterator[SurrogateSet]:
    with closing(track(ipcs, method)) as shown:  # so that the bar ends before an error's message
        for ipc in shown:
            yield distill(data, method, ipc, seed=seed)


def _options(config: DistillConfig) -> dict[str, Any]:
    """Those that decide the result: the others' options and how often a run is saved do not."""
    options = to_dict(config)
    if config.method != "wmdd":
        del options["wmdd"]
    if config.method not in MATCHING:
        for name in ("matching", "selection", "iterations"):
            del options[name]
    else:
        del options["matching"]["checkpoint_every"]
    return options


def main(command: DistillCommand) -> None:
    """Several processes share the work of wmdd; coresets are chosen by one."""
    runtime.check_processes(command.num_processes if command.method == "wmdd" else 1)
    state = runtime.processes()
    given = command.teacher if isinstance(command.teacher, list) else [command.teacher]
    teachers = [path for path in given if path is not None]
    start = command.matching.start if isinstance(command.matching.start, Path) else None
    inputs = (command.data.folder, *teachers, command.statistics_cache, start)
    with output(command, *inputs) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        run_stage(
            read_data(command.data),
            stage_options(command, DistillConfig),
            command.output_dir,
            seed=command.seed,
            teacher_dirs=teachers,
            statistics_cache=command.statistics_cache,
        )
    told = _spent if command.method in MATCHING else w2_lines if command.method == "wmdd" else None
    if told and state.is_main_process:
        print("\n".join(told(command.output_dir)))


def _spent(target: Path) -> Iterator[str]:
    """A line of each set's time by part; sets that were made together have the same."""
    for manifest in sorted(target.glob("ipc-*/manifest.json")):
        told = json.loads(manifest.read_text(encoding="utf-8"))
        parts, whole = told["seconds"], told["seconds"].pop("distill")
        shares = ", ".join(f"{name} {100 * value / max(whole, 1e-9):.0f} %" for name, value in parts.items())
        yield f"{manifest.parent.name}: {told['iterations']} iterations in {whole:.0f} s: {shares}."
