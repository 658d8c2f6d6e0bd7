"""``output_dir`` of a command: checked before the work, locked during it; old folders stay until the new one is whole.

Stages write there through ``folder.stage_folder``; ``plain_output`` is for commands without resume.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from gendistill import runtime
from gendistill.config.commands import RunConfig, StageOptions
from gendistill.errors import ArtifactError, GendistillError, StorageError
from gendistill.io import (
    CONFIG,
    RECORD,
    has_files,
    output_place,
    partial_of,
    read_text,
    refuse_files,
    replaceable,
    storage_errors,
)
from gendistill.stages.folder import read_record
from gendistill.surrogate.manifest import MANIFEST

SETTINGS = ("seed", "data", "teacher", "finetune", "sample", "refine", "evaluate")  # what a run's config.yaml holds
WHOLE = (RECORD, MANIFEST, "model_index.json")  # each in a folder that is one result


@contextlib.contextmanager
def output(options: StageOptions, *inputs: Path | None) -> Iterator[None]:
    """Guard ``output_dir`` around a command's work; of several processes the main one does so, and all begin together.

    With --overwrite the old folder, and what an interrupted command left beside it, are set aside as ``NAME.replaced``:
    they go when the work is done, and come back when the command was refused. After an interruption they wait for the
    command that finishes the work.

    Raises:
        ArtifactError: the folder holds something that the command may not touch, holds one of its inputs or the folder
            of stores, lies in that, or cannot be written.
        StorageError: the disk is full.
    """
    state = runtime.processes()
    if not state.is_main_process:
        state.wait_for_everyone()
        yield
        return
    folder = writable_place(options.output_dir)
    cache = getattr(getattr(options, "data", None), "cache", None)
    stores = cache if isinstance(cache, Path) else None
    if stores and _lies_in(folder, stores):
        raise ArtifactError(f"output_dir {folder} lies in data.cache {stores}; give another --output_dir.")
    with _locked(folder):
        _check(options, folder, [path for path in (*inputs, stores) if path is not None])
        yield from _replacing(options, folder, state.wait_for_everyone)


def _replacing(options: StageOptions, folder: Path, begin: Callable[[], None]) -> Iterator[None]:
    """Set the old folders aside for the time of the work, where --overwrite replaces them."""
    places = (folder, partial_of(folder))
    replaced = [path for path in places if path.is_dir()] if options.overwrite else []
    for path in replaced:
        shutil.rmtree(_aside(path), ignore_errors=True)
        path.rename(_aside(path))
    try:
        with storage_errors(folder):
            begin()
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
    until the new one is complete. An error leaves nothing new; a kill leaves only ``NAME.partial``, which the next
    command replaces.

    Raises:
        ArtifactError: the folder holds something else, holds one of ``inputs``, or cannot be written.
        StorageError: the disk is full.
    """
    target = writable_place(target)
    partial = partial_of(target)
    with _locked(target), storage_errors(target, "Nothing was kept: make room and give the command again."):
        _check_plain(target, overwrite, record_name, inputs)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            (partial / record_name).touch()
            yield partial
            _swap(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _check_plain(target: Path, overwrite: bool, record_name: str, inputs: Sequence[Path]) -> None:
    _check_place(target, inputs, replaced=True)
    for path in (target, partial_of(target), _aside(target)):
        ours = _wrote(path / record_name, begun=path == partial_of(target))
        if path == target and ours and not overwrite:
            refuse_files(target, resumable=False)
        if not ours and (has_files(path) or path.is_file()):
            raise ArtifactError(
                f"{path} was not written by this command, so it is not overwritten. Delete it yourself, or give "
                "another --output_dir."
            )


def _wrote(record: Path, *, begun: bool) -> bool:
    """Whether a record is one of ours, finished, or empty where the work had only ``begun``."""
    try:
        text = read_text(record)
        found = json.loads(text) if text or not begun else {"command": "", "versions": {}}
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"command", "versions"} <= found.keys()


def _swap(partial: Path, target: Path) -> None:
    """Let ``partial`` appear as ``target``, and what stood there go."""
    os.sync()  # what other libraries wrote is on the disk too before it has its name
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


def _check(options: StageOptions, folder: Path, inputs: list[Path]) -> None:
    _check_place(folder, inputs, replaced=options.overwrite or not isinstance(options, RunConfig))
    places = (folder, partial_of(folder))
    found = [path for path in places if has_files(path)]
    touched = [*found, *(_aside(path) for path in found)] if options.overwrite else found
    foreign = [path for path in touched if has_files(path) and not _is_ours(options, path)]
    if foreign and (options.overwrite or options.resume_from_checkpoint):
        raise ArtifactError(
            f"{foreign[0]} was not written by this command, so it is neither resumed nor overwritten. Delete it "
            "yourself, or give another --output_dir."
        )
    if found and not options.overwrite and not options.resume_from_checkpoint:
        refuse_files(found[0], resumable=True)


def writable_place(folder: Path) -> Path:
    """``output_place``, where files can be written.

    Raises:
        ArtifactError: none can.
    """
    place = output_place(folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for parent in {place.parent, place if place.is_dir() else place.parent}:
            with tempfile.TemporaryFile(dir=parent):
                pass
    except OSError as error:
        raise ArtifactError(
            f"output_dir {folder} cannot be written: {error.strerror}. Give another --output_dir."
        ) from error
    return place


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep every other process from writing the same folder.

    Raises:
        ArtifactError: another one does so now.
    """
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except BlockingIOError as error:
            file.close()
            raise ArtifactError(
                f"Another process is writing output_dir {folder}. Wait until it has ended, or give another one."
            ) from error
        except FileNotFoundError:
            pass
        except OSError:
            break  # a file system without locks
        file.close()  # the process that had the lock has just ended and removed its file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _check_place(folder: Path, inputs: Sequence[Path], *, replaced: bool) -> None:
    """Check that no input lies in the folder, and that the finished work can take its place, where it is ``replaced``.

    Raises:
        ArtifactError: an input does, the folder lies in a set, a generator or another result, or it is the current one
            or a mount point.
    """
    for path in inputs:
        if _lies_in(path, folder):
            raise ArtifactError(f"output_dir {folder} holds the input {path}; give another --output_dir.")
        if _lies_in(folder, path) and any((path / name).is_file() for name in WHOLE):
            raise ArtifactError(
                f"output_dir {folder} lies in the input {path}, which would change; give another --output_dir."
            )
    if replaced:
        replaceable(folder)


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether the path is the folder or lies in it, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_ours(options: StageOptions, folder: Path) -> bool:
    """Whether the same command wrote the folder."""
    if isinstance(options, RunConfig):
        return _is_run(folder)
    record = read_record(folder)
    return record is not None and type(options).__name__ == f"{record['stage'].capitalize()}Command"


def _is_run(folder: Path) -> bool:
    try:
        config = yaml.safe_load(read_text(folder / CONFIG))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and set(config) == set(SETTINGS)
