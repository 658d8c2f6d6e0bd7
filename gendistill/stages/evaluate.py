"""Evaluate stage: surrogate sets + real data -> evaluation/summary.json with the baselines beside them."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.commands import EvaluateCommand
from gendistill.config import EvaluateConfig, section
from gendistill.data.real import RealData, mean_and_std
from gendistill.evaluate.judge import FULL, Contestant, entries, judge, trainings
from gendistill.evaluate.protocols import resolve
from gendistill.evaluate.scores import scores
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.stages.contestants import baselines, of_sets, with_soft_labels
from gendistill.stages.folders import (
    StageFolder,
    check_origin,
    command_line,
    finished,
    read_data,
    stage_folder,
    stage_settings,
    versions,
)
from gendistill.stages.labels import check_manifest_labels
from gendistill.stages.output import output
from gendistill.stages.recipes import check_soft_labels
from gendistill.stages.scores import score_table
from gendistill.surrogate.hub import find_surrogate
from gendistill.surrogate.surrogate import SurrogateSet

RUNS = "runs.jsonl"  # finished trainings, for resume


def evaluate(
    data: RealData,
    surrogates: Sequence[SurrogateSet],
    config: EvaluateConfig | None = None,
    *,
    seed: int = 0,
    teacher: Teacher | None = None,
    folder: StageFolder | None = None,
) -> dict[str, Any]:
    """The summary: rows for random, k-means, the given sets and full data, at every IPC of the sets.

    k-means picks on pixels, and with a ``teacher`` on its features as well. All rows have hard labels; where the
    protocol or ``config.labels`` says soft, labelled sets get a second one, and so do the baselines, labelled likewise
    by ``teacher``.
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
    contestants = [
        c for ipc in sorted({s.ipc for s in surrogates}) for c in baselines(data, ipc, config, seed, teacher)
    ]
    contestants += of_sets(surrogates)
    if settings.labels == "soft":
        labelled = [s for s in surrogates if s.soft_labels]
        contestants += with_soft_labels(labelled, [c for c in contestants if not c.identity], teacher)
    contestants.append(Contestant(FULL, None, None, (data.train,)))
    total = sum(trainings(contestant, settings) for contestant, *_ in entries(contestants, settings))
    done = _read_runs(folder.path / RUNS) if folder else {}
    device, normal = runtime.device(), mean_and_std(data.train)
    loop = judge(contestants, data.test, data.classes, config, device=device, done=done, normal=normal)

    def log(record: dict[str, Any]) -> None:
        if folder:
            folder.log({k: v for k, v in record.items() if k not in ("key", "result")})
            with (folder.path / RUNS).open("a", encoding="utf-8") as file:
                file.write(json.dumps([record["key"], record["result"]]) + "\n")

    rows = follow(loop, "evaluate", total, log=log, every=1, stage="evaluate")
    return {
        "protocol": settings.protocol,
        "data": data.describe(),
        "seed": seed,
        "rows": rows,
        "scores": scores(rows),
        "command": command_line(),
        "versions": versions(),
        "device": str(runtime.device()),
        "settings": settings.to_dict(),
    }


def _read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """Results that an interrupted evaluation has finished, by key; a line cut off by a kill is left out."""
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
        names = [
            "method",
            "space",
            "stage",
            "ipc",
            "labels",
            "recipe",
            "augment",
            "network",
            "mean",
            "std",
            "low",
            "high",
            "verdict",
            "ece",
            *(["legacy_best"] if any("legacy_best" in row for row in summary["rows"]) else []),
        ]
        writer = csv.writer(file)
        writer.writerow(names)
        for row in summary["rows"]:
            low, high = row["ci95_vs_random"] or (None, None)
            means = {name: _mean(row[name]) for name in ("ece", "legacy_best") if row.get(name)}
            writer.writerow([{**row, "low": low, "high": high, **means}.get(name) for name in names])


def run_stage(
    data: RealData,
    surrogates: Sequence[Path],
    config: EvaluateConfig,
    target: Path,
    *,
    seed: int,
    teacher_dir: Path | None = None,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    sets = [SurrogateSet.load(path) for path in surrogates]
    teacher = Teacher.from_pretrained(teacher_dir) if teacher_dir else None
    settings = stage_settings(
        config,
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


def table(summary: dict[str, Any]) -> str:
    """The rows as aligned text, accuracies in per cent; hard labels first where there are others."""
    rows = sorted(summary["rows"], key=lambda r: (r["ipc"] is None, r["ipc"] or 0))
    head, *told = _telling(rows)
    legacy = any("legacy_best" in row for row in rows)
    extra = "  legacy best %" if legacy else ""
    lines = [f"{'IPC':>4}  {'set':<30}{head} {'accuracy %':>12}{extra}  {'95 % against random':>20}  verdict"]
    for row, columns in zip(rows, told, strict=True):
        interval = row["ci95_vs_random"]
        gain = f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""
        extra = f"{100 * _mean(row['legacy_best']):15.1f}" if legacy else ""
        lines.append(
            f"{row['ipc'] or '':>4}  {row_label(row):<30}{columns} {100 * row['mean']:5.1f} ± {100 * row['std']:3.1f}"
            f"{extra}  {gain:>20}  {row['verdict']}"
        )
    return "\n".join(lines)


def _telling(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Columns that tell rows apart, where they do: of the head, then of each row."""
    values: dict[str, list[str]] = {
        "labels": [row.get("recipe") or "hard" for row in rows],
        "network": [row["network"] for row in rows],
        "augmented": ["yes" if row["augment"] else "no" for row in rows],
    }
    lines = [""] * (1 + len(rows))
    for head, texts in values.items():
        if len(set(texts)) > 1:
            width = 2 + max(map(len, [head, *texts]))
            lines = [f"{line}{text:<{width}}" for line, text in zip(lines, [head, *texts], strict=True)]
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


LABELS = {
    "base": "generator, before minimax",
    "samples": "generator, minimax",
    "select": "+ selection",
    "refined": "+ barycenter and BN",
}


def row_label(row: dict[str, Any]) -> str:
    """What a reader calls the row."""
    if row["method"] == "generative":
        return LABELS.get(row["stage"], str(row["stage"]))
    names = {"random": "random real images", "full": "all real images", "kmeans": "k-means"}
    name = names.get(row["method"], row["method"])
    return f"{name} ({row['space']})" if row.get("space") else name


def main(command: EvaluateCommand) -> None:
    runtime.check_processes(1)
    if command.task == "continual":
        from gendistill.stages import continual  # which builds on this module

        return continual.main(command)
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    target, config = command.output_dir, section(command, EvaluateConfig)
    with output(command, command.data.folder, command.teacher, *paths):
        paths = [find_surrogate(path, command.revision) for path in paths]
        data = read_data(command.data)
        run_stage(data, paths, config, target, seed=command.seed, teacher_dir=command.teacher)
    summary = json.loads((target / "summary.json").read_text(encoding="utf-8"))
    print(table(summary))
    if scored := score_table(summary, row_label):
        print(scored)
