"""All stages in a row, from images to the report, each in its folder; what is finished is not done again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gendistill import parallel, runtime
from gendistill.config import ipc_sizes, require, to_dict
from gendistill.config.commands import RunCommand, RunConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import read_data
from gendistill.errors import ArtifactError
from gendistill.evaluation.cache import cache_folder
from gendistill.evaluation.evaluator import TrainingRun
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.result import Evaluation
from gendistill.generator.finetuning import check_training, start_generator, trains_null_class
from gendistill.generator.generator import BASE, Generator
from gendistill.generator.sampler import check_guidance
from gendistill.io import CONFIG, LOG, write_text
from gendistill.networks.factories import batch_norm_layers
from gendistill.networks.teacher_training import teacher_network
from gendistill.networks.training import require_batch_of_two
from gendistill.progress import is_shown, note, numbered_stage
from gendistill.refine.objective import require_batch_norm
from gendistill.report.nearest import record_evidence
from gendistill.report.page import write_report
from gendistill.report.terminal import format_evaluation, verdict_sentence
from gendistill.stages import Outcome, evaluate, finetune, refine, sample, teacher
from gendistill.stages.estimate import estimate_run, format_estimate
from gendistill.stages.folder import difference, with_added
from gendistill.stages.output import SETTINGS, output
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.multi_formation import factor_name

FOLDERS = {
    "teacher": "teacher",
    "finetune": "generator",
    "sample": "samples",
    "refine": "refined",
    "evaluate": "evaluation",
}


def run(config: RunConfig) -> Evaluation:
    """All stages, from images to the report, each in a folder of its own below ``config.output_dir``.

    A new run first notes how long it will take, where progress is shown. Several processes call this alike: they share
    the work of every stage, and the main one writes.

    Args:
        config: The options of all stages. With ``resume_from_checkpoint`` finished stages are kept and the interrupted
            one goes on.

    Returns:
        The evaluation of the sets of every stage beside the baselines.

    Raises:
        GendistillError: the options do not fit the images; this is found before anything is trained.
        ArtifactError: the folder was made with other settings.
    """
    runtime.check_processes(config.num_processes)
    out, is_main = config.output_dir, runtime.processes().is_main_process
    pretrained = Path(config.finetune.pretrained) if config.finetune.pretrained else None
    cache = config.evaluate.baseline_cache if isinstance(config.evaluate.baseline_cache, Path) else None
    with output(config, config.data.folder, pretrained, config.finetune.latent_cache, cache):
        data = read_data(config.data)
        generator = check_run(config, data)
        if runtime.of_main_process(lambda: is_shown() and not (out / CONFIG).is_file()):
            note(format_estimate(estimate_run(config, data, generator)))
        del generator  # the estimate has changed it
        if is_main:
            out.mkdir(parents=True, exist_ok=True)
            _save_config(config, out)
        made = {stage: out / folder for stage, folder in FOLDERS.items()}
        seed, log, teachers = config.seed, out / LOG, [made["teacher"]]
        pool = made["sample"] / "pool"
        with _stage("teacher", 1):
            teacher.run_stage(data, config.data, config.teacher, made["teacher"], seed=seed, log_path=log)
        with _stage("generator", 2):
            finetune.run_stage(data, config.finetune, made["finetune"], seed=seed, log_path=log)
        with _stage("samples", 3):
            sample.run_stage(made["finetune"], config.sample, made["sample"], data=data, seed=seed, log_path=log)
        with _stage("refinement", 4):
            refine.run_stage(pool, teachers, data, config.refine, made["refine"], seed=seed, log_path=log)
        sets = surrogate_folders(config, base=(made["sample"] / BASE).is_dir())
        with _stage("evaluation", 5):
            found = evaluate.run_stage(
                data, sets, config.evaluate, made["evaluate"], seed=seed, teacher_dir=made["teacher"], log_path=log
            )
        assert isinstance(found, Evaluation)
        if is_main:
            record_evidence(sets, found.to_dict(), data)
            write_report(out, data)
    return found


@contextmanager
def _stage(name: str, number: int) -> Iterator[None]:
    """One of the five stages, at whose end every process finds what the main one wrote."""
    with numbered_stage(name, number, 5):
        yield
        runtime.processes().wait_for_everyone()


def estimate(config: RunConfig) -> dict[str, float]:
    """Check the options against the images; returns what ``run`` will take, in seconds by stage. Writes nothing.

    Raises:
        GendistillError: the options do not fit the images.
    """
    runtime.check_processes(config.num_processes)
    data = read_data(config.data)
    return estimate_run(config, data, check_run(config, data))


def check_run(config: RunConfig, data: RealData) -> Generator:
    """Refuse, before any training, what does not fit the images; returns the generator that the run starts from."""
    check_sizes(config, data)
    for stage in (config.sample, config.refine):
        Coding.of(stage.image_format, data.image_size)
    cache_folder(config.evaluate.baseline_cache)
    return check_networks(config, data)


def surrogate_folders(config: RunConfig, *, base: bool) -> list[Path]:
    """The sets that are evaluated, stage by stage; those of ``base`` where the generator had a minimax phase.

    Without the selected sets of packed ones: they hold several times as many whole images as any other row.
    """
    samples, refined = config.output_dir / FOLDERS["sample"], config.output_dir / FOLDERS["refine"]
    sampled, sizes = ipc_sizes(config.sample.ipc), ipc_sizes(config.refine.ipc)
    by_folder = {
        samples / BASE: sampled if base else (),
        samples: sampled,
        refined / "selected": sizes if config.refine.pack == 1 else (),
        refined: sizes,
    }
    return [folder / f"ipc-{ipc}" for folder, ipcs in by_folder.items() for ipc in ipcs]


def check_sizes(config: RunConfig, data: RealData) -> None:
    """Refuse, before any training, more images per class than coresets and barycenters can take of some class."""
    refined, pack = max(ipc_sizes(config.refine.ipc)), config.refine.pack
    largest, atoms = max(*ipc_sizes(config.sample.ipc), refined), refined * pack**2
    counts = data.train.counts(len(data.classes))
    name, least = min(zip(data.classes, counts, strict=True), key=lambda pair: pair[1])
    if largest > least:
        raise ArtifactError(
            f"ipc is {largest}, but class {name!r} has {least} training images for the random and k-means rows to "
            "take; expected at most that. Lower sample.ipc or refine.ipc."
        )
    if atoms > least:
        raise ArtifactError(
            f"refine.ipc {refined} with refine.pack {pack} refines {atoms} images a class toward as many barycenter "
            f"atoms, but class {name!r} has {least} training images; expected at least {atoms}. Lower refine.ipc, or "
            f"set refine.pack 1, which needs {refined}."
        )
    if any(map(config.refine.is_matched, ipc_sizes(config.refine.ipc))):
        parallel.require_share(len(data.classes))
    if config.sample.modes is not None and config.sample.modes > least:
        raise ArtifactError(
            f"sample.modes is {config.sample.modes}, but class {name!r} has {least} training images; expected at most "
            "that."
        )


def check_networks(config: RunConfig, data: RealData) -> Generator:
    """Build every network once, so that what does not fit the images is refused before any training.

    Returns:
        The generator that the run starts from.
    """
    teacher, judge = config.teacher, resolve_protocol(config.evaluate)
    network, _ = teacher_network(teacher, classes=data.classes, channels=data.channels, image_size=data.image_size)
    if teacher.trains:
        require_batch_of_two(network, teacher.batch_size, len(data.train))
    if config.refine.steps:
        require_batch_norm(batch_norm_layers(network), config.refine.batch_norm_weight)
    require(
        judge.labels == "hard", "evaluate.protocol", judge.protocol, "one with hard labels in a run, or --labels hard"
    )
    sizes = [int(path.name.removeprefix("ipc-")) for path in surrogate_folders(config, base=False)]
    images = {ipc * len(data.classes): f"the sets at IPC {ipc}" for ipc in sizes}
    images |= {ipc * config.refine.pack**2 * len(data.classes): f"the refined set at IPC {ipc}"
               for ipc in ipc_sizes(config.refine.ipc)}  # fmt: skip
    images |= {len(data.train): "all real images"} if "full" in config.evaluate.baselines else {}
    for name in judge.network:
        TrainingRun(judge, data.test, len(data.classes)).check(name, images)
    generator = start_generator(data, config.finetune, config.seed)
    check_training(generator, config.finetune)
    generator.meta["null_class_trained"] = trains_null_class(config.finetune, generator.meta)
    check_guidance(generator, config.sample)
    return generator


def _save_config(config: RunConfig, out: Path) -> None:
    """config.yaml of the run; on resume the options of finished stages must be the same."""
    settings = {k: v for k, v in to_dict(config).items() if k in SETTINGS}
    path = out / CONFIG
    if path.is_file():
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        stored |= {stage: with_added(stage, stored[stage]) for stage in FOLDERS if isinstance(stored[stage], dict)}
        fixed = [k for k in SETTINGS if k not in FOLDERS or (out / FOLDERS[k]).exists()]
        stored, wanted = ({k: _without_times(s[k]) for k in fixed} for s in (stored, settings))
        if stored != wanted:
            raise ArtifactError(
                f"{out} was made with other settings ({difference(stored, wanted)}). Resume with the same ones, "
                "start again with --overwrite, or give another --output_dir."
            )
    write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _without_times(options: Any) -> Any:
    """How long a training may take decides no result."""
    times = {"max_minutes", "checkpoint_minutes"}
    return {k: v for k, v in options.items() if k not in times} if isinstance(options, dict) else options


def main(command: RunCommand) -> Outcome:
    if command.dry_run:
        by_stage = estimate(command)
        return Outcome(format_estimate(by_stage), {"seconds": by_stage})
    start = time.perf_counter()
    result = run(command)
    if not runtime.processes().is_main_process:
        return Outcome("")
    out, seconds = command.output_dir, time.perf_counter() - start
    best = out / "refined" / f"ipc-{max(ipc_sizes(command.refine.ipc))}"
    pack, use = command.refine.pack, "ready for ImageFolder or load_dataset"
    if pack > 1:
        use = f"{factor_name(pack)} images in each file: its README.md has the code that reads them"
    text = f"""{format_evaluation(result)}

{seconds:.0f} s in all. Everything is in {out}:
  {out / "report.html"}  the pictures and curves, for a browser
  {out / "evaluation" / "summary.json"}  every number
  {best}  a surrogate set, {use}

{verdict_sentence(result)}"""
    return Outcome(text, {"output_dir": str(out), "set": str(best), "seconds": seconds, **result.to_dict()})
