"""Finished baseline runs, and the picks of coresets, kept for other evaluations: one JSON file for all that decides
one outcome."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

import gendistill
from gendistill import runtime
from gendistill.config import EvaluateConfig, to_dict
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError
from gendistill.evaluation.evaluator import RunResult
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.hashing import hash_bytes, hash_json
from gendistill.io import atomic

FORMAT = 1  # another number when the meaning of an outcome changes
# the training behind an outcome, below the package: edited, it gives other outcomes though the version stays
TRAINING = (
    "networks/*.py", "data/augmentation.py", "data/pixels.py", "data/siamese.py", "data/crops.py",
    "evaluation/evaluator.py", "evaluation/intervals.py", "evaluation/protocols/*",
    "surrogate/soft_labels.py", "seeding.py",
)  # fmt: skip
PACKAGE = Path(gendistill.__file__).parent
LIBRARIES = ("gendistill", "torch", "timm")
CHOOSING = ("gendistill", "numpy", "scikit-learn", "pillow")
KEYED = ("network", "augment")  # which the judge's keys have, as they have draw, labels and training seed
BESIDE = ("protocol", "changed", "runs", "labels", "temperature", "mixed_precision")  # what changes no single run
_log = logging.getLogger("gendistill")


def cache_folder(given: Literal["auto"] | Path | None) -> Path | None:
    """The folder meant: ``auto`` is gendistill/baselines below XDG_CACHE_HOME or ~/.cache.

    Raises:
        ArtifactError: it is a file.
    """
    if given == "auto":
        given = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "gendistill" / "baselines"
    if isinstance(given, Path) and given.exists() and not given.is_dir():
        raise ArtifactError(f"baseline_cache {given} is a file; expected a folder, or null to keep no runs.")
    return given


@dataclass
class BaselineCache:
    """Outcomes in ``folder`` (None keeps none) of runs that share ``made_from``; ``recall`` and ``keep`` take a key of
    the judge, which names draw, targets and training seed. ``fresh`` are the runs that were kept just now."""

    folder: Path | None
    made_from: dict[str, Any]
    fresh: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: RealData, config: EvaluateConfig, device: torch.device) -> BaselineCache:
        """For evaluations of these images with these training settings on this kind of device."""
        settings = {k: v for k, v in to_dict(resolve_protocol(config)).items() if k not in (*KEYED, *BESIDE)}
        made_from = {
            "format": FORMAT,
            "data": data.fingerprint(),
            "settings": settings,
            "device": device.type,
            "bf16": runtime.execution_mode(config.mixed_precision, config.compile, device).bf16,
            "versions": _versions(LIBRARIES),
            "sources": _sources(PACKAGE),
        }
        return cls(cache_folder(config.baseline_cache), made_from)

    @classmethod
    def of_picks(cls, data: RealData, config: EvaluateConfig) -> BaselineCache:
        """For positions of images chosen from these, and bytes of all, whatever is trained on them."""
        made_from = {"format": FORMAT, "data": data.fingerprint(), "versions": _versions(CHOOSING)}
        return cls(cache_folder(config.baseline_cache), made_from)

    def recall(self, run: str) -> RunResult | None:
        """What was kept of this run, or None; a damaged file counts as none, with a warning."""
        if self.folder is None:
            return None
        path, key = self._place(run)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["key"] != key or entry["content"] != hash_json(entry["outcome"]):
                raise ValueError("its content is not what it says")
            return {**entry["outcome"], **({} if run in self.fresh else {"cached": True})}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            _log.warning("gendistill: %s cannot be used (%s); it is made anew.", path, error)
            return None

    def keep(self, run: str, outcome: RunResult) -> None:
        """Write the outcome, whole or not at all, whoever else writes the same. One that was recalled is there."""
        if self.folder is None or outcome.get("cached") or run in self.fresh:
            return
        path, key = self._place(run)
        entry = {"key": key, "outcome": outcome, "content": hash_json(outcome)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as partial:
                partial.write_text(json.dumps(entry) + "\n", encoding="utf-8")
            self.fresh.add(run)
        except OSError as error:  # which costs time another day, but nothing now
            _log.warning("gendistill: baseline runs are not kept: %s cannot be written (%s).", path, error)
            self.folder = None

    def _place(self, run: str) -> tuple[Path, dict[str, Any]]:
        assert self.folder is not None
        key = {**self.made_from, "run": run}
        return self.folder / f"{hash_json(key)}.json", key


@cache
def _sources(package: Path) -> str:
    """Of the text of all files that train and test."""
    paths = sorted({path for pattern in TRAINING for path in package.glob(pattern) if path.is_file()})
    return hash_json({str(path.relative_to(package)): hash_bytes(path.read_bytes()) for path in paths})


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
