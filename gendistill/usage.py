"""The commands, and what each prints as help: an example and the options most people need; all with ``--help all``."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass

from gendistill.config import commands
from gendistill.config.base import Options, expected
from gendistill.config.flat import Option, all_options, as_data
from gendistill.errors import ConfigError, did_you_mean
from gendistill.registry import CHOICES

COLUMNS = 100


@dataclass(frozen=True)
class Command:
    """A verb.

    Attributes:
        summary: One line of help.
        options: The dataclass of its options.
        entry: The ``module`` of stages/ whose ``main`` takes that dataclass, or ``module:function``.
        example: Arguments that work.
        common: The options that the short help lists, after those that must be given.
        positional: The options whose values may stand without their names, in order; the last one takes the rest.
    """

    summary: str
    options: type[Options]
    entry: str
    example: str
    common: str = ""
    positional: tuple[str, ...] = ()


SET = ("surrogate",)
AGAIN = "seed resume_from_checkpoint overwrite"
COMMANDS = {
    "run": Command(
        "all stages, from pixels to report",
        commands.RunCommand,
        "run",
        "--config quick --data my_images --data.image_size 32 --output_dir runs/mine",
        f"data data.image_size sample.ipc refine.ipc evaluate.runs dry_run {AGAIN}",
    ),
    "teacher": Command(
        "train the classifier that guides refinement",
        commands.TeacherCommand,
        "teacher",
        "--data digits --output_dir out/teacher",
        f"data data.image_size network steps flip {AGAIN}",
    ),
    "finetune": Command(
        "train the generator, then fine-tune it with the minimax criteria",
        commands.FinetuneCommand,
        "finetune",
        "--data digits --output_dir out/generator",
        f"data data.image_size pretrained adaptation base_steps minimax_steps batch_size flip {AGAIN}",
    ),
    "sample": Command(
        "sample surrogate sets from a generator",
        commands.SampleCommand,
        "sample",
        "out/generator --ipc 1 10 50 --output_dir out/samples",
        f"ipc pool guidance guidance_scale num_inference_steps classes {AGAIN}",
        ("generator",),
    ),
    "distill": Command(
        "gradient and distribution matching, WMDD from noise, or coresets",
        commands.DistillCommand,
        "distill",
        "--method kmeans --data digits --ipc 1 10 --output_dir out/kmeans",
        f"method ipc data data.image_size teacher iterations selection {AGAIN}",
    ),
    "refine": Command(
        "select from a surrogate set and refine",
        commands.RefineCommand,
        "refine",
        "out/samples/pool --teacher out/teacher --ipc 10 --output_dir out/refined",
        f"ipc steps data refiner flip {AGAIN}",
        SET,
    ),
    "label": Command(
        "add a teacher's soft labels to a surrogate set",
        commands.LabelCommand,
        "label",
        "out/refined/ipc-10 --teacher out/teacher --output_dir out/labelled",
        f"mode temperature views {AGAIN}",
        SET,
    ),
    "evaluate": Command(
        "train classifiers on sets and baselines, test once",
        commands.EvaluateCommand,
        "evaluate",
        "out/refined/ipc-10 out/kmeans/ipc-10 --data digits --output_dir out/evaluation",
        f"data data.image_size teacher protocol network runs baselines labels flip {AGAIN}",
        SET,
    ),
    "report": Command(
        "one page of finished runs and evaluations",
        commands.ReportCommand,
        "tools:main_report",
        "runs/digits out/evaluation --output_dir out/report",
        "output_dir overwrite",
        ("run",),
    ),
    "export": Command(
        "write sets as parquet, webdataset, ddranking, or for the Hub; a generator for others",
        commands.ExportCommand,
        "tools:main_export",
        "out/refined/ipc-10 --format parquet --output_dir out/parquet",
        "format evaluation push_to_hub overwrite",
        SET,
    ),
    "verify": Command(
        "check whether a set is complete and unchanged",
        commands.VerifyCommand,
        "tools:main_verify",
        "out/refined/ipc-10",
        "",
        SET,
    ),
    "show": Command(
        "contact sheet, projection and copy check of a set",
        commands.ShowCommand,
        "tools:main_show",
        "out/refined/ipc-10 --teacher out/teacher --output_dir out/show",
        "data teacher projection overwrite",
        SET,
    ),
    "config": Command(
        "list, show or copy the presets that --config takes",
        commands.ConfigCommand,
        "config",
        "copy digits mine.yaml",
        "action name file",
        ("action", "name", "file"),
    ),
    "cache": Command(
        "list or clear the stores of decoded images",
        commands.CacheCommand,
        "image_cache",
        "list",
        "action store cache",
        ("action", "store"),
    ),
    "doctor": Command(
        "versions, devices, caches and optional packages of this machine",
        commands.DoctorCommand,
        "doctor",
        "",
    ),
}

FLAGS = {
    "--config PRESET or FILE.yaml": (
        "This command's options, or a whole run's. `gendistill config list` lists presets."
    ),
    "--preset NAME": "Another size of that file: its options below `presets` and this name, such as quick in cifar10.",
    "--print_config": "Print all options as YAML and exit.",
    "--json": "Print the result as JSON on standard output.",
    "--quiet": "No progress, no notes: only the result, and errors.",
    "--log_level LEVEL": "What loggers print: debug, info, warning or error (default warning).",
    "--plugin MODULE": "Import a module that registers your own methods.",
    "--threads N": "Threads that compute on a CPU (default: OMP_NUM_THREADS, else all cores).",
    "--help [all or WORD]": "The most used options; all of them, or those with WORD in their names.",
}


def usage() -> str:
    """What ``gendistill --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gendistill COMMAND [--config PRESET or FILE.yaml] [--option value ...]",
            "",
            "Turn a labelled image collection into a small surrogate set that trains classifiers nearly as well.",
            "",
            "start with:",
            "  gendistill run --config quick --data my_images --output_dir runs/quick",
            "",
            "commands:",
            *lines,
            "",
            "of every command:",
            *(line for name, text in FLAGS.items() for line in _entry(name, text)),
        ]
    )


def help_text(name: str, word: str | None = None) -> str:
    """What ``gendistill COMMAND --help`` prints; of every option with ``all``, of some with a part of their names."""
    command, known = COMMANDS[name], dict(all_options(COMMANDS[name].options))
    values = "".join(f" {one.upper()}{' ...' if i + 1 == len(command.positional) else ''}"
                     for i, one in enumerate(command.positional))  # fmt: skip
    lines = [f"usage: gendistill {name}{values} [--option value ...]", ""]
    lines += [f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    lines += ["example:", f"  gendistill {name} {command.example}".rstrip()]
    if word is None:
        lines += _short(command, known)
        lines += ["", *_section("of every command", [_entry(flag, text) for flag, text in FLAGS.items()])]
        if len(known) > len(command.common.split()) + 2:
            lines += ["", f"`gendistill {name} --help all` lists all {_count(known)} options, `--help WORD` some."]
        return "\n".join(lines)
    found = {one: option for one, option in known.items() if word == "all" or word in one}
    if not found and word != "all":
        raise ConfigError(f"{name} has no option with {word!r} in its name.{did_you_mean(word, known)}")
    for section, title in _sections(command, known).items():
        own = [one for one, option in found.items() if one.rpartition(".")[0] == section and not option.section]
        if own:
            lines += ["", *_section(title, [_option(one, found[one]) for one in own])]
    return "\n".join(lines)


def _count(known: Mapping[str, Option]) -> int:
    return sum(option.section is None for option in known.values())


def _short(command: Command, known: Mapping[str, Option]) -> list[str]:
    needed = [name for name, option in known.items() if option.default is MISSING]
    common = [name for name in command.common.split() if name not in needed]
    lines = []
    for title, names in (("needed", needed), ("most used", common)):
        if names:
            lines += ["", *_section(title, [_option(name, known[name]) for name in names])]
    return lines


def _sections(command: Command, known: Mapping[str, Option]) -> dict[str, str]:
    """The titles of sections by their names."""
    own = (command.options.__doc__ or "").split("\n")[0].rstrip(".")
    return {"": own} | {name: f"{name}: {one.text.rstrip('.')}" for name, one in known.items() if one.section}


def _section(title: str, entries: list[list[str]]) -> list[str]:
    return [f"{title}:", *(line for entry in entries for line in entry)]


def _option(name: str, option: Option) -> list[str]:
    """The entry of an option: the names that a registry has for it, its values and its default."""
    short = option.section.short if option.section else None
    if short and option.section:
        inner = dict(all_options(option.section))[short]
        more = f"More options are below it, such as --{name}.image_size: --help {name}."
        return _entry(f"--{name} {short.upper()}", f"{option.text} {inner.text} {more}")
    kinds = ", ".join(kind for _, kind in option.owners if " " not in kind)
    text = f"{kinds}: {option.text[:1].lower()}{option.text[1:]}" if kinds else option.text
    last = name.rpartition(".")[2]
    registry = CHOICES.get(last)
    names = f"One of {', '.join(registry.names())}. " if registry else ""
    usual = as_data(option.default)
    default = "" if option.default is MISSING else f"; default {usual if isinstance(usual, str) else json.dumps(usual)}"
    value = "" if option.type is bool else f" {last.upper()}"
    return _entry(f"--{name}{value}", in_yaml_words(f"{text} {names}({expected(option.type)}{default})"))


def _entry(name: str, text: str) -> list[str]:
    """A name and its text, in two columns."""
    lines = textwrap.wrap(text, COLUMNS - 26, break_long_words=False, break_on_hyphens=False)
    first = [f"  {name:<23} {lines[0]}"] if len(name) <= 23 else [f"  {name}", f"{'':26}{lines[0]}"]
    return [*first, *(f"{'':26}{line}" for line in lines[1:])]


def in_yaml_words(text: str) -> str:
    """A text in which Python's None is YAML's null."""
    return re.sub(r"\bNone\b", "null", text)
