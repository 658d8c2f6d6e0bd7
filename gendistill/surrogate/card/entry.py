"""What a card knows of one set: its manifest, its evidence and its soft labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gendistill.errors import ArtifactError
from gendistill.io import read_json
from gendistill.surrogate import soft_labels
from gendistill.surrogate.manifest import Manifest

EVIDENCE = "evidence.json"
ROW = {"method", "ipc", "mean"}
PAIRS = "closest_pairs.png"  # of the copy check, where it says that there are ``pairs``
PARTS = {"evaluation": {"rows"}, "copies": {"space", "images", "exact", "near", "median", "held_out_median"}}


def read_evidence(folder: Path) -> dict[str, Any]:
    """The parts measured so far, by name; empty where there are none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path, fix = folder / EVIDENCE, "Delete it and measure again."
    if not path.exists():
        return {}
    found = read_json(path, kind="a set with evidence", fix=fix)
    if problem := evidence_problem(found):
        raise ArtifactError(f"{path} is damaged: {problem}. {fix}")
    return found


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
    evidence: dict[str, Any] = field(default_factory=dict)
    soft_labels: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> str:
        """Where the picture of the closest pairs is, as seen from the card."""
        return f"{self.folder}/{PAIRS}".lstrip("/")


def read_entry(source: Path, manifest: Manifest, *, config: str | None = None, folder: str = "") -> CardEntry:
    """What a card needs of the set in ``source``; its config is ``ipc-K`` unless another is given.

    Raises:
        ArtifactError: its soft labels or its evidence are damaged.
    """
    return CardEntry(config or f"ipc-{manifest['ipc']}", folder, manifest, read_evidence(source), _soft(source))


def _soft(source: Path) -> dict[str, Any]:
    path = source / soft_labels.RECORD
    fix = "Copy the set again, or label it again."
    return read_json(path, kind="a set with soft labels", fix=fix) if path.is_file() else {}


def evidence_problem(found: Any) -> str:
    """What evidence lacks that a card needs."""
    if not isinstance(found, dict):
        return "it is no JSON object"
    for name, needed in PARTS.items():
        part = found.get(name)
        if part is not None and (not isinstance(part, dict) or not needed <= part.keys()):
            return f"{name} needs {', '.join(sorted(needed))}"
    rows = (found.get("evaluation") or {}).get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= ROW for row in rows):
        return f"every row of evaluation needs {', '.join(sorted(ROW))}"
    return ""
