"""What was measured of the sets, and the faults found, as aligned text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "vendi": "Vendi",
    "representativeness": "represent.",
    "crowding": "crowding",
}
HEADS = (*COLUMNS.values(), "agreement")


def set_table(summary: dict[str, Any], label: dict[str, str]) -> str:
    """The numbers of each set above those of random real sets of its size; ``label`` names sets by content hash."""
    sets = summary.get("sets") or {}
    if not sets:
        return ""
    first = next(iter(sets.values()))
    lines = [
        f"The sets by {first['features']}: means over classes, beside {first['draws']} random real sets of equal size",
        _line("IPC  set", HEADS),
    ]
    for key, found in sets.items():
        values = [*(found["measures"][name] for name in COLUMNS), found["labels"]["hard"]["agreement"]]
        lines.append(_line(label.get(key, key[:12]), [_number(v["mean"]) for v in values]))
        lines.append(_line("     random real sets", [_number(v["random"]["mean"]) for v in values]))
        lines.append(_line("     their spread", [_number(v["random"]["std"], "±") for v in values]))
        lines += [f"     {line}" for line in _copies(found)]
    return "\n".join(lines)


def finding_lines(summary: dict[str, Any], label: dict[str, str]) -> str:
    """A paragraph for each finding, errors first."""
    found = sorted(summary.get("findings") or [], key=lambda f: f["severity"] != "error")
    return "\n".join(
        textwrap.fill(f"{f['severity'].upper()} {_where(f, label)}: {f['text']}", 118, subsequent_indent="  ")
        for f in found
    )


def _where(finding: dict[str, Any], label: dict[str, str]) -> str:
    return "the data" if finding["set"] is None else label.get(finding["set"], finding["set"][:12])


def _line(name: str, values: Sequence[str]) -> str:
    return f"{name:<28}" + "".join(
        f"{value:>{max(9, len(head)) + 1}}" for value, head in zip(values, HEADS, strict=True)
    )


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{sign}{value:.2g}" if abs(value) < 0.1 else f"{sign}{value:.3g}"


def _copies(found: dict[str, Any]) -> list[str]:
    copies, exact = found["copies"], found["copies"]["exact"]
    few = found["measured"] < found["views"]
    lines = [f"measured: {found['measured']:,} of {found['views']:,} images"] if few else []
    train = f"copies of training images: {exact['train']:,} exact, {copies['near']:,} of {copies['measured']:,} near"
    test = f"of test images: {exact['test']:,} exact, {copies['near_test']:,} near"
    return [*lines, f"{train}; {test} (control {copies['control']:.0%})"]
