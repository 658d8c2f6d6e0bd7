"""The report's page: the facts of one run or several, put into report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gendistill.data.dataset import RealData
from gendistill.evaluation.copies import PIXELS, CopyCheck
from gendistill.io import write_json, write_text
from gendistill.report import tables
from gendistill.report.charts import chart, cost_chart, scatter
from gendistill.report.formatting import RANDOM_LABEL, render_template
from gendistill.report.images import gallery
from gendistill.report.nearest import MOST_MEASURED, Closest, closest_of_evaluation, closest_of_run
from gendistill.report.results import (
    ReportRow,
    condition,
    full_row,
    mean,
    primary,
    products,
    seeds_of,
    settings_numbers,
    under,
)
from gendistill.report.run_folder import read_finished
from gendistill.report.sets import ReportFacts, RunFacts, check_data, facts_of_evaluation, gather
from gendistill.report.tables import ablations, class_tables, costs, findings, sections, w2
from gendistill.report.verdicts import Verdict, elsewhere, headline, label_gains, left_out, verdicts
from gendistill.surrogate.manifest import command_line, versions
from gendistill.surrogate.set import SurrogateSet

MOST_CHECKED = 12  # sets of an evaluation that are compared with the real images

REPORT, NUMBERS, TABLE = "report.html", "report.json", "report.csv"


def write_report(run: Path | str, data: RealData) -> Path:
    """Write report.html, report.json and report.csv into the folder of a finished run or evaluation.

    Stages that the run left out are left out of the page.

    Args:
        run: The output_dir of `gendistill run` or `gendistill evaluate`.
        data: The real images it was made from.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: the run is not finished, a file of it is damaged, or ``data`` are other images than the run's.
    """
    found = read_finished(Path(run))
    check_data(found, data)
    return write_report_files(gather([found], data), found.path)


def write_evaluation_page(
    summary: Mapping[str, Any], path: Path | str, *, data: RealData | None = None, sets: Sequence[SurrogateSet] = ()
) -> Path:
    """Write the page of one evaluation that is in memory: one file that holds all it shows and loads nothing.

    Args:
        summary: The content of summary.json.
        path: Where to write the page.
        data: The real images; with ``sets`` they add a projection and the closest pairs, in the space of pixels.
        sets: The sets that were evaluated, for their pictures.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: ``data`` are other images than those of the evaluation.
    """
    path = Path(path)
    facts = facts_of_evaluation(summary, data, sets)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(facts))
    return path


def write_report_files(facts: ReportFacts, folder: Path) -> Path:
    """The page, its numbers and its rows as a table; returns the page's path."""
    numbers = {"command": command_line(), "versions": versions(), **as_json(facts)}
    write_text(folder / REPORT, render(facts))
    write_json(folder / NUMBERS, numbers)
    write_text(folder / TABLE, as_csv(facts.rows))
    return folder / REPORT


def render(facts: ReportFacts) -> str:
    """The page."""
    described, rows = facts.runs[0].summary["data"], facts.rows
    return render_template(
        "report.html",
        facts=facts,
        data=facts.data,
        described=described,
        counts={name: sum(described["counts"][name]) for name in ("train", "validation", "test")},
        test_counts=described["counts"]["test"],
        **_words(facts, rows),
        **_numbers(facts, rows),
        **_pictures(facts),
        **_records(facts),
    )


def _words(facts: ReportFacts, rows: Sequence[ReportRow]) -> dict[str, object]:
    evaluated = [run.evaluated for run in facts.runs]
    said, faulty = verdicts(rows), left_out(rows)
    return {
        "findings": tables.findings(evaluated, rows),
        "headline": headline(said, faulty),
        "left_out": faulty,
        "verdicts": said,
        "elsewhere": elsewhere(rows),
        "label_gains": label_gains(rows),
        "mixed_settings": len(set(settings_numbers(evaluated))) > 1,
        "several": len({condition(r)[:4] for r in rows}) > 1,
        "main": primary(rows),
        "pooled": any(seeds_of(r) > 1 for r in rows),
    }


def _numbers(facts: ReportFacts, rows: Sequence[ReportRow]) -> dict[str, object]:
    evaluated, main = [run.evaluated for run in facts.runs], under(rows, primary(rows))
    scored, unscored = tables.scores(evaluated, rows)
    return {
        "full": full_row(main),
        "chart": chart(main),
        "cost_charts": [drawn for what in ("seconds", "bytes") if (drawn := cost_chart(main, what))],
        "hard": sections([r for r in rows if r["labels"] == "hard"]),
        "soft": sections([r for r in rows if r["labels"] != "hard"]),
        "legacy": any(r.get("legacy_best") for r in rows),
        "class_tables": class_tables(products(main), main, facts.classes),
        "scores": scored,
        "unscored": unscored,
        "measures": tables.measures(evaluated, rows),
        "ablations": ablations(main),
    }


def _pictures(facts: ReportFacts) -> dict[str, object]:
    shown = [(run, [gallery(ipc, run.sets[ipc]) for ipc in sorted(run.sets, reverse=True)]) for run in facts.runs]
    return {
        "galleries": shown,
        "plot": scatter(facts.projection) if facts.projection else None,
        "closest": closest_pairs(facts),
        "trained_look": facts.look.note if facts.look else "",
        "unchecked": _unchecked(facts) if facts.data else 0,
    }


def _records(facts: ReportFacts) -> dict[str, object]:
    """What the stages of runs cost and moved."""
    teachers = {
        run.name: next((r["accuracy"] for r in run.records if r.get("stage") == "teacher" and "accuracy" in r), None)
        for run in facts.runs
    }
    return {
        "costs": [(run, spent) for run in facts.runs if (spent := costs(run.records))],
        "w2": [(run, moved) for run in facts.runs if (moved := w2(run.records))],
        "teachers": teachers,
    }


def closest_pairs(facts: ReportFacts) -> list[Closest]:
    """Of every run's product and every set of an evaluation, ``MOST_CHECKED`` of these, where the real images are
    there; ``MOST_MEASURED`` of the images of each are measured."""
    if facts.data is None or not any(run.sets for run in facts.runs):
        return []
    several, embed = len(facts.runs) > 1, facts.look.embed if facts.look else None
    space = facts.look.space if facts.look else PIXELS
    reference = CopyCheck.of(facts.data, features=embed, most=MOST_MEASURED, space=space)
    found: list[Closest | None] = []
    for run in facts.runs:
        name = run.name if several else ""
        if run.is_run:
            found.append(closest_of_run(run.sets, reference, name))
        else:
            found += closest_of_evaluation(run.sets, reference, name, MOST_CHECKED)
    return [closest for closest in found if closest]


def _unchecked(facts: ReportFacts) -> int:
    """Sets of evaluations beyond ``MOST_CHECKED``."""
    sets = [[label for made in run.sets.values() for label in made if label != RANDOM_LABEL] for run in facts.runs]
    return sum(max(0, len(s) - MOST_CHECKED) for s, run in zip(sets, facts.runs, strict=True) if not run.is_run)


COLUMNS = (
    "runs", "set_name", "label", "method", "stage", "space", "ipc", "labels", "recipe", "augment", "network", "mean",
    "std", "std_within", "std_between", "low", "high", "low_these_sets", "high_these_sets", "low_equal_bytes",
    "high_equal_bytes", "verdict", "trainings", "legacy_best", "ece", "synthesis_seeds", "synthesis_seconds",
    "bytes_images", "bytes_labels", "stored_images", "decoded_images", "seconds", "fault", "set",
)  # fmt: skip
OURS = ("noun", "settings_number", "alike", "colour", "shape", "forest")  # of the page alone


def plain_row(row: ReportRow) -> dict[str, object]:
    """A row of the summary with ``runs``, ``label``, ``given`` and ``set_name``."""
    return {k: v for k, v in row.items() if k not in OURS}


def as_csv(rows: Sequence[ReportRow]) -> str:
    """One line a row; lists of accuracies are left to the JSON, but for the means of what is not the accuracy."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        flat = _flat(row)
        writer.writerow([flat.get(name) for name in COLUMNS])
    return file.getvalue()


def _flat(row: ReportRow) -> Mapping[str, object]:
    intervals = {
        "": row.get("ci95_vs_random"),
        "_these_sets": row.get("ci95_these_sets"),
        "_equal_bytes": row.get("ci95_vs_equal_bytes"),
    }
    ends = {
        f"{end}{name}": value
        for name, interval in intervals.items()
        for end, value in zip(("low", "high"), interval or (None, None), strict=True)
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
        "legacy_best": mean(row.get("legacy_best")),
        "ece": mean(row.get("ece")),
    }


def as_json(facts: ReportFacts) -> dict[str, object]:
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
        "findings": [asdict(f) for f in findings([run.evaluated for run in facts.runs], rows)],
        "runs": [_run(run) for run in facts.runs],
        "rows": [plain_row(row) for row in rows],
        "ablation": [asdict(found) for found in ablations(main)],
        "scores": {run.name: run.summary["scores"] for run in facts.runs if run.summary.get("scores")},
        "sets": {k: v for run in facts.runs for k, v in (run.summary.get("sets") or {}).items()},
    }


def _verdict(verdict: Verdict) -> dict[str, object]:
    numbers = {name: getattr(verdict, name) for name in ("ipc", "among", "against_random", "coreset", "equal_bytes")}
    return {"label": verdict.row["label"], "mean": verdict.row["mean"], "sentence": verdict.sentence, **numbers}


def _run(run: RunFacts) -> dict[str, object]:
    recorded = {k: run.summary.get(k) for k in ("protocol", "settings", "seed", "device")}
    return {
        "name": run.name,
        "folder": run.folder,
        **recorded,
        "date": run.date,
        "commands": run.commands,
        "versions": run.versions,
    }
