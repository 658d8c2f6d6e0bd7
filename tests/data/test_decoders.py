"""The compiled decoders: the pixels of Pillow, or None."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gendistill.data import decoders
from gendistill.data.decoders import PNG, compiled, jpeg_sides, plain_png_sides, read_image
from gendistill.data.pixels import prepare
from gendistill.data.sources import load_data
from tests.data.folders import make

RANDOM = np.random.default_rng(0)
COLOURS = {"L": (24, 24), "RGB": (24, 24, 3), "RGBA": (24, 24, 4), "LA": (24, 24, 2)}


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, COLOURS[mode], np.uint8), mode)


def by_pillow(data: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return prepare(image, 24, channels)


def block(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    compiled.cache_clear()
    yield
    compiled.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"compress_level": 0}, {"compress_level": 9}, {"optimize": True}])
def test_plain_png_files_have_the_pixels_of_pillow(mode: str, channels: int, options: dict[str, object]) -> None:
    data = encode(noise(mode), "PNG", **options)
    found = read_image(data, (channels, 24, 24))
    if (mode, channels) == ("RGB", 1):
        assert found is None
    else:
        assert found is not None
        assert np.array_equal(np.broadcast_to(found, (channels, 24, 24)), by_pillow(data, channels))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"quality": 75}, {"quality": 100}, {"progressive": True}])
def test_jpeg_files_have_the_pixels_of_pillow(mode: str, options: dict[str, object]) -> None:
    data = encode(noise(mode), "JPEG", **options)
    found = read_image(data, (3, 24, 24))
    assert found is not None
    assert np.array_equal(np.broadcast_to(found, (3, 24, 24)), by_pillow(data, 3))


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def png_files() -> dict[str, bytes]:
    plain = encode(noise("RGB"), "PNG")
    text = PngImagePlugin.PngInfo()
    text.add_text("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    exif = Image.Exif()
    exif[0x0112] = 6
    head, rest = plain[:33], plain[33:]
    return {
        "palette": encode(noise("RGB").quantize(16), "PNG"),
        "two bits": encode(noise("L").convert("1"), "PNG"),
        "alpha": encode(noise("RGBA"), "PNG"),
        "grey and alpha": encode(noise("LA"), "PNG"),
        "16 bits": encode(Image.fromarray(RANDOM.integers(0, 1 << 16, (24, 24), np.uint16)), "PNG"),
        "a transparent colour": encode(noise("RGB"), "PNG", transparency=(1, 2, 3)),
        "on its side": encode(noise("RGB"), "PNG", exif=exif),
        "on its side by XMP": encode(noise("RGB"), "PNG", pnginfo=text),
        "gamma": head + block(b"gAMA", (100_000).to_bytes(4)) + rest,
        "a changed value": changed(plain, 60),
        "a changed checksum": changed(plain, len(plain) - 13),
        "cut": plain[:-30],
        "without end": plain[:-12],
        "more behind": plain + b"more",
        "no data": head + block(b"IEND", b""),
        "another first block": PNG + block(b"IDAT", b"") + plain[8:],
        "a long block": head + b"\xff\xff\xff\xff" + rest[4:],
        "the signature": PNG,
        "other sides": encode(Image.new("RGB", (24, 16)), "PNG"),
    }


@pytest.mark.parametrize("name", png_files())
def test_what_is_not_surely_the_same_is_left_to_pillow(name: str) -> None:
    assert read_image(png_files()[name], (3, 24, 24)) is None


def test_a_jpeg_file_of_other_sides_is_not_decoded_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (24, 16)), "JPEG", progressive=True, comment=b"\xff\xc0" * 40)
    assert jpeg_sides(data) == (16, 24)
    assert jpeg_sides(data[:40]) is None
    assert read_image(data, (3, 16, 24)) is not None
    monkeypatch.setattr(decoders, "compiled", None)
    assert read_image(data, (3, 24, 24)) is None


def test_jpeg_files_of_four_colours_on_their_side_or_damaged_are_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    packet = b'<rdf:Description tiff:Orientation="6"/>'
    files = [encode(noise("RGB").convert("CMYK"), "JPEG"), encode(noise("RGB"), "JPEG", exif=exif), b"\xff\xd8\xff"]
    files.append(encode(noise("RGB"), "JPEG", xmp=packet))
    assert [read_image(data, (3, 24, 24)) for data in files] == [None] * 4


def test_the_sides_of_a_png_file_are_height_and_width() -> None:
    assert plain_png_sides(encode(Image.new("RGB", (24, 16)), "PNG")) == (16, 24)


@pytest.mark.parametrize("library", [None, "no library"])
def test_without_the_compiled_operators_pillow_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str | None
) -> None:
    folder = make(tmp_path / "images", ("cat", "dog"), count=8)
    before = load_data(name=str(folder), cache=None)
    (tmp_path / "image.so").write_text("no library")
    package = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    compiled.cache_clear()
    monkeypatch.setattr(decoders, "find_spec", lambda name: library and package)
    assert compiled("decode_jpeg") is None
    assert load_data(name=str(folder), cache=None).fingerprint() == before.fingerprint()


@pytest.mark.slow
def test_torchvision_is_not_imported_and_can_be_later(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", ("cat", "dog"), count=8)
    code = f"""
import sys
from gendistill.data.sources import load_data
from gendistill.data.decoders import compiled
assert compiled("decode_jpeg") and compiled("decode_png") and not compiled("no_operator")
load_data(name={str(folder)!r}, cache=None)
assert not {{"torchvision", "datasets"}} & {{*sys.modules}}
import torch, torchvision.io
png = torchvision.io.encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8))
assert torchvision.io.decode_png(png).shape == (3, 4, 4)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
