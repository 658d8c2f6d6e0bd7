"""Image files of a set: the same pixels give the same bytes, and only complete, unchanged files are read."""

from __future__ import annotations

import hashlib
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
from gendistill.surrogate.image_formats import MODES, PNG, Coding, as_tensor, compressed, decompressed, is_whole

THREADS = min(4, os.cpu_count() or 1)
SMALL = 64  # px: smaller images stay in this thread; others would mostly wait for the interpreter's lock
BLOCK = 64  # images that a thread reads or writes at once
MANY = 5000  # images that someone waits for
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.pack(">I", 13) + b"IHDR"
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
        pixels = b"".join([_read(paths[i], channels, size) for i in positions])
        images[positions.start : positions.stop] = as_tensor(pixels, channels, size)

    _in_threads(read, len(paths), size, "read set")
    return images


def read_files(paths: Sequence[Path], wanted: Sequence[str]) -> tuple[bytes, ...]:
    """The files as they are, compared with the BLAKE2b-128 checksums (hex) that are ``wanted``.

    Raises:
        ArtifactError: a file cannot be read or was changed; the first such file is named.
    """
    found = []
    for path, digest in zip(paths, wanted, strict=True):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error}. Copy or make the set again.") from error
        if hashlib.blake2b(data, digest_size=16).hexdigest() != digest:
            raise ArtifactError(f"{path} was changed since the set was made. Copy or make the set again.")
        found.append(data)
    return tuple(found)


def decode_files(files: Sequence[bytes], coding: Coding, channels: int, size: int, names: Sequence[object]) -> Tensor:
    """uint8 (N,channels,size,size) of files in a format that is not PNG; ``names`` are those of messages.

    Raises:
        ArtifactError: a file is damaged or of another size; the first such file is named.
    """

    def decoded(i: int) -> bytes:
        try:
            return decompressed(files[i], coding, channels, size)
        except ValueError as error:
            raise ArtifactError(f"{names[i]} {error}. Copy or make the set again.") from error

    def read(positions: range) -> None:
        pixels = b"".join([decoded(i) for i in positions])
        images[positions.start : positions.stop] = as_tensor(pixels, channels, size)

    if files:
        decoded(0)  # before memory is allocated for a wrong size
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    _in_threads(read, len(files), size, "read set")
    return images


def encode_files(images: Tensor, coding: Coding) -> tuple[bytes, ...]:
    """Each of uint8 ``images`` (N,C,H,W) as the file that a set would hold."""
    found = [b""] * len(images)

    def write(positions: range) -> None:
        for i in positions:
            found[i] = encode(images[i], coding)

    _in_threads(write, len(images), images.shape[-1], "code images")
    return tuple(found)


def recode(images: Tensor, coding: Coding) -> tuple[Tensor, tuple[bytes, ...]]:
    """uint8 ``images`` (N,C,H,W) as a reader of their files gets them, and these files, in a format that is not PNG."""
    files = encode_files(images, coding)
    names = [f"image {i} as {coding}" for i in range(len(files))]
    return decode_files(files, coding, int(images.shape[1]), int(images.shape[-1]), names), files


def write_files(paths: Sequence[Path], images: Tensor, order: Tensor, files: Sequence[bytes] | None = None) -> None:
    """Write the uint8 images (N,C,H,W) at ``order`` (N,) to ``paths``, each file completely or not at all.

    They are coded as PNG, or are the ``files`` of the images where these are coded already.
    """
    sources = order.tolist()

    def write(positions: range) -> None:
        for i in positions:
            write_file(paths[i], encode(images[sources[i]]) if files is None else files[sources[i]])

    _in_threads(write, len(paths), images.shape[-1], "write set")


def write_image(path: Path, image: Tensor, coding: Coding = PNG) -> None:
    """Write one uint8 image (C,H,W), completely or not at all."""
    write_file(path, encode(image, coding))


def write_file(path: Path, data: bytes) -> None:
    """Write one file, completely or not at all."""
    with atomic(path, sync=False) as partial:  # its checksums show whether it is whole
        partial.write_bytes(data)


def is_complete(path: Path, coding: Coding = PNG) -> bool:
    """Whether an image file is there, and as far as its format shows, with every part of it unchanged."""
    try:
        data = path.read_bytes()
        if coding != PNG:
            return is_whole(data, coding)
        return data.startswith(SIGNATURE) and bool(_checked_chunks(data))
    except (OSError, ValueError):
        return False


def file_sizes(images: Tensor, coding: Coding = PNG) -> list[int]:
    """Bytes of each of uint8 ``images`` (N,C,H,W) as the file that a set would hold."""
    return [len(encode(image, coding)) for image in images.cpu()]


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


def encode(image: Tensor, coding: Coding = PNG) -> bytes:
    """The file of a uint8 image (C,H,W), by default PNG; the same bytes for the same pixels.

    The chunks of a PNG file are put together here, because Pillow's ``save`` splits what takes more than 64 KiB into
    several IDAT chunks; the files of sets that exist, and their checksums, have one.
    """
    if coding != PNG:
        return compressed(image, coding)
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
