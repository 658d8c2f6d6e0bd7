"""The command line. Imports no torch until a command runs."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from gendistill.config import commands
from gendistill.config.base import Options
from gendistill.config.flat import flatten, options_of, unflatten
from gendistill.errors import ConfigError, GendistillError
from gendistill.registry import CHOICES, import_plugins

DONE, FAULT, USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """A verb: one line of help, the dataclass of its options, and the ``module`` of stages/ whose
    ``main`` takes that dataclass, or ``module:function``.

    Arguments before the first option are values of ``positional``, where the verb has one.
    """

    summary: str
    options: type[Options]
    entry: str
    positional: str | None = None


COMMANDS = {
    "run": Command("all stages, from pixels to report", commands.RunConfig, "run"),
    "teacher": Command("train the classifier that guides refinement", commands.TeacherCommand, "teacher"),
    "finetune": Command(
        "train the generator, then fine-tune it with the minimax criteria", commands.FinetuneCommand, "finetune"
    ),
    "sample": Command("sample surrogate sets from a generator", commands.SampleCommand, "sample"),
    "distill": Command(
        "gradient and distribution matching, WMDD from noise, or coresets", commands.DistillCommand, "distill"
    ),
    "refine": Command("select from a surrogate set and refine", commands.RefineCommand, "refine"),
    "label": Command("add a teacher's soft labels to a surrogate set", commands.LabelCommand, "label"),
    "evaluate": Command("train classifiers on sets and baselines, test once", commands.EvaluateCommand, "evaluate"),
    "report": Command("one page of finished runs and evaluations", commands.ReportCommand, "tools:main_report", "run"),
    "export": Command(
        "write sets as parquet, webdataset, ddranking, or for the Hub", commands.ExportCommand, "tools:main_export"
    ),
    "verify": Command(
        "check whether a set is complete and unchanged", commands.VerifyCommand, "tools:main_verify", "surrogate"
    ),
    "show": Command(
        "contact sheet, projection and copy check of a set", commands.ShowCommand, "tools:main_show", "surrogate"
    ),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gendistill COMMAND [--config FILE.yaml] [--option value ...]",
            "",
            "Turn a labelled image collection into a small surrogate set that trains classifiers nearly as well.",
            "",
            "commands:",
            *lines,
            "",
            "`gendistill --plugin MODULE COMMAND` first imports a module that registers your own methods.",
            "`gendistill COMMAND --help` lists a command's options, `--print_config` prints them as YAML.",
        ]
    )


def parse(name: str, arguments: Sequence[str]) -> Any:
    """Options of one command from its arguments.

    Raises:
        ConfigError: an unknown key, a missing option or a bad value.
        SystemExit: after --help or --print_config.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    command = COMMANDS[name]
    parser = ArgumentParser(
        prog=f"gendistill {name}",
        description=command.summary,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file: this command's options, or a whole run's.")
    parser.add_class_arguments(flatten(command.options))
    for action in parser._actions:
        if registry := CHOICES.get(action.dest):
            action.help = f"{action.help} One of {', '.join(registry.names())}."
    try:
        values = parser.parse_args(_prepared(name, arguments)).as_dict()
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return unflatten(command.options, {key: value for key, value in values.items() if key != "config"})


def _prepared(name: str, arguments: Sequence[str]) -> list[str]:
    """Arguments with a whole run's YAML replaced by the part that this command reads, and a bare --overwrite set."""
    import yaml

    given = _listed(_named(name, list(arguments)))
    out = [f"{a}=true" if a in ("--overwrite", "--private") else a for a in given]
    for i, argument in enumerate(out):
        path = argument.removeprefix("--config=") if argument.startswith("--config=") else None
        if argument == "--config" and i + 1 < len(out):
            path = out[i + 1]
        if path is None:
            continue
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {path} cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"--config {path} holds {type(loaded).__name__}; expected options as `key: value` lines.")
        own = _own_part(name, loaded)
        for field in fields(flatten(COMMANDS[name].options)):
            if is_dataclass(field.type) and field.name in own and not isinstance(own[field.name], dict):
                raise ConfigError(
                    f"--config {path} has {own[field.name]!r} as {field.name}; expected its options below it."
                )
        text = json.dumps(own)
        if argument == "--config":
            out[i + 1] = text
        else:
            out[i] = f"--config={text}"
    return out


def _named(name: str, arguments: list[str]) -> list[str]:
    """Arguments with the leading ones put behind the option they are values of."""
    option = COMMANDS[name].positional
    values = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    if not values or option is None:
        return arguments
    value = values[0] if len(values) == 1 else json.dumps(values)
    return [f"--{option}={value}", *arguments[len(values) :]]


def _listed(arguments: list[str]) -> list[str]:
    """Arguments with several values of --surrogate as one list."""
    if "--surrogate" not in arguments:
        return arguments
    start = arguments.index("--surrogate") + 1
    values = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments[start:]))
    if len(values) < 2:
        return arguments
    return [*arguments[:start], json.dumps(values), *arguments[start + len(values) :]]


def _own_part(name: str, loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a command reads of a whole run's options: its own section, the data and the seed."""
    sections = [key for key in COMMANDS if isinstance(loaded.get(key), dict)]
    if name == "run" or not sections:
        return loaded
    shared = {"data", "seed"} & options_of(COMMANDS[name].options).keys()
    return {**loaded.get(name, {}), **{k: v for k, v in loaded.items() if k in shared}}


def _import_plugins(arguments: Sequence[str]) -> list[str]:
    """Import the modules of every ``--plugin`` and of GENDISTILL_PLUGINS; returns the other arguments."""
    modules, rest, words = os.environ.get("GENDISTILL_PLUGINS", "").split(","), [], iter(arguments)
    for word in words:
        if word == "--plugin" or word.startswith("--plugin="):
            modules.append(word.partition("=")[2] or next(words, "--plugin"))
        else:
            rest.append(word)
    import_plugins(filter(None, modules))
    return rest


def _entry(name: str) -> Callable[[Any], None]:
    """What runs a command; with it torch is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own: large tensors of the CPU in huge pages
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    module, _, function = COMMANDS[name].entry.partition(":")
    run: Callable[[Any], None] = getattr(importlib.import_module(f"gendistill.stages.{module}"), function or "main")
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 wrong input, 1 our fault, 130 interrupted."""
    name = ""
    try:
        arguments = _import_plugins(sys.argv[1:] if arguments is None else arguments)
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            return DONE if arguments else USAGE
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(version("gendistill"))
            return DONE
        name, rest = arguments[0], arguments[1:]
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}.")
        options, run = parse(name, rest), _entry(name)
        from gendistill.progress import show_progress

        with show_progress():
            run(options)
        return DONE
    except GendistillError as error:
        print(f"gendistill: {error}", file=sys.stderr)
        return USAGE
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, int) or stop.code is None else USAGE
    except KeyboardInterrupt:
        resumes = name in COMMANDS and issubclass(COMMANDS[name].options, commands.StageOptions)
        advice = "; continue with --resume_from_checkpoint latest" if resumes else ""
        print(f"\ngendistill: interrupted{advice}.", file=sys.stderr)
        return INTERRUPTED


def entry() -> None:
    """The console script."""
    sys.exit(main())
