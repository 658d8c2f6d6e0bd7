"""What the command that a folder recorded says of its inputs, which may be gone by now."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from gendistill.config import DataConfig

COMMANDS = ("gendistill", "evaluate")


def recorded_options(command: str, folder: Path) -> dict[str, Any]:
    """Its options by dotted name, those of its --config among them; nothing of a command that is not `evaluate`.

    Relative paths start from where the command was given: of a relative output_dir that is known from ``folder``.
    """
    try:
        tokens = shlex.split(command)
    except ValueError:
        return {}
    if tuple(tokens[:2]) != COMMANDS:
        return {}
    options = _options(tokens[2:])
    start = _start(options.get("output_dir"), folder)
    if "config" in options:
        options = {**_flat(_config(start / str(options["config"]))), **options}
    return {**options, "start": start}


def recorded_data(options: dict[str, Any]) -> DataConfig | None:
    """The real images, where the command is known."""
    given = {k.removeprefix("data."): v for k, v in options.items() if k.startswith("data.")}
    if not options:
        return None
    if isinstance(name := given.get("name"), str) and (options["start"] / name).is_dir():
        given["name"] = str(options["start"] / name)
    try:
        return DataConfig(**given)
    except TypeError:
        return None


def recorded_paths(options: dict[str, Any], name: str) -> list[Path]:
    """The folders that an option named, there or not."""
    found = options.get(name) or []
    return [options["start"] / str(path) for path in (found if isinstance(found, list) else [found])]


def _options(tokens: list[str]) -> dict[str, Any]:
    """``--name value``, ``--name=value`` or several values; what comes before the first option is left out."""
    found: dict[str, list[Any]] = {}
    name = None
    for token in tokens:
        if token.startswith("--"):
            name, is_set, value = token[2:].partition("=")
            found[name] = [_value(value)] if is_set else []
        elif name:
            found[name].append(_value(token))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _start(output_dir: Any, folder: Path) -> Path:
    place, parts = folder.resolve(), Path(str(output_dir or "")).parts
    if not output_dir or Path(str(output_dir)).is_absolute() or ".." in parts:
        return Path.cwd()
    parts = tuple(part for part in parts if part != ".")
    return Path(*place.parts[: len(place.parts) - len(parts)]) if place.parts[-len(parts) :] == parts else Path.cwd()


def _config(path: Path) -> dict[str, Any]:
    """What `evaluate` reads of a YAML file, of a whole run's too."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(loaded, dict):
        return {}
    own = loaded.get("evaluate")
    return {**(own if isinstance(own, dict) else {}), **loaded}


def _flat(loaded: dict[str, Any]) -> dict[str, Any]:
    data = loaded.get("data")
    nested = {f"data.{k}": v for k, v in data.items()} if isinstance(data, dict) else {}
    return {k: v for k, v in loaded.items() if not isinstance(v, dict)} | nested
