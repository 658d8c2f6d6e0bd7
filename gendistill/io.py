"""Files written whole or not at all, and what happens when a disk is full. No torch in here."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendistill.errors import GendistillError, StorageError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` at once, or leaves nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


RECORD, CONFIG, LOG = "stage.json", "config.yaml", "log.jsonl"
RESUME = "What was finished is kept: make room and go on with --resume_from_checkpoint latest."


@contextmanager
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


@dataclass
class WorkFolder:
    """Where a long computation keeps what lets it go on after a kill: files below ``path``, records in a log."""

    path: Path
    log_path: Path

    def log(self, record: dict[str, Any]) -> None:
        """Append one record of plain values to log.jsonl, whole or not at all."""
        size = self.log_path.stat().st_size if self.log_path.exists() else 0
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=False) + "\n")
        except OSError:
            with suppress(OSError):
                os.truncate(self.log_path, size)
            raise
