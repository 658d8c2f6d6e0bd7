"""What refinement did to each set, for the terminal: the distance to the real images, and what the gate refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def moved(target: Path) -> Iterator[str]:
    """A line of each refined set below ``target``: squared W2 in the ground space, mean over the classes."""
    folders = sorted(target.glob("ipc-*/manifest.json"), key=lambda path: int(path.parent.name.removeprefix("ipc-")))
    for path in folders:
        told = json.loads(path.read_text(encoding="utf-8"))
        yield f"{path.parent.name}: {_distance(told['w2'])}{_gate(told.get('gate'))}."


def _distance(w2: dict[str, float]) -> str:
    before, after = w2["before"], w2["after"]
    moved = f"{before:.3g}" if after == before else f"{before:.3g} -> {after:.3g}"
    rose = ", farther than they began" if after > before else ""
    later = [f"{w2[name]:.3g} once {name}" for name in ("packed", "matched") if name in w2]
    return ", ".join([f"W2^2 to the real images {moved}{rose}", *later])


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    return f"; the gate kept {gate['kept']} of {gate['images']} images and refused {gate['refused_classes']} classes"
