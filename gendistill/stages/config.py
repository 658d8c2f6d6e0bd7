"""`gendistill config`: the presets. Imports no torch."""

from __future__ import annotations

from gendistill.config.commands import ConfigCommand
from gendistill.config.presets import preset_names, read_preset, summary
from gendistill.errors import ConfigError
from gendistill.io import storage_errors, write_text


def main(command: ConfigCommand) -> None:
    if command.action == "list":
        width = max(map(len, preset_names()))
        print("\n".join(f"{name:<{width}}  {summary(name)}" for name in preset_names()))
        return
    text = read_preset(str(command.name))
    if command.file is None:
        print(text, end="")
        return
    if command.file.exists():
        raise ConfigError(f"{command.file} exists; give another file.")
    with storage_errors(command.file):
        write_text(command.file, text)
    print(f"{command.file}  a copy of {command.name}; use it with --config {command.file}")
