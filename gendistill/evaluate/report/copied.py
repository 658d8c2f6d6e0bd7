"""The copy check in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gendistill.evaluation.copies import PIXELS, Copies

HARM = {
    "test": "what is measured with this test split is too good",
    "validation": "what is chosen with this validation split is chosen too well",
}


def copied(name: str, copies: Copies) -> str:
    """How many images of the set are real images, split by split."""
    counts, total = copies.counts, f"{copies.images:,}"
    if not any(counts.values()):
        return f"None of the {total} images of {name} is a copy of a real image to the last pixel."
    are = _are(counts["train"], "a copy of a training image", "copies of training images")
    found = [f"{counts['train']:,} of the {total} images of {name} {are}, to the last pixel."]
    for split, harm in HARM.items():
        are = _are(counts[split], f"a copy of a {split} image", f"copies of {split} images")
        found += [f"{counts[split]:,} {are}, which the set must not have seen: {harm}."] * (counts[split] > 0)
    return " ".join(found)


def near(copies: Copies) -> str:
    """How many are closer to a training image than real images usually are."""
    count, measured = int(copies.near.sum()), len(copies.measured)
    those = f"the {measured:,}" if measured == copies.images else f"the {measured:,} of them that were measured"
    close = _are(count, "as close to a training image", "as close to a training image")
    held_out = len(copies.held_out)
    usual = "; of real images, about 1 in 100 would be" * (held_out >= 100)  # of fewer the 1 % are a guess
    return f"{count:,} of {those} {close} as the closest 1 % of the {held_out:,} held-out real images are{usual}."


def copy_line(summary: Mapping[str, Any]) -> str:
    """``Copies.summary`` in one line for the terminal."""
    exact, measured = summary["exact"], summary["measured"]
    leaks = "".join(f", {exact[s]:,} of {s.upper()} images" for s in HARM if exact[s])
    of = f" of {measured:,} measured" if measured < summary["images"] else ""
    return (
        f"{summary['images']:,} images: {exact['train']:,} are copies of training images{leaks}; "
        f"{summary['near']:,}{of} closer than 99 % of held-out real images"
    )


def distance_unit(copies: Copies) -> str:
    """What the distances are between."""
    return "pixels, in grey levels of 0 to 255" if copies.space == PIXELS else copies.space


def _are(count: int, one: str, many: str) -> str:
    return f"is {one}" if count == 1 else f"are {many}"
