"""Finished batches of soft labels, kept in files while labelling runs; after an interruption only others are made.

Each process writes a block of its batches when the last one is a second old. Blocks grow with the time that has passed,
so that they stay few, and where writing one takes long, so that they cost at most 2 % of it; a kill loses no more.
"""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from gendistill import parallel
from gendistill.io import read_tensors, write_tensors
from gendistill.runtime import of_main_process, restoring

LABELS = "labels"  # the folder of all blocks, in that of a stage
LEAST, SHARE = 1.0, 0.02  # seconds between two blocks; share of the time, for writing and between blocks

Batch = dict[str, Tensor]  # labels of one batch by name, on the CPU


class LabelBlocks:
    """The blocks of one labelling; every process makes it together with the others, before the first batch.

    Args:
        folder: Of this labelling alone; all processes see it.

    Attributes:
        kept: Batches by their number that were finished before, whichever process made them.
        seconds: What they took.

    Raises:
        ArtifactError: a block is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, 0.0
        self.kept: dict[int, Batch] = {}
        for name in of_main_process(lambda: sorted(path.name for path in folder.glob("*.safetensors"))):
            tensors, facts = read_tensors(folder / name, fix="Delete it and resume.")
            with restoring(folder / name):
                self.seconds += float(facts["seconds"])
                for key, value in tensors.items():
                    number, _, kind = key.partition(".")
                    self.kept.setdefault(int(number), {})[kind] = value
        self._fresh: dict[int, Batch] = {}
        self._begun = self._since = time.perf_counter()
        self._wait = LEAST

    def add(self, number: int, batch: Batch) -> None:
        """Keep a batch that this process has just made."""
        self._fresh[number] = batch
        now = time.perf_counter()
        if now - self._since < self._wait:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{i}.{kind}": value for i, one in self._fresh.items() for kind, value in one.items()}
        facts = {"seconds": str((now - self._since) / parallel.world())}
        write_tensors(self.folder / f"{min(self._fresh):08d}.safetensors", tensors, facts, hashed=True)
        self._fresh, self._since = {}, time.perf_counter()
        self._wait = max(LEAST, SHARE * (self._since - self._begun), (self._since - now) / SHARE)
