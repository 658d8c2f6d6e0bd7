"""Errors that the user can correct. The command line prints them as one message and exits with 2."""

import difflib
from collections.abc import Iterable


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


class ConvergenceError(GendistillError, RuntimeError):
    """A solver did not reach its optimum with these options."""


def reason(error: Exception) -> str:
    """The first line of an error of another library, as a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(". ") + "."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The sentence that a message ends with where a known name is close to this one."""
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""
