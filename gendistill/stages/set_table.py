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
NEAR = 0.05  # share of near copies worth a line; 0.01 is what held-out images have


def set_table(summary: dict[str, Any], label: dict[str, str]) -> str:
    """The numbers of each set below those of random real sets of its size; ``label`` names sets by content hash."""
    sets = summary.get("sets") or {}
    if not sets:
        return ""
    first = next(iter(sets.values()))
    lines = [
        f"The sets by {first['features']}: means over classes, beside {first['draws']} random real sets of equal size",
        _line("IPC  set", HEADS),
    ]
    beside: list[str] = []
    parted = {key: _parted(label[key]) if key in label else ("", key[:12]) for key in sets}
    for key, found in sorted(sets.items(), key=lambda item: int(parted[item[0]][0] or 0)):
        (ipc, name), values = parted[key], _values(found)
        random = [
            _line(f"{ipc:>3}  random real sets", [_number(v["random"]["mean"]) for v in values]),
            _line("     their spread", [_number(v["random"]["std"], "±") for v in values]),
        ]
        lines += random if random != beside else []
        beside = random
        lines.append(_line(f"     {name}", [_number(v["mean"]) for v in values]))
        lines += [f"       {line}" for line in _unusual(found)]
    return "\n".join(lines)


def _parted(name: str) -> tuple[str, str]:
    """(IPC, name) of "  10  dm"; a row without an IPC has none."""
    ipc, _, rest = name.lstrip().partition("  ")
    return (ipc, rest) if ipc.isdecimal() else ("", name.strip())


def _values(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(found["measures"][name] for name in COLUMNS), found["labels"]["hard"]["agreement"]]


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


def _unusual(found: dict[str, Any]) -> list[str]:
    """Copies of real images, where there are more than chance has, and a part alone that was measured."""
    copies, exact, lines = found["copies"], found["copies"]["exact"], []
    if found["measured"] < found["views"]:
        lines.append(f"measured: {found['measured']:,} of {found['views']:,} images")
    if exact["train"] or copies["near"] > NEAR * copies["measured"]:
        near = f"{copies['near']:,} of {copies['measured']:,} near"
        lines.append(f"copies of training images: {exact['train']:,} exact, {near} (control {copies['control']:.0%})")
    if exact["test"] or copies["near_test"]:
        lines.append(f"copies of test images: {exact['test']:,} exact, {copies['near_test']:,} near")
    return lines
