"""export.json: by which an export is known again, and what says how it is to be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD, FORMAT = "export.json", 1


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished export, or None: {"export": 1, "format", "sets": {config: {"folder", "checksums"}}}."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(record, dict) and record.get("export") == FORMAT
    return record if known and isinstance(record.get("sets"), dict) and "format" in record else None
