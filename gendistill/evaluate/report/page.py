"""The report's page: the facts of one run or several, put into report.html."""

from __future__ import annotations

from gendistill.evaluate.report import measured
from gendistill.evaluate.report.ablation import ablations
from gendistill.evaluate.report.chart import chart, cost_chart
from gendistill.evaluate.report.classes import class_tables
from gendistill.evaluate.report.closest import Closest, closest_of_run
from gendistill.evaluate.report.facts import ReportFacts
from gendistill.evaluate.report.merge import settings_numbers
from gendistill.evaluate.report.pictures import gallery
from gendistill.evaluate.report.records import costs, w2
from gendistill.evaluate.report.rows import condition, full_row, primary, under
from gendistill.evaluate.report.scatter import scatter
from gendistill.evaluate.report.sections import sections
from gendistill.evaluate.report.template import fill
from gendistill.evaluate.report.verdicts import elsewhere, headline, label_gains, verdicts


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
        label_gains=label_gains(rows),
        mixed_settings=len(set(settings_numbers(judged))) > 1,
        full=full_row(main),
        hard=sections([r for r in rows if r["labels"] == "hard"]),
        soft=sections([r for r in rows if r["labels"] != "hard"]),
        legacy=any(r.get("legacy_best") for r in rows),
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


def closest_pairs(facts: ReportFacts) -> list[Closest]:
    """Of every run's product, where the real images are there."""
    if facts.data is None:
        return []
    several = len(facts.runs) > 1
    found = [closest_of_run(run.sets, facts.data, run.name if several else "") for run in facts.runs]
    return [closest for closest in found if closest]
