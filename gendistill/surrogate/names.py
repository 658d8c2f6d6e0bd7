"""Names on disk: ``train/<class>/<00000>.png`` that every file system takes, whatever the classes are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote

TRAIN = "train"
LONGEST_NAME = 120  # bytes of a folder name that every file system takes, after quoting
# datasets skips a leading __, class-00000 is the stand-in of an unusable name, and Windows keeps the devices' names
RESERVED = re.compile(r"__|class-\d{5}|(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def image_name(index: int) -> str:
    return f"{index:05d}.png"


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """One safe folder name a class, told apart also where a file system ignores case.

    Names are percent-encoded where needed; the index stands in for what is too long, empty or taken.
    """
    taken: set[str] = set()
    found = []
    for label, name in enumerate(classes):
        safe = _quoted(name)
        if not safe or len(safe) > LONGEST_NAME or unquote(safe) != name or safe.casefold() in taken:
            safe = f"class-{label:05d}"
        taken.add(safe.casefold())
        found.append(safe)
    return tuple(found)


def _quoted(name: str) -> str:
    safe = quote(name, safe=" !#$&'()+,-;=@[]^_`{}~.", errors="replace").strip()
    if safe.startswith(".") or RESERVED.match(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    return safe[:-1] + "%2E" if safe.endswith(".") else safe  # which Windows cuts off
