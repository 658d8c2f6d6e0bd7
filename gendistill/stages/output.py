"""Where a command may write: nothing is overwritten unasked, and nothing deleted before the work is done."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from gendistill.commands import RunConfig, StageOptions
from gendistill.errors import ArtifactError, GendistillError

RECORD, CONFIG, LOG = "stage.json", "config.yaml", "log.jsonl"
SETTINGS = ("seed", "data", "teacher", "finetune", "sample", "refine", "evaluate")  # what a run's config.yaml holds


@contextlib.contextmanager
def output(options: StageOptions, *inputs: Path | None) -> Iterator[None]:
    """Guard ``output_dir`` around a command's work.

    With --overwrite the old folder is set aside as ``NAME.replaced``; it goes when the work is done and comes back when
    the command was refused.

    Raises:
        ArtifactError: the folder holds something that the command may not touch, holds one of its inputs, or cannot
            be written.
    """
    folder = options.output_dir
    _check(options, [path for path in inputs if path is not None])
    aside = folder.with_name(folder.name + ".replaced")
    replaced = options.overwrite and folder.is_dir()
    if options.overwrite:
        shutil.rmtree(partial_of(folder), ignore_errors=True)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        yield
    except GendistillError:
        if replaced:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        raise
    if replaced:
        shutil.rmtree(aside)


def partial_of(path: Path) -> Path:
    """Where a folder or file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one."""
    partial = partial_of(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


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
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"output_dir {folder} is a file; give a folder.")
    for path in inputs:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ArtifactError(f"output_dir {folder} holds the input {path}; give another --output_dir.")
    is_ours = _is_run if isinstance(options, RunConfig) else lambda path: read_record(path) is not None
    found = [p for p in (folder, partial_of(folder)) if p.is_dir() and any(p.iterdir())]
    foreign = [path for path in found if not is_ours(path)]
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
