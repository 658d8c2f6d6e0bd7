"""The pages: the facts of one run or several in report.html, the rows of the continual task in continual.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Required

from gendistill.config import as_tuple
from gendistill.data.class_positions import evenly_spaced
from gendistill.data.dataset import RealData
from gendistill.evaluation.copies import PIXELS, CopyCheck
from gendistill.evaluation.result import flat_row
from gendistill.evaluation.summary import ContinualRow, Step
from gendistill.io import write_json, write_text
from gendistill.report import tables
from gendistill.report.charts import (
    BOTTOM,
    LEFT,
    MARKERS,
    RIGHT,
    Axis,
    Chart,
    Curve,
    Point,
    chart,
    cost_charts,
    mean_interval,
    scatter,
    shared_times,
    side_by_side,
    ticks,
)
from gendistill.report.formatting import RANDOM_LABEL, comparison, percent, render_template
from gendistill.report.images import gallery
from gendistill.report.nearest import (
    MOST_MEASURED,
    CheckedSet,
    Closest,
    closest_of,
    product_of_run,
    sets_of_evaluation,
)
from gendistill.report.results import (
    ReportRow,
    condition,
    full_row,
    hashes,
    ipc_of,
    order_rows,
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
        "cost_charts": cost_charts(main),
        "shared_times": shared_times(main),
        "hard": sections([r for r in rows if r["labels"] == "hard"]),
        "soft": sections([r for r in rows if r["labels"] != "hard"]),
        "legacy": any(r.get("legacy_best") for r in rows),
        "balanced": any(r.get("balanced") is not None for r in rows),
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
        "features_note": facts.features.note if facts.features else "",
        "unchecked": _unchecked(facts) if facts.data else 0,
    }


def _records(facts: ReportFacts) -> dict[str, object]:
    """What the stages of runs cost and moved."""
    words = {"validation": "validation", "train": "training"}
    teachers = {
        run.name: [
            (word, r["accuracy"][split])
            for r in run.records
            for split, word in words.items()
            if r.get("stage") == "teacher" and split in r.get("accuracy", {})
        ]
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
    several, embed = len(facts.runs) > 1, facts.features.embed if facts.features else None
    space = facts.features.space if facts.features else PIXELS
    reference = CopyCheck.of(facts.data, features=embed, most=MOST_MEASURED, space=space)
    found: list[CheckedSet] = []
    for run in facts.runs:
        name = run.name if several else ""
        found += product_of_run(run.sets, name) if run.is_run else sets_of_evaluation(run.sets, name, MOST_CHECKED)
    return closest_of(found, reference)


def _unchecked(facts: ReportFacts) -> int:
    """Sets of evaluations beyond ``MOST_CHECKED``."""
    sets = [[label for made in run.sets.values() for label in made if label != RANDOM_LABEL] for run in facts.runs]
    return sum(max(0, len(s) - MOST_CHECKED) for s, run in zip(sets, facts.runs, strict=True) if not run.is_run)


COLUMNS = (
    "runs", "set_name", "label", "method", "stage", "space", "ipc", "labels", "recipe", "augment", "network", "mean",
    "std", "std_within", "std_between", "low", "high", "low_these_sets", "high_these_sets", "low_equal_bytes",
    "high_equal_bytes", "low_coded", "high_coded", "verdict", "trainings", "legacy_best", "ece", "synthesis_seeds",
    "synthesis_seconds", "bytes_images", "bytes_labels", "stored_images", "decoded_images", "seconds", "fault", "set",
)  # fmt: skip
BESIDE = ("these_sets", "equal_bytes", "coded")  # intervals other than that against random images
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
    flat = flat_row(row)
    ends = {f"{end}_{name}": flat[f"{name}_{end}"] for name in BESIDE for end in ("low", "high")}
    return {**flat, **ends, "trainings": flat["runs"], "runs": " ".join(row["runs"]), "set": " ".join(hashes(row))}


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
    numbers = {
        name: getattr(verdict, name) for name in ("ipc", "among", "against_random", "coreset", "equal_bytes", "coded")
    }
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


TOP, MOST_TICKS = 36.0, 12


class MemoryRow(ContinualRow, total=False):
    """A row of continual learning with what readers call it, its colour, and a count of the labels with that colour."""

    label: Required[str]
    colour: str
    shape: int


@dataclass(frozen=True)
class ContinualPanel:
    """One IPC: its rows with ``label`` and ``colour``, what is said of them, and their chart."""

    ipc: int
    rows: list[MemoryRow]
    sentences: list[str]
    chart: Chart


def render_continual(summary: Mapping[str, Any]) -> str:
    """The page of a summary whose rows have a ``label``."""
    counts = summary["classes"]
    rows: list[MemoryRow] = order_rows(summary["rows"])
    groups = {ipc: [r for r in rows if ipc_of(r) == ipc] for ipc in dict.fromkeys(map(ipc_of, rows))}
    panels = [
        ContinualPanel(ipc, group, [said for r in group if (said := sentence(r))], continual_chart(group, counts))
        for ipc, group in groups.items()
    ]
    settings = summary.get("settings") or {}  # older versions wrote none
    network = ", ".join(as_tuple(settings["network"]) if "network" in settings else {row["network"]: 0 for row in rows})
    trained = length(settings) if {"steps", "epochs"} <= settings.keys() else ""
    return render_template(
        "continual.html", summary=summary, counts=counts, panels=panels, network=network, length=trained
    )


def length(settings: Mapping[str, Any]) -> str:
    """How long a training is, by a summary's settings."""
    epochs = settings["epochs"]
    if settings["steps"] is not None:
        return f"{settings['steps']:,} steps"
    if isinstance(epochs, Mapping):  # by images of a class
        return f"{max(epochs.values()):,} to {min(epochs.values()):,} epochs, fewer the larger the IPC,"
    return f"{epochs:,} epochs"


def sentence(row: MemoryRow) -> str:
    """What the intervals allow to say, after the last step and over all of them; empty for the reference."""
    last, average = row["steps"][-1].get("ci95_vs_random"), row["average"].get("ci95_vs_random")
    if not last or not average:
        return ""
    return (
        f"{row['label']} {comparison(RANDOM_LABEL, last)} after the last step, and {comparison('them', average)} on "
        "average over the steps."
    )


def continual_chart(rows: Sequence[MemoryRow], counts: Sequence[int]) -> Chart:
    """Means and their 95 % t intervals over runs, against the number of classes."""
    ends = [value for row in rows for step in row["steps"] for value in mean_interval(step)]
    steps = ticks(min(ends), max(ends))
    x, y = Axis(counts[0], counts[-1], LEFT + 36, RIGHT - 36), Axis(steps[0], steps[-1], BOTTOM, TOP)
    curves = []
    for row in rows:
        points = [_point(row["label"], n, step, x(n), y) for n, step in zip(counts, row["steps"], strict=True)]
        curves.append(Curve(row["label"], row["colour"], MARKERS[row["colour"]], points, row["steps"][-1]["mean"]))
    return Chart(
        title=f"Test accuracy by classes seen, at IPC {ipc_of(rows[0])}",
        against="classes seen",
        of="Memory",
        measured="test accuracy on the classes seen, %",
        last="%, last step",
        top=TOP,
        x_ticks=[(x(counts[i]), f"{counts[i]}") for i in evenly_spaced(len(counts), MOST_TICKS)],
        y_ticks=[(y(value), f"{100 * value:.0f}") for value in steps],
        curves=sorted(side_by_side(curves), key=lambda curve: -curve.last),
        full=None,
    )


def _point(label: str, classes: int, step: Step, x: float, y: Axis) -> Point:
    low, high = mean_interval(step)
    title = f"{label}, {classes} classes: {percent(step['mean'])} % ({percent(low)} to {percent(high)})"
    return Point(round(x, 2), y(step["mean"]), y(low), y(high), title)
