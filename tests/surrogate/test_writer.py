"""The background writer: whole files or none, nothing outside the folder, few images in memory; sets by hard links."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gendistill.errors import ArtifactError
from gendistill.surrogate import image_files as png
from gendistill.surrogate.card.card import write_card
from gendistill.surrogate.manifest import TRAIN, write_manifest
from gendistill.surrogate.set import WAITING, SurrogateSet, SurrogateWriter, link_prefix, write_images
from tests.helpers import files, no_file_above

CLASSES = ("ant", "bee", "cow")
NASTY = ("../up", "/etc/passwd", "..", ".", "a/b", "", "x" * 300, "a\\b", "line\nbreak", ".hidden", "größe")
SHARED = Path("/dev/shm")


def pictures(count: int, size: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8)


def write(folder: Path, order: list[int], images: Tensor, classes: tuple[str, ...] = CLASSES) -> None:
    """Image i is the (i // K)-th of class i mod K."""
    with SurrogateWriter(folder, classes) as writer:
        for i in order:
            writer.put(i % len(classes), i // len(classes), images[i])


def put_all(folder: Path, label: int, images: Iterable[Tensor]) -> None:
    with SurrogateWriter(folder, CLASSES) as writer:
        for index, image in enumerate(images):
            writer.put(label, index, image)


def test_any_order_gives_the_set_that_save_gives(tmp_path: Path) -> None:
    images, meta = pictures(12), {"method": "generative", "seed": 3, "licence": "cc0"}
    labels = torch.arange(12) % 3
    SurrogateSet(images, labels, CLASSES, meta).save(tmp_path / "saved")
    for name, order in {"up": list(range(12)), "down": list(range(11, -1, -1))}.items():
        write(tmp_path / name, order, images)
        write_card(tmp_path / name, write_manifest(tmp_path / name, CLASSES, (3, 8, 8), meta))
        assert files(tmp_path / name, "**/*") == files(tmp_path / "saved", "**/*")
    assert torch.equal(SurrogateSet.load(tmp_path / "up").images, SurrogateSet.load(tmp_path / "saved").images)


def test_unsafe_names_stay_inside_the_folder(tmp_path: Path) -> None:
    images = pictures(len(NASTY))
    write(tmp_path / "a" / "set", list(range(len(NASTY))), images, NASTY)
    link_prefix(tmp_path / "a" / "set", tmp_path / "a" / "linked", NASTY, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["linked", "set"]
    for folder in ("set", "linked"):
        found = [p.parts for p in (tmp_path / "a" / folder).rglob("*") if p.is_file()]
        assert len(found) == len(NASTY)
        assert all(len(p) == len(tmp_path.parts) + 5 for p in found)  # a, set, train, class, image
    write_manifest(tmp_path / "a" / "linked", NASTY, (3, 8, 8), {})
    assert torch.equal(SurrogateSet.load(tmp_path / "a" / "linked").images, images)


def test_a_full_disk_is_reported_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    large, small = pictures(1, 64)[0], torch.zeros(3, 8, 8, dtype=torch.uint8)
    with no_file_above(2000), pytest.raises(OSError, match="File too large"):  # at a put
        put_all(tmp_path, 0, [large] * 4 * WAITING)
    with no_file_above(2000), pytest.raises(OSError, match="File too large"):  # at the end
        put_all(tmp_path, 1, [small, large])
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == ["train/bee/00000.png"]
    with SurrogateWriter(tmp_path, CLASSES) as writer:
        assert writer.has(1, 0)
        assert not writer.has(1, 1)


def test_an_error_in_the_block_keeps_its_place_and_whole_files(tmp_path: Path) -> None:
    def broken() -> Iterator[Tensor]:
        yield from pictures(100)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        put_all(tmp_path, 0, broken())
    assert all(p.suffix == ".png" and not p.name.startswith(".") for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.slow
def test_few_images_wait_however_slow_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, image, encode = threading.Event(), pictures(1)[0], png.encode

    def slow(*arguments: Any) -> bytes:
        disk.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(png, "encode", slow)
    with SurrogateWriter(tmp_path, CLASSES) as writer:
        producer = threading.Thread(target=lambda: [writer.put(0, i, image) for i in range(2 * WAITING)])
        producer.start()
        producer.join(0.5)
        waiting, blocked = len(writer._pending), producer.is_alive()
        disk.set()
        producer.join()
    assert blocked
    assert waiting <= WAITING
    assert len(files(tmp_path)) == 2 * WAITING


# all at once


@pytest.fixture
def spread_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads and blocks of four images, however few they are."""
    monkeypatch.setattr(png, "THREADS", 3)
    monkeypatch.setattr(png, "BLOCK", 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_threads_write_the_same_bytes(
    tmp_path: Path, request: pytest.FixtureRequest, channels: int, layout: str
) -> None:
    """As one image after another; in any layout of memory."""
    images, labels = pictures(50)[:, :channels], torch.arange(50) % 3
    write(tmp_path / "one", list(range(50)), images)
    if layout == "columns":
        images = images.contiguous(memory_format=torch.channels_last)
    write_images(tmp_path / "alone", CLASSES, images, labels)
    request.getfixturevalue("spread_out")
    write_images(tmp_path / "spread", CLASSES, images, labels)
    assert len(files(tmp_path / "one")) == 50
    assert files(tmp_path / "alone", "**/*") == files(tmp_path / "spread", "**/*") == files(tmp_path / "one", "**/*")


@pytest.mark.usefixtures("spread_out")
def test_threads_report_a_full_disk_and_leave_no_part_of_a_file(tmp_path: Path) -> None:
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    images[17] = pictures(1)[0]  # which alone takes more than 150 bytes
    with no_file_above(150), pytest.raises(OSError, match="File too large"):
        write_images(tmp_path, CLASSES, images, torch.zeros(40, dtype=torch.int64))
    names = set(files(tmp_path, "**/*"))
    assert "train/ant/00016.png" in names
    assert "train/ant/00017.png" not in names
    assert all(name.endswith(".png") for name in names)


@pytest.mark.usefixtures("spread_out")
def test_a_set_spread_over_threads_is_written_and_read(tmp_path: Path) -> None:
    """A class without images and one with many; a damaged file is found among them all."""
    images, labels = pictures(50), torch.tensor([2] * 45 + [0] * 5)
    SurrogateSet(images, labels, CLASSES).save(tmp_path / "set")
    found = SurrogateSet.load(tmp_path / "set")
    assert found.counts == [5, 0, 45]
    assert torch.equal(found.images, torch.cat([images[45:], images[:45]]))
    path = tmp_path / "set" / "train" / "cow" / "00044.png"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=r"cow/00044\.png is cut short"):
        SurrogateSet.load(tmp_path / "set")


# by hard links


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_smaller_sets_share_their_bytes_with_the_largest(tmp_path: Path) -> None:
    write(tmp_path / "all", list(range(12)), pictures(12))
    for _ in range(2):  # again after a kill
        link_prefix(tmp_path / "all", tmp_path / "two", CLASSES, 2)
    whole, part = files(tmp_path / "all"), files(tmp_path / "two")
    assert part == {k: v for k, v in whole.items() if k.endswith(("00000.png", "00001.png"))}
    assert all(inode(tmp_path / "two" / k) == inode(tmp_path / "all" / k) for k in part)
    with pytest.raises(FileNotFoundError):
        link_prefix(tmp_path / "all", tmp_path / "five", CLASSES, 5)


@pytest.mark.skipif(not SHARED.is_dir() or not os.access(SHARED, os.W_OK), reason="no second file system to write to")
def test_without_hard_links_the_bytes_are_copied_whole(tmp_path: Path) -> None:
    write(tmp_path / "all", list(range(6)), pictures(6, 64))
    with tempfile.TemporaryDirectory(dir=SHARED) as other:
        target = Path(other) / "two"
        if target.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("the same file system")
        with no_file_above(2000), pytest.raises(OSError, match="File too large"):
            link_prefix(tmp_path / "all", target, CLASSES, 2)
        assert not files(target, "**/*")
        killed = target / TRAIN / "ant" / "00000.png.partial"
        killed.write_bytes(b"half of it")
        link_prefix(tmp_path / "all", target, CLASSES, 2)
        assert files(target, "**/*") == files(tmp_path / "all", "**/*")
        copies = {path: inode(path) for path in target.rglob("*.png")}
        cut = next(iter(copies))
        cut.write_bytes(b"half of it")
        link_prefix(tmp_path / "all", target, CLASSES, 2)
        assert files(target, "**/*") == files(tmp_path / "all", "**/*")
        assert all(inode(path) == number for path, number in copies.items() if path != cut)  # not copied again
