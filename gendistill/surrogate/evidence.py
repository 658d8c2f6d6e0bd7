"""evidence.json: what was measured of a set after it was made, for its card. The manifest stays as it was sealed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill.errors import ArtifactError
from gendistill.surrogate.png import whole

EVIDENCE = "evidence.json"
ROW = {"method", "ipc", "mean"}
PAIRS = "closest_pairs.png"  # of the copy check, where it says that there are ``pairs``
PARTS = {"evaluation": {"rows"}, "copies": {"space", "images", "exact", "near", "median", "held_out_median"}}


def read_evidence(folder: Path) -> dict[str, Any]:
    """The parts measured so far, by name; empty where there are none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / EVIDENCE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Delete it and measure again.") from error
    problem = _problem(found)
    if problem:
        raise ArtifactError(f"{path} is damaged: {problem}. Delete it and measure again.")
    return found


def _problem(found: Any) -> str:
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


def add_evidence(folder: Path, **parts: dict[str, Any]) -> None:
    """Put ``parts`` into evidence.json, each in place of the one of its name, and render the card again.

    ``evaluation``: {"protocol", "data", "command", "rows"}, the rows of summary.json for this set, the baselines of its
    IPC and the full data. ``copies``: {"space", "images", "exact": {"train", "validation", "test"}, "near", "median",
    "held_out_median"}, where near counts images closer to a training image than 99 % of held-out real images are;
    with "pairs": true where their picture stands in the folder as ``PAIRS``.

    Raises:
        ArtifactError: the folder holds no set, the evidence there is damaged, or a part lacks what it needs.
    """
    from gendistill.surrogate.card.card import CARD, card, read_entry  # which reads the evidence
    from gendistill.surrogate.manifest import read_manifest

    entry = read_entry(folder, read_manifest(folder))
    evidence = entry.evidence | parts
    problem = _problem(evidence)
    if problem:
        raise ArtifactError(f"The evidence for {folder} is not written: {problem}.")
    text = json.dumps(evidence, indent=2, ensure_ascii=False) + "\n"
    shown = card([replace(entry, evidence=evidence)], format="imagefolder")
    for name, content in ((EVIDENCE, text), (CARD, shown)):
        with whole(folder / name) as partial:
            partial.write_text(content, encoding="utf-8", errors="replace")
