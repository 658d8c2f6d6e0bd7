"""What a run measured of its sets, put beside each of them for its card: evaluation rows and the copy check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gendistill.data.dataset import RealData
from gendistill.evaluation.copies import Reference
from gendistill.progress import track
from gendistill.report.nearest import MOST_PAIRS, pair_sheet
from gendistill.surrogate.card.card import add_evidence
from gendistill.surrogate.card.entry import PAIRS
from gendistill.surrogate.export.stored import StoredSet, evaluation_of
from gendistill.surrogate.set import SurrogateSet

MOST = 500  # images of a set whose distances to the real ones are measured; all are compared by hash


def record_evidence(folders: Sequence[Path], summary: dict[str, Any], data: RealData) -> None:
    """Write evidence.json and the card of sets that ``summary`` has rows of."""
    reference = Reference.of(data, most=MOST)
    for folder in track(folders, "cards", len(folders)):
        views = SurrogateSet.load(folder).split
        copies = reference.check(views.images)
        pair_sheet([(folder.name, copies.closest(MOST_PAIRS), views)], data).save(folder / PAIRS)
        found = {**copies.summary(), "pairs": True}
        add_evidence(folder, evaluation=evaluation_of(StoredSet.open(folder), summary), copies=found)
