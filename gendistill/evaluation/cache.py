"""Finished trainings: those of one evaluation, to resume it, and those of baselines, for other evaluations."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch

import gendistill
from gendistill import runtime
from gendistill.config import Compile, EvaluateConfig, Precision, to_dict
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.evaluation.summary import RunResult
from gendistill.hashing import hash_bytes, hash_json
from gendistill.io import WorkFolder, atomic, cache_root, check_place, mismatch, read_text, write_text
from gendistill.registry import DISTILLERS, NETWORKS, Registry

FORMAT = 1  # another number when the meaning of an outcome changes
PICKS = 2  # another number when coresets choose other images
# the training behind an outcome, below the package: edited, it gives other outcomes though the version stays
TRAINING = (
    "networks/*.py", "data/augmentation.py", "data/pixels.py", "data/siamese.py", "data/crops.py",
    "evaluation/evaluator.py", "evaluation/intervals.py", "evaluation/protocols/*",
    "surrogate/soft_labels.py", "seeding.py",
)  # fmt: skip
PACKAGE = Path(gendistill.__file__).parent
LIBRARIES = ("gendistill", "torch", "timm")
CHOOSING = ("gendistill", "numpy", "scikit-learn", "pillow")
KEYED = ("network", "augment")  # part of a run's key, as are its images, labels and training seed
NOT_KEYED = ("protocol", "changed", "runs", "labels", "temperature", "mixed_precision")  # what changes no single run
RUNS, RUNS_OF_ALL = "runs.jsonl", "runs*.jsonl"  # of the main process; of all
_log = logging.getLogger("gendistill")


class RunLog:
    """The finished trainings of one evaluation, a line each of runs.jsonl, so that an interrupted one goes on.

    Each of several processes has a file of its own and reads all. Lines that lack a ``needed`` key, or have another
    type or a number out of range, are left out with a warning.

    Attributes:
        done: The results that were there at the start, by record key.
    """

    def __init__(self, folder: WorkFolder | None, needed: Sequence[str] = ("accuracy", "seconds")) -> None:
        self.done: dict[str, RunResult] = {}
        self._folder, state = folder, runtime.processes()
        if folder is None:
            return
        number, self._is_main = state.process_index, state.is_main_process
        self._own = folder.path / (RUNS if self._is_main else f"runs-{number}.jsonl")
        for path in sorted(folder.path.glob(RUNS_OF_ALL)):
            self._read(path, needed)
        state.wait_for_everyone()  # or one would read what another one is writing

    def _read(self, path: Path, needed: Sequence[str]) -> None:
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}. Delete it and resume; the trainings that it held are done again."
            ) from error
        complete = text[: text.rfind("\n") + 1]  # a kill may cut the last line off
        if complete != text and path == self._own:
            write_text(path, complete)
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                key, result = json.loads(line)
            except (ValueError, TypeError, RecursionError):  # two lines in one, as older versions wrote after a kill
                key, result = None, None
            if not isinstance(key, str) or not isinstance(result, dict):  # older versions wrote an accuracy alone
                continue
            problem = result_problem(result, needed)
            if problem:
                _log.warning("gendistill: line %d of %s: %s; this training is done again.", number, path, problem)
            else:
                self.done[key] = cast("RunResult", result)

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep the outcome of a record under its key, unless it was there at the start; the main process also logs the
        rest of it."""
        if self._folder is None or record["key"] in self.done:
            return
        if self._is_main:
            self._folder.log({k: v for k, v in record.items() if k not in ("key", "baseline", "outcome", "elsewhere")})
        with self._own.open("a", encoding="utf-8") as file:
            file.write(json.dumps([record["key"], record["outcome"]]) + "\n")


def result_problem(result: Mapping[str, Any], needed: Sequence[str]) -> str:
    """What is wrong with a stored ``RunResult``: a field, what it is and what was expected."""
    lacking = [name for name in needed if name not in result]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    for name, most in (("accuracy", 1.0), ("ece", 1.0), ("legacy_best", 1.0), ("seconds", 1e12)):
        value = result.get(name, 0)
        if isinstance(value, int | float) and not 0 <= value <= most:
            return f"{name} is {value:g}; expected 0 to {most:g}"
    return mismatch(RunResult, dict(result))


def cache_folder(folder: Literal["auto"] | Path | None) -> Path | None:
    """The folder of an option ``baseline_cache``: ``auto`` is baselines in ``io.cache_root()``.

    Raises:
        ArtifactError: no folder can be there.
    """
    if isinstance(folder, Path):
        check_place("baseline_cache", folder, folder=True)
    if folder != "auto":
        return folder
    usual = cache_root() / "baselines"
    if usual.exists() and not usual.is_dir():  # one that cannot be made is warned of when runs are kept
        raise ArtifactError(f"baseline_cache {usual} is a file; expected a folder, or None to keep no runs.")
    return usual


@dataclass
class BaselineCache:
    """Outcomes of runs, and of other costly computations, one JSON file each.

    Attributes:
        folder: Where they are; None keeps nothing.
        made_from: What they all depend on.
        fresh: The runs that this process kept.
    """

    folder: Path | None
    made_from: Mapping[str, object]
    fresh: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: RealData, config: EvaluateConfig, device: torch.device) -> BaselineCache:
        """For evaluations of these images with these training settings on this kind of device."""
        settings = {k: v for k, v in to_dict(resolve_protocol(config)).items() if k not in (*KEYED, *NOT_KEYED)}
        made_from = {
            "format": FORMAT,
            "data": data.fingerprint(),
            "settings": settings,
            **training_identity(device, config.mixed_precision, config.compile),
        }
        return cls._of(config, made_from, networks=_added(NETWORKS, resolve_protocol(config).network))

    @classmethod
    def of_picks(cls, data: RealData, config: EvaluateConfig) -> BaselineCache:
        """For the picks of coresets from these images and for their size in bytes, whatever the training settings."""
        made_from = {"format": PICKS, "data": data.fingerprint(), "versions": _versions(CHOOSING)}
        return cls._of(config, made_from, coresets=_added(DISTILLERS, config.baselines))

    @classmethod
    def _of(cls, config: EvaluateConfig, made_from: Mapping[str, object], **added: Mapping[str, str | None]) -> Self:
        """Nothing is kept where a plug-in has no source: whether it is the same one another day cannot be known."""
        unknown = any(source is None for sources in added.values() for source in sources.values())
        folder = None if unknown else cache_folder(config.baseline_cache)
        return cls(folder, {**made_from, **{name: sources for name, sources in added.items() if sources}})

    def recall(self, run: str) -> Any:
        """The outcome of the run with this key, or None; a damaged file counts as none, with a warning."""
        if self.folder is None:
            return None
        path, key = self._place(run)
        try:
            entry = json.loads(read_text(path))
            if entry["key"] != key or entry["content"] != hash_json(entry["outcome"]):
                raise ValueError("its content does not match its hash")
            return {**entry["outcome"], **({} if run in self.fresh else {"cached": True})}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            _log.warning("gendistill: %s cannot be used (%s); it is computed again.", path, error)
            return None

    def keep(self, run: str, outcome: Mapping[str, Any]) -> None:
        """Write the outcome of the run with this key, unless it was recalled; several processes may write the same."""
        if self.folder is None or outcome.get("cached") or run in self.fresh:
            return
        path, key = self._place(run)
        entry = {"key": key, "outcome": outcome, "content": hash_json(outcome)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path, shared=True) as partial:
                partial.write_text(json.dumps(entry) + "\n", encoding="utf-8")
            self.fresh.add(run)
        except OSError as error:  # costs time later, but no result now
            _log.warning("gendistill: baseline runs are not kept: %s cannot be written (%s).", path, error)
            self.folder = None

    def _place(self, run: str) -> tuple[Path, Mapping[str, object]]:
        assert self.folder is not None
        key = {**self.made_from, "run": run}
        return self.folder / f"{hash_json(key)}.json", key


def training_identity(
    device: torch.device, mixed_precision: Precision = "auto", compile: Compile = "auto"
) -> dict[str, object]:
    """What decides the rounding and the code of trainings, beside their options."""
    return {
        "device": device.type,
        "bf16": runtime.execution_mode(mixed_precision, compile, device).bf16,
        "versions": _versions(LIBRARIES),
        "sources": _sources(PACKAGE),
    }


def _added(registry: Registry[Any], names: Iterable[str]) -> dict[str, str | None]:
    """The source of each plug-in among the names."""
    return {name: registry.source(name) for name in names if registry.is_added(name)}


@cache
def _sources(package: Path) -> str:
    """A hash of the text of all files that train and test."""
    paths = sorted({path for pattern in TRAINING for path in package.glob(pattern) if path.is_file()})
    return hash_json({str(path.relative_to(package)): hash_bytes(path.read_bytes()) for path in paths})


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
