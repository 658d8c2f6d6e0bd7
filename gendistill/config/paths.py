"""Checks of the folders that a command names, before anything slow is imported. No torch in here.

The library checks all of it again, and more; here a mistyped path is found in a moment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from gendistill.config.base import Options, as_tuple
from gendistill.config.commands import ExportCommand, ReportCommand, ShowCommand, StageOptions, VerifyCommand
from gendistill.config.data import DataConfig
from gendistill.config.generator import GeneratorExport
from gendistill.config.teacher import Pretrained
from gendistill.errors import ArtifactError, DataError
from gendistill.hub import (
    ADAPTER,
    GENERATOR,
    MODEL_ID,
    NO_FILE,
    NO_MODEL,
    PICKLES,
    not_loaded,
    shipped_generators,
    shipped_names,
    why_absent,
)
from gendistill.io import check_place, output_place, partial_of, read_json, refuse_files

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<part>[\w-][\w.-]*))?")  # a dataset, a set in it
TEACHERS = ("teacher", "held_out")
GENERATORS = ("generator", "pretrained")  # texts that are a folder, a name of ours or a Hub id
LIBRARIES = ("timm:", "torchvision:")
OR_HUB_ID = ("name", "source", "generator", "pretrained")  # options that are a path or something else
NO_SET = (
    "There is no folder {!r}. Give an existing one such as RUN/samples/ipc-10, or a Hub dataset such as owner/name or "
    "owner/name/ipc-10."
)


def check_paths(options: Options) -> None:
    """Refuse inputs that are not there, and an output folder that is taken.

    Raises:
        ArtifactError: a folder is missing or of another kind, a path leads nowhere, or output_dir is a file or not
            empty.
        DataError: data.name can be no data.
    """
    _check_places(options)
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one makes the folder
        _check_output(options)
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, DataConfig):
            _check_data(value)
        elif field.name in TEACHERS:
            for folder in _paths(value):
                fix = "Make one with `gendistill teacher`."
                read_json(folder / "teacher.json", kind="a teacher folder", required=("network", "classes"), fix=fix)
    _check_models(options)
    _check_sets(options)


def _check_places(options: Options, section: str = "") -> None:
    """Refuse paths that lead nowhere, and caches that can be no folder, also where this run would not need them."""
    for field in fields(options):
        value, name = getattr(options, field.name), f"{section}{field.name}"
        if isinstance(value, Options):
            _check_places(value, f"{name}.")
        elif isinstance(value, str) and field.name in OR_HUB_ID:
            check_place(name, Path(value).expanduser())
        elif field.name != "output_dir":  # which has a check of its own
            for path in _paths(value):
                check_place(name, path, folder=field.name.endswith("cache"))


def _check_data(data: DataConfig) -> None:
    if problem := data.problem():
        raise DataError(problem)
    if data.on_hub and (problem := why_absent(data.name, "dataset")):
        raise DataError(
            f"data.name is {data.name!r}: no such folder here, and it cannot be loaded from the Hub ({problem}). Give "
            "'digits', an existing folder, or a Hub id that you can reach."
        )


def _check_models(options: Options) -> None:
    """Refuse models that are neither here nor on the Hub, and folders that hold no model."""
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Pretrained):
            _check_model(value.source.removeprefix("transformers:"))
        elif isinstance(value, Options):
            _check_models(value)
        elif value is not None and field.name in GENERATORS:
            _check_generator(str(value))
        elif field.name == "codec" and value != "pixels":
            _check_model(value)
        elif value is not None and field.name == "adapter":
            read_json(value / "adapter.json", kind="an adapter", fix=ADAPTER)


def _check_generator(source: str) -> None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        read_json(folder / "model_index.json", kind="a generator folder", fix=GENERATOR)
    elif source not in shipped_generators():
        _check_model(source, shipped_names(source))


def _check_model(source: str, hint: str = "") -> None:
    """Pickles are refused where they would be read, with how to convert them."""
    if Path(source).expanduser().exists() or source.startswith(LIBRARIES) or source.endswith(PICKLES):
        return
    if source.endswith(".safetensors"):
        raise ArtifactError(NO_FILE.format(source))
    if not MODEL_ID.fullmatch(source):
        raise ArtifactError(NO_MODEL.format(source) + hint)
    if problem := why_absent(source, "model"):
        raise ArtifactError(not_loaded(f"model {source}", source, f"{problem}.") + hint)


def _paths(value: Any) -> Iterator[Path]:
    return (path for path in as_tuple(value) if isinstance(path, Path))


def _check_sets(options: Options) -> None:
    if isinstance(options, ExportCommand) and isinstance(options.format, GeneratorExport):
        for source in _paths(options.surrogate):
            _check_generator(str(source))
        return
    for path in _paths(options.surrogate) if isinstance(options, ExportCommand) else ():
        if (path / "model_index.json").is_file():
            raise ArtifactError(f"{path} is a generator, which is no surrogate set. Export it with --format diffusers.")
    missing = [path for path in _paths(getattr(options, "surrogate", None)) if not path.exists()]
    several = isinstance(options, VerifyCommand) and len(missing) < len(as_tuple(options.surrogate))
    here_only = isinstance(options, (VerifyCommand, ShowCommand))
    for path in missing:
        found = None if here_only else HUB_ID.fullmatch(str(path))
        if not several and not found:
            raise ArtifactError(NO_SET.format(str(path)))
        if found and (problem := why_absent(found["name"], "dataset")):
            raise ArtifactError(not_loaded(f"dataset {found['name']}", str(path), f"{problem}."))
    for path in _paths(options.run) if isinstance(options, ReportCommand) else ():
        if not path.exists():
            raise ArtifactError(f"There is no folder {str(path)!r}. Give the output_dir of a `run` or an `evaluate`.")


def _check_output(options: Options) -> None:
    folder = getattr(options, "output_dir", None)
    if folder is None or getattr(options, "dry_run", False):  # which writes nothing
        return
    folder, data = output_place(folder), getattr(options, "data", None)
    if data is not None and data.reads(folder):
        raise ArtifactError(
            f"output_dir {folder} lies in the folder of the images {data.name}, where it would be read as a class of "
            "its own. Give a folder outside it."
        )
    if not isinstance(options, StageOptions) or options.overwrite or options.resume_from_checkpoint:
        return
    for path in (folder, partial_of(folder)):
        refuse_files(path, resumable=True)
