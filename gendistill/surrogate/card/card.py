"""The dataset card, README.md: what a set is, what is known of it, and code that reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Unpack

import jinja2
import yaml

from gendistill.errors import ArtifactError
from gendistill.io import mismatch, write_json, write_text
from gendistill.surrogate.card import facts
from gendistill.surrogate.card.entry import EVIDENCE, CardEntry, Evidence, read_entry
from gendistill.surrogate.card.facts import block, code, plain, terms
from gendistill.surrogate.card.loaders import Layout, features, readers, soft_script
from gendistill.surrogate.manifest import TRAIN, Manifest, read_manifest


def add_evidence(folder: Path, **parts: Unpack[Evidence]) -> None:
    """Put ``parts`` into evidence.json, each in place of the one of its name, and render the card again.

    Raises:
        ArtifactError: the folder holds no set, the evidence there is damaged, or a part lacks what it needs.
    """
    entry = read_entry(folder, read_manifest(folder))
    evidence: Evidence = {**entry.evidence, **parts}
    problem = mismatch(Evidence, evidence)
    if problem:
        raise ArtifactError(f"The evidence for {folder} is not written: {problem}.")
    shown = card([replace(entry, evidence=evidence)], format="imagefolder")
    write_json(folder / EVIDENCE, evidence, hashed=True)
    write_text(folder / CARD, shown, errors="replace")


CARD = "README.md"


def write_card(folder: Path, manifest: Manifest) -> None:
    """README.md of a set from its manifest, and from soft_labels.json and evidence.json where they are there."""
    write_text(folder / CARD, card([read_entry(folder, manifest)], format="imagefolder"), errors="replace")


def card(entries: Sequence[CardEntry], *, format: str) -> str:
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


FILES = {"imagefolder": f"{TRAIN}/**", "parquet": "train-*.parquet", "webdataset": "train-*.tar"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def front_matter(entries: Sequence[CardEntry], default: CardEntry, title: str, format: str) -> str:
    """YAML between its two lines; ``default`` is what is loaded where no config is named."""
    manifests = [entry.manifest for entry in entries]
    methods = dict.fromkeys(str(m["method"]) for m in manifests if m.get("method"))
    front: dict[str, Any] = {
        **terms(manifests).front_matter,
        "pretty_name": title,
        "task_categories": ["image-classification"],
        "size_categories": [_size(sum(m["stored_images"] for m in manifests))],
        "tags": ["dataset-distillation", "surrogate", "gendistill", *methods],
    }
    if format in FILES:
        front["configs"] = [_config(entry, format, entry is default and len(entries) > 1) for entry in entries]
    else:
        front["viewer"] = False
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=2**16)}---\n"


def _config(entry: CardEntry, format: str, default: bool) -> dict[str, Any]:
    """How datasets reads the set.

    datasets finds what it has read before by the name of the folder and by these fields, not by the files: without the
    checksum in ``description`` two sets in folders of one name, such as ipc-10, would both be the first one.
    """
    path = "/".join(part for part in (entry.folder, FILES[format]) if part)
    config: dict[str, Any] = {
        "config_name": entry.config,
        **({"default": True} if default else {}),
        "description": f"images and labels of checksum {entry.manifest['checksums']}",
        "data_files": [{"split": TRAIN, "path": path}],
    }
    layout = Layout.of(entry.manifest)
    if format == "imagefolder" and (layout.single or not layout.sorted):
        config |= {"drop_labels": False, "features": features(entry.manifest["folders"])}
    return config


def _size(images: int) -> str:
    return next((name for limit, name in SIZES if images < limit), "1M<n<10M")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": code, "plain": plain, "block": block}
    source = files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(source, globals={"facts": facts, "findings": facts})


@dataclass(frozen=True)
class Group:
    """Sets that the same scripts read, which are shown for the first one: [(library, script)]."""

    entries: list[CardEntry]
    scripts: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        return [entry.config for entry in self.entries]


def _groups(entries: Sequence[CardEntry], default: CardEntry, format: str, *, soft: bool = False) -> list[Group]:
    """By how they are read, or, of those with ``soft`` labels, by what these are; the default's group first."""
    found: dict[str, list[CardEntry]] = {}
    for entry in (default, *(entry for entry in entries if entry is not default)):
        if entry.soft_labels or not soft:
            key = [repr(Layout.of(entry.manifest)), entry.soft_labels if soft else {}]
            found.setdefault(json.dumps(key, sort_keys=True), []).append(entry)
    return [Group(alike, _scripts(alike[0], entries, default, format, soft)) for alike in found.values()]


def _scripts(
    entry: CardEntry, entries: Sequence[CardEntry], default: CardEntry, format: str, soft: bool
) -> list[tuple[str, str]]:
    layout, config = Layout.of(entry.manifest), entry.config if len(entries) > 1 else None
    if not soft:
        return list(readers(format, layout, entry.folder, config, entry is default))
    script = soft_script(format, layout, entry.folder, config, entry.soft_labels)
    return [("", script)] if script else []
