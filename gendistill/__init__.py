"""gendistill: surrogate sets from a generator. The names below are loaded when they are first used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_HOMES = {
    "DataConfig": "config",
    "TeacherConfig": "config",
    "FinetuneConfig": "config",
    "ModelConfig": "config",
    "MinimaxConfig": "config",
    "SampleConfig": "config",
    "RefineConfig": "config",
    "DistillConfig": "config",
    "MatchingConfig": "config",
    "LabelConfig": "config",
    "EvaluateConfig": "config",
    "RunConfig": "config.commands",
    "load_data": "data.sources",
    "RealData": "data.dataset",
    "SurrogateSet": "surrogate.set",
    "Generator": "generator.generator",
    "Teacher": "networks.teacher",
    "train_teacher": "stages.teacher",
    "finetune": "stages.finetune",
    "sample_set": "stages.sample",
    "refine_set": "stages.refine",
    "distill": "stages.distill",
    "wmdd": "refine.wmdd",
    "label_set": "stages.label",
    "soft_batches": "networks.soft_labelling",
    "decode": "surrogate.multi_formation",
    "Decoded": "surrogate.multi_formation",
    "evaluate": "stages.evaluate",
    "evaluate_continual": "stages.evaluate",
    "run": "stages.run",
    "table": "report.terminal",
    "show_progress": "progress",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gendistill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gendistill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Importing ``gendistill.evaluation.evaluator`` must not put the package over the function of the same name."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
