"""Short Python scripts, put together from lines."""

from __future__ import annotations

import json

SCALE = "# [0, 255] to [-1, 1]: x / 127.5 - 1"
DECODE = "from gendistill.surrogate.multi_formation import Decoded"


def script(standard: list[str], others: list[str], ours: list[str], *body: list[str]) -> str:
    """Imports in their three groups, then the lines of the body."""
    imports = "\n\n".join("\n".join(group) for group in (standard, others, ours) if group)
    return imports + "\n\n" + "\n".join(line for part in body for line in part)


def only(condition: object, *lines: str) -> list[str]:
    """The lines where they are needed."""
    return list(lines) if condition else []


def transforms(*, grey: bool = False) -> str:
    """The import for ``scaling``; ``grey`` where a reader makes RGB of all images."""
    return f"from torchvision.transforms import Compose, {'Grayscale, ' if grey else ''}Normalize, ToTensor"


def scaling(*, grey: bool = False) -> str:
    return f"transform = Compose([{'Grayscale(), ' if grey else ''}ToTensor(), Normalize(0.5, 0.5)])  {SCALE}"


def manifest(folder: str) -> str:
    return f'json.loads(Path({path(folder, "manifest.json")}).read_text(encoding="utf-8"))'


def path(folder: str, name: str = "") -> str:
    """A path below the card's folder, as a Python string."""
    return text("/".join(part for part in (folder, name) if part) or ".")


def text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
