"""Surrogate sets on the Hub: from an id to the local folder of one set."""

from __future__ import annotations

import re
from pathlib import Path

from gendistill.errors import ArtifactError
from gendistill.hub import fetch, local_folder
from gendistill.surrogate import soft_labels
from gendistill.surrogate.card.entry import EVIDENCE, PAIRS
from gendistill.surrogate.export.formats import RECORD, read_record
from gendistill.surrogate.manifest import CHECKSUMS, MANIFEST, TRAIN

FILES = (MANIFEST, CHECKSUMS, EVIDENCE, PAIRS, f"{TRAIN}/*", soft_labels.TENSORS, soft_labels.RECORD)
DATASET = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<part>[\w-][\w.-]*))?")


def find_surrogate(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a set: ``source`` itself, or the local copy of a dataset on the Hub, downloaded where needed.

    Args:
        source: A folder, or a Hub id such as ``owner/name``, or ``owner/name/ipc-10`` where it holds several sets; an
            existing path goes first. Of the repository only that set's files are fetched.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        ArtifactError: no such folder, the Hub does not give it, or it cannot be read as one set.
        ConfigError: a revision of a folder.
    """
    name = str(source)
    folder = local_folder(name, revision, "the folder of a surrogate set")
    if folder is None:
        found = DATASET.fullmatch(name)
        if not found:
            raise ArtifactError(
                f"There is no folder {name!r}. Give an existing one such as RUN/samples/ipc-10, or a Hub dataset such "
                "as owner/name or owner/name/ipc-10."
            )
        part = found["part"] or ""
        patterns = (RECORD, *(f"{part}/{file}" if part else file for file in FILES))
        folder = fetch(found["name"], revision, patterns, "dataset") / part
        _check(folder, name)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(f"The Hub dataset {name} holds no surrogate set: it has no {MANIFEST}.")
        return folder
    _check(folder, name)
    return folder


def _check(folder: Path, name: str) -> None:
    """Refuse an export that is not one set as it was made."""
    record, parent = read_record(folder), read_record(folder.parent)
    if record is None and parent is not None and folder.name in parent["sets"]:
        record = parent
    if record is None:
        return
    if record["format"] != "imagefolder":
        raise ArtifactError(
            f"{name} was exported as {record['format']}, for other tools. Give the set it was made from, or an export "
            "as imagefolder."
        )
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{name} holds several sets; give one: {', '.join(f'{name}/{s}' for s in record['sets'])}.")
