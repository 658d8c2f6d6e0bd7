"""Stage folders: written completely or not at all, refused when not empty, recognised again on resume.

A stage works in ``NAME.partial`` beside its target and renames it when done; ``stage.json`` says which stage with
which settings made it, and ``config.yaml`` holds the settings for people.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import yaml

from gendistill import runtime
from gendistill.config import to_dict
from gendistill.config.commands import RunConfig, StageOptions
from gendistill.errors import ArtifactError, GendistillError, StorageError
from gendistill.hashing import hash_json
from gendistill.io import (
    CONFIG,
    LOG,
    RECORD,
    WorkFolder,
    has_files,
    is_full,
    is_relative,
    mismatch,
    output_place,
    partial_of,
    read_text,
    refuse_files,
    replaceable,
    storage_errors,
    write_json,
    write_text,
)
from gendistill.surrogate.card.card import CARD
from gendistill.surrogate.card.entry import EVIDENCE, PAIRS
from gendistill.surrogate.manifest import MANIFEST, TRAIN, check_sizes, command_line, versions
from gendistill.surrogate.set import SurrogateSet

SETTINGS = ("seed", "data", "teacher", "finetune", "sample", "refine", "evaluate")  # what a run's config.yaml holds


class StageSettings(TypedDict):
    """What decides a stage's result: its own options, the seed, and the hashes of its inputs."""

    options: object
    seed: int
    inputs: dict[str, object]


class StageRecord(TypedDict, total=False):
    """stage.json: which stage with which settings made a folder; when it is finished also what that took.

    Attributes:
        stage: Its name.
        settings: As the stage had them.
        state: ``started`` or ``finished``.
        seconds: Wall-clock time.
        resumed: Whether an interrupted run was continued.
        peak_memory_mib: Of the process.
        training_seconds: Of the training of a generator or a teacher, by part.
        temporary: Names in the folder that only a resumed run needs; ``scaffold`` in older versions.
        files: Bytes of each file; those of a set are in its manifest. Missing in older versions.
    """

    stage: Required[str]
    settings: Required[StageSettings]
    state: str
    seconds: float
    resumed: bool
    peak_memory_mib: int
    temporary: list[str]
    training_seconds: dict[str, float]
    scaffold: list[str]
    files: dict[str, int]


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
    if stores and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(stores)):
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


def read_record(folder: Path) -> StageRecord | None:
    """stage.json of a folder, or None where there is no readable one."""
    try:
        record = json.loads(read_text(folder / RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "settings" not in record or mismatch(StageRecord, {**record, **ANY_SETTINGS}):
        return None
    names = [name for key in ("temporary", "scaffold", "files") for name in record.get(key, ())]
    return cast(StageRecord, record) if all(map(is_relative, names)) else None


ANY_SETTINGS = {"settings": StageSettings(options=None, seed=0, inputs={})}  # they are compared as a whole


class TrainingTime(TypedDict, total=False):
    """Seconds of the training of a generator or a teacher, by part."""

    training_seconds: dict[str, float]


def training_time(folder: str | Path) -> TrainingTime:
    """As the stage that wrote the folder recorded it; empty where none did."""
    record = read_record(Path(folder))
    return {"training_seconds": record["training_seconds"]} if record and "training_seconds" in record else {}


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
        ArtifactError: an input does, or the folder is the current one or a mount point.
    """
    place = os.path.realpath(folder)
    for path in inputs:
        if Path(place) in Path(os.path.realpath(path), "_").parents:
            raise ArtifactError(f"output_dir {folder} holds the input {path}; give another --output_dir.")
    if replaced:
        replaceable(folder)


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


_log = logging.getLogger("gendistill")


@dataclass
class StageFolder(WorkFolder):
    """Where a stage writes: ``path`` is the partial folder until the stage is done.

    ``facts`` go into stage.json; ``temporary`` names what only a resumed run needs, removed once the stage is done.
    """

    facts: dict[str, object] = field(default_factory=dict)
    temporary: tuple[str, ...] = ()

    def save(self, made: SurrogateSet, name: str) -> None:
        """Write a set, in the main process, to the folder ``name``, over what an interrupted stage left there."""
        if runtime.processes().is_main_process:
            shutil.rmtree(self.path / name, ignore_errors=True)
            made.save(self.path / name)


def finished(folder: Path, stage: str, settings: StageSettings) -> bool:
    """Whether ``folder`` is that stage's work with those settings; temporary files that a kill left there go.

    Raises:
        ArtifactError: it was made with others, or is no longer complete; the message says what differs.
    """
    record = _own_record(folder, stage, settings)
    if record is None:
        if has_files(folder):
            raise ArtifactError(f"{folder} has no {RECORD} that can be read, so its files are not used. {AGAIN}")
        return False
    _check_complete(folder, record)
    _remove(folder, (*record.get("temporary", ()), *record.get("scaffold", ())))
    return True


AGAIN = "Copy the folder again, or delete it and resume, which makes it again."
CHANGED_LATER = {RECORD, CONFIG, LOG, CARD, EVIDENCE, PAIRS}


def _check_complete(folder: Path, record: StageRecord) -> None:
    """Compare the files with the record, and those of sets with their manifests, by size.

    Raises:
        ArtifactError: one is missing or has another size.
    """
    listed = record.get("files", {})
    for name, size in listed.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes; expected {size:,}"
            raise ArtifactError(f"{folder} was finished, but {name} {what}. {AGAIN}")
    for name in listed:
        if Path(name).name == MANIFEST:
            check_sizes(folder / Path(name).parent)


def _file_sizes(folder: Path, temporary: Sequence[str]) -> dict[str, int]:
    """Bytes of each file that stays as it is, without those that the manifest of a set counts."""
    sets = [path.parent / TRAIN for path in folder.rglob(MANIFEST)]
    left_out = {*sets, *(folder / name for name in temporary)}
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CHANGED_LATER and not left_out & {path, *path.parents}
    }


# by stage, the options that folders of older versions lack, and the values that mean what those versions did
ADDED: dict[str, dict[str, object]] = {
    "refine": {"refiner": "barycenter", "options": None},
    "teacher": {"pretrained": None, "checkpointing_steps": None},
    "finetune": {"rate_schedule": "cosine"},
}


def with_added(stage: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options of a folder as this version writes them."""
    return {**ADDED.get(stage, {}), **options}


def _own_record(folder: Path, stage: str, settings: StageSettings) -> StageRecord | None:
    record = read_record(folder)
    if record is None:
        return None
    made: Any = record["settings"]
    if isinstance(made, dict) and isinstance(made.get("options"), dict):
        made = {**made, "options": with_added(record["stage"], made["options"])}
    if record["stage"] == stage and hash_json(made) == hash_json(settings):
        return record
    raise ArtifactError(
        f"{folder} was made with other settings ({difference(made, settings)}). Resume with the same "
        "ones, start again with --overwrite, or give another --output_dir."
    )


def difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            difference(old.get(k), new.get(k), f"{path}.{k}".strip("."))
            for k in {**old, **new}
            if old.get(k) != new.get(k)
        ]
        return ", ".join(p for p in parts if p)
    return f"{path}: {old!r} there, {new!r} now" if old != new else ""


@contextlib.contextmanager
def stage_folder(
    target: Path,
    stage: str,
    settings: StageSettings,
    *,
    keep_partial: bool = False,
    log_path: Path | None = None,
) -> Iterator[StageFolder]:
    """A folder to write in, which becomes ``target`` when the block ends without an error.

    ``keep_partial`` lets a stage with checkpoints find what an interrupted run left, if its settings were the same.
    Several processes begin together; those that are not the main one write nothing.

    Raises:
        StorageError: the disk is full; the partial folder stays.
    """
    target = replaceable(target)
    partial, state = partial_of(target), runtime.processes()
    main_process = state.is_main_process
    with storage_errors(target):
        resumed = main_process and _open(partial, stage, settings, keep_partial)
        state.wait_for_everyone()
        folder = StageFolder(partial, log_path or partial / LOG)
        runtime.reset_peak_memory()
        start = time.perf_counter()
        try:
            yield folder
        except Exception as error:
            kept = keep_partial and {p.name for p in partial.rglob("*") if p.is_file()} - {RECORD, LOG}
            if main_process and not kept and not isinstance(error, StorageError) and not is_full(error):
                shutil.rmtree(partial, ignore_errors=True)  # there is nothing in it to resume
            raise
        if not main_process:
            return
        seconds = round(time.perf_counter() - start, 2)
        record: StageRecord = {"stage": stage, "settings": settings, "seconds": seconds, "resumed": resumed}
        record["peak_memory_mib"] = round(runtime.peak_memory() / 2**20)
        _close(folder, target, record)
    _log.info("%s: %s in %.1f s", stage, target, seconds)


def _open(partial: Path, stage: str, settings: StageSettings, keep: bool) -> bool:
    """Make the partial folder, or find the same work begun in it; returns whether it was found."""
    if partial.is_dir():
        if keep and _own_record(partial, stage, settings):
            return True
        shutil.rmtree(partial)
    fresh = partial.with_name(partial.name + ".new")  # so that a folder without its record is never ours
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write_json(fresh / RECORD, {"stage": stage, "settings": settings, "state": "started"}, default=str)
        fresh.rename(partial)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return False


def _close(folder: StageFolder, target: Path, record: StageRecord) -> None:
    """Write the record and the settings, and let the folder appear as ``target``."""
    made = {"command": command_line(), "versions": versions(), "temporary": list(folder.temporary), **folder.facts}
    made["files"] = _file_sizes(folder.path, folder.temporary)
    write_json(folder.path / RECORD, {**record, "state": "finished", **made}, default=str)
    write_text(folder.path / CONFIG, yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True))
    os.sync()  # what other libraries wrote is on the disk too before it has its name
    if target.is_dir():
        target.rmdir()  # empty, or the command would have been refused
    folder.path.rename(target)
    _remove(target, folder.temporary)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def stage_settings(config: Any, seed: int, **inputs: object) -> StageSettings:
    """What decides a stage's result: its own options, the seed, and the hashes of its inputs."""
    return {"options": to_dict(config), "seed": seed, "inputs": inputs}
