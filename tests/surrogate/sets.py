"""Small sets for tests, and names that classes should not have."""

from __future__ import annotations

from typing import Any

import torch

from gendistill.surrogate.multi_formation import Factor
from gendistill.surrogate.set import SurrogateSet

NASTY = (
    "a/b", "/etc", "..", "../up", ".", ".hidden", "a.b.", "größe", "猫", "with space", " lead", "trail ", "100%",
    "a%2Fb", "x" * 300, "é" * 90, "", "C:\\dir", "star*?", "a[1]", "{x}", "~user", "line\nbreak", "null\0byte",
    "class-00001", "__dunder__", "#1",
)  # fmt: skip


def make(
    classes: tuple[str, ...] = ("ant", "bee", "cow"), ipc: int = 2, channels: int = 3, factor: Factor = 1, **meta: Any
) -> SurrogateSet:
    """Random images of 8 px, each one different."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(classes) * ipc, channels, 8, 8), generator=rng, dtype=torch.uint8)
    return SurrogateSet(images, torch.arange(len(classes)).repeat_interleave(ipc), classes, meta, factor)
