"""What the stages recorded of themselves: cost, W2 and versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gendistill.data.dataset import RealData
from gendistill.evaluation.projection import Projection
from gendistill.report.results import Judged, Row, merged, ordered
from gendistill.surrogate.set import SurrogateSet


def costs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and peak memory by stage, with their ``share`` and ``memory_share`` of the largest in per cent."""
    done = [(r["stage"], r["seconds"], r.get("peak_memory_mib", 0)) for r in records if "seconds" in r]
    longest = max((seconds for _, seconds, _ in done), default=0) or 1
    most = max((memory for _, _, memory in done), default=0) or 1
    return [
        {
            "stage": stage,
            "seconds": seconds,
            "memory": memory,
            "share": 100 * seconds / longest,
            "memory_share": 100 * memory / most,
        }
        for stage, seconds, memory in done
    ]


def w2(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Before and after refinement by IPC, with their shares of the largest in per cent."""
    found: dict[str, dict[str, float]] = next((r["w2"] for r in records if r.get("w2")), {})
    most = max((v for pair in found.values() for v in pair.values()), default=0) or 1
    return [
        {
            "ipc": int(ipc),
            **pair,
            "change": pair["after"] / pair["before"] - 1 if pair["before"] else 0.0,
            "share_before": 100 * pair["before"] / most,
            "share_after": 100 * pair["after"] / most,
        }
        for ipc, pair in sorted(found.items(), key=lambda item: int(item[0]))
    ]


def merged_versions(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The version of every library; several where the stages ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, number in record.get("versions", {}).items():
            found.setdefault(name, {})[number] = None
    return {name: ", ".join(numbers) for name, numbers in found.items()}


@dataclass(frozen=True)
class FeatureSource:
    """``embed``: uint8 images (B,C,H,W) -> features (B,D), which ``space`` names; ``note`` is a sentence on them."""

    space: str
    embed: Callable[[Tensor], Tensor]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the report shows of one run, or of one evaluation.

    Attributes:
        name: Short name that tells it from the others.
        summary: Its summary.json, with a ``label`` for readers in every row.
        date: When it ended.
        folder: Where it is; empty for an evaluation in memory.
        given: By content hash, the short names of the sets that were judged, None where they need none.
        sets: By IPC, the sets of the stages in their order, by label; the last one is the run's product.
        is_run: Not an evaluation, of which every set is a product.
        missing: Sentences that say which pictures could not be shown, and why.
        records: stage.json of every stage that is there, in the order of the run.
        config: The text of config.yaml.
    """

    name: str
    summary: dict[str, Any]
    date: str
    folder: str = ""
    given: dict[str, str | None] = field(default_factory=dict)
    sets: dict[int, dict[str, SurrogateSet]] = field(default_factory=dict)
    is_run: bool = True
    missing: Sequence[str] = ()
    records: Sequence[dict[str, Any]] = ()
    config: str = ""

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
    look: FeatureSource | None = None

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
