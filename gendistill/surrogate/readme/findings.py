"""What a card says of the evidence for a set, how it was evaluated and whether it holds copies, as Markdown."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from gendistill.surrogate.card.facts import REAL, SPLITS, listed
from gendistill.surrogate.readme.markdown import cell, code, plain

STAGES = {"base": "before minimax", "samples": "sampled", "select": "selected", "refined": "refined"}


def evaluation_command(manifest: dict[str, Any], folder: str, format: str) -> str:
    """What would evaluate a set that was not."""
    set_, target = _place(folder, format), f"{_beside(format)}evaluation"
    return f"gendistill evaluate --surrogate {set_}{_data(manifest)} --output_dir {target}"


def copies_command(manifest: dict[str, Any], folder: str, format: str) -> str:
    """What would look for copies."""
    return f"gendistill show {_place(folder, format)}{_data(manifest)} --output_dir {_beside(format)}looks"


def verification(folders: Sequence[str]) -> str:
    """Commands that compare every file with what was written; those of b2sum need nothing of ours."""
    b2sum = [f"(cd {shlex.quote(name)} && b2sum -c CHECKSUMS)" if name else "b2sum -c CHECKSUMS" for name in folders]
    return "\n".join([f"gendistill verify {shlex.join(name or '.' for name in folders)}", *b2sum])


def privacy(manifests: Sequence[dict[str, Any]]) -> str:
    """What a copy check does not say."""
    real = any(manifest.get("method") in REAL for manifest in manifests)
    expected = "The images are real training images, so copies are what to expect. " if real else ""
    return expected + "The check finds copied images; it is no claim of privacy."


def _place(folder: str, format: str) -> str:
    """Where the set is; commands do not read it in formats of other tools."""
    return shlex.quote(folder or ".") if format == "imagefolder" else "SET"


def _beside(format: str) -> str:
    """Not into the set's own folder."""
    return "../" if format == "imagefolder" else ""


def _data(manifest: dict[str, Any]) -> str:
    name = (manifest.get("data") or {}).get("name")
    return f" --data.name {shlex.quote(str(name))}" if name else ""


def evaluations(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables of rows, one for each protocol and command; a row of several sets' evidence comes once."""
    tables: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for part in filter(None, (evidence.get("evaluation") for evidence in found)):
        protocol, data, command = (str(part.get(name) or "") for name in ("protocol", "data", "command"))
        rows = tables.setdefault((protocol, data, command), [])
        rows += [row for row in part["rows"] if row not in rows]
    return [
        {
            "words": _protocol(protocol, data, rows),
            "rows": [_row(row) for row in sorted(rows, key=_place_of)],
            "command": command,
        }
        for (protocol, data, command), rows in tables.items()
    ]


def _place_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """By size, and what has the same labels together; the full data last."""
    return row["ipc"] is None, row["ipc"] or 0, row.get("recipe") or ""


def _protocol(protocol: str, data: str, rows: Sequence[dict[str, Any]]) -> str:
    networks = dict.fromkeys(str(row["network"]) for row in rows if row.get("network"))
    runs = sorted({len(row["accuracy"]) for row in rows if row.get("accuracy")})
    return (
        "Accuracy"
        + (f" of {listed(map(code, networks))}" if networks else "")
        + " on the test images"
        + (f" of {code(data)}" if data else "")
        + (f", by the protocol {code(protocol)}" if protocol else "")
        + ": mean ± standard deviation"
        + (f" of {listed(runs)} trainings" if runs else "")
        + ", and the 95 % interval of the difference to as many random real images. Sets of this repository are bold."
    )


def _row(row: dict[str, Any]) -> list[str]:
    method = {"full": "all real images", "random": "random real images"}.get(row["method"]) or cell(row["method"])
    space = row.get("space") and (row["space"] if row["method"] == "random" else f"on {row['space']}")
    details = [STAGES.get(row.get("stage") or "", row.get("stage")), space]
    name = ", ".join([method, *(plain(detail) for detail in details if detail)])
    low_high = row.get("ci95_vs_random")
    return [
        f"**{name}**" if row.get("set") else name,
        plain(row.get("recipe") or row.get("labels") or "hard"),
        "all" if row["ipc"] is None else f"{row['ipc']:,}",
        _accuracy(row),
        f"{100 * low_high[0]:+.1f} to {100 * low_high[1]:+.1f}".replace("-", "−") if low_high else "",
        plain(row.get("verdict") or ""),
    ]


def _accuracy(row: dict[str, Any]) -> str:
    mean, std = row.get("mean"), row.get("std")
    if mean is None:
        return ""
    return f"{100 * mean:.1f}" + ("" if std is None or math.isnan(std) else f" ± {100 * std:.1f}")


def copies(config: str, found: dict[str, Any]) -> str:
    """What the copy check found of one set."""
    exact, images = found.get("exact") or {}, found["images"]
    counts = listed(f"{exact[split]:,} of {words} images" for split, words in SPLITS.items() if split in exact)
    near, measured = found["near"], found.get("measured") or images
    unit = " grey levels" if found.get("space") == "pixels" else ""
    return (
        f"Of the {images:,} images of {code(config)}, exact copies are: {counts}. By distance between "
        f"{plain(found['space'])}, {near:,} of {measured:,} ({100 * near / measured:.0f} %) are closer to a training "
        "image than 99 % of held-out real images are. The median distance to the closest training image is "
        f"{found['median']:.3g}{unit}, that of held-out real images {found['held_out_median']:.3g}{unit}."
    )
