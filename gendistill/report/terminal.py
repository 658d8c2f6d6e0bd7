"""An evaluation's rows as aligned text of at most 120 columns: by network and kind of labels, hard ones first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH = 31  # of a row's name

LABELS = {
    "base": "generator, before minimax",
    "samples": "generator, minimax",
    "select": "+ selection",
    "refined": "+ refinement",
}
CHANGED = {"select": ", selected", "refined": ", refined"}
NAMED = {
    "random": "random real images",
    "full": "all real images",
    "kmeans": "k-means",
    "kcenter": "k-centre",
}


def table(summary: dict[str, Any]) -> str:
    """The rows, accuracies in per cent. Images are the stored ones, and what they decode to where that is more."""
    rows = sorted(summary["rows"], key=lambda r: (r["ipc"] is None, r["ipc"] or 0))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: _recipe(r) != "hard"):
        told = "augmented" if row.get("augment") else "not augmented"
        groups.setdefault((row["network"], f"labels {_recipe(row)}", told), []).append(row)
    differ = [len(set(names)) > 1 for names in zip(*groups, strict=True)]
    legacy, blocks = any("legacy_best" in row for row in rows), []
    for names, group in sorted(groups.items(), key=lambda item: _first(item[0][0], rows)):
        told = "; ".join(name for name, differs in zip(names, differ, strict=True) if differs)
        blocks.append("\n".join([*([f"{told}:"] if told else []), _head(legacy), *(_line(r, legacy) for r in group)]))
    return "\n".join(["\n\n".join(blocks), *_notes(rows)])


def _first(network: str, rows: Sequence[dict[str, Any]]) -> int:
    return next(i for i, row in enumerate(rows) if row["network"] == network)


def row_label(row: dict[str, Any]) -> str:
    """What a reader calls the row."""
    if row["method"] == "generative":
        return LABELS.get(row["stage"], str(row["stage"]))
    if row["method"] == "random" and row.get("space"):
        return f"random images, {row['space']}"
    name = row.get("name") or NAMED.get(row["method"], row["method"])
    name += CHANGED.get(str(row.get("stage")), "") if row["method"] in NAMED else ""
    return f"{name} ({row['space']})" if row.get("space") else name


def _head(legacy: bool) -> str:
    return (
        f"{'IPC':>4}  {'set':<{WIDTH}} {'images':>11} {'bytes':>7}  {'accuracy %':>12}"
        f"{'  (best)' if legacy else ''}  {'95 % vs random':>16}  verdict"
    )


def _line(row: dict[str, Any], legacy: bool) -> str:
    interval, label = row["ci95_vs_random"], row_label(row)
    gain = f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""
    seeds = f" x{row['synthesis_seeds']}" if row.get("synthesis_seeds", 1) > 1 else ""
    room = WIDTH - len(seeds)
    label = (label if len(label) <= room else label[: room - 1] + "…") + seeds
    best = f"  ({100 * sum(row['legacy_best']) / len(row['legacy_best']):4.1f})" if legacy else ""
    return (
        f"{row['ipc'] or '':>4}  {label:<{WIDTH}} {_images(row):>11} {_bytes(row):>7}  {100 * row['mean']:5.1f} ± "
        f"{100 * row['std']:4.1f}{best}  {gain:>16}  {row['verdict']}"
    )


def _images(row: dict[str, Any]) -> str:
    stored, decoded = row.get("stored_images"), row.get("decoded_images")
    if stored is None:
        return ""
    return _short(stored) if stored == decoded else f"{_short(stored)}→{_short(decoded or 0)}"


def _bytes(row: dict[str, Any]) -> str:
    found = row.get("bytes")
    return _short(sum(found.values()), "B") if found else ""


def _short(number: float, unit: str = "") -> str:
    """At most five characters before the unit: 999, 12.3k, 1.25M."""
    if number < 1000:
        return f"{number:g}{unit}"
    for prefix in "kMGT":
        number /= 1000
        if number < 999.5 or prefix == "T":
            return f"{number:.3g}{prefix}{unit}"
    raise AssertionError


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the columns do not say of themselves."""
    runs, cached = sum(len(row["accuracy"]) for row in rows), sum(row.get("cached", 0) for row in rows)
    notes = [_beside_bytes(row) for row in rows if row.get("ci95_vs_equal_bytes")]
    if any(row.get("synthesis_seeds", 1) > 1 for row in rows):
        notes.append("xN: N synthesis seeds in one row, whose interval covers further seeds.")
    if any("legacy_best" in row for row in rows):
        notes.append("(best): the highest of several looks at the test images, which no verdict reads.")
    if cached:
        notes.append(f"{cached} of {runs} runs come from earlier evaluations (baseline_cache).")
    return ["", *notes] if notes else []


def _beside_bytes(row: dict[str, Any]) -> str:
    low, high = row["ci95_vs_equal_bytes"]
    named = f"{row_label(row)} at IPC {row['ipc']}" + ("" if _recipe(row) == "hard" else f", labels {_recipe(row)}")
    return f"{named}, against random images of equal bytes: {100 * low:+.1f} to {100 * high:+.1f}."


def _recipe(row: dict[str, Any]) -> str:
    return row.get("recipe") or "hard"
