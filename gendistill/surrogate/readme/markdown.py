"""Text of others in Markdown: names and commands that cannot break a heading, a table, a list or a block of code."""

from __future__ import annotations

import re
import unicodedata

SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~&$!]|(?<!\w)_|_(?!\w))")
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, bidirectional marks, halves of a pair, line ends


def line(text: object) -> str:
    """One visible line: runs of space, line ends and what has no glyph become one space."""
    shown = (" " if _hidden(letter) else letter for letter in str(text))
    return " ".join("".join(shown).split())


def plain(text: object) -> str:
    """As it is written, without markup."""
    return SPECIAL.sub(r"\\\1", line(text))


def code(text: object) -> str:
    """An inline span of code, for running text."""
    shown = line(text)
    if not shown:
        return "(empty)"
    ticks = "`" * (_longest(shown, "`") + 1)
    pad = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def cell(text: object) -> str:
    """The same for a table, where a bar would end the cell."""
    return code(text).replace("|", "\\|")


def block(text: object, language: str = "") -> str:
    """A fenced block of code, line for line."""
    kept = "".join(letter for letter in str(text).replace("\r", "") if letter in "\n\t" or not _hidden(letter))
    fence = "`" * max(3, _longest(kept, "`") + 1)
    return f"{fence}{language}\n{kept}\n{fence}"


def _hidden(letter: str) -> bool:
    return unicodedata.category(letter) in HIDDEN


def _longest(text: str, letter: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(letter)}+", text)), default=0)
