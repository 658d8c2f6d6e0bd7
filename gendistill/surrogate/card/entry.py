"""What a card knows of one set: its manifest, its evidence and its soft labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Required, TypedDict, cast

from gendistill.io import inside, read_json
from gendistill.surrogate.manifest import Manifest
from gendistill.surrogate.soft_labels import LabelRecord, read_record

EVIDENCE = "evidence.json"
PAIRS = "closest_pairs.png"  # of the copy check, where it says that there are ``pairs``


class EvaluationRow(TypedDict, total=False):
    """What a card reads of a row of summary.json; the row has other keys as well."""

    method: Required[str]
    ipc: Required[int | None]
    mean: Required[float | None]
    std: float | None
    accuracy: list[float]
    network: str
    stage: str | None
    space: str | None
    recipe: str | None
    labels: str
    ci95_vs_random: list[float] | None
    verdict: str
    set: str | list[str] | None


class EvaluationEvidence(TypedDict):
    """The rows of this set, of the baselines at its IPC and of the full data, and where they are from."""

    protocol: str
    data: str
    command: str
    rows: list[EvaluationRow]


class CopyEvidence(TypedDict, total=False):
    """What the copy check found.

    Attributes:
        space: What distances are between.
        images: Decoded images of the set.
        exact: How many equal a real image, by its split.
        measured: How many of the images were measured; all where it is missing.
        near: How many of those are closer to a training image than 99 % of held-out real images are.
        threshold: That distance.
        median: Median distance to the closest training image.
        held_out_median: The same of held-out real images.
        pairs: Whether the picture of the closest pairs stands in the folder, as ``PAIRS``.
    """

    space: Required[str]
    images: Required[int]
    exact: Required[dict[str, int]]
    measured: int
    near: Required[int]
    threshold: float
    median: Required[float]
    held_out_median: Required[float]
    pairs: bool


class Evidence(TypedDict, total=False):
    """evidence.json: what was measured of a set, part by part."""

    evaluation: EvaluationEvidence
    copies: CopyEvidence


def read_evidence(folder: Path) -> Evidence:
    """The parts measured so far, by name; empty where there are none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path, fix = inside(folder, EVIDENCE), "Delete it and measure again."
    if not path.exists():
        return {}
    return cast(Evidence, read_json(path, kind="a set with evidence", schema=Evidence, fix=fix))


@dataclass(frozen=True)
class CardEntry:
    """One set of a card.

    Attributes:
        config: Its name there, such as ipc-10.
        folder: Its path as seen from the card, empty where both are in one folder.
        manifest: manifest.json.
        evidence: evidence.json, or nothing.
        soft_labels: soft_labels.json, or nothing.
    """

    config: str
    folder: str
    manifest: Manifest
    evidence: Evidence = field(default_factory=Evidence)
    soft_labels: LabelRecord = field(default_factory=LabelRecord)

    @property
    def pairs(self) -> str:
        """Where the picture of the closest pairs is, as seen from the card."""
        return f"{self.folder}/{PAIRS}".lstrip("/")


def read_entry(source: Path, manifest: Manifest, *, folder: str = "") -> CardEntry:
    """What a card needs of the set in ``source``; its config is ``ipc-K``.

    Raises:
        ArtifactError: its soft labels or its evidence are damaged.
    """
    return CardEntry(f"ipc-{manifest['ipc']}", folder, manifest, read_evidence(source), read_record(source))
