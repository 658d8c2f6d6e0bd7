"""Images to disk, each file whole or absent, in the background or all at once; sets are put together by hard links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from gendistill.surrogate import png
from gendistill.surrogate.names import TRAIN, folder_names, image_name
from gendistill.surrogate.png import whole
from gendistill.surrogate.workers import BLOCK, Ask, counted, request, spread

WAITING = 256  # images that may wait for the disk before the producer does


class SurrogateWriter:
    """Writes ``folder/train/<class>/<00000>.png`` as images come; a context manager that waits for the last file.

    An error of the disk is raised by the next ``put`` or at the end.
    """

    def __init__(self, folder: Path, classes: Sequence[str], threads: int = 2) -> None:
        self.paths = _folders(folder, classes)
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


def write_images(folder: Path, classes: Sequence[str], images: Tensor, labels: Tensor) -> None:
    """Write uint8 images (N,C,H,W) with labels (N,) where ``SurrogateWriter`` would, each class in its order."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    paths = [here / image_name(i) for here, n in zip(_folders(folder, classes), counts, strict=True) for i in range(n)]
    order = torch.argsort(labels, stable=True)
    channels, height, width = images.shape[1:]
    step = max(1, BLOCK // (channels * height * width))

    def put(start: int, ask: Ask) -> Sequence[Path]:
        here, pixels = paths[start : start + step], _pixels(images[order[start : start + step]])
        if not ask(request(here, width, height, channels, pixels), memoryview(bytearray(1))):
            png.write(here, pixels, width, height, channels)
        return here

    counted(spread(put, range(0, len(paths), step), images.nbytes), "write set", len(paths))


def _pixels(images: Tensor) -> bytes:
    return images.movedim(1, -1).cpu().contiguous().numpy().tobytes()


def _write(path: Path, image: Tensor) -> None:
    channels, height, width = image.shape
    png.write([path], _pixels(image[None]), width, height, channels)


def _folders(folder: Path, classes: Sequence[str]) -> list[Path]:
    """That of each class, which is there from now on."""
    found = [folder / TRAIN / name for name in folder_names(classes)]
    for path in found:
        path.mkdir(parents=True, exist_ok=True)
    return found


def link_prefix(source: Path, target: Path, classes: Sequence[str], ipc: int) -> None:
    """The first ``ipc`` images of every class of ``source`` as a folder of its own, sharing the bytes on disk."""
    for name in folder_names(classes):
        folder = Path(TRAIN) / name
        (target / folder).mkdir(parents=True, exist_ok=True)
        for leftover in (target / folder).glob(".*.part"):  # of a process that was killed
            leftover.unlink()
        for index in range(ipc):
            link(source / folder / image_name(index), target / folder / image_name(index))


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links, or another one
        with whole(target) as partial:
            shutil.copyfile(source, partial)
