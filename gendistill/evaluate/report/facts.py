"""What a report is made of: the facts of runs and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gendistill.data.dataset import RealData
from gendistill.evaluation.projection import Projection
from gendistill.evaluate.report.merge import Judged, merged
from gendistill.report.provenance import merged_versions
from gendistill.report.results import Row, ordered
from gendistill.surrogate.set import SurrogateSet


@dataclass(frozen=True)
class Look:
    """``embed``: uint8 images (B,C,H,W) -> features (B,D), which ``space`` names; ``note`` is a sentence on them."""

    space: str
    embed: Callable[[Tensor], Tensor]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the report shows of one run, or of one evaluation.

    Attributes:
        name: Short name that tells it from the others.
        folder: Where it lies.
        summary: Its summary.json, with a ``label`` for readers in every row.
        given: By content hash, the short names of the sets that were judged, None where they need none.
        sets: By IPC, the sets of the stages in their order, by label; the last one is the run's product.
        is_run: Not an evaluation, of which every set is a product.
        missing: Sentences that say which pictures could not be shown, and why.
        records: stage.json of every stage that is there, in the order of the run.
        config: The text of config.yaml.
        date: When it ended.
    """

    name: str
    folder: str
    summary: dict[str, Any]
    given: dict[str, str | None] = field(default_factory=dict)
    sets: dict[int, dict[str, SurrogateSet]] = field(default_factory=dict)
    is_run: bool = True
    missing: Sequence[str] = ()
    records: Sequence[dict[str, Any]]
    config: str
    date: str

    @property
    def judged(self) -> Judged:
        return Judged(self.name, self.summary, self.given)

    @property
    def commands(self) -> list[str]:
        """Each once, in the order of the stages."""
        found = [r["command"] for r in [*self.records, self.summary] if "command" in r]
        return list(dict.fromkeys(found))

    @property
    def versions(self) -> dict[str, str]:
        return merged_versions([*self.records, self.summary])


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the report shows; ``data`` is None where the real images were not found.

    ``projection`` is of the sets at one IPC, beside the training images; distances are between features of ``look``, or
    pixels.
    """

    runs: Sequence[RunFacts]
    data: RealData | None
    projection: Projection | None = None
    look: Look | None = None

    @property
    def rows(self) -> list[Row]:
        """Those of all runs, each once, in order and with colours."""
        return ordered(merged([run.judged for run in self.runs]))

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, where anything that was read knows them."""
        if self.data:
            return self.data.classes
        sets = [made for run in self.runs for by_label in run.sets.values() for made in by_label.values()]
        return sets[0].classes if sets else ()
