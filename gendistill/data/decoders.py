"""JPEG and PNG files of the right size by torchvision's compiled decoders, which give Pillow's pixels in half the time.

Pillow takes longer to open a small file than to decode it. The import of torchvision takes more than a second, so its
compiled operators are loaded without it. Whatever is not surely the same is left to Pillow: each function here then
returns None.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
TURNED = (b"Exif\0", b"tiff:Orientation")  # Exif and XMP, which may say that a JPEG file lies on its side
GREY, RGB = 0, 2  # colour types of PNG files
AS_STORED = 0  # torchvision's ImageReadMode.UNCHANGED


@cache
def compiled(name: str) -> Callable[[Tensor, int, bool], Tensor] | None:
    """An operator of torchvision's file ``image*.so``; None where it has none that takes (bytes, mode, EXIF)."""
    package = find_spec("torchvision")
    for folder in (package and package.submodule_search_locations) or ():
        for library in sorted(Path(folder).glob("image*.so")):
            try:
                torch.ops.load_library(str(library))
                operator = getattr(torch.ops.image, name).default
            except (OSError, AttributeError, RuntimeError):
                continue
            if [str(argument.type) for argument in operator._schema.arguments] == ["Tensor", "int", "bool"]:
                return operator
    return None


def read_image(data: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    """What ``prepare`` makes of a file of the shape (C,H,W), (1,H,W) if it is grey; None for any other."""
    if data.startswith(JPEG):
        # one of other sides may be a decompression bomb
        name = "decode_jpeg" if not any(word in data for word in TURNED) and jpeg_sides(data) == shape[1:] else None
    else:
        name = "decode_png" if data.startswith(PNG) and plain_png_sides(data) == shape[1:] else None
    decode = name and compiled(name)
    if not decode:
        return None
    try:
        image = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), AS_STORED, False)
    except RuntimeError:
        return None  # Pillow says why
    array = image.numpy()
    if array.dtype != np.uint8 or array.shape not in (shape, (1, *shape[1:])):
        return None
    return array


def jpeg_sides(data: bytes) -> tuple[int, int] | None:
    """(H,W) of a JPEG file, from the frame header among its segments; None where there is none."""
    at = 2  # behind the start of the image
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # tables and reserved
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def plain_png_sides(data: bytes) -> tuple[int, int] | None:
    """(H,W) of a PNG file of 8-bit grey or RGB values that says nothing but these, and whose checksums are right.

    Other blocks may hold a transparent colour, a palette or an orientation.
    """
    at, kinds = len(PNG), list[bytes]()
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return None
        kinds.append(data[at + 4 : at + 8])
        at = end + 4
    blocks = kinds[:1] == [b"IHDR"] and kinds[-1] == b"IEND" and {*kinds[1:-1]} == {b"IDAT"}
    if not blocks or at != len(data) or data[24] != 8 or data[25] not in (GREY, RGB):
        return None
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
