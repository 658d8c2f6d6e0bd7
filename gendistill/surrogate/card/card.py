"""The dataset card, README.md: what a set is, what is known of it, and code that reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from gendistill.errors import ArtifactError
from gendistill.surrogate.card import facts
from gendistill.surrogate.card.facts import block, code, plain
from gendistill.surrogate.card.front_matter import front_matter
from gendistill.surrogate.card.loaders import Layout, readers, soft_script
from gendistill.surrogate.image_files import whole

EVIDENCE = "evidence.json"
ROW = {"method", "ipc", "mean"}
PAIRS = "closest_pairs.png"  # of the copy check, where it says that there are ``pairs``
PARTS = {"evaluation": {"rows"}, "copies": {"space", "images", "exact", "near", "median", "held_out_median"}}


def read_evidence(folder: Path) -> dict[str, Any]:
    """The parts measured so far, by name; empty where there are none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / EVIDENCE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Delete it and measure again.") from error
    problem = _problem(found)
    if problem:
        raise ArtifactError(f"{path} is damaged: {problem}. Delete it and measure again.")
    return found


def _problem(found: Any) -> str:
    """What evidence lacks that a card needs."""
    if not isinstance(found, dict):
        return "it is no JSON object"
    for name, needed in PARTS.items():
        part = found.get(name)
        if part is not None and (not isinstance(part, dict) or not needed <= part.keys()):
            return f"{name} needs {', '.join(sorted(needed))}"
    rows = (found.get("evaluation") or {}).get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= ROW for row in rows):
        return f"every row of evaluation needs {', '.join(sorted(ROW))}"
    return ""


def add_evidence(folder: Path, **parts: dict[str, Any]) -> None:
    """Put ``parts`` into evidence.json, each in place of the one of its name, and render the card again.

    ``evaluation``: {"protocol", "data", "command", "rows"}, the rows of summary.json for this set, the baselines of its
    IPC and the full data. ``copies``: {"space", "images", "exact": {"train", "validation", "test"}, "near", "median",
    "held_out_median"}, where near counts images closer to a training image than 99 % of held-out real images are;
    with "pairs": true where their picture stands in the folder as ``PAIRS``.

    Raises:
        ArtifactError: the folder holds no set, the evidence there is damaged, or a part lacks what it needs.
    """
    from gendistill.surrogate.manifest import read_manifest

    entry = read_entry(folder, read_manifest(folder))
    evidence = entry.evidence | parts
    problem = _problem(evidence)
    if problem:
        raise ArtifactError(f"The evidence for {folder} is not written: {problem}.")
    text = json.dumps(evidence, indent=2, ensure_ascii=False) + "\n"
    shown = card([replace(entry, evidence=evidence)], format="imagefolder")
    for name, content in ((EVIDENCE, text), (CARD, shown)):
        with whole(folder / name) as partial:
            partial.write_text(content, encoding="utf-8", errors="replace")


CARD = "README.md"


@dataclass(frozen=True)
class Entry:
    """One set of a card.

    Attributes:
        config: Its name there, such as ipc-10.
        folder: Its path as seen from the card, empty where both are in one folder.
        manifest: manifest.json.
        evidence: evidence.json, or nothing.
        soft_labels: soft_labels.json, or nothing.
    """

    config: str
    folder: str
    manifest: dict[str, Any]
    evidence: dict[str, Any] = field(default_factory=dict)
    soft_labels: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> str:
        """Where the picture of the closest pairs is, as seen from the card."""
        return f"{self.folder}/{PAIRS}".lstrip("/")


def read_entry(source: Path, manifest: dict[str, Any], *, config: str | None = None, folder: str = "") -> Entry:
    """What a card needs of the set in ``source``; its config is ``ipc-K`` unless another is given.

    Raises:
        ArtifactError: its soft labels or its evidence are damaged.
    """
    return Entry(config or f"ipc-{manifest['ipc']}", folder, manifest, read_evidence(source), _soft(source))


def _soft(source: Path) -> dict[str, Any]:
    path = source / soft_labels.RECORD
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Copy the set again, or label it again.") from error
    return found


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """README.md of a set from its manifest, and from soft_labels.json and evidence.json where they are there."""
    text = card([read_entry(folder, manifest)], format="imagefolder")
    with whole(folder / CARD) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def card(entries: Sequence[Entry], *, format: str) -> str:
    """The README of sets written as ``imagefolder``, ``parquet``, ``webdataset`` or ``ddranking``.

    The largest set is the one that is loaded where none is named, and the one that the code shows.
    """
    default = max(entries, key=lambda entry: entry.manifest["stored_images"])
    manifests = [entry.manifest for entry in entries]
    title = facts.title(manifests)
    text = _template().render(
        title=title,
        format=format,
        entries=entries,
        default=default,
        manifests=manifests,
        groups=_groups(entries, default, format),
        labelled=_groups(entries, default, format, soft=True),
    )
    return front_matter(entries, default, title, format) + "\n" + text.rstrip() + "\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code, "plain": plain, "block": block}
    source = files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(source, globals={"facts": facts, "findings": facts})


@dataclass(frozen=True)
class Group:
    """Sets that the same scripts read, which are shown for the first one: [(library, script)]."""

    entries: list[Entry]
    scripts: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        return [entry.config for entry in self.entries]


def _groups(entries: Sequence[Entry], default: Entry, format: str, *, soft: bool = False) -> list[Group]:
    """By how they are read, or, of those with ``soft`` labels, by what these are; the default's group first."""
    found: dict[str, list[Entry]] = {}
    for entry in (default, *(entry for entry in entries if entry is not default)):
        if entry.soft_labels or not soft:
            key = [repr(Layout.of(entry.manifest)), entry.soft_labels if soft else {}]
            found.setdefault(json.dumps(key, sort_keys=True), []).append(entry)
    return [Group(alike, _scripts(alike[0], entries, default, format, soft)) for alike in found.values()]


def _scripts(entry: Entry, entries: Sequence[Entry], default: Entry, format: str, soft: bool) -> list[tuple[str, str]]:
    layout, config = Layout.of(entry.manifest), entry.config if len(entries) > 1 else None
    if not soft:
        return list(readers(format, layout, entry.folder, config, entry is default))
    script = soft_script(format, layout, entry.folder, config, entry.soft_labels)
    return [("", script)] if script else []
