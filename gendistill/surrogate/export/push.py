"""To the Hub: an export becomes the content of a dataset repository."""

from __future__ import annotations

from pathlib import Path

from gendistill.errors import ArtifactError, ConfigError
from gendistill.hub import reason
from gendistill.surrogate.card.card import CARD
from gendistill.surrogate.export.formats import RECORD

# Everything that exports consist of, so that none of an earlier one stays among the new files
OURS = (
    "train/*", "train-*.parquet", "train-*.tar", "?????/*.png", "*.pt", "manifest.json", "CHECKSUMS", "evidence.json",
    "soft_labels.*",
)  # fmt: skip
PATTERNS = [*OURS, *(f"ipc-*/{name}" for name in OURS)]
START = {".gitattributes", CARD}  # what a repository that was just made on the web has


def check_push(name: str) -> None:
    """Whether a push can work, as far as can be told without the network.

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
        ArtifactError: the repository holds other files, or the Hub does not take it; ``folder`` is as it was.
    """
    from huggingface_hub import HfApi

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
            f"{folder} is written, but the Hub dataset {name}{at} did not take it: {what}{reason(error)} Mend this and "
            f"give the command again with --overwrite, or upload the folder yourself: hf upload {name} {folder} . "
            "--repo-type dataset"
        ) from error
    return str(commit.commit_url)
