"""Evaluate stage: surrogate sets + real data -> evaluation/summary.json with the baselines beside them."""

from __future__ import annotations

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config import EvaluateConfig, stage_options, to_dict
from gendistill.config.commands import EvaluateCommand
from gendistill.data.dataset import RealData, check_origin, mean_and_std
from gendistill.data.sources import read_data
from gendistill.environment import command_line, versions
from gendistill.errors import ConfigError
from gendistill.evaluation.baselines import Baselines, compare_with_equal_bytes
from gendistill.evaluation.cache import BaselineCache
from gendistill.evaluation.checks.soft_labels import check_soft_labels
from gendistill.evaluation.continual import arrivals, class_orders, continual, runs_of
from gendistill.evaluation.describe import described
from gendistill.evaluation.entries import contestants, of_sets
from gendistill.evaluation.evaluator import RunResult, TrainingRun, check, entries, evaluate_entries
from gendistill.evaluation.inputs import by_counts, findings, read_given, size_of
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.scores import scores
from gendistill.generator.class_mapping import check_manifest_labels
from gendistill.networks.feature_extractors import make_lens
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import training_flop
from gendistill.progress import follow
from gendistill.report.tables import render_continual
from gendistill.report.terminal import finding_lines, row_label, score_table, set_table, table
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings
from gendistill.surrogate.set import SurrogateSet

SHARED = 10  # trainings at the least that share what is compiled: those of random images and of a set
RUNS = "runs.jsonl"  # finished trainings, for resume
COLUMNS = (
    "method", "name", "space", "stage", "ipc", "labels", "recipe", "augment", "network", "mean", "std", "std_within",
    "std_between", "low", "high", "these_sets_low", "these_sets_high", "equal_bytes_low", "equal_bytes_high", "verdict",
    "ece", "legacy_best", "runs", "cached", "synthesis_seeds", "stored_images", "decoded_images", "bytes_images",
    "bytes_labels", "seconds", "synthesis_seconds",
)  # fmt: skip
INTERVALS = {"ci95_vs_random": "", "ci95_these_sets": "these_sets_", "ci95_vs_equal_bytes": "equal_bytes_"}


def evaluate(
    data: RealData,
    surrogates: Sequence[SurrogateSet],
    config: EvaluateConfig | None = None,
    *,
    seed: int = 0,
    teacher: Teacher | None = None,
    folder: StageFolder | None = None,
) -> dict[str, Any]:
    """The summary: rows for the baselines, the given sets and full data, at every IPC of the sets.

    Coresets compare pixels, and with a ``teacher`` its features. All rows have hard labels; where the protocol or
    ``config.labels`` says soft, labelled sets get a second one, and so do the baselines, labelled likewise by
    ``teacher``.
    """
    config = config or EvaluateConfig()
    settings = resolve_protocol(config)
    for surrogate in surrogates:
        what = f"the surrogate set at IPC {surrogate.ipc}"
        check_origin(what, surrogate.classes, surrogate.meta, data)
        check_manifest_labels(what, surrogate.classes, surrogate.meta)
    if teacher:
        check_origin("the teacher", teacher.classes, teacher.meta, data)
    check_soft_labels(surrogates, settings, teacher)
    check(of_sets(surrogates), TrainingRun(settings, data.test, len(data.classes)))  # before anything takes long
    config = resolve_precision(config, data)
    settings = resolve_protocol(config)
    lens = make_lens(config.features, data, teacher, folder.path if folder else None) if config.describe else None
    entered, device = contestants(data, surrogates, config, seed, teacher), runtime.device()
    cache, normal = BaselineCache.of(data, config, device), mean_and_std(data.train)
    about: dict[str, Any] = described(data, surrogates, lens, seed) if lens else {}
    done = read_runs(folder.path / RUNS) if folder else {}
    known: dict[str, Any] = {"done": done, "recall": cache.recall}
    loop = evaluate_entries(entered, data.test, data.classes, config, device=device, normal=normal, **known)

    def log(record: dict[str, Any]) -> None:
        if record["baseline"] and record["key"] not in done:
            cache.keep(record["key"], record["outcome"])
        if folder:
            folder.log({k: v for k, v in record.items() if k not in ("key", "baseline", "outcome")})
            with (folder.path / RUNS).open("a", encoding="utf-8") as file:
                file.write(json.dumps([record["key"], record["outcome"]]) + "\n")

    total = sum(contestant.count(settings.runs) for contestant, *_ in entries(entered, settings))
    rows = follow(loop, "evaluate", total, log=log, every=1, stage="evaluate")
    return {
        "protocol": settings.protocol,
        "data": data.describe(),
        "seed": seed,
        "rows": compare_with_equal_bytes(rows),
        "scores": scores(rows),
        "sets": about.get("sets", {}),
        "findings": _together(about.get("findings", []), findings(surrogates, data)),
        "command": command_line(),
        "versions": versions(),
        "device": str(device),
        "settings": settings.to_dict(),
    }


def resolve_precision(config: EvaluateConfig, data: RealData) -> EvaluateConfig:
    """With the precision and the compiling that ``auto`` comes to for the longest training of the dearest network."""
    if "auto" not in (config.mixed_precision, config.compile):
        return config
    settings, classes = resolve_protocol(config), len(data.classes)
    trial, (steps, _) = TrainingRun(settings, data.test, classes), settings.length(len(data.train), classes, full=True)
    shape = data.channels, data.image_size, steps * settings.batch_size * SHARED
    flop = max(training_flop(trial.network(name), *shape) for name in settings.network)
    fast = runtime.execution_mode(config.mixed_precision, config.compile, runtime.device(), flop)
    return replace(config, mixed_precision="bf16" if fast.bf16 else "no", compile=fast.compile)


def _together(seen: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was seen in the images, and what reading them told that it does not say already."""
    known = {(finding["set"], finding["kind"]) for finding in seen}
    return seen + [finding for finding in told if (finding["set"], finding["kind"]) not in known]


def read_runs(path: Path) -> dict[str, RunResult]:
    """Outcomes that an interrupted evaluation has finished, by key; a line cut off by a kill is left out."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            key, value = json.loads(line)
            if isinstance(value, dict):  # older versions kept an accuracy alone
                done[key] = value
    return done


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """summary.json, and the rows once more as summary.csv."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(map(_flat, summary["rows"]))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its pairs as columns."""
    ends: dict[str, Any] = {}
    for name, prefix in INTERVALS.items():
        ends[f"{prefix}low"], ends[f"{prefix}high"] = row.get(name) or (None, None)
    means: dict[str, Any] = {name: sum(row[name]) / len(row[name]) for name in ("ece", "legacy_best") if name in row}
    parts = {f"bytes_{kind}": size for kind, size in (row.get("bytes") or {}).items()}
    return {**row, **means, **parts, **ends, "runs": len(row["accuracy"])}


def deciding(config: EvaluateConfig) -> dict[str, Any]:
    """The options that decide what an evaluation finds: all but where it keeps its baselines."""
    return {name: value for name, value in to_dict(config).items() if name != "baseline_cache"}


def run_stage(
    data: RealData,
    surrogates: Sequence[Path],
    config: EvaluateConfig,
    target: Path,
    *,
    seed: int,
    teacher_dir: Path | None = None,
    revision: str | None = None,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    sets = [read_given(path, data, revision) for path in surrogates]
    teacher = Teacher.from_pretrained(teacher_dir) if teacher_dir else None
    settings = stage_settings(
        deciding(config),
        seed,
        data=data.fingerprint(),
        surrogates=[s.content_hash() for s in sets],
        teacher=teacher.hash() if teacher else None,
    )
    if finished(target, "evaluate", settings):
        return target
    with stage_folder(target, "evaluate", settings, keep_partial=True, log_path=log_path) as folder:
        folder.scaffold = (RUNS,)
        write_summary(folder.path, evaluate(data, sets, config, seed=seed, teacher=teacher, folder=folder))
    return target


def format_summary(summary: dict[str, Any]) -> str:
    """Everything for the terminal: accuracies, scores, what the sets are like, and what is wrong with them."""
    names: dict[str, str] = {}
    for row in summary["rows"]:
        hashes = row["set"] if isinstance(row["set"], list) else [row["set"]]
        names |= {one: f"{row['ipc'] or '':>3}  {row_label(row)}" for one in hashes if one}
    parts = (
        table(summary),
        score_table(summary, row_label),
        set_table(summary, names),
        finding_lines(summary, names),
    )
    return "\n\n".join(part.strip("\n") for part in parts if part)


def main(command: EvaluateCommand) -> None:
    runtime.check_processes(1)
    if command.task == "continual":
        return main_continual(command)
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    target, config = command.output_dir, stage_options(command, EvaluateConfig)
    cache = config.baseline_cache if isinstance(config.baseline_cache, Path) else None
    with output(command, command.data.folder, command.teacher, cache, *paths):
        data = read_data(command.data)
        run_stage(
            data, paths, config, target, seed=command.seed, teacher_dir=command.teacher, revision=command.revision
        )
    print(format_summary(json.loads((target / "summary.json").read_text(encoding="utf-8"))))


CONTINUAL_RECORD, CONTINUAL_TABLE, CONTINUAL_PAGE = "continual.json", "continual.csv", "continual.html"


def evaluate_continual(
    data: RealData,
    surrogates: Sequence[SurrogateSet],
    config: EvaluateConfig | None = None,
    *,
    seed: int = 0,
    folder: StageFolder | None = None,
) -> dict[str, Any]:
    """The summary: rows for random real images, k-means on pixels and the given sets, at every IPC of the sets.

    All images have hard labels. The classes, the network and its training are those of ``config``.
    """
    config = config or EvaluateConfig(task="continual")
    settings = resolve_protocol(config)
    if settings.labels == "soft" or len(settings.network) > 1:
        raise ConfigError(
            f"evaluate.protocol is {config.protocol!r} with {settings.labels} labels and {len(settings.network)} "
            "network(s); the continual task has hard labels and one network. Give --labels hard and --network."
        )
    for surrogate in surrogates:
        what = f"the surrogate set at IPC {surrogate.ipc}"
        check_origin(what, surrogate.classes, surrogate.meta, data)
        check_manifest_labels(what, surrogate.classes, surrogate.meta)
    counts = arrivals(len(data.classes), config.continual.steps)
    check(of_sets(surrogates), TrainingRun(settings, data.test, len(data.classes)))  # before k-means
    config = resolve_precision(config, data)
    settings = resolve_protocol(config)
    beside = EvaluateConfig(  # k-means sees one class at a time
        runs=config.runs, baselines=("random", "kmeans"), baseline_cache=config.baseline_cache
    )
    real = Baselines(data, beside, seed)
    contestants = []
    for ipc in sorted({size_of(made) for made in surrogates}):
        contestants += real.beside(ipc, config.runs, [], by_counts(s for s in surrogates if size_of(s) == ipc))
    contestants += of_sets(surrogates)
    total = len(counts) * sum(runs_of(c, config) for c in contestants)
    done = {k: v["accuracy"] for k, v in read_runs(folder.path / RUNS).items()} if folder else {}
    where: dict[str, Any] = {"device": runtime.device(), "normal": mean_and_std(data.train)}
    loop = continual(contestants, data.test, data.classes, config, seed=seed, done=done, **where)

    def log(record: dict[str, Any]) -> None:
        if folder:
            folder.log({k: v for k, v in record.items() if k != "key"})
            with (folder.path / RUNS).open("a", encoding="utf-8") as file:
                file.write(json.dumps([record["key"], {"accuracy": record["accuracy"]}]) + "\n")

    rows = follow(loop, "continual", total, log=log, every=1, stage="evaluate")
    orders = class_orders(len(data.classes), contestants, config, seed)
    return {
        "task": "continual",
        "protocol": config.protocol,
        "data": data.describe(),
        "seed": seed,
        "classes": counts,
        "orders": [[data.classes[c] for c in order] for order in orders],
        "rows": rows,
        "command": command_line(),
        "versions": versions(),
        "device": str(runtime.device()),
        "settings": {**settings.to_dict(), "continual": to_dict(config.continual)},
    }


def run_continual_stage(
    data: RealData,
    surrogates: Sequence[Path],
    config: EvaluateConfig,
    target: Path,
    *,
    seed: int,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write ``target`` unless it is there already, made with the same settings; returns the summary."""
    sets = [read_given(path, data, revision) for path in surrogates]
    hashes = [s.content_hash() for s in sets]
    settings = stage_settings(deciding(config), seed, data=data.fingerprint(), surrogates=hashes)
    if not finished(target, "evaluate", settings):
        with stage_folder(target, "evaluate", settings, keep_partial=True) as folder:
            folder.scaffold = (RUNS,)
            write_continual(folder.path, evaluate_continual(data, sets, config, seed=seed, folder=folder))
    return json.loads((target / CONTINUAL_RECORD).read_text(encoding="utf-8"))


def write_continual(folder: Path, summary: dict[str, Any]) -> None:
    """The summary, a line of every row and step, and the page."""
    (folder / CONTINUAL_RECORD).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    labelled = {**summary, "rows": with_labels(summary["rows"])}
    (folder / CONTINUAL_PAGE).write_text(render_continual(labelled), encoding="utf-8")
    names = ("method", "space", "stage", "ipc", "labels", "augment", "network")
    with (folder / CONTINUAL_TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "step", "classes", "mean", "std", "low", "high", "verdict"])
        for row in summary["rows"]:
            steps = [(i + 1, n, row["steps"][i]) for i, n in enumerate(summary["classes"])]
            for step, count, found in [*steps, ("average", None, row["average"])]:
                low, high = found["ci95_vs_random"] or (None, None)
                numbers = [found["mean"], found["std"], low, high, found["verdict"]]
                writer.writerow([*(row[name] for name in names), step, count, *numbers])


def with_labels(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with names for readers, numbered where several of an IPC have the same."""
    seen: Counter[tuple[int, str]] = Counter()
    found = []
    for row in rows:
        name = row_label(row)
        seen[row["ipc"], name] += 1
        times = seen[row["ipc"], name]
        found.append({**row, "label": name if times == 1 else f"{name} ({times})"})
    return found


def main_continual(command: EvaluateCommand) -> None:
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    with output(command, command.data.folder, *paths):
        data, config = read_data(command.data), stage_options(command, EvaluateConfig)
        summary = run_continual_stage(
            data, paths, config, command.output_dir, seed=command.seed, revision=command.revision
        )
    rows = summary["rows"]
    print(f"After the last of {len(summary['classes'])} steps, {summary['classes'][-1]} classes:")
    print(table({"rows": [{**row, **row["steps"][-1]} for row in rows]}))
    print("Mean over the steps:")
    print(table({"rows": [{**row, **row["average"]} for row in rows]}))
    print(f"{command.output_dir / CONTINUAL_PAGE}  the curves, for a browser")
