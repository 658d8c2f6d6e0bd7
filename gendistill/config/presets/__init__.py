"""Presets: options of runs and commands by name; the head of each file says for what, and what was measured with it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from gendistill.errors import ConfigError, did_you_mean

FOLDER = Path(str(files(__package__)))


def preset_names() -> list[str]:
    """Names that ``--config`` takes, such as ``photos`` and ``matching/dm``: whole runs first."""
    found = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    return sorted(found, key=lambda name: (name.count("/"), name))


def summary(name: str) -> str:
    """The start of a preset's head, up to the first colon or full stop."""
    lines = read_preset(name).splitlines()
    head = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return re.split(r"[.:] ", head, maxsplit=1)[0]


def read_preset(name: str) -> str:
    """The text of a preset's YAML file.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in preset_names():
        guess = did_you_mean(name, preset_names())
        raise ConfigError(f"there is no preset {name!r}; expected one of {', '.join(preset_names())}.{guess}")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read_config(source: str) -> str:
    """The text of a YAML file, or of a preset where no file has this name.

    Raises:
        ConfigError: neither is there, or the file is not readable as UTF-8.
    """
    path = Path(source)
    if not path.exists() and source in preset_names():
        return read_preset(source)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known, guess = ", ".join(preset_names()), did_you_mean(source, preset_names())
        raise ConfigError(f"--config {source} is neither a file nor a preset; presets are {known}.{guess}") from error
    except UnicodeDecodeError as error:
        wrong = f"byte {error.object[error.start]:#04x} at position {error.start}"
        raise ConfigError(f"--config {source} is not UTF-8 text ({wrong}); save it in UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"--config {source} cannot be read: {error}") from error
