"""The robust scores of a summary as text, beneath its accuracies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def score_table(summary: dict[str, Any], label: Callable[[dict[str, Any]], str]) -> str:
    """A line a score, under a heading; empty unless there are soft labels, or rows with and without augmentation."""
    entries = summary.get("scores") or []
    soft = any(entry["labels"] != "hard" for entry in entries)
    if not soft and not any(entry["ars"] for entry in entries):
        return ""
    width = 2 + max(len(entry["recipe"] or "hard") for entry in entries)
    several = len({entry["network"] for entry in entries}) > 1
    lines = [
        "",
        "Scores from 0 to 1: higher is better; 0.269 is alpha = 0. HLR (lower is better) and IOR in points.",
        f"{'IPC':>4}  {'set':<30}{'labels':<{width}} {'LRS':>13}  {'HLR':>6}  {'IOR':>6}  {'ARS':>13}"
        + ("  network" if several else ""),
    ]
    for entry in sorted(entries, key=lambda e: e["ipc"]):
        lrs, ars = entry["lrs"], entry["ars"] or {}
        lines.append(
            f"{entry['ipc']:>4}  {label(entry):<30}{entry['recipe'] or 'hard':<{width}} {_score(lrs):>13}"
            f"  {_points(lrs['hlr']):>6}  {_points(lrs['ior']):>6}  {_score(ars):>13}"
            + (f"  {entry['network']}" if several else "")
        )
    missing = dict.fromkeys(sentence for entry in entries for sentence in entry["missing"])
    return "\n".join([*lines, *missing])


def _score(found: dict[str, Any]) -> str:
    if found.get("score") is None:
        return ""
    return f"{found['score']:.3f}" + ("" if found["std"] is None else f" ± {found['std']:.3f}")


def _points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.1f}"
