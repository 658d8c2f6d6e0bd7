"""What an evaluation says of a set, out of its summary.json, as evidence for the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gendistill.errors import ArtifactError
from gendistill.surrogate.export.stored import StoredSet

BASELINES, FULL = ("random", "kmeans", "herding", "kcenter"), "full"
OLD = ("random", "kmeans")  # the baselines of a summary without hashes
NEEDED = {"method", "ipc", "mean"}


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of an evaluation, its shape checked.

    Raises:
        ArtifactError: there is none, or it is something else.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"evaluation {path} cannot be read: {error}. Give the summary.json of one.") from error
    rows = summary.get("rows") if isinstance(summary, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and r.keys() >= NEEDED for r in rows):
        raise ArtifactError(f"evaluation {path} is no summary of an evaluation: it has no rows. Give its summary.json.")
    return summary


def evaluation_of(stored: StoredSet, summary: dict[str, Any]) -> dict[str, Any]:
    """The evidence part ``evaluation``: rows of this set, of the baselines at its IPC, and of the full data.

    A row is the set's by the content hash it carries; in a summary without any, by method, stage and IPC.

    Raises:
        ArtifactError: the set was not evaluated there.
    """
    manifest, rows = stored.manifest, summary["rows"]
    named = (manifest.get("method"), manifest.get("stage"), manifest["ipc"])
    hashed = any(row.get("set") for row in rows)
    if hashed:
        content = stored.content_hash()
        own = [row for row in rows if content in _hashes(row)]
    else:
        own = [row for row in rows if (row["method"], row.get("stage"), row["ipc"]) == named]
    if not own:
        raise ArtifactError(
            f"The evaluation has no row of {stored.folder} as it is now (method {named[0]}, stage {named[1]}, IPC "
            f"{named[2]}). Evaluate the set, or leave --evaluation out."
        )
    beside = [row for row in rows if _baseline(row, manifest["ipc"], BASELINES if hashed else OLD) and row not in own]
    data = summary.get("data")
    return {
        "protocol": str(summary.get("protocol", "unknown")),
        "data": str(data.get("name", "unknown") if isinstance(data, dict) else data),
        "command": str(summary.get("command", "unknown")),
        "rows": [*own, *beside],
    }


def _hashes(row: dict[str, Any]) -> list[str | None]:
    """Of the set, or of the several that differ in their synthesis seed, that the row is of."""
    found = row.get("set")
    return found if isinstance(found, list) else [found]


def _baseline(row: dict[str, Any], ipc: int, methods: tuple[str, ...]) -> bool:
    return row["method"] == FULL or (row["method"] in methods and row["ipc"] == ipc and not row.get("set"))
