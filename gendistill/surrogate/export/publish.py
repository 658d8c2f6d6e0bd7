"""Exports: sets as one folder that other tools read, and that folder as a dataset repository on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from gendistill.config import Format
from gendistill.environment import command_line, versions
from gendistill.errors import ArtifactError, ConfigError
from gendistill.hub import reason
from gendistill.surrogate.card.card import CARD
from gendistill.surrogate.export.formats import RECORD, check_fit, read_record, write_export
from gendistill.surrogate.export.stored import StoredSet, evaluation_of, read_summary
from gendistill.surrogate.hub_datasets import find_surrogate
from gendistill.surrogate.set import SurrogateSet

# Everything that exports consist of, so that none of an earlier one stays among the new files
OURS = (
    "train/*", "train-*.parquet", "train-*.tar", "?????/*.png", "*.pt", "manifest.json", "CHECKSUMS", "evidence.json",
    "soft_labels.*",
)  # fmt: skip
PATTERNS = [*OURS, *(f"ipc-*/{name}" for name in OURS)]
START = {".gitattributes", CARD}  # what a repository that was just made on the web has


def export(
    sets: SurrogateSet | str | Path | Sequence[SurrogateSet | str | Path],
    folder: str | Path,
    format: Format = "imagefolder",
    *,
    evaluation: str | Path | None = None,
) -> Path:
    """Write sets as one folder in a format of other tools, with a dataset card.

    Args:
        sets: One set, or several with different images per class: in memory, a folder, or a Hub id.
        folder: Where to write; it must be new or empty. It appears when it is complete.
        format: ``imagefolder``, ``parquet``, ``webdataset``, or ``ddranking`` (one set).
        evaluation: A summary.json whose accuracies of these sets the card shows.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder is not empty, a set is damaged, or the sets do not fit together or into the format.

    Example:
        >>> gd.export(["run/refined/ipc-1", "run/refined/ipc-10"], "export", "parquet")  # doctest: +SKIP
    """
    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ArtifactError(f"{target} is not empty. Give a new folder, or delete it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    given = [sets] if isinstance(sets, SurrogateSet | str | Path) else list(sets)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        made, paths = Path(place) / "export", []
        for number, one in enumerate(given):
            if isinstance(one, SurrogateSet):
                one.save(Path(place) / str(number))
            paths.append(Path(place) / str(number) if isinstance(one, SurrogateSet) else find_surrogate(one))
        made.mkdir()
        export_folders(paths, made, format, evaluation)
        if target.is_dir():
            target.rmdir()
        made.rename(target)
    return target


def export_folders(
    paths: Sequence[Path], folder: Path, format: Format, evaluation: str | Path | None = None
) -> list[StoredSet]:
    """Write the sets in ``paths`` into ``folder``, an empty one; returns them. See ``export``."""
    summary = read_summary(Path(evaluation)) if evaluation is not None else None
    sets = [StoredSet.open(path) for path in paths]
    check_fit(sets, format)
    evidence = {}
    if summary is not None:
        evidence = {stored.config: {"evaluation": evaluation_of(stored, summary)} for stored in sets}
    write_export(sets, folder, format, evidence, {"command": command_line(), "versions": versions()})
    return sets


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
