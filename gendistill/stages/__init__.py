"""The commands: each reads folders, calls the library, writes a folder, and returns what it wrote and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command wrote and found.

    Attributes:
        text: For people; what was found comes last.
        data: For scripts, printed as JSON with --json.
        problem: The message that the command ends with, if it found that something is wrong.
    """

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
