"""The command line. Imports no torch until a command runs."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import reduce
from typing import Any, get_args, get_origin

import yaml

from gendistill.config import commands, to_dict
from gendistill.config.base import Folders, Options, arms, check_names, expected, load_yaml, read, require
from gendistill.config.flat import Option, all_options, as_data, complete, options_of, unflatten
from gendistill.config.presets import read_config
from gendistill.errors import ConfigError, GendistillError, did_you_mean, printable
from gendistill.registry import CHOICES, import_plugins, plugins_of_environment

DONE, FAULT, USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """A verb: one line of help, the dataclass of its options, and the ``module`` of stages/ whose
    ``main`` takes that dataclass, or ``module:function``.

    Arguments before the first option are values of the options ``positional``, in order; the last one takes the rest.
    """

    summary: str
    options: type[Options]
    entry: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("all stages, from pixels to report", commands.RunCommand, "run"),
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
    "report": Command(
        "one page of finished runs and evaluations", commands.ReportCommand, "tools:main_report", ("run",)
    ),
    "export": Command(
        "write sets as parquet, webdataset, ddranking, or for the Hub", commands.ExportCommand, "tools:main_export"
    ),
    "verify": Command(
        "check whether a set is complete and unchanged", commands.VerifyCommand, "tools:main_verify", ("surrogate",)
    ),
    "show": Command(
        "contact sheet, projection and copy check of a set", commands.ShowCommand, "tools:main_show", ("surrogate",)
    ),
    "config": Command(
        "list, show or copy the presets that --config takes",
        commands.ConfigCommand,
        "config",
        ("action", "name", "file"),
    ),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gendistill COMMAND [--config PRESET or FILE.yaml] [--option value ...]",
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
    cls, known = COMMANDS[name].options, dict(all_options(COMMANDS[name].options))
    try:
        found, unknown = _parser(name, known, arguments).parse_known_args(_named(name, list(arguments)))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name} has no value; expected {error.argument_name} VALUE.") from None
    for word in unknown:
        option = word.partition("=")[0]
        if not word.startswith("-"):
            raise ConfigError(f"{word!r} belongs to no option; expected gendistill {name} --option value ...")
        last = option.rpartition(".")[2].removeprefix("--")
        alike = [one for one in known if one.rpartition(".")[2] == last] or known  # of another section
        guess = did_you_mean(option, [f"--{one}" for one in alike])
        raise ConfigError(f"{name} has no option {option}.{guess} `gendistill {name} --help` lists all options.")
    given: dict[str, Any] = {}
    for pairs in found.given or ():
        (option, text), *more = pairs if isinstance(pairs, list) else [pairs]
        if option == "config":
            _merge(given, _own_part(name, _read_config(text)))
            continue
        value = [text, *(other for _, other in more)] if more else text
        value = read(_type_of(option, known), value)
        *sections, last = option.split(".")
        _merge(given, reduce(lambda inner, section: {section: inner}, reversed(sections), {last: value}))
    required = {one: None for one, option in options_of(cls).items() if option.default is MISSING}
    if not found.print_config:
        return unflatten(cls, given)
    lacks_some = not required.keys() <= given.keys()
    options = complete(cls, required | given) if lacks_some else to_dict(unflatten(cls, given))
    print(yaml.safe_dump(as_data(options), sort_keys=False, allow_unicode=True), end="")
    raise SystemExit(DONE)


def _parser(name: str, known: Mapping[str, Option], arguments: Sequence[str]) -> argparse.ArgumentParser:
    """What splits a command's arguments into ``given``, a list of (option, text), and prints its help."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"gendistill {name}",
        usage=f"gendistill {name} [--config PRESET or FILE.yaml] [--option value ...]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--print_config", action="store_true", help="Print all options as YAML and exit.")
    _add(
        parser,
        "config",
        "Preset or YAML file: this command's options, or a whole run's. `gendistill config list` lists presets.",
    )
    groups: dict[str, Any] = {"": parser.add_argument_group((command.options.__doc__ or "").split("\n")[0].rstrip("."))}
    for option, one in known.items():
        place = groups[option.rpartition(".")[0]]
        if one.section:
            groups[option] = parser.add_argument_group(f"{option}: {one.text.rstrip('.')}")
            _add(place, option, argparse.SUPPRESS)
        elif one.type in (Folders, Folders | None):
            _add(place, option, _help(option, one), nargs="+")
        elif option in ("overwrite", "private"):
            _add(place, option, _help(option, one), nargs="?", const="true")
        else:
            _add(place, option, _help(option, one))
        if any(get_origin(arm) is dict for arm in arms(one.type)):  # names below it are the user's
            for below in dict.fromkeys(a.partition("=")[0][2:] for a in arguments if a.startswith(f"--{option}.")):
                _add(place, below, argparse.SUPPRESS)
    return parser


def _add(place: Any, option: str, text: str, **more: Any) -> None:
    metavar = option.rpartition(".")[2].upper()
    place.add_argument(
        f"--{option}",
        dest="given",
        action="append",
        type=lambda word: (option, word),
        help=text,
        metavar=metavar,
        **more,
    )


def _type_of(option: str, known: Mapping[str, Option]) -> Any:
    """The type of an option, or of a name below a mapping."""
    if option in known:
        return known[option].type
    mapping = next(one.type for name, one in known.items() if option.startswith(f"{name}.") and not one.section)
    return next(get_args(arm)[1] for arm in arms(mapping) if get_origin(arm) is dict)


def _help(option: str, one: Option) -> str:
    """Its line of help, the names that a registry has for it, its values and its default."""
    kinds = ", ".join(kind for _, kind in one.owners if " " not in kind)
    text = f"{kinds}: {one.text[:1].lower()}{one.text[1:]}" if kinds else one.text
    registry = CHOICES.get(option.rpartition(".")[2])
    names = f"One of {', '.join(registry.names())}. " if registry else ""
    usual = as_data(one.default)
    default = "" if one.default is MISSING else f"; default {usual if isinstance(usual, str) else json.dumps(usual)}"
    return in_yaml_words(f"{text} {names}({expected(one.type)}{default})").replace("%", "%%")


def in_yaml_words(text: str) -> str:
    """A text in which Python's None is YAML's null."""
    return re.sub(r"\bNone\b", "null", text)


def _merge(target: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Put options into others, section by section."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            inner = target.get(name)
            target[name] = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(target[name], value)
        else:
            target[name] = value


def _read_config(source: str) -> dict[str, Any]:
    """The options in a YAML file or a preset."""
    try:
        loaded = load_yaml(read_config(source))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {source} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {source} holds {type(loaded).__name__}; expected options as `key: value` lines.")
    return loaded


def _named(name: str, arguments: list[str]) -> list[str]:
    """Arguments with the leading ones put behind the options they are values of."""
    options, words = COMMANDS[name].positional, list(arguments)
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words)) if options else []
    count = min(len(options), len(leading))
    placed = [word for pair in zip(options[:count], leading[:count], strict=True) for word in (f"--{pair[0]}", pair[1])]
    return [*placed, *words[count:]]


def _own_part(name: str, loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a command reads of a whole run's options: its own section, the data and the seed."""
    sections = [key for key in COMMANDS if isinstance(loaded.get(key), dict)]
    if name == "run" or not sections:
        return loaded
    check_names("The file", loaded, dict.fromkeys([*COMMANDS, *options_of(commands.RunConfig)]), ())
    own, shared = loaded.get(name, {}), {"data", "seed"} & options_of(COMMANDS[name].options).keys()
    require(isinstance(own, dict), name, own, "its options below it")
    return {**own, **{k: v for k, v in loaded.items() if k in shared}}


def _import_plugins(arguments: Sequence[str]) -> list[str]:
    """Import the modules of every ``--plugin`` and of GENDISTILL_PLUGINS; returns the other arguments."""
    modules, rest, words = plugins_of_environment(), [], iter(arguments)
    for word in words:
        if word != "--plugin" and not word.startswith("--plugin="):
            rest.append(word)
        elif module := word.partition("=")[2] or next(words, ""):
            modules.append(module)
        else:
            raise ConfigError("--plugin has no value; expected a module: --plugin my_methods for my_methods.py.")
    import_plugins(modules)
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
            guess = did_you_mean(name, COMMANDS)
            raise ConfigError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}.{guess}")
        options, run = parse(name, rest), _entry(name)
        from gendistill.progress import show_progress

        with show_progress():
            run(options)
        return DONE
    except GendistillError as error:
        print(f"gendistill: {printable(in_yaml_words(str(error)), lines=True)}", file=sys.stderr)
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
