"""Files of the library: each is written completely or not at all, and read with one kind of error message.

No torch is imported here before tensors are read or written.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from stat import S_IMODE
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from gendistill.errors import ArtifactError, GendistillError, StorageError
from gendistill.hashing import hash_json, hash_tensors

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = "blake2b"  # the key, in JSON or in the metadata of tensors, of the hash of all the rest
RECORD, CONFIG, LOG = "stage.json", "config.yaml", "log.jsonl"
RESUME = "Finished work is kept: make room and continue with --resume_from_checkpoint latest."


def cache_root() -> Path:
    """Where what can be made again is kept: GENDISTILL_CACHE, or gendistill in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("GENDISTILL_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "gendistill"


def format_bytes(count: float) -> str:
    """Such as ``3.66 GiB``."""
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while count >= 1024 and unit != "TiB":
        count, unit = count / 1024, next(units)
    return f"{count:.3g} {unit}"


def partial_of(path: Path) -> Path:
    """Where a folder or file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def output_place(folder: Path) -> Path:
    """The folder that an ``output_dir`` means, behind a link or a dot: ``NAME.partial`` is made beside it.

    Raises:
        ArtifactError: it is a file, or a path that cannot be.
    """
    try:
        place = folder.resolve() if folder.is_symlink() or folder.name in ("", "..") else folder
        is_file = place.exists() and not place.is_dir()
        place.with_name(place.name + ".partial.new").exists()  # the longest name that a command uses
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to one another
        why = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"output_dir {folder} cannot be written: {why}. Give another --output_dir.") from error
    if is_file:
        raise ArtifactError(f"output_dir {folder} is a file; give a folder.")
    return place


def check_place(option: str, path: Path, *, folder: bool = False) -> None:
    """Refuse a path that leads nowhere: links to one another, a name that is too long, a folder below a file.

    Args:
        option: That names it, for the message.
        path: Of a file or folder that may not be there yet.
        folder: Whether it is to be a folder.

    Raises:
        ArtifactError: it does.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{option} is {str(path)!r}, which cannot be used: {why}. Give another path.") from error
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    if folder and os.path.lexists(there) and not there.is_dir():
        what = "a file" if there.is_file() else "no folder"
        raise ArtifactError(f"{option} is {str(path)!r}, but {there} is {what}; expected a folder.")


def has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def refuse_files(folder: Path, *, resumable: bool) -> None:
    """Check that an output folder is empty or not there.

    Raises:
        ArtifactError: it holds files; the message says how to go on, by ``--resume_from_checkpoint`` where
            ``resumable``.
    """
    if has_files(folder):
        how = "Continue with --resume_from_checkpoint latest, replace it" if resumable else "Replace it"
        raise ArtifactError(f"output_dir {folder} is not empty. {how} with --overwrite, or give another --output_dir.")


def replaceable(folder: Path) -> Path:
    """The folder, behind a link where there is one, whose place a finished folder can take.

    Raises:
        ArtifactError: it is the current folder or a mount point.
    """
    place = folder.resolve() if folder.is_symlink() else folder
    if not place.is_dir():
        return place
    what = "the current folder" if place.samefile(Path.cwd()) else "a mount point" if _is_mount(place) else ""
    if what:
        raise ArtifactError(
            f"{folder} is {what}, which a finished folder cannot replace. Give a folder in it, as {folder / 'out'}."
        )
    return place


def _is_mount(folder: Path) -> bool:
    """Whether something is mounted there, also a part of the same file system."""
    if os.path.ismount(folder):
        return True
    with suppress(OSError):
        points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return str(folder.resolve()) in {re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), point) for point in points}
    return False


def inside(folder: Path, name: str) -> Path:
    """The file or folder ``name`` below ``folder``, where data of others give the name, or may hold links.

    Raises:
        ArtifactError: the name is not a plain relative path, or a link leads out of the folder.
    """
    if not is_relative(name) or any(leading_outside(folder, [name])):
        raise ArtifactError(f"{folder} names {name!r}, which is not in it; expected a file of that folder.")
    return folder / name


def is_relative(name: str) -> bool:
    """Whether a name, with / between its parts, stays below the folder that it is in."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and not set(name) & set("\\\0")


def leading_outside(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Those of ``names`` that a link leads out of ``folder``; the Hub's cache links files to its own ``blobs``."""
    root = Path(os.path.realpath(folder))
    roots = (root, *(path.parent / "blobs" for path in root.parents if path.name == "snapshots"))
    starts, real = tuple(f"{path}{os.sep}" for path in roots), cache(os.path.realpath)
    for name in names:
        path = os.path.join(folder, name)
        place = os.path.realpath(path) if os.path.islink(path) else os.path.join(real(os.path.dirname(path)), "file")
        if not place.startswith(starts):
            yield name


@contextmanager
def atomic(path: Path, *, shared: bool = False, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to ``path`` at the end, or removed after an error.

    A process that is killed leaves the old file and the temporary one, which the next write replaces.

    Args:
        path: The file to create or replace.
        shared: Other processes may write the same file at the same time, so the temporary one is this process's own.
        sync: Wait until the disk has the file, so that a loss of power leaves no empty one; takes milliseconds.
    """
    partial = partial_of(path.with_name(f"{path.name}.{os.getpid()}")) if shared else partial_of(path)
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a UTF-8 file; ``errors`` is what to do with characters that UTF-8 cannot encode."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: Any, *, default: Callable[[Any], Any] | None = None, hashed: bool = False) -> None:
    """Write indented JSON; non-ASCII characters stay readable unless UTF-8 cannot encode them (undecodable names).

    Args:
        path: The file.
        value: Plain data.
        default: Converts values that JSON does not have, as in ``json.dumps``.
        hashed: Add the hash of an object as its last key; ``read_json`` compares it.
    """
    if hashed:
        value = {**value, DIGEST: hash_json(json.loads(json.dumps(value, default=default)))}
    text = json.dumps(value, indent=2, ensure_ascii=False, default=default)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, default=default)
    write_text(path, text + "\n")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file that others may have changed.

    Raises:
        OSError: it cannot be read, or is no file: a pipe would be waited for.
        ValueError: it is no UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_text(encoding="utf-8")


def read_json(
    path: Path,
    *,
    kind: str,
    fix: str,
    required: Collection[str] = (),
    format: int | None = None,
    schema: type | None = None,
) -> dict[str, Any]:
    """Read a JSON object and check its keys, their types, the version of its format, and its hash where it has one.

    Args:
        path: The file.
        kind: What the folder of the file should be, with its article: ``a surrogate set``.
        fix: A sentence for the error message: how to get a good file.
        required: Keys that it must have.
        format: The version that its key ``format`` must have; None does not check it.
        schema: A TypedDict; keys that it does not know are kept as they are.

    Raises:
        ArtifactError: the file is missing, damaged, no object, of another format, lacks a key, has another type, or was
            changed after it was hashed.
    """
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is no file; expected JSON. {fix}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path.parent} is not {kind}: it has no {path.name}. {fix}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}. {fix}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. {fix}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is damaged: it holds {type(value).__name__}, expected an object. {fix}")
    if format is not None and value.get("format") != format:
        raise ArtifactError(f"{path} has format {_shown(value.get('format'))}; this version reads {format}. {fix}")
    missing = [key for key in required if key not in value]
    if missing:
        raise ArtifactError(f"{path} is damaged: it lacks {', '.join(missing)}. {fix}")
    problem = mismatch(schema, value) if schema else ""
    if problem:
        raise ArtifactError(f"{path} is damaged: {problem}. {fix}")
    digest = value.pop(DIGEST, None)
    if digest is not None and digest != hash_json(value):
        raise ArtifactError(
            f"{path} was changed after it was written: its key {DIGEST} is {_shown(digest)}; expected "
            f"{hash_json(value)!r}. {fix} If you changed it on purpose, delete that key."
        )
    return value


def mismatch(kind: Any, value: Any, field: str = "") -> str:
    """How a value that was read from JSON differs from a type, such as ``counts.2 is 'x'; expected a whole number``.

    Args:
        kind: A TypedDict, ``list[...]``, ``dict[str, ...]``, a union, a Literal or a plain type.
        value: What was read; other keys than those of a TypedDict are not looked at.
        field: Where it stands, for the message.

    Returns:
        The first difference, or an empty text.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        return mismatch(arguments[0], value, field)
    if origin in (Union, UnionType):
        fits = any(not mismatch(one, value) for one in arguments)
    elif origin is Literal:
        fits = value in arguments if isinstance(value, str | int | NoneType) else False
    elif isinstance(value, list) and origin is list:
        return next(filter(None, (mismatch(arguments[0], v, f"{field}.{i}") for i, v in enumerate(value))), "")
    elif isinstance(value, dict) and origin is dict:
        return next(filter(None, (mismatch(arguments[1], v, f"{field}.{k}") for k, v in value.items())), "")
    elif isinstance(value, dict) and is_typeddict(kind):
        return _record_mismatch(kind, value, field)
    elif kind in (Any, object):
        fits = True
    elif kind in (int, float):
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    else:
        fits = isinstance(kind, type) and not is_typeddict(kind) and isinstance(value, kind)
    return "" if fits else f"{field.lstrip('.') or 'it'} is {_shown(value)}; expected {_words(kind)}"


def _record_mismatch(kind: Any, value: dict[str, Any], field: str) -> str:
    hints, required = _fields(kind)
    lacking = [f"{field}.{name}".lstrip(".") for name in hints if name in required and name not in value]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    known = ((name, hint) for name, hint in hints.items() if name in value)
    return next(filter(None, (mismatch(hint, value[name], f"{field}.{name}") for name, hint in known)), "")


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of a TypedDict's keys, and the keys that it must have."""
    hints = get_type_hints(kind, include_extras=True)
    required = {name for name, hint in hints.items() if get_origin(hint) is Required} | kind.__required_keys__
    return hints, frozenset(name for name in required if get_origin(hints[name]) is not NotRequired)


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def _words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is list:
        return f"a list (each {_words(arguments[0])})"
    return WORDS.get(kind, "an object")


def _shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    return reprlib.repr(value)


def share_files(folder: Path) -> None:
    """Give files of other libraries the permissions of new files; safetensors 0.8 makes them private."""
    probe = folder / ".permissions"
    probe.touch()
    mode = S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(mode)


def reserve(file: int, size: int) -> None:
    """Take the room on the disk now: a full disk would otherwise end the process when pixels are written."""
    try:
        os.posix_fallocate(file, 0, size)
    except (OSError, AttributeError) as error:
        if not isinstance(error, AttributeError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        zeros = bytes(1 << 20)
        for first in range(0, size, len(zeros)):
            os.write(file, zeros[: size - first])


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, hashed: bool = False
) -> None:
    """Write a safetensors file from tensors on any device; where ``hashed``, ``read_tensors`` compares their hash."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if hashed:
        metadata = {**(metadata or {}), DIGEST: hash_tensors(plain)}
    with atomic(path) as partial:
        partial.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        save_file(plain, partial, metadata=None if metadata is None else dict(metadata))
        partial.chmod(mode)  # safetensors 0.8 makes a file that no other user can read


def read_tensors(path: Path, *, fix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, mapped into memory, and its metadata without the hash.

    Raises:
        ArtifactError: the file is missing or damaged; ``fix`` ends the message.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ArtifactError(f"{path} is no file; expected safetensors. {fix}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}. {fix}") from error
    digest = metadata.pop(DIGEST, None)
    if digest is not None and digest != hash_tensors(tensors):
        raise ArtifactError(f"{path} is damaged: its tensors do not match their hash. {fix}")
    return tensors, metadata


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
        """Append one record of plain values to log.jsonl, completely or not at all.

        Raises:
            ArtifactError: the log is no file.
        """
        if os.path.lexists(self.log_path) and not self.log_path.is_file():  # a pipe would be waited for
            raise ArtifactError(f"{self.log_path} is no file; expected a log of JSON lines. Remove it and resume.")
        size = self.log_path.stat().st_size if self.log_path.exists() else 0
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=False) + "\n")
        except OSError:
            with suppress(OSError):
                os.truncate(self.log_path, size)
            raise
