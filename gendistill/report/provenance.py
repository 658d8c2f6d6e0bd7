"""What the stages recorded of themselves: cost, W2 and versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def costs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and peak memory by stage, with their ``share`` and ``memory_share`` of the largest in per cent."""
    done = [(r["stage"], r["seconds"], r.get("peak_memory_mib", 0)) for r in records if "seconds" in r]
    longest = max((seconds for _, seconds, _ in done), default=0) or 1
    most = max((memory for _, _, memory in done), default=0) or 1
    return [
        {
            "stage": stage,
            "seconds": seconds,
            "memory": memory,
            "share": 100 * seconds / longest,
            "memory_share": 100 * memory / most,
        }
        for stage, seconds, memory in done
    ]


def w2(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Before and after refinement by IPC, with their shares of the largest in per cent."""
    found: dict[str, dict[str, float]] = next((r["w2"] for r in records if r.get("w2")), {})
    most = max((v for pair in found.values() for v in pair.values()), default=0) or 1
    return [
        {
            "ipc": int(ipc),
            **pair,
            "change": pair["after"] / pair["before"] - 1 if pair["before"] else 0.0,
            "share_before": 100 * pair["before"] / most,
            "share_after": 100 * pair["after"] / most,
        }
        for ipc, pair in sorted(found.items(), key=lambda item: int(item[0]))
    ]


def merged_versions(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The version of every library; several where the stages ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, number in record.get("versions", {}).items():
            found.setdefault(name, {})[number] = None
    return {name: ", ".join(numbers) for name, numbers in found.items()}
