"""The house keeps its shape: no import circle, no file name twice, few frames from a command to its loss."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
import pytest

from gendistill.cli import main
from tests.helpers import ROOT, TINY, gendistill

PACKAGE = ROOT / "gendistill"
MOST_FRAMES = 8
DIGITS = ("--data.name", "digits", "--data.max_per_class", 40)
MATCHING = ("--ipc", 1, "--iterations", 1, *DIGITS, "--matching.width", 8, "--matching.real_batch", 8)
LOSSES = {
    "gendistill.objectives.minimax:representativeness": ("finetune", "--config", TINY),
    "gendistill.objectives.matching:mean_feature_distance": ("distill", "--method", "dm", *MATCHING),
    "gendistill.objectives.matching:gradient_distance": ("distill", "--method", "dc", *MATCHING),
    "gendistill.objectives.refinement:feature_loss": ("refine", "--ipc", 1, "--steps", 1),
}


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("gendistill", cache_dir=None)
    imports = {
        module: graph.find_modules_directly_imported_by(module) - {"gendistill"}
        for module in graph.modules
        if module != "gendistill"  # whose lazy exports name modules of every room
    }
    order = list(TopologicalSorter(imports).static_order())  # raises CycleError, which names the circle
    assert set(order) >= imports.keys()


def test_no_two_files_have_one_name() -> None:
    """But those of config/ and stages/, which are named after their commands."""
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    names = Counter(path.name for path in files if path.parts[0] not in ("config", "stages"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A set and a teacher to refine with, as options."""
    out = tmp_path_factory.mktemp("inputs")
    assert gendistill("teacher", "--config", TINY, "--output_dir", out / "teacher") == 0
    assert gendistill("distill", "--method", "random", "--ipc", 2, *DIGITS, "--output_dir", out / "random") == 0
    return ("--surrogate", out / "random" / "ipc-2", "--teacher", out / "teacher")


class Reached(BaseException):
    """The loss was called: no ``except Exception`` on the way may stop it."""


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_few_frames_lie_between_a_command_and_its_loss(
    loss: str, inputs: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    frames: list[str] = []

    def spy(*_: object, **__: object) -> None:
        frames.extend(f"{Path(f.filename).relative_to(PACKAGE)}:{f.name}" for f in ours())
        raise Reached

    module, _, name = loss.partition(":")
    original = getattr(importlib.import_module(module), name)
    for found in pkgutil.walk_packages([str(PACKAGE)], "gendistill."):  # one imported later would keep the spy
        if found.name != "gendistill.__main__":
            importlib.import_module(found.name)
    for loaded in [m for n, m in sys.modules.items() if n.startswith("gendistill")]:
        for attribute in [k for k, v in vars(loaded).items() if v is original]:
            monkeypatch.setattr(loaded, attribute, spy)
    command = (*LOSSES[loss], *(inputs if LOSSES[loss][0] == "refine" else ()), "--output_dir", tmp_path / "out")
    with pytest.raises(Reached):
        main([str(part) for part in command])
    assert len(frames) <= MOST_FRAMES, frames


def ours() -> Iterator[traceback.FrameSummary]:
    return (frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE))
