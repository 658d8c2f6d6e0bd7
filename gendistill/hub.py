"""From a name on the Hugging Face Hub to a local copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gendistill.errors import ArtifactError, ConfigError, reason


def local_folder(source: str, revision: str | None, expected: str) -> Path | None:
    """The folder ``source``, or None where nothing of that name is here, so that it can only be a Hub id.

    Raises:
        ArtifactError: it is a file.
        ConfigError: a revision of a folder.
    """
    path = Path(source).expanduser()
    if source and path.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision is {revision!r}, but {source} is a folder, which has no revisions. Leave revision out, or "
                "give a Hub id."
            )
        return path
    if source and path.exists():
        raise ArtifactError(f"{source} is a file; expected {expected} or a Hub id.")
    return None


def fetch(name: str, revision: str | None, patterns: Sequence[str], kind: Literal["model", "dataset"]) -> Path:
    """The local copy of a Hub repository's files that fit ``patterns``, downloaded where needed.

    HF_HUB_OFFLINE is honoured.

    Raises:
        ArtifactError: the Hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise ArtifactError(
            f"There is no folder {name}, and the Hub {kind} {name}{at} cannot be loaded: {type(error).__name__}: "
            f"{reason(error)} Check the name and the network; offline (HF_HUB_OFFLINE=1) only what was "
            "downloaded before can be used."
        ) from error


def why_no_dataset(name: str) -> str:
    """Why the dataset ``name`` cannot be loaded, in a moment; empty where it is in the caches, or may be on the Hub."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    if downloaded.is_dir() or (prepared / name.replace("/", "___")).is_dir():
        return ""
    try:
        HfApi().dataset_info(name, timeout=5)
    except RepositoryNotFoundError:
        return "the Hub has no such dataset, or it is private"
    except HfHubHTTPError:  # others may be able to read it, with their rights or later
        return ""
    except Exception as error:
        if "Timeout" in type(error).__name__:  # a slow Hub
            return ""
        return reason(error).rstrip(".")
    return ""
