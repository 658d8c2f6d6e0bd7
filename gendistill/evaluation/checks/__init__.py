"""Checks of a set. Each finds faults: sentences with what was found, how often, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gendistill.evaluation.summary import FindingEntry, Severity

VALUE_RANGE, NOT_RECOGNISED = "value range", "not recognised"  # kinds that two checks may find for one fault
SHUFFLED = "shuffled labels"
SHOWN = 3  # files or classes that a sentence names


@dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        kind: A short name for programs.
        text: A sentence for people.
        severity: ``error`` or ``warning``.
        set: Content hash of the set; None where the fault is of the data.
        numbers: What was measured, for another sentence on the same fault; not stored.
    """

    kind: str
    text: str
    severity: Severity = "error"
    set: str | None = None
    numbers: str = ""

    def to_dict(self) -> FindingEntry:
        return {"kind": self.kind, "text": self.text, "severity": self.severity, "set": self.set}


def list_names(names: Sequence[str], most: int = SHOWN) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, what: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"
