"""The report's page: the facts of one run or several, put into report.html."""

from __future__ import annotations

from collections.abc import Sequence

from gendistill.evaluate.report import measured
from gendistill.evaluate.report.ablation import ablations
from gendistill.evaluate.report.chart import chart, cost_chart
from gendistill.evaluate.report.classes import class_tables
from gendistill.evaluate.report.closest import Closest, closest_of_run
from gendistill.evaluate.report.facts import ReportFacts
from gendistill.evaluate.report.merge import settings_numbers
from gendistill.evaluate.report.pictures import gallery
from gendistill.evaluate.report.records import costs, w2
from gendistill.evaluate.report.rows import Row, condition, full_row, mean, primary, table, under
from gendistill.evaluate.report.scatter import scatter
from gendistill.evaluate.report.template import fill
from gendistill.evaluate.report.verdicts import elsewhere, headline, verdicts


def render(facts: ReportFacts) -> str:
    """The page."""
    rows = facts.rows
    judged = [run.judged for run in facts.runs]
    main = under(rows, primary(rows))
    said = verdicts(rows)
    described = facts.runs[0].summary["data"]
    scored, unscored = measured.scores(judged, rows)
    return fill(
        "report.html",
        facts=facts,
        data=facts.data,
        described=described,
        counts={name: sum(described["counts"][name]) for name in ("train", "validation", "test")},
        test_counts=described["counts"]["test"],
        findings=measured.findings(judged, rows),
        headline=headline(said),
        verdicts=said,
        elsewhere=elsewhere(rows),
        mixed_settings=len(set(settings_numbers(judged))) > 1,
        full=full_row(main),
        hard=tables([r for r in rows if r["labels"] == "hard"]),
        soft=tables([r for r in rows if r["labels"] != "hard"]),
        columns=columns(rows),
        several=len({condition(r)[:4] for r in rows}) > 1,
        main=primary(rows),
        chart=chart(main),
        cost_charts=[found for what in ("seconds", "bytes") if (found := cost_chart(main, what))],
        class_tables=class_tables([v.row for v in said], main, facts.classes),
        scores=scored,
        unscored=unscored,
        measures=measured.measures(judged, rows),
        galleries=[(run, [gallery(ipc, run.sets[ipc]) for ipc in sorted(run.sets, reverse=True)]) for run in facts.runs],
        plot=scatter(facts.projection) if facts.projection else None,
        closest=closest_pairs(facts),
        ablations=ablations(main),
        costs=[(run, found) for run in facts.runs if (found := costs(run.records))],
        w2=[(run, found) for run in facts.runs if (found := w2(run.records))],
        teachers={
            run.name: next((r["accuracy"] for r in run.records if r.get("stage") == "teacher" and "accuracy" in r), None)
            for run in facts.runs
        },
    )


def tables(rows: Sequence[Row]) -> list[list[Row]]:
    """The table's groups, with the means of ``legacy_best`` and ``ece`` and the ``kilobytes`` in words."""
    told = []
    for row in rows:
        stored = row.get("bytes") or {}
        total = (stored.get("images") or 0) + (stored.get("labels") or 0) or None
        told.append({**row, "legacy": mean(row.get("legacy_best")), "ece": mean(row.get("ece")), "stored": total})
    return table(told)


def columns(rows: Sequence[Row]) -> set[str]:
    """The columns that say something: those that differ between rows, or that some row has."""
    found = {name for name in ("network", "augment") if len({r.get(name) for r in rows}) > 1}
    there = {"legacy": "legacy_best", "ece": "ece", "stored": "bytes"}
    return found | {name for name, key in there.items() if any(r.get(key) for r in rows)}


def closest_pairs(facts: ReportFacts) -> list[Closest]:
    """Of every run's product, where the real images are there."""
    if facts.data is None:
        return []
    several = len(facts.runs) > 1
    found = [closest_of_run(run.sets, facts.data, run.name if several else "") for run in facts.runs]
    return [closest for closest in found if closest]
