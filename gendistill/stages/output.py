"""Where a command may write: nothing is overwritten unasked, and nothing deleted before the work is done."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from gendistill.config.commands import RunConfig, StageOptions
from gendistill.errors import ArtifactError, GendistillError, StorageError

RECORD, CONFIG, LOG = "stage.json", "config.yaml", "log.jsonl"
SETTINGS = ("seed", "data", "teacher", "finetune", "sample", "refine", "evaluate")  # what a run's config.yaml holds
RESUME = "What was finished is kept: make room and go on with --resume_from_checkpoint latest."


@contextlib.contextmanager
def output(options: StageOptions, *inputs: Path | None) -> Iterator[None]:
    """Guard ``output_dir`` around a command's work.

    With --overwrite the old folder, and what an interrupted command left beside it, are set aside as ``NAME.replaced``:
    they go when the work is done, and come back when the command was refused. After an interruption they wait for the
    command that finishes the work.

    Raises:
        ArtifactError: the folder holds something that the command may not touch, holds one of its inputs, or cannot
            be written.
        StorageError: the disk took no more.
    """
    folder = options.output_dir
    _check(options, [path for path in inputs if path is not None])
    places = (folder, partial_of(folder))
    replaced = _set_aside(places) if options.overwrite else []
    try:
        with storage_errors(folder):
            yield
    except StorageError:
        raise  # an interruption: what was finished is kept in the partial folder
    except GendistillError:
        for path in replaced:
            shutil.rmtree(path, ignore_errors=True)
            _aside(path).rename(path)
        raise
    asked = options.overwrite or options.resume_from_checkpoint
    for path in places:
        if path in replaced or (asked and _is_ours(options, _aside(path))):
            shutil.rmtree(_aside(path))


@contextlib.contextmanager
def plain_output(target: Path, overwrite: bool, record_name: str, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder to write in that becomes ``target`` when the block ends without an error, for commands without resume.

    It holds an empty ``record_name`` from the start, to be written over with what the command did, a JSON object with
    ``command`` and ``versions`` among others: by it a later --overwrite knows the folder. The old folder stays in place
    until the new one is whole; after an error nothing new is left, and of a kill only ``NAME.partial``, which the next
    command starts anew.

    Raises:
        ArtifactError: the folder holds something else, holds one of ``inputs``, or cannot be written.
        StorageError: the disk took no more.
    """
    _check_place(target, inputs)
    partial = partial_of(target)
    for path in (target, partial, _aside(target)):
        ours = _wrote(path / record_name, begun=path == partial)
        if path == target and ours and not overwrite:
            raise ArtifactError(
                f"output_dir {target} is not empty. Replace it with --overwrite, or give another --output_dir."
            )
        if not ours and (_has_files(path) or path.is_file()):
            raise ArtifactError(
                f"{path} was not written by this command, so it is not overwritten. Delete it yourself, or give "
                "another --output_dir."
            )
    _check_writable(target)
    with storage_errors(target, "Nothing was kept: make room and give the command again."):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            (partial / record_name).touch()
            yield partial
            _swap(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _wrote(record: Path, *, begun: bool) -> bool:
    """Whether a record is one of ours, finished, or empty where the work had only ``begun``."""
    try:
        text = record.read_text(encoding="utf-8")
        found = json.loads(text) if text or not begun else {"command": "", "versions": {}}
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"command", "versions"} <= found.keys()


def _swap(partial: Path, target: Path) -> None:
    """Let ``partial`` appear as ``target``, and what stood there go."""
    replaces = target.is_dir()
    if replaces:
        shutil.rmtree(_aside(target), ignore_errors=True)
        target.rename(_aside(target))
    try:
        partial.rename(target)
    except BaseException:
        if replaces:
            _aside(target).rename(target)
        raise
    shutil.rmtree(_aside(target), ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".replaced")


def _set_aside(places: tuple[Path, ...]) -> list[Path]:
    found = [path for path in places if path.is_dir()]
    for path in found:
        shutil.rmtree(_aside(path), ignore_errors=True)
        path.rename(_aside(path))
    return found


@contextlib.contextmanager
def storage_errors(folder: Path, advice: str = RESUME) -> Iterator[None]:
    """Turn the error of a write that found no room into a StorageError that says how to go on."""
    try:
        yield
    except GendistillError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise StorageError(f"The disk of {folder.parent} took no more ({error}). {advice}") from error


def partial_of(path: Path) -> Path:
    """Where a folder or file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one."""
    partial = partial_of(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room: a full disk, a quota, a limit on file sizes."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    codes = (f"os error {code})" for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # as safetensors tells it
    return any(code in str(error) for code in codes)


def read_record(folder: Path) -> dict | None:
    """stage.json of a folder, or None where there is no readable one."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"stage", "settings"} <= record.keys() else None


def _check(options: StageOptions, inputs: list[Path]) -> None:
    folder = options.output_dir
    _check_place(folder, inputs)
    places = (folder, partial_of(folder))
    found = [path for path in places if _has_files(path)]
    touched = [*found, *(_aside(path) for path in found)] if options.overwrite else found
    foreign = [path for path in touched if _has_files(path) and not _is_ours(options, path)]
    if foreign and (options.overwrite or options.resume_from_checkpoint):
        raise ArtifactError(
            f"{foreign[0]} was not written by this command, so it is neither resumed nor overwritten. Delete it "
            "yourself, or give another --output_dir."
        )
    if found and not options.overwrite and not options.resume_from_checkpoint:
        raise ArtifactError(
            f"output_dir {found[0]} is not empty. Continue with --resume_from_checkpoint latest, replace it with "
            "--overwrite, or give another --output_dir."
        )
    _check_writable(folder)


def _check_place(folder: Path, inputs: Sequence[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"output_dir {folder} is a file; give a folder.")
    for path in inputs:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ArtifactError(f"output_dir {folder} holds the input {path}; give another --output_dir.")


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_ours(options: StageOptions, folder: Path) -> bool:
    """Whether the same command wrote the folder."""
    if isinstance(options, RunConfig):
        return _is_run(folder)
    record = read_record(folder)
    return record is not None and type(options).__name__ == f"{record['stage'].capitalize()}Command"


def _is_run(folder: Path) -> bool:
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and set(config) == set(SETTINGS)


def _check_writable(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for parent in {folder.parent, folder if folder.is_dir() else folder.parent}:
            with tempfile.NamedTemporaryFile(dir=parent):
                pass
    except OSError as error:
        raise ArtifactError(
            f"output_dir {folder} cannot be written: {error.strerror}. Give another --output_dir."
        ) from error
