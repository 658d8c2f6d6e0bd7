"""PNG files of a set: the same pixels give the same bytes, and only complete, unchanged files are read."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gendistill.errors import ArtifactError
from gendistill.io import atomic
from gendistill.progress import track

THREADS = min(4, os.cpu_count() or 1)
SMALL = 64  # px: smaller images stay in this thread; others would mostly wait for the interpreter's lock
BLOCK = 64  # images that a thread reads or writes at once
MANY = 5000  # images that someone waits for
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.pack(">I", 13) + b"IHDR"
MODES = {1: "L", 3: "RGB"}  # Pillow's, of images with C channels
COLOURS = {1: 0, 3: 2}  # the colour type in the header
LEVEL = 3  # of zlib: at 256 px 3.6 times as fast as Pillow's default for 1.2 % more bytes; no larger at 32 px


def read_images(paths: Sequence[Path], channels: int, size: int) -> Tensor:
    """uint8 (N,channels,size,size) of PNG files.

    Raises:
        ArtifactError: a file cannot be read, is damaged or of another size; the first such file is named.
    """
    if paths:
        _read(paths[0], channels, size)  # before memory is allocated for a wrong size
    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)

    def read(positions: range) -> None:
        pixels = bytearray(b"".join([_read(paths[i], channels, size) for i in positions]))
        images[positions.start : positions.stop] = (
            torch.frombuffer(pixels, dtype=torch.uint8).view(-1, size, size, channels).movedim(-1, 1)
        )

    _in_threads(read, len(paths), size, "read set")
    return images


def write_files(paths: Sequence[Path], images: Tensor, order: Tensor) -> None:
    """Write the uint8 images (N,C,H,W) at ``order`` (N,) to ``paths``, each file completely or not at all."""
    sources = order.tolist()

    def write(positions: range) -> None:
        for i in positions:
            write_image(paths[i], images[sources[i]])

    _in_threads(write, len(paths), images.shape[-1], "write set")


def write_image(path: Path, image: Tensor) -> None:
    """Write one uint8 image (C,H,W), completely or not at all."""
    with atomic(path, sync=False) as partial:  # its checksums show whether it is whole
        partial.write_bytes(encode(image))


def is_complete(path: Path) -> bool:
    """Whether a PNG file is there with every part of it unchanged."""
    try:
        data = path.read_bytes()
        return data.startswith(SIGNATURE) and bool(_checked_chunks(data))
    except (OSError, ValueError):
        return False


def png_sizes(images: Tensor) -> list[int]:
    """Bytes of each of uint8 ``images`` (N,C,H,W) as the file that a set would hold."""
    return [len(encode(image)) for image in images.cpu()]


def _in_threads(work: Callable[[range], None], count: int, size: int, label: str) -> None:
    """Call ``work`` with the positions of all images, block by block; the first block's error is raised."""

    def one(positions: range) -> range:
        work(positions)
        return positions

    pool = ThreadPoolExecutor(THREADS)
    try:
        blocks = (range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
        done = chain.from_iterable((map if size < SMALL else pool.map)(one, blocks))
        for _ in track(done, label, count) if count > MANY else done:
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def encode(image: Tensor) -> bytes:
    """The PNG file of a uint8 image (C,H,W); the same bytes for the same pixels.

    The chunks are put together here, because Pillow's ``save`` splits what takes more than 64 KiB into several IDAT
    chunks; the files of sets that exist, and their checksums, have one.
    """
    channels, height, width = image.shape
    pixels = image.movedim(0, -1).cpu().contiguous().numpy().tobytes()
    mode = MODES[channels]
    packed = Image.frombytes(mode, (width, height), pixels).tobytes("zip", mode, False, LEVEL, -1, b"")
    header = struct.pack(">IIBBBBB", width, height, 8, COLOURS[channels], 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _read(path: Path, channels: int, size: int) -> bytes:
    try:
        return decode(path.read_bytes(), channels, size)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Copy or make the set again.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} {error}. Copy or make the set again.") from error


def decode(data: bytes, channels: int, size: int) -> bytes:
    """The pixels of a PNG file of ``size`` x ``size``, row by row; other colours or depths become grey or RGB.

    Every checksum is compared. Size and depth are read from the header before a pixel is unpacked.

    Raises:
        ValueError: what the file is instead, to follow its name: no PNG, of another size, damaged, or with more than
            grey or RGB keeps (16 bits, transparent pixels).
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("is no PNG file")
    chunks = _checked_chunks(data)
    if data[8:16] != HEADER:
        raise ValueError("is damaged: its header is not in its place")
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if (width, height) != (size, size):
        raise ValueError(f"is {width}x{height}; its manifest says {size}x{size}")
    if depth > 8:
        raise ValueError(f"has {depth} bits a channel; expected 8")
    ours = (depth, colour, interlaced) == (8, COLOURS[channels], 0) and len(chunks) == 3  # as ``encode`` writes them
    mode = MODES[channels]
    try:
        if ours and chunks[1][0] == b"IDAT":  # twice as fast as Image.open, for small images
            return Image.frombytes(mode, (size, size), chunks[1][1], "zip", mode).tobytes()
        image = _unpack(data, size)
    except MemoryError:
        raise  # of this machine, not of the file
    except Exception as error:  # Pillow raises many kinds where chunks make no sense
        raise ValueError(f"is damaged: {error}") from error
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise ValueError("has transparent pixels; expected none")
    return (image if image.mode == mode else image.convert(mode)).tobytes()


def _checked_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of every chunk up to the last, whose checksums are compared; Pillow leaves out some."""
    at = len(SIGNATURE)
    found: list[tuple[bytes, bytes]] = []
    while not found or found[-1][0] != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise ValueError("is cut short")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("is damaged: a checksum in it is wrong")
        found.append((data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return found


def _unpack(data: bytes, size: int) -> Image.Image:
    """The image; with transparency as RGBA."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.size != (size, size):
            raise ValueError("a second header has another size")
        image.load()
        return image.convert("RGBA") if image.has_transparency_data else image.copy()
