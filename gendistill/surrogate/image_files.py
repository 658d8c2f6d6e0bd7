"""Many small PNG files to one tensor, and what a tensor would take as such files."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen
from typing import TypeVar
from zlib import crc32

import torch
from PIL import Image
from torch import Tensor

from gendistill.errors import ArtifactError
from gendistill.io import atomic
from gendistill.progress import track

T = TypeVar("T")
R = TypeVar("R")
Ask = Callable[[bytes, memoryview], bool]  # whether the memory was filled with the answer to a request
ALONE = 2**22  # bytes of pixels that this process has done with before another has started
BLOCK = 2**19  # bytes of pixels in a request
CORES = min(4, os.cpu_count() or 1)  # for a set; more would wait for this process
MANY = 5000  # images that someone waits for
SERVE = "from gendistill.surrogate.image_files import serve; serve()"
REQUEST = struct.Struct(">5I")  # bytes of paths, width, height, channels, bytes of pixels


def request(paths: Sequence[Path], width: int, height: int, channels: int, pixels: bytes = b"") -> bytes:
    """For the pixels of these files, row by row, one file after another; or to write such pixels, for a single byte."""
    names = b"\0".join(map(os.fsencode, paths))
    return REQUEST.pack(len(names), width, height, channels, len(pixels)) + names + pixels


def serve() -> None:
    """The worker: answers requests on standard input to standard output until there are no more."""
    asked, answer = sys.stdin.buffer, sys.stdout.buffer
    try:
        while head := asked.read(REQUEST.size):
            names, width, height, channels, length = REQUEST.unpack(head)
            paths, pixels = [Path(os.fsdecode(name)) for name in asked.read(names).split(b"\0")], asked.read(length)
            if pixels:
                write(paths, pixels, width, height, channels)
                answer.write(b"\0")
            else:
                answer.write(b"".join([read(path, channels, width) for path in paths]))
            answer.flush()
    except (OSError, ValueError, KeyboardInterrupt):
        os._exit(1)


def in_workers(work: Callable[[T, Ask], Sequence[R]], blocks: Iterable[T], size: int) -> Iterator[R]:
    """What ``work`` returns of each block, in order; by workers where there are cores and ``size`` bytes of pixels."""
    if CORES == 1 or size <= ALONE:
        for block in blocks:
            yield from work(block, lambda *_: False)
        return
    free: SimpleQueue[Ask] = SimpleQueue()

    def one(block: T) -> Sequence[R]:
        ask = free.get()
        try:
            return work(block, ask)
        finally:
            free.put(ask)

    with ExitStack() as stack:
        for _ in range(CORES):
            free.put(stack.enter_context(_worker()))
        pool = ThreadPoolExecutor(CORES)
        stack.callback(pool.shutdown, cancel_futures=True)
        yield from chain.from_iterable(pool.map(one, blocks))


@contextmanager
def _worker() -> Iterator[Ask]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", SERVE]
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)

    def ask(request: bytes, answer: memoryview) -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            return False
        return process.stdout.readinto(answer) == len(answer)  # type: ignore[attr-defined]

    try:
        yield ask
    finally:
        process.communicate()


def exhaust(items: Iterable[object], label: str, total: int) -> None:
    """Exhaust ``items``, under a bar if they are many."""
    for _ in track(items, label, total) if total > MANY else items:
        pass


def read_images(paths: Sequence[Path], channels: int, size: int) -> Tensor:
    """uint8 (N,channels,size,size) of PNG files.

    Raises:
        ArtifactError: a file cannot be read, is damaged or of another size; the first such is named.
    """
    if paths:
        _read(paths[0], channels, size)  # before memory is set aside for a size that is wrong
    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    step = max(1, BLOCK // (channels * size * size))

    def fill(start: int, ask: Ask) -> Sequence[Path]:
        here = paths[start : start + step]
        pixels = torch.empty(len(here), size, size, channels, dtype=torch.uint8)
        view = memoryview(pixels.numpy()).cast("B")
        if not ask(request(here, size, size, channels), view):
            view[:] = b"".join([_read(path, channels, size) for path in here])
        images[start : start + step] = pixels.movedim(-1, 1)
        return here

    exhaust(in_workers(fill, range(0, len(paths), step), images.nbytes), "read set", len(paths))
    return images


def _read(path: Path, channels: int, size: int) -> bytes:
    try:
        return read(path, channels, size)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Copy or make the set again.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} {error}. Copy or make the set again.") from error


def png_sizes(images: Tensor) -> list[int]:
    """Bytes of each of uint8 ``images`` (N,C,H,W) as the file that a set would hold."""
    channels, height, width = images.shape[1:]
    rows = (image.movedim(0, -1).contiguous().numpy().tobytes() for image in images.cpu())
    return [len(encode(pixels, width, height, channels)) for pixels in rows]


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
        with atomic(path) as partial, open(partial, "wb") as file:
            file.write(data)
