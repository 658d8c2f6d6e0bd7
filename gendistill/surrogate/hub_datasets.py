"""Surrogate sets on the Hub: from an id to the local folder of one set, and from an export to a dataset there."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from gendistill.config.paths import HUB_ID, NO_SET
from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.hub import fetch, local_folder
from gendistill.io import read_json
from gendistill.surrogate import soft_labels
from gendistill.surrogate.card.card import CARD
from gendistill.surrogate.card.entry import EVIDENCE, PAIRS
from gendistill.surrogate.manifest import CHECKSUMS, MANIFEST, TRAIN
from gendistill.surrogate.stored import RECORD, read_record

FILES = (MANIFEST, CHECKSUMS, EVIDENCE, PAIRS, f"{TRAIN}/*", soft_labels.TENSORS, soft_labels.RECORD)


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
        found = HUB_ID.fullmatch(name)
        if not found:
            raise ArtifactError(NO_SET.format(name))
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


# a path from the root, the home or the current folder, inside a text; not the // of an address
LOCAL = re.compile(r"(?<![\w./-])(?:~\w*|\.{1,2})?/(?![/\s])[^,;\[\]'\"\n]*")
# in a command, not after a space inside a word, as in a class called "cat /dog": words and parts of lists are paths
LOCAL_WORD = re.compile(rf"(?<![^\s=,:\[{{(\"'|]\s){LOCAL.pattern}")
NAMES = ("classes", "folders", "versions")  # which are no paths, whatever they look like


def without_local_paths(value: Any, *, relative: bool = True) -> Any:
    """A value of manifest.json, evidence.json or export.json with the last part alone of every path on this computer.

    In a command every word is looked at. With ``relative`` also paths from the current folder that are there now.
    """
    short = partial(_short, relative=relative)
    short_word = partial(_short, relative=relative, local=LOCAL_WORD)
    if isinstance(value, dict):
        return {
            k: _short_command(v, short_word)
            if k == "command"
            else v
            if k in NAMES
            else without_local_paths(v, relative=relative)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [without_local_paths(one, relative=relative) for one in value]
    return short(value) if isinstance(value, str) else value


def _short_command(command: object, short: Callable[[str], str]) -> object:
    try:
        return shlex.join(map(short, shlex.split(command))) if isinstance(command, str) else command
    except ValueError:  # no command of ours
        return short(str(command))


def _short(text: str, *, relative: bool, local: re.Pattern[str] = LOCAL) -> str:
    """The text with names for paths."""
    option, is_set, value = text.rpartition("=")
    if relative and "/" in value and not LOCAL.match(value) and os.path.exists(value):
        return f"{option}{is_set}{Path(value).name}"
    return local.sub(lambda found: PurePath(found[0].rstrip()).name, text)


# Everything that exports consist of, so that none of an earlier one stays among the new files
OURS = (
    "train/*", "train-*.parquet", "train-*.tar", "?????/*.png", "*.pt", "manifest.json", "CHECKSUMS", "evidence.json",
    "soft_labels.*",
)  # fmt: skip
PATTERNS = [*OURS, *(f"ipc-*/{name}" for name in OURS)]
START = {".gitattributes", CARD}  # what a repository that was just made on the web has


def push_to_hub(folder: str | Path, name: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload what ``export`` wrote to the Hub dataset ``name`` (owner/name), in one commit.

    An earlier export there is replaced; a repository with other files is refused.

    Args:
        folder: What ``export`` wrote.
        name: Of the dataset, as owner/name.
        revision: The branch; null is main.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: no valid id, the Hub is switched off, or nobody is logged in.
        ArtifactError: the folder is no export, the repository holds other files, or the upload fails.
    """
    check_push(name)
    if read_record(Path(folder)) is None:
        raise ArtifactError(f"{folder} is not an export: it has no {RECORD}. Write one with gendistill.export.")
    return push(Path(folder), name, revision=revision, private=private)


def _check_public(folder: Path) -> None:
    """Refuse an export that an older version wrote with paths of this computer.

    Raises:
        ArtifactError: a file names one.
    """
    for path in (found for name in (MANIFEST, EVIDENCE, RECORD) for found in folder.rglob(name)):
        found = read_json(path, kind="an export", fix="Export the set again.")
        if found != without_local_paths(found, relative=False):  # the export itself is there by now
            raise ArtifactError(f"{path} names folders of this computer, which others should not see. Export it again.")


def check_push(name: str) -> None:
    """Check all that a push needs and that can be checked without the network.

    Raises:
        ConfigError: no valid id, the Hub is switched off, or nobody is logged in.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        problem = "" if name.count("/") == 1 else "It names no owner."
    except HFValidationError as error:
        problem = reason(error)
    if problem:
        raise ConfigError(f"push_to_hub is {name!r}; expected a dataset id such as owner/name. {problem}")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"push_to_hub is {name!r}, but HF_HUB_OFFLINE switches the Hub off. Unset it, or leave push_to_hub out."
        )
    if get_token() is None:
        raise ConfigError(
            f"push_to_hub is {name!r}, but you are not logged in to the Hub. Run `hf auth login` or set HF_TOKEN."
        )


def push(folder: Path, name: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload an export in one commit, in the place of an earlier export there; returns where it can be seen.

    Raises:
        ArtifactError: the repository holds other files, or the Hub refuses it; ``folder`` is as it was.
    """
    from huggingface_hub import HfApi

    _check_public(folder)
    api, kind = HfApi(), "dataset"
    try:
        api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(name, repo_type=kind, branch=revision, exist_ok=True)
        present = set(api.list_repo_files(name, repo_type=kind, revision=revision))
        foreign = sorted(present - START)
        if RECORD not in present and foreign:
            raise ArtifactError(f"it holds files that are no export of this tool, such as {foreign[0]}.")
        commit = api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            revision=revision,
            commit_message="Export of gendistill",
            delete_patterns=PATTERNS if RECORD in present else None,
        )
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        what = "" if isinstance(error, ArtifactError) else f"{type(error).__name__}: "
        raise ArtifactError(
            f"{folder} is written, but the Hub dataset {name}{at} refused it: {what}{reason(error)} Correct this and "
            f"give the command again with --overwrite, or upload the folder yourself: hf upload {name} {folder} . "
            "--repo-type dataset"
        ) from error
    return str(commit.commit_url)
