"""A gendistill command that notes in a file of its rank how often this process computed prototypes.

A launch script of ``tests/processes.py``: the folder of the files, then the command's words.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from gendistill.cli import main
from gendistill.generator import surrogate_sets

if __name__ == "__main__":
    calls, compute = [0], surrogate_sets.prototypes

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return compute(*arguments)

    surrogate_sets.prototypes = counted
    code = main(sys.argv[2:])
    Path(sys.argv[1], os.environ["RANK"]).write_text(str(calls[0]))
    sys.exit(code)
