"""Stage folders: written whole or not at all, refused when not empty, recognised again on resume.

A stage works in ``NAME.partial`` beside its target and renames it when done; ``stage.json`` says which stage with
which settings made it, and ``config.yaml`` holds the settings for people.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from gendistill import runtime
from gendistill.config import DataConfig, to_dict
from gendistill.data.real import RealData
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, GendistillError, StorageError
from gendistill.hashing import hash_json
from gendistill.stages.output import CONFIG, LOG, RECORD, is_full, partial_of, read_record, write_whole

LIBRARIES = ("gendistill", "torch", "diffusers", "accelerate", "POT", "scikit-learn", "numpy")
_log = logging.getLogger("gendistill")


@dataclass
class StageFolder:
    """Where a stage writes: ``path`` is the partial folder until the stage is done.

    ``facts`` go into stage.json; ``scaffold`` names what only a resumed run needs, removed once the stage is done.
    """

    path: Path
    log_path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    scaffold: tuple[str, ...] = ()

    def log(self, record: dict[str, Any]) -> None:
        """Append one record of plain values to log.jsonl."""
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=False) + "\n")


def command_line() -> str:
    """The command of this process, to be repeated by a reader of a manifest."""
    import shlex

    program = Path(sys.argv[0]).name
    return shlex.join(["gendistill" if program in ("gendistill", "__main__.py") else program, *sys.argv[1:]])


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def finished(folder: Path, stage: str, settings: dict[str, Any]) -> bool:
    """Whether ``folder`` is that stage's work with those settings (of a ``.partial`` folder: its begun work).

    Raises:
        ArtifactError: it was made with others; the message names them.
    """
    record = read_record(folder)
    if record is None:
        return False
    if record["stage"] == stage and hash_json(record["settings"]) == hash_json(settings):
        return True
    raise ArtifactError(
        f"{folder} was made with other settings ({difference(record['settings'], settings)}). Resume with the same "
        "ones, start anew with --overwrite, or give another --output_dir."
    )


def difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            difference(old.get(k), new.get(k), f"{path}.{k}".strip("."))
            for k in {**old, **new}
            if old.get(k) != new.get(k)
        ]
        return ", ".join(p for p in parts if p)
    return f"{path}: {old!r} there, {new!r} now" if old != new else ""


@contextlib.contextmanager
def stage_folder(
    target: Path,
    stage: str,
    settings: dict[str, Any],
    *,
    keep_partial: bool = False,
    log_path: Path | None = None,
    main_process: bool = True,
) -> Iterator[StageFolder]:
    """A folder to write in, which becomes ``target`` when the block ends without an error.

    ``keep_partial`` lets a stage with checkpoints find what an interrupted run left, if its settings were the same.
    Processes that are not the main one write nothing.
    """
    partial = partial_of(target)
    resumed = False
    if main_process:
        if partial.is_dir():
            resumed = keep_partial and finished(partial, stage, settings)
            if not resumed:
                shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        _write_record(partial, {"stage": stage, "settings": settings, "state": "started"})
    folder = StageFolder(partial, log_path or partial / LOG)
    runtime.reset_peak_memory()
    start = time.perf_counter()
    try:
        yield folder
    except StorageError:
        raise
    except GendistillError:
        if main_process and not resumed:
            shutil.rmtree(partial)  # refused, not interrupted: nothing worth resuming
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise StorageError(
            f"The disk of {target.parent} took no more ({error}). What was finished is kept: make room and go on with "
            "--resume_from_checkpoint latest."
        ) from error
    if not main_process:
        return
    seconds = round(time.perf_counter() - start, 2)
    cost = {"seconds": seconds, "resumed": resumed, "peak_memory_mib": round(runtime.peak_memory() / 2**20)}
    made = {"command": command_line(), "versions": versions(), **folder.facts}
    _write_record(partial, {"stage": stage, "settings": settings, "state": "finished", **cost, **made})
    write_whole(partial / CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    if target.is_dir():
        target.rmdir()  # empty, or the command would have been refused
    partial.rename(target)
    for name in folder.scaffold:
        leftover = target / name
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    _log.info("%s: %s in %.1f s", stage, target, seconds)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    write_whole(folder / RECORD, text + "\n")


def stage_settings(config: Any, seed: int, **inputs: Any) -> dict[str, Any]:
    """What decides a stage's result: its own options, the seed, and the hashes of its inputs."""
    return {"options": to_dict(config), "seed": seed, "inputs": inputs}


def read_data(config: DataConfig) -> RealData:
    """``load_data``, with what was skipped or altered named and counted on standard error."""
    data = load_data(config)
    shown = 5
    for problem in data.problems[:shown]:
        print(f"gendistill: {problem}", file=sys.stderr)
    if data.problems:
        kinds = Counter(problem.split(":", 1)[0] for problem in data.problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        more = f" ({len(data.problems) - shown} more not shown)" if len(data.problems) > shown else ""
        print(f"gendistill: {counts}{more}; going on with {len(data.train)} training images", file=sys.stderr)
    return data
