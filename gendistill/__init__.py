"""gendistill: small surrogate sets that train classifiers nearly as well as all the images.

The public names are those that ``__init__.pyi`` imports, one a line. Type checkers read that file; here each name is
loaded from its module when it is first used, so that ``import gendistill`` needs no torch (Scientific Python's SPEC 1).
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"


def _modules_by_name() -> dict[str, str]:
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _modules_by_name()
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gendistill' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__})
