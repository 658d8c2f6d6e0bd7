"""Errors that the user can correct. The command line prints them as one message and exits with 2."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
MADE_BY = {
    "RealData": "gd.load_data or gd.RealData.from_arrays",
    "SurrogateSet": "gd.distill or gd.SurrogateSet.load",
    "Teacher": "gd.train_teacher or gd.Teacher.from_pretrained",
    "Generator": "gd.finetune or gd.Generator.from_pretrained",
}


class GendistillError(Exception):
    """Base of every error that carries a message for the user."""


class ConfigError(GendistillError):
    """An option has a value that cannot work; the message names the option, the value and the choices."""


class DataError(GendistillError):
    """The real images cannot be used as they are: missing folder, empty class, no readable image."""


class ArtifactError(GendistillError):
    """A folder written by a stage is missing, incomplete, of another kind, or would be overwritten."""


class StorageError(GendistillError):
    """The disk is full; finished work is kept, and the same command can continue from it."""


class DivergenceError(ConfigError):
    """A loss, weights or images are no longer finite with these options: the training that makes them diverged."""


class ConvergenceError(GendistillError, RuntimeError):
    """A solver did not reach its optimum with these options."""


def reason(error: Exception) -> str:
    """The first line of an error of another library, as a sentence; the first error of torch's lists."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[min(len(lines) - 1, lines[0].startswith("Error(s) in loading"))].rstrip(". ") + "."


def printable(text: str, *, lines: bool = False) -> str:
    """Text for a terminal: control characters, which can hide or forge what is shown, are escaped; ``lines`` stay."""
    keep = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The sentence that a message ends with where a known name is close to this one."""
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def require_type(name: str, value: Any, kind: type[T]) -> T:
    """The argument ``name`` of a public function, where it is a ``kind``.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, kind):
        return value
    shown = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    how = f", which {MADE_BY[kind.__name__]} makes" if kind.__name__ in MADE_BY else ""
    raise ConfigError(f"{name} is {shown}; expected a {kind.__name__}{how}.")


def require_types(name: str, value: Any, kind: type[T]) -> list[T]:
    """The argument ``name``, one ``kind`` or several, as a list."""
    if isinstance(value, (kind, str)) or not isinstance(value, Iterable):
        return [require_type(name, value, kind)]
    return [require_type(f"{name}[{i}]", one, kind) for i, one in enumerate(value)]
