"""Stage folders: written completely or not at all, recognised again on resume.

A stage works in ``NAME.partial`` beside its target and renames it when done; ``stage.json`` says which stage with
which settings made it, and ``config.yaml`` holds the settings for people.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import yaml

from gendistill import runtime
from gendistill.config import to_dict
from gendistill.errors import ArtifactError, StorageError
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
    partial_of,
    read_text,
    replaceable,
    storage_errors,
    write_json,
    write_text,
)
from gendistill.surrogate.card.card import CARD
from gendistill.surrogate.card.entry import EVIDENCE, PAIRS
from gendistill.surrogate.manifest import MANIFEST, TRAIN, check_sizes, command_line, versions
from gendistill.surrogate.set import SurrogateSet


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
        stopped: The phase and step at which the time of a training was over; the same command trains on.
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
    stopped: dict[str, object]
    scaffold: list[str]
    files: dict[str, int]


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


def reopen(folder: Path) -> bool:
    """Let the stage go on with what it finished early, if its time was over: a copy becomes its partial folder.

    The finished one stays until the new one is complete. Returns whether there is more to do.

    Raises:
        StorageError: the disk has no room for the copy.
    """
    folder = replaceable(folder)
    record, partial = read_record(folder), partial_of(folder)
    if record is None or "stopped" not in record:
        return False
    if runtime.processes().is_main_process and not partial.is_dir():
        fresh = partial.with_name(partial.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            shutil.copytree(folder, fresh, copy_function=_copy)
            fresh.rename(partial)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)  # a full disk needs the room
            raise
    return True


def _copy(source: str, goal: str) -> None:
    with storage_errors(Path(goal)):  # copytree would collect the system's errors, and hide that the disk is full
        shutil.copy2(source, goal)


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
PNG: dict[str, object] = {"image_format": "png", "image_quality": 90}
UNCODED: dict[str, object] = {**PNG, "compression_aware": False}
ADDED: dict[str, dict[str, object]] = {
    "distill": UNCODED,
    "refine": {"refiner": "barycenter", "options": None, **UNCODED},
    "teacher": {"pretrained": None, "checkpointing_steps": None},
    "finetune": {
        "rate_schedule": "cosine", "optimizer": "adamw", "checkpoint_minutes": 1.0, "max_minutes": None,
        "timesteps": "uniform", "noise_mean": 0.0, "noise_std": 1.0, "loss_weighting": "none",
    },
    "sample": {
        "guidance_channels": None, "guidance_windows": None, "group": 10, "coupling_interval": [0.3, 0.8],
        "transport_scale": 0.1, "transport_regularisation": 0.05, "repulsion_scale": 0.1, **PNG,
    },
}  # fmt: skip


MATCHING = ("optimizer", "momentum", "frequencies", "amplitude_weight", "pool_size", "pool_steps")  # null there


def with_added(stage: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options of a folder as this version writes them."""
    found, matching = {**ADDED.get(stage, {}), **options}, options.get("matching")
    if stage == "refine" and not found.get("match_iterations"):  # sets that were matched are others in this version
        found.setdefault("match_from", 5)
    if isinstance(matching, Mapping) and "optimizer" not in matching:  # where momentum 0.5 was what null is now
        usual = dict.fromkeys(MATCHING) | {name: value for name, value in matching.items() if name != "momentum"}
        found["matching"] = usual if matching["momentum"] == 0.5 else {**usual, "momentum": matching["momentum"]}
    return found


def _own_record(folder: Path, stage: str, settings: StageSettings) -> StageRecord | None:
    record = read_record(folder)
    if record is None:
        return None
    made: Any = record["settings"]
    if isinstance(made, dict) and isinstance(made.get("options"), dict):
        made = {**made, "options": with_added(record["stage"], made["options"])}
    if stage == "refine" and isinstance(made, dict) and isinstance(made.get("inputs"), dict):
        known = {"data": settings["inputs"].get("data")}  # which older folders do not name
        made = {**made, "inputs": {**known, **made["inputs"]}}
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
    replaced = target.with_name(target.name + ".replaced")
    ended_early = has_files(target)  # the same work
    if ended_early:
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    elif target.is_dir():
        target.rmdir()
    folder.path.rename(target)
    if ended_early:  # else it is what --overwrite set aside, and removes when it ends
        shutil.rmtree(replaced, ignore_errors=True)
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
