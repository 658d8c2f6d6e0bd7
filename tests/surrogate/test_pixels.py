"""PNG files to pixels: what was written comes back, and what is not whole is refused by its name."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from gendistill import progress
from gendistill.errors import ArtifactError
from gendistill.progress import show_progress
from gendistill.surrogate import image_files
from gendistill.surrogate.image_files import SIGNATURE, decode, encode, read_images


@pytest.fixture
def spread_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads and small blocks, however few the images."""
    monkeypatch.setattr(image_files, "THREADS", 3)
    monkeypatch.setattr(image_files, "BLOCK", 4)


def pictures(count: int, size: int = 8, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=rng, dtype=torch.uint8)


def store(folder: Path, images: Tensor) -> list[Path]:
    """By Pillow, as any other program would."""
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images.movedim(1, -1).squeeze(-1).numpy(), strict=True):
        Image.fromarray(image).save(path)
    return paths


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def file(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes, interlaced: int = 0) -> bytes:
    """A PNG file of rows that have their filter types, with other chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return SIGNATURE + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


# there and back


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.data())
def test_any_image_comes_back_and_pillow_sees_the_same(
    width: int, height: int, channels: int, data: st.DataObject
) -> None:
    seed, levels = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([1, 2, 256]))
    array = np.random.default_rng(seed).integers(0, levels, (height, width, channels), dtype=np.uint8)
    written = encode(torch.from_numpy(array).movedim(-1, 0))
    with Image.open(io.BytesIO(written)) as image:
        assert (image.mode, image.size) == ("L" if channels == 1 else "RGB", (width, height))
        assert image.tobytes() == array.tobytes()
    if width == height:
        assert decode(written, channels, width) == array.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 300])  # the last has more than one of Pillow's IDAT chunks
def test_files_of_other_programs_are_read(tmp_path: Path, size: int, channels: int) -> None:
    images = pictures(3, size, channels)
    assert torch.equal(read_images(store(tmp_path, images), channels, size), images)


def test_no_files_are_no_images() -> None:
    assert read_images([], 3, 8).shape == (0, 3, 8, 8)


# what is not whole


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_cut_anywhere_is_refused(channels: int) -> None:
    data = encode(pictures(1, 4, channels)[0])
    for kept in range(len(data)):
        with pytest.raises(ValueError, match="is cut short" if kept >= len(SIGNATURE) else "is no PNG"):
            decode(data[:kept], channels, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_bit_changed_anywhere_is_noticed(channels: int) -> None:
    data = encode(pictures(1, 4, channels)[0])
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"^(is|has) "):
            decode(bytes(changed), channels, 4)


def test_a_bit_changed_in_a_comment_is_noticed_too() -> None:
    data = file(1, 1, 8, 0, b"\0\7", chunk(b"tEXt", b"Title\0of no use"))
    assert decode(data, 1, 1) == b"\7"
    with pytest.raises(ValueError, match="checksum"):
        decode(data.replace(b"no use", b"nu use"), 1, 1)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    for start in (b"", SIGNATURE):
        with pytest.raises(ValueError, match=r"^is "):
            decode(start + data, 3, 8)


KINDS = st.sampled_from([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"tEXt", b"iCCP"])


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 2, 3, 4, 6]), st.integers(0, 2),
    st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=4), st.binary(max_size=300),
)  # fmt: skip
def test_chunks_that_make_no_sense_are_refused_or_read(
    depth: int, colour: int, interlaced: int, more: list[tuple[bytes, bytes]], rows: bytes
) -> None:
    """With right checksums, as somebody malicious would send them."""
    data = file(8, 8, depth, colour, rows, *(chunk(*each) for each in more), interlaced=interlaced)
    for channels in (1, 3):
        try:
            said = "" if len(decode(data, channels, 8)) == 64 * channels else "wrong length"
        except ValueError as error:
            said = str(error)
        assert not said or said.startswith(("is ", "has "))


@pytest.mark.parametrize("rows", [b"", b"\0" * (8 * 25 - 1), b"\5" * 8 * 25], ids=["none", "too few", "no filter"])
def test_too_few_or_impossible_rows_are_refused(rows: bytes) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        decode(file(8, 8, 8, 2, rows), 3, 8)


# what a file claims


@pytest.mark.parametrize("more", [(), (chunk(b"PLTE", b"abc"),)], ids=["plain", "palette"])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, more: tuple[bytes, ...]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(file(60000, 60000, 8, 3 if more else 2, b"", *more))
    with pytest.raises(ArtifactError, match=r"bomb\.png is 60000x60000; its manifest says 32x32"):
        read_images([path], 3, 32)


def test_a_size_that_no_memory_holds_is_refused_by_the_first_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"0\.png is 8x8; its manifest says 10000000x10000000"):
        read_images(store(tmp_path, pictures(1)), 3, 10**7)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [10000, 60000])
def test_a_second_header_is_refused(size: int) -> None:
    bomb = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 3, 0, 0, 0))
    with pytest.raises(ValueError, match="is damaged"):
        decode(file(1, 1, 8, 3, b"\0\0", bomb, chunk(b"PLTE", b"abc")), 3, 1)


def test_the_file_of_a_large_image_has_one_chunk_of_pixels() -> None:
    data = encode(pictures(1, 256)[0])
    assert len(data) > 2**16
    assert data.count(b"IDAT") == 1


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "text", "empty"])
def test_what_is_no_png_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.png"
    if kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    else:
        Image.new("RGB", (8, 8)).save(path, kind)
    with pytest.raises(ArtifactError, match=r"other\.png is no PNG file"):
        read_images([path], 3, 8)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ArtifactError, match=f"{path} cannot be read"):
            read_images([path], 3, 8)


# what somebody's editor makes of a file


def grey() -> Image.Image:
    return Image.fromarray(pictures(1, 8, 1)[0, 0].numpy())


def colour() -> Image.Image:
    return Image.fromarray(pictures(1)[0].movedim(0, -1).contiguous().numpy())


def adam7(array: np.ndarray) -> bytes:
    """The rows of seven passes (W3C PNG, section 8.2) without filters."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(b"\0" + row.tobytes() for y, x, down, right in passes for row in array[y::down, x::right])


EDITS: dict[str, Callable[[], bytes]] = {
    "grey": lambda: saved(grey()),
    "colour": lambda: saved(colour()),
    "palette": lambda: saved(colour().quantize(16)),
    "palette of four": lambda: saved(colour().quantize(4), bits=2),
    "black and white": lambda: saved(grey().convert("1")),
    "opaque alpha": lambda: saved(colour().convert("RGBA")),
    "opaque grey with alpha": lambda: saved(grey().convert("LA")),
    "interlaced": lambda: file(8, 8, 8, 2, adam7(np.asarray(colour())), interlaced=1),
    "interlaced grey": lambda: file(8, 8, 8, 0, adam7(np.asarray(grey())), interlaced=1),
    "with metadata": lambda: saved(colour(), dpi=(72, 72), icc_profile=b"x" * 200, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "with bytes after its end": lambda: saved(colour()) + b"and more",
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_read_as_pillow_converts_it(tmp_path: Path, name: str, channels: int) -> None:
    (tmp_path / "edited.png").write_bytes(EDITS[name]())
    with Image.open(tmp_path / "edited.png") as image:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(8, 8, channels)
    found = read_images([tmp_path / "edited.png"], channels, 8)[0]
    assert np.array_equal(found.movedim(0, -1).numpy(), expected)


def see_through(image: Image.Image) -> Image.Image:
    image.putpixel((3, 3), (*image.getpixel((3, 3))[:-1], 254))  # type: ignore[index]
    return image


LOSSES: dict[str, tuple[Callable[[], bytes], str]] = {
    "16 bits grey": (lambda: saved(Image.fromarray(np.full((8, 8), 300, np.uint16))), "has 16 bits a channel"),
    "16 bits colour": (lambda: file(8, 8, 16, 2, b"\0" * 8 * 49), "has 16 bits a channel"),
    "alpha": (lambda: saved(see_through(colour().convert("RGBA"))), "has transparent pixels"),
    "grey with alpha": (lambda: saved(see_through(grey().convert("LA"))), "has transparent pixels"),
    "transparent entry": (lambda: saved(colour().quantize(16), transparency=0), "has transparent pixels"),
    "transparent colour": (lambda: saved(Image.new("RGB", (8, 8)), transparency=(0, 0, 0)), "has transparent pixels"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_what_would_be_lost_is_refused(tmp_path: Path, name: str, channels: int) -> None:
    make, said = LOSSES[name]
    (tmp_path / "edited.png").write_bytes(make())
    with pytest.raises(ArtifactError, match=rf"edited\.png {said}"):
        read_images([tmp_path / "edited.png"], channels, 8)


# many files


@pytest.mark.usefixtures("spread_out")
@pytest.mark.parametrize("channels", [1, 3])
def test_threads_read_the_same_in_the_same_order(tmp_path: Path, channels: int) -> None:
    images = pictures(50, channels=channels)
    assert torch.equal(read_images(store(tmp_path, images), channels, 8), images)


@pytest.mark.usefixtures("spread_out")
def test_of_several_damaged_files_the_first_is_named(tmp_path: Path) -> None:
    paths = store(tmp_path, pictures(60))
    for i in (59, 23, 24, 41):
        paths[i].write_bytes(paths[i].read_bytes()[:-1])
    for _ in range(3):
        with pytest.raises(ArtifactError, match=r"/23\.png is cut short"):
            read_images(paths, 3, 8)


@pytest.mark.usefixtures("spread_out")
@pytest.mark.skipif(os.name == "nt", reason="names of bytes")
def test_files_of_any_name_are_found(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"line\nbreak \xff \xc3\xa9")
    folder.mkdir()
    images = pictures(20)
    assert torch.equal(read_images(store(folder, images), 3, 8), images)


@pytest.mark.usefixtures("spread_out")
def test_an_interrupt_ends_the_work() -> None:
    done: list[int] = []

    def slow(positions: range) -> None:
        time.sleep(0.02)
        done.append(positions.start)
        if positions.start == 80:  # a real signal may fall into a callback of the garbage collector, which drops it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_files._in_threads(slow, 4000, 256, "slow")
    assert 20 < len(done) < 500


def test_a_bar_is_drawn_for_many_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = store(tmp_path, pictures(10))
    with show_progress():
        read_images(paths, 3, 8)
        assert not capsys.readouterr().err
        monkeypatch.setattr(image_files, "MANY", 9)
        monkeypatch.setattr(progress, "OFTEN", 0.0)
        read_images(paths, 3, 8)
    said = capsys.readouterr().err
    assert "read set" in said
    assert "10 of 10" in said
