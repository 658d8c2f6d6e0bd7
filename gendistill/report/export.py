"""The report as plain data: report.json and report.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gendistill.report.provenance import ReportFacts, RunFacts
from gendistill.report.results import Row, mean, primary, under
from gendistill.report.tables import ablations, findings
from gendistill.report.verdicts import Verdict, elsewhere, headline, left_out, verdicts

COLUMNS = (
    "runs", "set_name", "label", "method", "stage", "space", "ipc", "labels", "recipe", "augment", "network", "mean",
    "std", "std_within", "std_between", "low", "high", "low_these_sets", "high_these_sets", "low_equal_bytes",
    "high_equal_bytes", "verdict", "trainings", "legacy_best", "ece", "synthesis_seeds", "synthesis_seconds",
    "bytes_images", "bytes_labels", "stored_images", "decoded_images", "seconds", "fault", "set",
)  # fmt: skip
INTERVALS = {"": "ci95_vs_random", "_these_sets": "ci95_these_sets", "_equal_bytes": "ci95_vs_equal_bytes"}
OURS = ("noun", "judged", "alike", "colour", "shape", "forest")  # of the page alone


def plain_row(row: Row) -> dict[str, Any]:
    """A row of the summary with ``runs``, ``label``, ``given`` and ``set_name``."""
    return {k: v for k, v in row.items() if k not in OURS}


def as_csv(rows: Sequence[Row]) -> str:
    """One line a row; lists of accuracies are left to the JSON, but for the means of what is not the accuracy."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        flat = _flat(row)
        writer.writerow([flat.get(name) for name in COLUMNS])
    return file.getvalue()


def _flat(row: Row) -> Mapping[str, Any]:
    ends = {
        f"{end}{name}": value
        for name, key in INTERVALS.items()
        for end, value in zip(("low", "high"), row.get(key) or (None, None), strict=True)
    }
    stored = row.get("bytes") or {}
    named = row.get("set")
    return {
        **row,
        **ends,
        "runs": " ".join(row["runs"]),
        "set": " ".join(named) if isinstance(named, list) else named,
        "trainings": len(row["accuracy"]),
        "bytes_images": stored.get("images"),
        "bytes_labels": stored.get("labels"),
        **{name: mean(row.get(name)) for name in ("legacy_best", "ece")},
    }


def as_json(facts: ReportFacts) -> dict[str, Any]:
    """Everything that the page says in numbers; ``rows`` with the ``runs`` they are from."""
    rows = facts.rows
    main = under(rows, primary(rows))
    said, faulty = verdicts(rows), left_out(rows)
    return {
        "data": facts.runs[0].summary["data"],
        "headline": headline(said, faulty),
        "verdicts": [_verdict(v) for v in said],
        "left_out": faulty,
        "elsewhere": elsewhere(rows),
        "findings": [asdict(f) for f in findings([run.judged for run in facts.runs], rows)],
        "runs": [_run(run) for run in facts.runs],
        "rows": [plain_row(row) for row in rows],
        "ablation": [asdict(found) for found in ablations(main)],
        "scores": {run.name: run.summary["scores"] for run in facts.runs if run.summary.get("scores")},
        "sets": {k: v for run in facts.runs for k, v in (run.summary.get("sets") or {}).items()},
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    told = {name: getattr(verdict, name) for name in ("ipc", "among", "against_random", "coreset", "equal_bytes")}
    return {"label": verdict.row["label"], "mean": verdict.row["mean"], "sentence": verdict.sentence, **told}


def _run(run: RunFacts) -> dict[str, Any]:
    told = {k: run.summary.get(k) for k in ("protocol", "settings", "seed", "device")}
    return {
        "name": run.name,
        "folder": run.folder,
        **told,
        "date": run.date,
        "commands": run.commands,
        "versions": run.versions,
    }
