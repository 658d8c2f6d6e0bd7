"""Files of the library: each is written completely or not at all, and read with one kind of error message.

No torch is imported here before tensors are read or written.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gendistill.errors import ArtifactError, GendistillError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

RECORD, CONFIG, LOG = "stage.json", "config.yaml", "log.jsonl"
RESUME = "Finished work is kept: make room and continue with --resume_from_checkpoint latest."


def partial_of(path: Path) -> Path:
    """Where a folder or file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


@contextmanager
def atomic(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to ``path`` at the end, or removed after an error.

    A process that is killed leaves the old file and the temporary one, which the next write replaces.

    Args:
        path: The file to create or replace.
        shared: Other processes may write the same file at the same time, so the temporary one is this process's own.
    """
    partial = partial_of(path.with_name(f"{path.name}.{os.getpid()}")) if shared else partial_of(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a UTF-8 file; ``errors`` is what to do with characters that UTF-8 cannot encode."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Write indented JSON; non-ASCII characters stay readable unless UTF-8 cannot encode them (undecodable names).

    ``default`` converts values that JSON does not have, as in ``json.dumps``.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, default=default)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, default=default)
    write_text(path, text + "\n")


def read_json(
    path: Path, *, kind: str, fix: str, required: Collection[str] = (), format: int | None = None
) -> dict[str, Any]:
    """Read a JSON object and check its keys and format version.

    Args:
        path: The file.
        kind: What the folder of the file should be, with its article: ``a surrogate set``.
        fix: A sentence for the error message: how to get a good file.
        required: Keys that it must have.
        format: The version that its key ``format`` must have; None does not check it.

    Raises:
        ArtifactError: the file is missing, damaged, no object, of another format, or lacks a key.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path.parent} is not {kind}: it has no {path.name}. {fix}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}. {fix}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}. {fix}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is damaged: it holds {type(value).__name__}, expected an object. {fix}")
    if format is not None and value.get("format") != format:
        raise ArtifactError(f"{path} has format {value.get('format')!r}; this version reads {format}. {fix}")
    missing = [key for key in required if key not in value]
    if missing:
        raise ArtifactError(f"{path} is damaged: it lacks {', '.join(missing)}. {fix}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file from tensors on any device."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as partial:
        save_file(plain, partial, metadata=None if metadata is None else dict(metadata))


def read_tensors(path: Path, *, fix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, mapped into memory, and its metadata.

    Raises:
        ArtifactError: the file is missing or damaged; ``fix`` ends the message.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}. {fix}") from error


@contextmanager
def storage_errors(folder: Path, advice: str = RESUME) -> Iterator[None]:
    """Turn the error of a write that found no room into a StorageError that says how to continue."""
    try:
        yield
    except GendistillError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise StorageError(f"The disk of {folder.parent} has no room left ({error}). {advice}") from error


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of room: a full disk, a quota, a limit on file sizes."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in full:
        return True
    return any(f"os error {code})" in str(error) for code in full)  # as safetensors reports it


@dataclass
class WorkFolder:
    """Where a long computation keeps what a resumed run needs: files below ``path``, records in a log.

    Attributes:
        path: An existing folder of this computation alone.
        log_path: A file of JSON lines, made with the first record.
    """

    path: Path
    log_path: Path

    def log(self, record: Mapping[str, object]) -> None:
        """Append one record of plain values to log.jsonl, completely or not at all."""
        size = self.log_path.stat().st_size if self.log_path.exists() else 0
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=False) + "\n")
        except OSError:
            with suppress(OSError):
                os.truncate(self.log_path, size)
            raise
