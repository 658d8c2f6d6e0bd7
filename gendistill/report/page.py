"""The report's page: the facts of one run or several, put into report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gendistill.data.dataset import RealData
from gendistill.environment import command_line, versions
from gendistill.evaluation.copies import PIXELS, Reference
from gendistill.io import write_whole
from gendistill.report import tables
from gendistill.report.charts import chart, cost_chart, scatter
from gendistill.report.export import as_csv, as_json
from gendistill.report.formatting import RANDOM_LABEL
from gendistill.report.images import gallery
from gendistill.report.nearest import Closest, closest_of_evaluation, closest_of_run
from gendistill.report.provenance import ReportFacts, costs, w2
from gendistill.report.results import Row, condition, full_row, primary, products, seeds_of, settings_numbers, under
from gendistill.report.run_folder import read_finished
from gendistill.report.sets import check_data, facts_of_evaluation, gather
from gendistill.report.tables import ablations, class_tables, sections
from gendistill.report.template import render_template
from gendistill.report.verdicts import elsewhere, headline, label_gains, left_out, verdicts
from gendistill.surrogate.set import SurrogateSet

MOST_MEASURED, MOST_CHECKED = 500, 12

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
    write_whole(path, render(facts))
    return path


def write_report_files(facts: ReportFacts, folder: Path) -> Path:
    """The page, its numbers and its rows as a table; returns the page's path."""
    numbers = {"command": command_line(), "versions": versions(), **as_json(facts)}
    write_whole(folder / REPORT, render(facts))
    write_whole(folder / NUMBERS, json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / TABLE, as_csv(facts.rows))
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


def _words(facts: ReportFacts, rows: Sequence[Row]) -> dict[str, Any]:
    judged = [run.judged for run in facts.runs]
    said, faulty = verdicts(rows), left_out(rows)
    return {
        "findings": tables.findings(judged, rows),
        "headline": headline(said, faulty),
        "left_out": faulty,
        "verdicts": said,
        "elsewhere": elsewhere(rows),
        "label_gains": label_gains(rows),
        "mixed_settings": len(set(settings_numbers(judged))) > 1,
        "several": len({condition(r)[:4] for r in rows}) > 1,
        "main": primary(rows),
        "pooled": any(seeds_of(r) > 1 for r in rows),
    }


def _numbers(facts: ReportFacts, rows: Sequence[Row]) -> dict[str, Any]:
    judged, main = [run.judged for run in facts.runs], under(rows, primary(rows))
    scored, unscored = tables.scores(judged, rows)
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
        "measures": tables.measures(judged, rows),
        "ablations": ablations(main),
    }


def _pictures(facts: ReportFacts) -> dict[str, Any]:
    shown = [(run, [gallery(ipc, run.sets[ipc]) for ipc in sorted(run.sets, reverse=True)]) for run in facts.runs]
    return {
        "galleries": shown,
        "plot": scatter(facts.projection) if facts.projection else None,
        "closest": closest_pairs(facts),
        "trained_look": facts.look.note if facts.look else "",
        "unchecked": _unchecked(facts) if facts.data else 0,
    }


def _records(facts: ReportFacts) -> dict[str, Any]:
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
    there; ``MOST_MEASURED`` of the images of each are tables."""
    if facts.data is None or not any(run.sets for run in facts.runs):
        return []
    several, embed = len(facts.runs) > 1, facts.look.embed if facts.look else None
    space = facts.look.space if facts.look else PIXELS
    reference = Reference.of(facts.data, features=embed, most=MOST_MEASURED, space=space)
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
