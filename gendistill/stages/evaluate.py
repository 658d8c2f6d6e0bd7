"""Evaluate stage: surrogate sets + real data -> evaluation/summary.json with the baselines beside them."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config.commands import EvaluateCommand
from gendistill.config import EvaluateConfig, section, to_dict
from gendistill.data.dataset import RealData, mean_and_std
from gendistill.evaluation.evaluator import Outcome, check, entries, judge
from gendistill.evaluation.protocols import resolve
from gendistill.evaluation.scores import scores
from gendistill.evaluate.trial import Trial
from gendistill.networks.cost import training_flop
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.evaluation.cache import BaselineCache
from gendistill.evaluation.baselines import against_equal_bytes
from gendistill.evaluation.entries import contestants, of_sets
from gendistill.evaluation.describe import described
from gendistill.stages.folder import (
    StageFolder,
    check_origin,
    command_line,
    finished,
    read_data,
    stage_folder,
    stage_settings,
    versions,
)
from gendistill.evaluation.inputs import findings, read_given
from gendistill.generator.map_classes import check_manifest_labels
from gendistill.stages.lens import make_lens
from gendistill.stages.output import output
from gendistill.evaluation.checks.soft_labels import check_soft_labels
from gendistill.stages.scores import score_table
from gendistill.stages.set_table import finding_lines, set_table
from gendistill.report.terminal import row_label, table
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
    settings = resolve(config)
    for surrogate in surrogates:
        what = f"the surrogate set at IPC {surrogate.ipc}"
        check_origin(what, surrogate.classes, surrogate.meta, data)
        check_manifest_labels(what, surrogate.classes, surrogate.meta)
    if teacher:
        check_origin("the teacher", teacher.classes, teacher.meta, data)
    check_soft_labels(surrogates, settings, teacher)
    check(of_sets(surrogates), Trial(settings, data.test, len(data.classes)))  # before anything takes long
    config = as_run(config, data)
    settings = resolve(config)
    lens = make_lens(config.features, data, teacher, folder.path if folder else None) if config.describe else None
    entered, device = contestants(data, surrogates, config, seed, teacher), runtime.device()
    cache, normal = BaselineCache.of(data, config, device), mean_and_std(data.train)
    about: dict[str, Any] = described(data, surrogates, lens, seed) if lens else {}
    done = read_runs(folder.path / RUNS) if folder else {}
    known: dict[str, Any] = {"done": done, "recall": cache.recall}
    loop = judge(entered, data.test, data.classes, config, device=device, normal=normal, **known)

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
        "rows": against_equal_bytes(rows),
        "scores": scores(rows),
        "sets": about.get("sets", {}),
        "findings": _together(about.get("findings", []), findings(surrogates, data)),
        "command": command_line(),
        "versions": versions(),
        "device": str(device),
        "settings": settings.to_dict(),
    }


def as_run(config: EvaluateConfig, data: RealData) -> EvaluateConfig:
    """With the precision and the compiling that ``auto`` comes to for the longest training of the dearest network."""
    if "auto" not in (config.mixed_precision, config.compile):
        return config
    settings, classes = resolve(config), len(data.classes)
    trial, (steps, _) = Trial(settings, data.test, classes), settings.length(len(data.train), classes, full=True)
    shape = data.channels, data.image_size, steps * settings.batch_size * SHARED
    flop = max(training_flop(trial.network(name), *shape) for name in settings.network)
    fast = runtime.fast(config.mixed_precision, config.compile, runtime.device(), flop)
    return replace(config, mixed_precision="bf16" if fast.bf16 else "no", compile=fast.compile)


def _together(seen: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was seen in the images, and what reading them told that it does not say already."""
    known = {(finding["set"], finding["kind"]) for finding in seen}
    return seen + [finding for finding in told if (finding["set"], finding["kind"]) not in known]


def read_runs(path: Path) -> dict[str, Outcome]:
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


def told(summary: dict[str, Any]) -> str:
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
        from gendistill.stages import continual  # which builds on this module

        return continual.main(command)
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    target, config = command.output_dir, section(command, EvaluateConfig)
    cache = config.baseline_cache if isinstance(config.baseline_cache, Path) else None
    with output(command, command.data.folder, command.teacher, cache, *paths):
        data = read_data(command.data)
        run_stage(
            data, paths, config, target, seed=command.seed, teacher_dir=command.teacher, revision=command.revision
        )
    print(told(json.loads((target / "summary.json").read_text(encoding="utf-8"))))
