"""Shared by tests: where things are, and the command line in this process; tests/processes.py has it in others."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gendistill.cli import main

ROOT = Path(__file__).resolve().parents[1]
TINY = Path(__file__).with_name("tiny.yaml")


def gendistill(*arguments: object) -> int:
    """Exit code of one command, run in this process."""
    return main([str(a) for a in arguments])


def edit(path: Path, **changes: object) -> None:
    """Change fields of a JSON file, as a user does on purpose: without the hashes that would notice it."""
    record = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    unhashed = {key: value for key, value in record.items() if key not in ("blake2b", "files")}
    path.write_text(json.dumps(unhashed), encoding="utf-8")


def messages(text: str) -> list[str]:
    """Lines for the user on standard error, beside the one that says which images were read."""
    lines = [line for line in text.splitlines() if line.startswith("gendistill: ")]
    return [line for line in lines if " images for training from " not in line]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def files(folder: Path, pattern: str = "**/*.png") -> dict[str, bytes]:
    """Contents by relative name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.glob(pattern)) if p.is_file()}


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Files may not grow beyond ``size`` bytes, a stand-in for a full disk; pytest's own log included."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
