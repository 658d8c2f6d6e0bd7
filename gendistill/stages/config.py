"""`gendistill config`: the presets. Imports no torch."""

from __future__ import annotations

from gendistill.config.commands import ConfigCommand
from gendistill.config.presets import preset_names, read_preset, summary
from gendistill.errors import ConfigError
from gendistill.io import storage_errors, write_text
from gendistill.stages import Outcome


def main(command: ConfigCommand) -> Outcome:
    if command.action == "list":
        found = {name: summary(name) for name in preset_names()}
        width = max(map(len, found))
        return Outcome("\n".join(f"{name:<{width}}  {text}" for name, text in found.items()), {"presets": found})
    text = read_preset(str(command.name))
    if command.file is None:
        return Outcome(text.rstrip("\n"), {"name": command.name, "yaml": text})
    if command.file.exists():
        raise ConfigError(f"{command.file} exists; give another file.")
    with storage_errors(command.file):
        write_text(command.file, text)
    said = f"{command.file}  a copy of {command.name}; use it with --config {command.file}"
    return Outcome(said, {"name": command.name, "file": str(command.file)})
