"""Continual task of the evaluate stage: surrogate sets as memories -> continual.json, .csv and .html."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config.commands import EvaluateCommand
from gendistill.config import EvaluateConfig, section, to_dict
from gendistill.data.dataset import RealData, mean_and_std
from gendistill.errors import ConfigError
from gendistill.evaluation.continual import arrivals, class_orders, continual, runs_of
from gendistill.evaluation.evaluator import check
from gendistill.evaluation.protocols import resolve
from gendistill.evaluate.report.incremental import render_continual
from gendistill.evaluate.trial import Trial
from gendistill.progress import follow
from gendistill.evaluation.baselines import Baselines
from gendistill.evaluation.entries import of_sets
from gendistill.stages.evaluate import RUNS, as_run, deciding, read_runs
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
from gendistill.evaluation.inputs import by_counts, read_given, size_of
from gendistill.generator.map_classes import check_manifest_labels
from gendistill.stages.output import output
from gendistill.report.terminal import row_label, table
from gendistill.surrogate.set import SurrogateSet

RECORD, TABLE, PAGE = "continual.json", "continual.csv", "continual.html"


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
    settings = resolve(config)
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
    check(of_sets(surrogates), Trial(settings, data.test, len(data.classes)))  # before k-means
    config = as_run(config, data)
    settings = resolve(config)
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


def run_stage(
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
            write(folder.path, evaluate_continual(data, sets, config, seed=seed, folder=folder))
    return json.loads((target / RECORD).read_text(encoding="utf-8"))


def write(folder: Path, summary: dict[str, Any]) -> None:
    """The summary, a line of every row and step, and the page."""
    (folder / RECORD).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    labelled = {**summary, "rows": with_labels(summary["rows"])}
    (folder / PAGE).write_text(render_continual(labelled), encoding="utf-8")
    names = ("method", "space", "stage", "ipc", "labels", "augment", "network")
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
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


def main(command: EvaluateCommand) -> None:
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    with output(command, command.data.folder, *paths):
        data, config = read_data(command.data), section(command, EvaluateConfig)
        summary = run_stage(data, paths, config, command.output_dir, seed=command.seed, revision=command.revision)
    rows = summary["rows"]
    print(f"After the last of {len(summary['classes'])} steps, {summary['classes'][-1]} classes:")
    print(table({"rows": [{**row, **row["steps"][-1]} for row in rows]}))
    print("Mean over the steps:")
    print(table({"rows": [{**row, **row["average"]} for row in rows]}))
    print(f"{command.output_dir / PAGE}  the curves, for a browser")
