"""What the run's page is made of: the facts of a run, put into report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gendistill.data.real import RealData
from gendistill.evaluate.projection import Projection
from gendistill.evaluate.report.chart import chart
from gendistill.evaluate.report.closest import closest_of_run
from gendistill.evaluate.report.pictures import gallery
from gendistill.evaluate.report.records import costs, merged_versions, w2
from gendistill.evaluate.report.rows import full_row, ordered, table
from gendistill.evaluate.report.scatter import scatter
from gendistill.evaluate.report.template import fill
from gendistill.evaluate.report.words import headline, verdicts
from gendistill.surrogate.surrogate import SurrogateSet


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the report shows.

    Attributes:
        data: The real images that the run was made from.
        summary: evaluation/summary.json, with a ``label`` for readers in every row.
        sets: By IPC, the sets of the stages in their order, by label; the last one is the run's product.
        projection: Of the sets at one IPC, beside the training images.
        records: stage.json of every stage that is there, in the order of the run.
        config: The text of config.yaml.
        date: When the run ended.
    """

    data: RealData
    summary: dict[str, Any]
    sets: dict[int, dict[str, SurrogateSet]]
    projection: Projection | None = None
    records: Sequence[dict[str, Any]]
    config: str
    date: str


def render(facts: RunFacts) -> str:
    """The page."""
    data, records, rows = facts.data, facts.records, ordered(facts.summary["rows"])
    said = verdicts(rows)
    return fill(
        "report.html",
        facts=facts,
        data=data,
        counts={name: len(getattr(data, name)) for name in ("train", "validation", "test")},
        headline=headline(said),
        verdicts=said,
        full=full_row(rows),
        table=table(rows),
        chart=chart(rows),
        galleries=[gallery(ipc, facts.sets[ipc]) for ipc in sorted(facts.sets, reverse=True)],
        plot=scatter(facts.projection) if facts.projection else None,
        closest=closest_of_run(facts.sets, data),
        costs=costs(records),
        w2=w2(records),
        versions=merged_versions(records),
        teacher=next((r["accuracy"] for r in records if r["stage"] == "teacher" and "accuracy" in r), None),
        commands=list(dict.fromkeys(r["command"] for r in records if "command" in r)),
    )
