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
from gendistill.data.real import RealData
from gendistill.evaluate.judge import FULL, PROTOCOL, Contestant, judge
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow
from gendistill.stages.contestants import baselines, check_soft_labels, of_sets, with_soft_labels
from gendistill.stages.describe import described
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
from gendistill.stages.lens import make_lens
from gendistill.stages.output import output
from gendistill.stages.set_table import finding_lines, set_table
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

    k-means picks on pixels, and with a ``teacher`` on its features as well. All rows have hard labels; with
    ``config.labels`` soft, labelled sets get a second one, and so do the baselines, labelled likewise by ``teacher``.
    """
    config = config or EvaluateConfig()
    for surrogate in surrogates:
        what = f"the surrogate set at IPC {surrogate.ipc}"
        check_origin(what, surrogate.classes, surrogate.meta, data)
        check_manifest_labels(what, surrogate.classes, surrogate.meta)
    if teacher:
        check_origin("the teacher", teacher.classes, teacher.meta, data)
    check_soft_labels(surrogates, config, teacher)
    contestants = [
        c for ipc in sorted({s.ipc for s in surrogates}) for c in baselines(data, ipc, config, seed, teacher)
    ]
    contestants += of_sets(surrogates)
    if config.labels == "soft":
        labelled = [s for s in surrogates if s.soft_labels]
        contestants += with_soft_labels(labelled, [c for c in contestants if not c.identity], teacher)
    contestants.append(Contestant(FULL, None, None, (data.train,)))
    about: dict[str, Any] = {}
    if config.describe:
        lens = make_lens(config.features, data, teacher, folder.path if folder else None)
        about = described(data, surrogates, lens, seed)
    total = sum(max(config.runs, len(c.draws)) for c in contestants)
    done = _read_runs(folder.path / RUNS) if folder else {}
    loop = judge(contestants, data.test, data.classes, config, device=runtime.device(), done=done)

    def log(record: dict[str, Any]) -> None:
        if folder:
            folder.log({k: v for k, v in record.items() if k != "key"})
            with (folder.path / RUNS).open("a", encoding="utf-8") as file:
                file.write(json.dumps([record["key"], record["accuracy"]]) + "\n")

    rows = follow(loop, "evaluate", total, log=log, every=1, stage="evaluate")
    return {
        "protocol": PROTOCOL,
        "data": data.describe(),
        "seed": seed,
        "rows": rows,
        **about,
        "command": command_line(),
        "versions": versions(),
        "device": str(runtime.device()),
        "settings": {"runs": config.runs, "steps": config.steps, "network": config.network, "width": config.width},
    }


def _read_runs(path: Path) -> dict[str, float]:
    """Accuracies that an interrupted evaluation has finished, by key; a line cut off by a kill is left out."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            key, value = json.loads(line)
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
        ]
        writer = csv.writer(file)
        writer.writerow(names)
        for row in summary["rows"]:
            low, high = row["ci95_vs_random"] or (None, None)
            writer.writerow([{**row, "low": low, "high": high}.get(name) for name in names])


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
    soft = any(row["labels"] != "hard" for row in rows)
    width = 2 + max(len(_recipe(row)) for row in rows) if soft else 0
    head = "labels" if soft else ""
    lines = [f"{'IPC':>4}  {'set':<30}{head:<{width}} {'accuracy %':>12}  {'95 % against random':>20}  verdict"]
    for row in rows:
        interval = row["ci95_vs_random"]
        gain = f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""
        labels = f"{_recipe(row) if soft else '':<{width}}"
        lines.append(
            f"{row['ipc'] or '':>4}  {row_label(row):<30}{labels} {100 * row['mean']:5.1f} ± {100 * row['std']:3.1f}"
            f"  {gain:>20}  {row['verdict']}"
        )
    return "\n".join(lines)


def _recipe(row: dict[str, Any]) -> str:
    return row.get("recipe") or "hard"


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
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    target, config = command.output_dir, section(command, EvaluateConfig)
    with output(command, command.data.folder, command.teacher, *paths):
        paths = [find_surrogate(path, command.revision) for path in paths]
        data = read_data(command.data)
        run_stage(data, paths, config, target, seed=command.seed, teacher_dir=command.teacher)
    summary = json.loads((target / "summary.json").read_text(encoding="utf-8"))
    names = {
        row["set"]: f"{row['ipc'] or '':>3}  {row_label(row)}" for row in summary["rows"] if isinstance(row["set"], str)
    }
    parts = (table(summary), set_table(summary, names), finding_lines(summary, names))
    print("\n\n".join(part for part in parts if part))
