"""One PNG file: its bytes from pixels, and pixels only from bytes that are whole.

Pixels are uint8, row by row, C = 1 (grey) or 3 (RGB) values each. Pillow packs and unpacks them; the chunks around them
(W3C PNG, third edition, section 5) are read here, because Pillow reads on where a checksum is wrong or the end missing.
Needs no torch, so that a process of its own starts in milliseconds (workers.py).
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LENGTH, HEADER = struct.Struct(">I"), struct.Struct(">IIBBBBB")  # width, height, depth, colour, three methods
MODES = {1: "L", 3: "RGB"}
COLOURS = {1: 0, 3: 2}  # the header's colour type of C channels
LEVEL = 3  # of zlib: at 256 px 3.6 times as fast as Pillow's own for 1.2 % more bytes; no larger at 32 px


def encode(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """The file of one image; the same bytes for the same pixels."""
    mode = MODES[channels]
    packed = Image.frombytes(mode, (width, height), pixels).tobytes("zip", mode, False, LEVEL, -1, b"")
    header = HEADER.pack(width, height, 8, COLOURS[channels], 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def decode(data: bytes, channels: int, size: int) -> bytes:
    """The pixels of a file of ``size`` x ``size``; other colours or depths become grey or RGB by Pillow's ``convert``.

    Raises:
        ValueError: what the file is instead, to follow its name: no PNG, another size (before a pixel is unpacked), cut
            short, changed by a bit anywhere, or more than ``convert`` keeps: 16 bits, transparent pixels.
    """
    if data[: len(SIGNATURE)] != SIGNATURE:
        raise ValueError("is no PNG file")
    chunks = _chunks(data)
    kind, header = next(chunks)
    if kind != b"IHDR" or len(header) != HEADER.size:
        raise ValueError("is damaged: its header is not in its place")
    width, height, depth, *_ = HEADER.unpack(header)
    if (width, height) != (size, size):
        raise ValueError(f"is {width}x{height}; its manifest says {size}x{size}")
    if depth > 8:
        raise ValueError(f"has {depth} bits a channel; expected 8")
    found = [chunk for chunk in chunks if chunk[0] in (b"PLTE", b"tRNS", b"IDAT", b"IEND")]
    try:
        image = _unpack(header, found, channels)
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # Pillow's for chunks that make no sense
        raise ValueError(f"is damaged: {error}") from error
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise ValueError("has transparent pixels; expected none")
    return (image if image.mode == MODES[channels] else image.convert(MODES[channels])).tobytes()


def _unpack(header: bytes, chunks: list[tuple[bytes, bytes]], channels: int) -> Image.Image:
    """From the chunks that pixels depend on; with transparency as RGBA."""
    width, height, depth, colour, *_, interlaced = HEADER.unpack(header)
    if (depth, colour) == (8, COLOURS[channels]) and chunks[0][0] == b"IDAT":  # what ``encode`` writes
        packed = b"".join([content for kind, content in chunks if kind == b"IDAT"])
        return Image.frombytes(MODES[channels], (width, height), packed, "zip", MODES[channels], interlaced)
    if colour == 3 and chunks[0][0] != b"PLTE":
        raise ValueError("it has no palette")
    file = SIGNATURE + b"".join(_chunk(*chunk) for chunk in [(b"IHDR", header), *chunks])
    with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
        return image.convert("RGBA") if image.has_transparency_data else image.copy()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return LENGTH.pack(len(content)) + kind + content + LENGTH.pack(crc32(content, crc32(kind)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each up to the last, their checksums compared."""
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        end = at + 8 + LENGTH.unpack_from(data, at)[0] if at + 8 <= len(data) else len(data)
        if end + 4 > len(data):
            raise ValueError("is cut short")
        if crc32(data[at + 4 : end]) != LENGTH.unpack_from(data, end)[0]:
            raise ValueError("is damaged: a checksum in it is wrong")
        kind = data[at + 4 : at + 8]
        yield kind, data[at + 8 : end]
        at = end + 4


def read(path: Path, channels: int, size: int) -> bytes:
    """The pixels of a file; see ``decode``."""
    with open(path, "rb", buffering=0) as file:
        return decode(file.read(), channels, size)


def write(paths: Sequence[Path], pixels: bytes, width: int, height: int, channels: int) -> None:
    """The pixels of one image after another to files, each whole or absent."""
    length = width * height * channels
    for i, path in enumerate(paths):
        data = encode(pixels[i * length : (i + 1) * length], width, height, channels)
        with whole(path) as partial, open(partial, "wb") as file:
            file.write(data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` at once, or leaves nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
