"""Ratios of writing and reading the images of a set to a plain loop over Pillow, and how many cores they keep busy.

Run alone: pytest tests/benchmarks/test_images.py --benchmark-only. The files lie in memory where there is room: an ext4
that has just deleted many files, as of an earlier run, makes new ones ten times as slowly as before.
"""

from __future__ import annotations

import itertools
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from gendistill.data.pixels import to_uint8
from gendistill.seeding import torch_rng
from gendistill.surrogate.image_files import read_images
from gendistill.surrogate.set import SurrogateSet, write_images
from tests.benchmarks.test_training import in_turn, store

CLASSES = tuple("abcdefghij")
SHARED, ROOM = Path("/dev/shm"), 4 * 2**30
SIZES = pytest.mark.parametrize(("count", "size"), [(50_000, 32), (500, 256)])
WRITE = 0.6  # of the speed of a plain loop, which compares no checksums and may leave half a file
READ = {32: 1.2, 256: 0.6}  # by side: opening a small file takes Pillow longer than unpacking it


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    if not SHARED.is_dir() or shutil.disk_usage(SHARED).free < ROOM:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED) as inside:
        yield Path(inside)


def photographs(count: int, size: int) -> Tensor:
    """Smooth shapes with a little noise, whose files are about as large as those of photographs: 2.2 KB at 32 px."""
    rng = torch_rng(0, "pixels")
    shapes = torch.cat(
        [interpolate(s, size, mode="bicubic") for s in torch.randn(count, 3, 6, 6, generator=rng).split(500)]
    )
    return to_uint8(shapes.mul_(0.4).add_(torch.randn(shapes.shape, generator=rng), alpha=0.03))


def pillow_writes(images: Tensor, paths: list[Path]) -> None:
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image.numpy().transpose(1, 2, 0).copy()).save(path)


def pillow_reads(paths: list[Path], size: int) -> Tensor:
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for image, path in zip(images, paths, strict=True):
        with Image.open(path) as opened:
            image.copy_(torch.from_numpy(np.array(opened)).movedim(-1, 0))
    return images


def paths_of(folder: Path, count: int) -> list[Path]:
    return [folder / "train" / name / f"{i:05d}.png" for name in CLASSES for i in range(count // len(CLASSES))]


def cores(work: Callable[[], Any]) -> tuple[float, float]:
    """How many the work kept busy; and its seconds."""
    before, start = _used(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return (_used() - before) / seconds, seconds


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@SIZES
def test_images_are_written_about_as_fast_as_by_a_plain_loop(
    benchmark: Any, folder: Path, count: int, size: int
) -> None:
    images, labels = photographs(count, size), torch.arange(10).repeat_interleave(count // 10)
    folders = (folder / str(i) for i in itertools.count())

    def ours() -> None:
        write_images(next(folders), CLASSES, images, labels)

    def plain() -> None:
        paths = paths_of(next(folders), count)
        for path in {path.parent for path in paths}:
            path.mkdir(parents=True)
        pillow_writes(images, paths)

    seconds, reference = in_turn(benchmark, ours, plain, rounds=2)
    busy, _ = cores(ours)
    _, whole = cores(lambda: SurrogateSet(images, labels, CLASSES).save(next(folders)))
    benchmark.extra_info |= {"cores": round(busy, 2), "images_per_second": round(count / seconds)}
    benchmark.extra_info["ratio_with_checksums_and_card"] = round(reference / whole, 2)
    store(benchmark, reference / seconds, 1.0, "Image.save of one after another in one process")
    assert reference / seconds >= WRITE


@SIZES
def test_images_are_read_about_as_fast_as_by_a_plain_loop(benchmark: Any, folder: Path, count: int, size: int) -> None:
    images, labels = photographs(count, size), torch.arange(10).repeat_interleave(count // 10)
    SurrogateSet(images, labels, CLASSES).save(folder / "set")
    paths = paths_of(folder / "set", count)
    seconds, reference = in_turn(
        benchmark, lambda: read_images(paths, 3, size), lambda: pillow_reads(paths, size), rounds=3
    )
    assert torch.equal(pillow_reads(paths, size), images)
    busy, _ = cores(lambda: read_images(paths, 3, size))
    _, whole = cores(lambda: SurrogateSet.load(folder / "set"))
    benchmark.extra_info |= {"cores": round(busy, 2), "images_per_second": round(count / seconds)}
    benchmark.extra_info["ratio_with_manifest"] = round(reference / whole, 2)
    store(benchmark, reference / seconds, 1.0, "Image.open of one after another in one process")
    assert reference / seconds >= READ[size]
