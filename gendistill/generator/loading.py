"""Models of others: from a folder or a Hub id to a folder, and from a folder to a model in fp32, safetensors alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gendistill.errors import ArtifactError
from gendistill.hub import fetch, local_folder, reason

PATTERNS = ("*.json", "*.safetensors", "README.md")
BUFFERS = ("pos_embed.pos_embed", "position_ids")  # computed, and left out or kept by different versions
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def resolve_model_folder(source: str, revision: str | None = None, patterns: Sequence[str] = PATTERNS) -> Path:
    """The folder itself, or the local copy of a Hub repository, downloaded where needed; HF_HUB_OFFLINE is honoured.

    Args:
        source: A folder, or a Hub id such as ``facebook/DiT-XL-2-256``; an existing path goes first.
        revision: Branch, tag or commit of a Hub id.
        patterns: Which files of a Hub repository to fetch.

    Raises:
        ArtifactError: no such folder, or the Hub does not give it.
        ConfigError: a revision of a folder.
    """
    path = local_folder(source, revision, "a model folder")
    if path is not None:
        return path
    if not HUB_ID.fullmatch(source):
        raise ArtifactError(f"There is no folder {source!r}. Give an existing one, or a Hub id such as owner/name.")
    return fetch(source, revision, patterns, "model")


def load_model(kind: Any, folder: Path, variant: str | None = None) -> Any:
    """``kind.from_pretrained(folder)`` in fp32, every weight from the file: diffusers only warns of missing ones.

    Raises:
        ArtifactError: the weights are missing, pickled, damaged or incomplete.
    """
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{folder} has no safetensors weights, and pickled ones (.bin) are not read. Convert them once with "
            f"diffusers: {kind.__name__}.from_pretrained(ID).save_pretrained(FOLDER), and give that folder."
        )
    try:
        model, info = kind.from_pretrained(
            folder, variant=variant, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:
        raise ArtifactError(f"The weights in {folder} cannot be loaded as {kind.__name__}: {reason(error)}") from error
    surplus = [k for k in info["unexpected_keys"] if not k.endswith(BUFFERS)]
    if surplus:
        raise ArtifactError(
            f"The weights in {folder} have {len(surplus)} tensor(s) that its config.json has no place for, such as "
            f"{surplus[0]!r}. Get or save the folder again."
        )
    if info["missing_keys"]:
        first, count = info["missing_keys"][0], len(info["missing_keys"])
        raise ArtifactError(
            f"The weights in {folder} lack {count} tensor(s) of its config.json, such as {first!r}. Get or save the "
            "folder again."
        )
    return model.float().eval()
