"""The command line. Imports no torch until a command runs."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import MISSING, dataclass
from functools import reduce
from typing import Any, get_args, get_origin

import yaml

from gendistill.config import commands, to_dict
from gendistill.config.base import arms, check_names, expected, fits, item_of, read, read_words, require
from gendistill.config.flat import Option, all_options, as_data, complete, from_short, options_of, unflatten
from gendistill.config.paths import check_paths
from gendistill.config.presets import read_config
from gendistill.config.text import load_yaml
from gendistill.errors import ConfigError, GendistillError, did_you_mean, printable
from gendistill.progress import note, show_progress
from gendistill.registry import import_plugins, plugins_of_environment
from gendistill.stages import Outcome
from gendistill.threads import crowded, keep_freed_memory, use_threads
from gendistill.usage import COMMANDS, help_text, in_yaml_words, usage

DONE, FAULT, USAGE, INTERRUPTED = 0, 1, 2, 130
SECOND = 1.0  # that a process which has nothing to say leaves to the one that has
PATIENCE = 10.0  # seconds after which a command says why it is slow


def parse(name: str, arguments: Sequence[str]) -> Any:
    """Options of one command from its arguments.

    Raises:
        ConfigError: an unknown key, a missing option or a bad value.
        SystemExit: after --help or --print_config.
    """
    cls, known = COMMANDS[name].options, dict(all_options(COMMANDS[name].options))
    if any(word in ("-h", "--help") for word in arguments):
        after = itertools.dropwhile(lambda word: word not in ("-h", "--help"), arguments)
        word = next(itertools.islice(after, 1, None), "-")
        print(help_text(name, None if word.startswith("-") else word))
        raise SystemExit(DONE)
    try:
        found, rest = _parser(name, known, arguments).parse_known_args(_with_values(name, known, arguments))
    except argparse.ArgumentError as error:
        option = error.argument_name
        lacks = f"{option} has no value; expected {option} VALUE."
        raise ConfigError(lacks if "expected" in error.message else f"{option}: {error.message}.") from None
    _refuse_unknown(name, known, rest)
    given: dict[str, Any] = {}
    presets: dict[str, Any] = {}  # the presets in the last file
    for option, words in [*(found.given or ()), *_positional(name, known, rest, found.given or ())]:
        if option in ("config", "preset"):
            if option == "config":
                loaded = _read_config(words[0])
                presets = loaded.pop(PRESETS, {})
            else:
                loaded = _preset(words[0], presets)
            _merge(given, _with_sections(cls, _own_part(name, loaded)))
        else:
            value = _value(option, known, words)
            *sections, last = option.split(".")
            _merge(given, reduce(lambda inner, section: {section: inner}, reversed(sections), {last: value}))
    required = {one: None for one, option in options_of(cls).items() if option.default is MISSING}
    if not found.print_config:
        return unflatten(cls, given)
    lacks_some = not required.keys() <= given.keys()
    options = complete(cls, required | given) if lacks_some else to_dict(unflatten(cls, given))
    print(yaml.safe_dump(as_data(options), sort_keys=False, allow_unicode=True), end="")
    raise SystemExit(DONE)


class _Given(argparse.Action):
    """Keeps (option, words) in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        words = values if isinstance(values, list) else [values]
        namespace.given = [*(namespace.given or ()), (str(option_string)[2:], words)]


def _parser(name: str, known: Mapping[str, Option], arguments: Sequence[str]) -> argparse.ArgumentParser:
    """What splits a command's arguments into ``given``, a list of (option, words), and the rest."""
    parser = argparse.ArgumentParser(prog=f"gendistill {name}", exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.set_defaults(given=None)
    parser.add_argument("--print_config", action="store_true")
    parser.add_argument("--config", action=_Given)
    parser.add_argument("--preset", action=_Given)
    for option, one in known.items():
        nargs = "+" if item_of(one.type) is not None else None
        parser.add_argument(f"--{option}", action=_Given, nargs=nargs)
        if any(get_origin(arm) is dict for arm in arms(one.type)):  # names below it are the user's
            for below in dict.fromkeys(a.partition("=")[0] for a in arguments if a.startswith(f"--{option}.")):
                parser.add_argument(below, action=_Given)
    return parser


def _with_values(name: str, known: Mapping[str, Option], arguments: Sequence[str]) -> Iterator[str]:
    """Arguments in which an option of yes or no that stands alone has the value true."""
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        option = known.get(word.removeprefix("--")) if word.startswith("--") else None
        if option is None or not fits(option.type, True):
            yield word
            continue
        alone = following.startswith("-") or (COMMANDS[name].positional and not fits_words(option.type, following))
        yield f"{word}=true" if alone else word


def fits_words(hint: Any, word: str) -> bool:
    """Whether a type takes a word of the command line."""
    return fits(hint, read_words(hint, [word]))


def _refuse_unknown(name: str, known: Mapping[str, Option], rest: Sequence[str]) -> None:
    """Refuse options that the command does not have, and values without one where none may stand."""
    for word in rest:
        option = word.partition("=")[0]
        if not word.startswith("-"):
            if COMMANDS[name].positional:
                continue
            raise ConfigError(f"{word!r} belongs to no option; expected gendistill {name} --option value ...")
        last = option.rpartition(".")[2].removeprefix("--")
        alike = [one for one in known if one.rpartition(".")[2] == last] or known  # of another section
        guess = did_you_mean(option, [f"--{one}" for one in alike])
        raise ConfigError(f"{name} has no option {option}.{guess} `gendistill {name} --help all` lists all options.")


def _positional(
    name: str, known: Mapping[str, Option], words: Sequence[str], given: Sequence[tuple[str, list[str]]]
) -> list[tuple[str, list[str]]]:
    """Words that stand alone as values of the command's positional options, the last of which takes the rest."""
    options, named = COMMANDS[name].positional, {option for option, _ in given}
    several = bool(options) and item_of(known[options[-1]].type) is not None
    if len(words) > len(options) and not several:
        word = words[len(options)]
        raise ConfigError(
            f"{word!r} belongs to no option; expected gendistill {name} --option value ...{_choices(known, given)}"
        )
    pairs = list(zip(options, ([word] for word in words), strict=False))
    if words[len(options) :]:
        pairs[-1][1].extend(words[len(options) :])
    for option, values in pairs:
        if option in named:
            raise ConfigError(
                f"{values[0]!r} and --{option} are both given; expected all in one place.{_choices(known, given)}"
            )
    return pairs


def _choices(known: Mapping[str, Option], given: Sequence[tuple[str, list[str]]]) -> str:
    """What options take that are true or a word, because a word that they do not take seems to stand alone."""
    hints = {option: known[option].type for option, words in given if option in known and words == ["true"]}
    found = {option: hint for option, hint in hints.items() if hint is not bool and fits(hint, True)}
    return "".join(f" --{option} takes {expected(hint)}." for option, hint in found.items())


def _value(option: str, known: Mapping[str, Option], words: Sequence[str]) -> Any:
    """What the words after an option say."""
    if option not in known:  # a name below a mapping
        mapping = next(one.type for name, one in known.items() if option.startswith(f"{name}.") and not one.section)
        return read(next(get_args(arm)[1] for arm in arms(mapping) if get_origin(arm) is dict), words[0])
    one = known[option]
    found = read_words(one.type, words)
    scalar = found is not None and not isinstance(found, (list, dict))
    return from_short(one, words[0] if one.section and one.section.short and scalar else found)


def _with_sections(cls: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of a file, those of a section below it where a text stands in its place."""
    known = options_of(cls)
    return {name: from_short(known[name], value) if name in known else value for name, value in given.items()}


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
    except ValueError as error:
        raise ConfigError(f"--config {source} cannot be read: {error}.") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {source} holds {type(loaded).__name__}; expected options as `key: value` lines.")
    presets = loaded.get(PRESETS, {})
    if not isinstance(presets, dict) or not all(isinstance(one, dict) for one in presets.values()):
        raise ConfigError(
            f"--config {source}: {PRESETS} is {presets!r}; expected options below the name of each preset."
        )
    return loaded


def _preset(name: str, presets: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one of a file's presets."""
    if name not in presets:
        has = (
            f"one of {', '.join(presets)}" if presets else "--config before it, such as --config cifar10 --preset quick"
        )
        raise ConfigError(f"--preset is {name!r}; expected {has}.{did_you_mean(name, presets)}")
    chosen: dict[str, Any] = presets[name]
    return chosen


def _own_part(name: str, loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a command reads of a whole run's options: its own section, the data and the seed."""
    sections = [key for key in COMMANDS if isinstance(loaded.get(key), dict)]
    if name == "run" or not sections:
        return loaded
    known = dict.fromkeys([*COMMANDS, *options_of(commands.RunCommand)])
    beside = [key for key in loaded if key in options_of(COMMANDS[name].options).keys() - known.keys()]
    if beside:
        raise ConfigError(f"{beside[0]} stands beside the sections of the file; expected it below {name}.")
    check_names("The file", loaded, known, ())
    for section in (key for key in loaded if key in COMMANDS):
        require(isinstance(loaded[section], dict), section, loaded[section], "its options below it")
    own, shared = loaded.get(name, {}), {"data", "seed"} & options_of(COMMANDS[name].options).keys()
    return {**own, **{k: v for k, v in loaded.items() if k in shared}}


@dataclass
class Flags:
    """What every command takes beside its options.

    Attributes:
        json: Print the result as JSON.
        quiet: Print no progress and no notes.
        log_level: What loggers print; empty for warnings, or errors alone with ``quiet``.
        plugins: Modules to import first.
        threads: Threads that compute on a CPU.
    """

    json: bool = False
    quiet: bool = False
    log_level: str = ""
    plugins: tuple[str, ...] = ()
    threads: int | None = None


PRESETS = "presets"  # section of a file: options by the name that --preset takes, which replace the file's others
LEVELS = ("debug", "info", "warning", "error")
MOST_THREADS = 1024


def _flags(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags among the arguments, and the other arguments."""
    flags, rest, words = Flags(), [], list(arguments)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in ("--json", "--quiet"):
            if not equals and words and words[0] in ("true", "false"):
                value = words.pop(0)
            require(value in ("", "true", "false"), name[2:], value, "true or false")
            setattr(flags, name[2:], value != "false")
        elif name in ("--log_level", "--plugin", "--threads"):
            if not equals and words and not words[0].startswith("--"):
                value = words.pop(0)
            if name == "--plugin" and not value:
                raise ConfigError("--plugin has no value; expected a module: --plugin my_methods for my_methods.py.")
            if name == "--plugin":
                flags.plugins += (value,)
            elif name == "--threads":
                known = value.isdecimal() and 0 < int(value) <= MOST_THREADS
                require(known, "threads", value, f"a whole number from 1 to {MOST_THREADS}")
                flags.threads = int(value)
            else:
                require(value in LEVELS, "log_level", value, f"one of {', '.join(LEVELS)}", LEVELS)
                flags.log_level = value
        else:
            rest.append(f"{name}{equals}{value}")
    return flags, rest


def _recorded(flags: Flags) -> list[str]:
    """The flags that can change what a command makes: plug-ins, and threads, by the rounding of sums."""
    threads = [] if flags.threads is None else [f"--threads={flags.threads}"]
    return [*(f"--plugin={module}" for module in flags.plugins), *threads]


def _prepare(flags: Flags) -> None:
    """Set what libraries read when they are imported, and what loggers print."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own: large tensors of the CPU in huge pages
    if flags.quiet or not sys.stderr.isatty():  # downloads
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    usual = "error" if flags.quiet or not _is_main_process() else "warning"
    logging.basicConfig(level=usual.upper(), format="%(message)s")
    logging.getLogger("gendistill").setLevel((flags.log_level or usual).upper())


def _entry(name: str) -> Callable[[Any], Outcome]:
    """What runs a command; with it torch is imported."""
    module, _, function = COMMANDS[name].entry.partition(":")
    run: Callable[[Any], Outcome] = getattr(importlib.import_module(f"gendistill.stages.{module}"), function or "main")
    return run


@contextmanager
def _noting_a_crowd() -> Iterator[None]:
    """Say once that the machine is crowded, when a command has taken some seconds on it."""

    def look() -> None:
        import torch

        found = None if torch.cuda.is_available() else crowded(torch.get_num_threads())
        if found:
            note(found)

    timer = threading.Timer(PATIENCE, copy_context().run, (look,))  # with the context in which notes are shown
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 wrong input, 1 our fault, 130 interrupted."""
    name = ""
    try:
        flags, words = _flags(sys.argv[1:] if arguments is None else arguments)
        if arguments is None:  # what manifests record: how a command prints is no part of it
            sys.argv[1:] = [*words, *_recorded(flags)]
        use_threads(flags.threads)
        keep_freed_memory()
        import_plugins([*plugins_of_environment(), *flags.plugins])
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            return DONE if words else USAGE
        if words[0] == "--version":
            from importlib.metadata import version

            print(version("gendistill"))
            return DONE
        name, rest = words[0], words[1:]
        if name not in COMMANDS:
            guess = did_you_mean(name, COMMANDS)
            raise ConfigError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}.{guess}")
        options = parse(name, rest)
        _prepare(flags)
        check_paths(options)
        run = _entry(name)
        with show_progress(not flags.quiet and _is_main_process()), _noting_a_crowd():
            outcome = run(options)
        return _print(outcome, flags.json)
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, int) or stop.code is None else USAGE
    except KeyboardInterrupt:
        resumes = name in COMMANDS and issubclass(COMMANDS[name].options, commands.StageOptions)
        advice = "; continue with --resume_from_checkpoint latest" if resumes else ""
        if _is_main_process():
            print(f"\ngendistill: interrupted{advice}.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, GendistillError) or _is_one_of_several():
            return _report(error)
        raise


def _is_one_of_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _is_main_process() -> bool:
    """Whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def _reports_failure() -> bool:
    """Whether this process says why the command failed: the only one, or of several the first one that failed."""
    if not _is_one_of_several():
        return True
    from gendistill.parallel import is_first_to_fail

    try:
        first = is_first_to_fail()
    except Exception:  # they do not run together, or no longer
        first = _is_main_process()
    if not first:
        time.sleep(SECOND)  # the launcher ends all when one has ended
    return first


def _says_that_one_is_gone(error: Exception) -> bool:
    from gendistill.parallel import is_lost_connection

    return is_lost_connection(error)


def _report(error: Exception) -> int:
    """Say, once for all processes, why the command failed; returns the exit code."""
    from_input, says = isinstance(error, GendistillError), _reports_failure()
    if says and from_input:
        _print_error(str(error))
    elif says and _says_that_one_is_gone(error):
        advice = "Start all of them again, with --resume_from_checkpoint latest."
        _print_error(f"another process of this command has ended or cannot be reached ({error}). {advice}")
    elif says:
        traceback.print_exception(error)
    return USAGE if from_input else FAULT


def _print(outcome: Outcome, as_json: bool) -> int:
    """Print, in the first of several processes, what a command wrote and found; returns the exit code."""
    if _is_main_process():
        if as_json:
            print(json.dumps(outcome.data, indent=2, ensure_ascii=False, default=str))
        elif outcome.text:
            print(outcome.text)
        if outcome.problem:
            _print_error(outcome.problem)
    return USAGE if outcome.problem else DONE


def _print_error(text: str) -> None:
    print(f"gendistill: {printable(in_yaml_words(text), lines=True)}", file=sys.stderr)


def entry() -> None:
    """The console script."""
    sys.exit(main())
