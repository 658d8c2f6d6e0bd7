"""A folder that a report can be made of: the output of `gendistill run`, or of `gendistill evaluate`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Required, TypedDict

import yaml

from gendistill.config import DataConfig
from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.summary import read_summary
from gendistill.io import CONFIG, LOG, RECORD, read_json, read_text

COMMANDS = ("gendistill", "evaluate")
Options = dict[str, Any]  # of a command, by dotted name, as YAML reads them


def recorded_options(command: str, folder: Path) -> Options:
    """Its options by dotted name, those of its --config among them; nothing of a command that is not `evaluate`.

    Relative paths start from where the command ran: of a relative output_dir that is known from ``folder``.
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


def recorded_data(options: Options) -> DataConfig | None:
    """The real images, where the command is known."""
    values = {k.removeprefix("data."): v for k, v in options.items() if k.startswith("data.")}
    if not options:
        return None
    if isinstance(name := values.get("name"), str) and (options["start"] / name).is_dir():
        values["name"] = str(options["start"] / name)
    try:
        return DataConfig(**values)
    except (TypeError, ConfigError):
        return None


def recorded_paths(options: Options, name: str) -> list[Path]:
    """The folders that an option named, there or not."""
    found = options.get(name) or []
    return [options["start"] / str(path) for path in (found if isinstance(found, list) else [found])]


def _options(tokens: list[str]) -> Options:
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
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _start(output_dir: Any, folder: Path) -> Path:
    place, parts = folder.resolve(), Path(str(output_dir or "")).parts
    if not output_dir or Path(str(output_dir)).is_absolute() or ".." in parts:
        return Path.cwd()
    parts = tuple(part for part in parts if part != ".")
    return Path(*place.parts[: len(place.parts) - len(parts)]) if place.parts[-len(parts) :] == parts else Path.cwd()


def _config(path: Path) -> Options:
    """What `evaluate` reads of a YAML file, of a whole run's too."""
    try:
        loaded = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(loaded, dict):
        return {}
    own = loaded.get("evaluate")
    return {**(own if isinstance(own, dict) else {}), **loaded}


def _flat(loaded: Options) -> Options:
    data = loaded.get("data")
    nested = {f"data.{k}": v for k, v in data.items()} if isinstance(data, dict) else {}
    return {k: v for k, v in loaded.items() if not isinstance(v, dict)} | nested


SUMMARY = "summary.json"
CONTINUAL, CONTINUAL_PAGE = "continual.json", "continual.html"
TEACHER, EVALUATION = "teacher", "evaluation"
STAGES = (TEACHER, "generator", "samples", "refined", EVALUATION)


@dataclass(frozen=True)
class Finished:
    """What was read of a folder.

    ``is_run`` distinguishes a run, which knows its real images (``run_data``) and its sets, from an evaluation, whose
    command says where they were.
    """

    path: Path
    is_run: bool
    run_data: DataConfig | None
    summary: Mapping[str, Any]
    records: list[Mapping[str, Any]]
    config: str
    date: str

    @property
    def fingerprint(self) -> str:
        return str(self.summary["data"]["fingerprint"])

    @property
    def hashes(self) -> list[str]:
        """Content hashes of the sets that were evaluated, in the order of the command."""
        record: Mapping[str, Any] = next((r for r in self.records if r.get("stage") == "evaluate"), {})
        return list(record.get("settings", {}).get("inputs", {}).get("surrogates", ()))

    @cached_property
    def options(self) -> Options:
        """Where its images were, as stage.json says; of older versions, as the recorded command does."""
        if self.is_run:
            return {}
        sources = next((one["sources"] for one in self.records if "sources" in one), None)
        if sources is None:
            return recorded_options(str(self.summary.get("command", "")), self.path)
        return {**_flat(sources), "start": _start(sources["output_dir"], self.path)}

    @property
    def data_config(self) -> DataConfig | None:
        """The real images, as the run's config.yaml or the recorded command has them; None where neither does."""
        return self.run_data or recorded_data(self.options)

    @property
    def surrogates(self) -> dict[str, Path]:
        """By content hash, the folders that `evaluate` read, there or not."""
        paths = recorded_paths(self.options, "surrogate")
        return dict(zip(self.hashes, paths, strict=True)) if len(paths) == len(self.hashes) else {}

    @property
    def teacher(self) -> Path | None:
        """Where the teacher was."""
        if self.is_run:
            return self.path / TEACHER
        return next(iter(recorded_paths(self.options, TEACHER)), None)


def read_runs(paths: Sequence[Path]) -> list[Finished]:
    """Read several folders.

    Raises:
        ArtifactError: one is not finished or damaged, or their numbers are of different images.
    """
    found = [read_finished(path) for path in paths]
    first = found[0]
    other = next((one for one in found if one.fingerprint != first.fingerprint), None)
    if other:
        a, b = ((one.path, one.summary["data"].get("name"), one.fingerprint) for one in (first, other))
        raise ArtifactError(
            f"{a[0]} and {b[0]} are of different data ({a[1]}, fingerprint {a[2]}, and {b[1]}, {b[2]}); expected "
            "runs of the same images and splits. Make a report of each."
        )
    return found


def read_finished(path: Path) -> Finished:
    """Read a folder.

    Raises:
        ArtifactError: it is not finished, or a file of it is damaged.
    """
    if (path / CONTINUAL).is_file():
        raise ArtifactError(
            f"{path} is an evaluation of continual learning, which has its own page: open "
            f"{path / CONTINUAL_PAGE}, whose numbers are in {CONTINUAL} beside it. `gendistill report` takes the "
            "output of `gendistill run` and of `gendistill evaluate` without --task."
        )
    is_run = not (path / SUMMARY).is_file()
    config, run_data = "", None
    if is_run:
        config, loaded = _read(path, Path(CONFIG), lambda text: (text, yaml.safe_load(text)))
        run_data = _run_data(path, loaded)
    elif (path / CONFIG).is_file():
        config = _read(path, Path(CONFIG), str)
    place = Path(EVALUATION) / SUMMARY if is_run else Path(SUMMARY)
    if not (path / place).is_file():
        raise _unfinished(path, place)
    summary = {"protocol": "unknown", "seed": 0, **read_summary(path / place)}
    records = [Path(name) / RECORD for name in STAGES] if is_run else [Path(RECORD)]
    return Finished(
        path=path,
        is_run=is_run,
        run_data=run_data,
        summary=summary,
        records=[_record(path / name) for name in records if (path / name).is_file()],
        config=config,
        date=_date(path, path / place),
    )


def _run_data(run: Path, config: Any) -> DataConfig:
    """The ``data`` part of the run's config.yaml."""
    try:
        return DataConfig(**config["data"])
    except (KeyError, TypeError, ConfigError) as error:
        raise ArtifactError(
            f"{run / CONFIG} does not say which data the run was made from ({error}); expected the `data` options of "
            "`gendistill run`. Copy the run again, or make it again."
        ) from error


def _read(run: Path, name: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(read_text(run / name))
    except OSError as error:
        raise _unfinished(run, name) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ArtifactError(f"{run / name} is damaged: {error}. Copy the run again, or make it again.") from error


def _unfinished(run: Path, name: Path) -> ArtifactError:
    return ArtifactError(
        f"{run} is not a finished run: it has no {name}. Expected the output_dir of a finished `gendistill run` or "
        "`gendistill evaluate`; finish it with its own options and --resume_from_checkpoint latest."
    )


class ShownRecord(TypedDict, total=False):
    """What the page reads of a stage.json."""

    stage: Required[str]
    seconds: float
    peak_memory_mib: float
    accuracy: dict[str, float]
    w2: dict[str, dict[str, float]]
    command: str
    versions: dict[str, str]
    settings: dict[str, Any]


def _record(path: Path) -> Mapping[str, Any]:
    return read_json(path, kind="a stage", schema=ShownRecord, fix="Copy the run again, or make it again.")


def _date(run: Path, summary: Path) -> str:
    """When the run wrote its last log record: unlike a file's date, it survives copying."""
    try:
        seconds = json.loads(read_text(run / LOG).splitlines()[-1])["time"]
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        seconds = summary.stat().st_mtime
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")
