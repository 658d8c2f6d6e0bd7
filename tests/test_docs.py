"""The documents: their links lead somewhere, and the command line takes the commands that they show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from gendistill.cli import COMMANDS, parse
from tests.helpers import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from the titles."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if target.startswith("https:"):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name}" not in index] == ["README.md"]


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of every whole command of a document's code blocks, shell variables filled in."""
    for block in BLOCK.findall(path.read_text(encoding="utf-8")):
        text = re.sub(r"\\\n\s*", "", block)
        for name, value in re.findall(r'^(\w+)="(.*?)"', text, re.MULTILINE):
            text = re.sub(rf"\${name}\b", value.replace("\\", ""), text)
        for line in re.findall(r"^(?:pip install \. && )?gendistill (.*)$", text, re.MULTILINE):
            name, *words = shlex.split(line, comments=True)
            if name in COMMANDS:  # not those of plug-ins, which stand behind --plugin
                yield name, [word for word in words if word != "..."]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_are_understood(path: Path) -> None:
    for name, words in commands(path):
        options = COMMANDS[name].options
        lacking = "output_dir" in options.__dataclass_fields__ and "--output_dir" not in words
        extra = ["--output_dir", "x"] if lacking else []
        assert isinstance(parse(name, [*words, *extra]), options), words


GRAMMAR = ("commands.md", "changelog.md", "results.md")  # what is allowed, and what was run at its time


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_lists_are_written_without_brackets(path: Path) -> None:
    found = re.findall(r"""--[\w.]+ ["'`]\[.*""", path.read_text(encoding="utf-8"))
    assert path.name in GRAMMAR or not found


def test_the_readme_shows_commands() -> None:
    assert len([*commands(ROOT / "README.md")]) > 5
