"""How something was made: the command of this process and the versions of the libraries."""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("gendistill", "torch", "diffusers", "accelerate", "POT", "scikit-learn", "numpy")


def command_line() -> str:
    """The command of this process, to be repeated by a reader of a manifest."""
    import shlex

    program = Path(sys.argv[0]).name
    return shlex.join(["gendistill" if program in ("gendistill", "__main__.py") else program, *sys.argv[1:]])


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
