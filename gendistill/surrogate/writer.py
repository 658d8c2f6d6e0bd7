"""Images to disk one by one, in the background, each file whole or absent; sets are then put together by hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from torch import Tensor

from gendistill.data.images import to_pil
from gendistill.surrogate.names import TRAIN, folder_names, image_name

WAITING = 256  # images that may wait for the disk before the producer does


class SurrogateWriter:
    """Writes ``folder/train/<class>/<00000>.png``; a context manager, whose end waits for the last file.

    An error of the disk is raised by the next ``put`` or at the end.
    """

    def __init__(self, folder: Path, classes: Sequence[str], threads: int = 2) -> None:
        self.paths = [folder / TRAIN / name for name in folder_names(classes)]
        for path in self.paths:
            path.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(threads)
        self._pending: list[Future[None]] = []

    def path(self, label: int, index: int) -> Path:
        return self.paths[label] / image_name(index)

    def has(self, label: int, index: int) -> bool:
        return self.path(label, index).is_file()

    def put(self, label: int, index: int, image: Tensor) -> None:
        """Queue one uint8 image (C,H,W)."""
        self._collect(WAITING - 1)
        self._pending.append(self._pool.submit(_write, self.path(label, index), image))

    def _collect(self, allowed: int) -> None:
        while self._pending and (len(self._pending) > allowed or self._pending[0].done()):
            self._pending.pop(0).result()

    def __enter__(self) -> SurrogateWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._collect(0)
        finally:
            self._pool.shutdown(cancel_futures=True)


def _write(path: Path, image: Tensor) -> None:
    with _whole(path) as partial:
        to_pil(image).save(partial, "PNG")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` at once, or leaves nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def link_prefix(source: Path, target: Path, classes: Sequence[str], ipc: int) -> None:
    """The first ``ipc`` images of every class of ``source`` as a folder of its own, sharing the bytes on disk."""
    for name in folder_names(classes):
        folder = Path(TRAIN) / name
        (target / folder).mkdir(parents=True, exist_ok=True)
        for leftover in (target / folder).glob(".*.part"):  # of a process that was killed
            leftover.unlink()
        for index in range(ipc):
            _link(source / folder / image_name(index), target / folder / image_name(index))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links, or another one
        with _whole(target) as partial:
            shutil.copyfile(source, partial)
