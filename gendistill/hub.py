"""From a name to a local folder: of a generator that comes with the package, or of a copy from the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

from gendistill.errors import ArtifactError, ConfigError, did_you_mean, reason

MODEL_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
NO_MODEL = "There is no folder {!r}. Give an existing one, or a Hub id such as owner/name."
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
NO_FILE = "There is no file {}. Give another --pretrained, or --pretrained timm:NAME."
GENERATOR = "Make one with `gendistill finetune`, or give a diffusers pipeline folder."
SHIPPED = Path(str(files(__package__))) / "generators"
ADAPTER = "Copy the adapter again, or make one: `gendistill finetune` with --adaptation difffit or lora."


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


def shipped_generators() -> list[str]:
    """The names of the generators that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def shipped_generator(name: str, revision: str | None = None) -> Path | None:
    """The folder of a generator that comes with the package, or None where none has this name.

    Raises:
        ConfigError: a revision of one.
    """
    if name not in shipped_generators():
        return None
    if revision is not None:
        raise ConfigError(
            f"revision is {revision!r}, but {name} comes with gendistill and has no revisions. Leave revision out, or "
            "give a Hub id."
        )
    return SHIPPED / name


def shipped_names(name: str) -> str:
    """The sentence with their names for the message that there is no generator ``name``, unless that has an owner."""
    known = [] if "/" in name else shipped_generators()
    return f" Generators that come with gendistill: {', '.join(known)}.{did_you_mean(name, known)}" if known else ""


def fetch(
    name: str, revision: str | None, patterns: Sequence[str], kind: Literal["model", "dataset"], hint: str = ""
) -> Path:
    """The local copy of a Hub repository's files that fit ``patterns``, downloaded where needed.

    HF_HUB_OFFLINE is honoured. The message of a failure ends with ``hint``.

    Raises:
        ArtifactError: the Hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        why = f"{type(error).__name__}: {reason(error)}"
        raise ArtifactError(not_loaded(f"{kind} {name}{at}", name, why) + hint) from error


def not_loaded(what: str, name: str, why: str) -> str:
    """The message that the Hub does not give ``what``, which is no folder ``name`` either."""
    return (
        f"There is no folder {name}, and the Hub {what} cannot be loaded: {why} Check the name and the network; "
        "offline (HF_HUB_OFFLINE=1) only what was downloaded before can be used."
    )


def why_absent(name: str, kind: Literal["model", "dataset"]) -> str:
    """Why ``name`` cannot be loaded, in a moment; empty where it is in the caches, or may be on the Hub."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    downloaded = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    if downloaded.is_dir() or (kind == "dataset" and (prepared / name.replace("/", "___")).is_dir()):
        return ""
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=5)
    except RepositoryNotFoundError:
        return f"the Hub has no such {kind}, or it is private"
    except HfHubHTTPError:  # others may be able to read it, with their rights or later
        return ""
    except Exception as error:
        if "Timeout" in type(error).__name__:  # a slow Hub
            return ""
        return reason(error).rstrip(".")
    return ""
