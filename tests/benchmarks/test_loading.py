"""Ratios of reading a collection to the loop of earlier versions and to torchvision's ImageFolder with two workers.

Run alone, on an idle machine: pytest tests/benchmarks/test_loading.py --benchmark-only.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gendistill.data.dataset import Split, stratified_split
from gendistill.data.files import class_folders, image_files
from gendistill.data.items import Item
from gendistill.data.pixels import is_grey, prepare
from gendistill.data.reader import MAX_PIXELS, Reader
from gendistill.data.sources import load_data
from gendistill.progress import track
from tests.benchmarks.test_images import photographs
from tests.benchmarks.test_training import in_turn, store

FIRST = {32: 3.0, 224: 4.0}  # targets by side in pixels
SIZES = pytest.mark.parametrize(("count", "size"), [(20_000, 32), (3_000, 224)])


@pytest.fixture
def folder(tmp_path: Path, count: int, size: int) -> Path:
    """JPEG files in ten class folders; every tenth photograph is another one."""
    for i, image in enumerate(photographs(count // 10, size)):
        picture = Image.fromarray(image.numpy().transpose(1, 2, 0).copy())
        for k in range(10):
            place = tmp_path / "images" / f"class {k}"
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{i:05d}.jpg", quality=75 + k)
    return tmp_path / "images"


def earlier(folder: Path, size: int) -> str:
    """One thread, all pixels into one array, copies of the two splits that are held out and of the rest, and a hash."""
    classes = class_folders(folder)
    items = image_files(folder, classes)
    Reader.for_items(items, size)
    pixels, labels = np.empty((len(items), 3, size, size), np.uint8), []
    for item, array in track(one_by_one(items, size), "read images", len(items)):
        pixels[len(labels)] = array
        labels.append(item.label)
    train = Split(torch.from_numpy(pixels), torch.tensor(labels))
    train, test = stratified_split(train, 0.25, classes, 0, "test")
    train, validation = stratified_split(train, 0.1, classes, 0, "validation")
    digest = hashlib.blake2b(digest_size=16)
    for split in (train, validation, test):
        digest.update(split.pixels.numpy().tobytes())
    return digest.hexdigest()


def one_by_one(items: list[Item], size: int) -> Iterator[tuple[Item, np.ndarray]]:
    for item in items:
        with item.open() as image:
            if image.width * image.height > MAX_PIXELS or is_grey(image):
                raise ValueError(item.where)
            yield item, prepare(image, size, 3)


def dataloader(folder: Path) -> int:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.v2.functional import pil_to_tensor

    images = ImageFolder(str(folder), transform=pil_to_tensor)
    loader = torch.utils.data.DataLoader(images, batch_size=256, num_workers=2)
    return sum(len(labels) for _, labels in loader)


@SIZES
def test_the_first_command_reads_with_all_processors(benchmark: Any, folder: Path, tmp_path: Path, size: int) -> None:
    cache = tmp_path / "cache"

    def first() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        load_data(name=str(folder), cache=cache).fingerprint()

    ours, reference = in_turn(benchmark, first, lambda: earlier(folder, size), rounds=3)
    store(
        benchmark,
        reference / ours,
        FIRST[size],
        "one thread, one array, copies of its splits and a hash, as earlier versions",
    )


@SIZES
def test_the_second_command_opens_the_store(benchmark: Any, folder: Path, tmp_path: Path, size: int) -> None:
    load_data(name=str(folder), cache=tmp_path / "cache")

    def second() -> None:
        load_data(name=str(folder), cache=tmp_path / "cache").fingerprint()

    ours, reference = in_turn(benchmark, second, lambda: earlier(folder, size), rounds=3)
    store(
        benchmark, reference / ours, 50.0, "one thread, one array, copies of its splits and a hash, as earlier versions"
    )


@SIZES
def test_beside_the_image_folder_of_torchvision(benchmark: Any, folder: Path, tmp_path: Path, size: int) -> None:
    cache = tmp_path / "cache"

    def first() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        load_data(name=str(folder), cache=cache)

    ours, reference = in_turn(benchmark, first, lambda: dataloader(folder), rounds=3)
    store(benchmark, reference / ours, 1.0, "ImageFolder and DataLoader with two workers, once through all images")
