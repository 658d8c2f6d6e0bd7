"""Formats of a set's image files: names, endings, what they can hold, and how Pillow writes them.

PNG files are coded in ``image_files``, where their checksums are compared. Those of the other formats hold none, so
that readers compare them with CHECKSUMS.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import torch
from PIL import Image, features
from PIL import __version__ as pillow_version
from torch import Tensor

from gendistill.config import ImageFormat, LossyFormat, kind_of, require
from gendistill.errors import ConfigError

MODES = {1: "L", 3: "RGB"}  # Pillow's, of images with C channels


@dataclass(frozen=True)
class FileFormat:
    """One format of image files.

    Attributes:
        name: Its name as an option and in manifests.
        suffix: Ending of the file names.
        pillow: Pillow's name of it.
        library: Pillow's name of the library that codes it.
        lossless: Whether the pixels come back as they were.
        longest: Largest side in pixels.
        saving: Arguments of Pillow's ``save`` besides the quality.
        grey: Those that grey images change.
    """

    name: str
    suffix: str
    pillow: str
    library: str
    lossless: bool
    longest: int
    saving: Mapping[str, Any] = field(default_factory=dict)
    grey: Mapping[str, Any] = field(default_factory=dict)


FORMATS = {
    one.name: one
    for one in (
        FileFormat("png", ".png", "PNG", "zlib", True, 2**31 - 1),
        # method 6 takes twenty times as long, and the files are no smaller
        FileFormat("webp_lossless", ".webp", "WEBP", "webp", True, 16383, {"lossless": True, "quality": 100}),
        FileFormat("webp", ".webp", "WEBP", "webp", False, 16383, {"method": 6}),  # its chroma is always 4:2:0
        FileFormat("jpeg", ".jpg", "JPEG", "jpg", False, 65500, {"subsampling": 0, "optimize": True}),  # 4:4:4
        FileFormat(
            "avif", ".avif", "AVIF", "avif", False, 65536,
            {"subsampling": "4:4:4", "speed": 6, "max_threads": 1, "autotiling": False}, {"subsampling": "4:0:0"},
        ),
    )
}  # fmt: skip
SUFFIXES = tuple(dict.fromkeys(one.suffix for one in FORMATS.values()))


def available() -> list[str]:
    """The formats that Pillow can write on this machine."""
    Image.init()
    return [name for name, one in FORMATS.items() if one.pillow in Image.SAVE]


class CodingRecord(TypedDict):
    """How a manifest names the coding of a set's images: the format, its quality, and the versions that coded it."""

    format: str
    quality: NotRequired[int]
    coder: dict[str, str]


@dataclass(frozen=True)
class Coding:
    """How image files are coded; two are equal if their format and quality are.

    Attributes:
        name: Of the format, a key of ``FORMATS``.
        quality: Of a lossy format, from 1 to 100; else None.
        coder: Versions of Pillow and of its library, by name, that wrote the files.
    """

    name: str = "png"
    quality: int | None = None
    coder: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, image_format: ImageFormat, side: int = 1) -> Coding:
        """The coding that an option names, by the Pillow of this machine, for images of ``side`` pixels.

        Raises:
            ConfigError: this Pillow cannot write the format, or the format cannot hold images of this size.
        """
        chosen = FORMATS[str(kind_of(image_format))]
        able = available()
        if chosen.name not in able:
            raise ConfigError(
                f"image_format is {chosen.name!r}, but Pillow {pillow_version} was built without {chosen.pillow}; "
                f"expected one of {', '.join(able)}, or a newer Pillow: pip install -U Pillow."
            )
        if side > chosen.longest:
            raise ConfigError(
                f"image_format is {chosen.name!r}, which holds at most {chosen.longest} pixels a side; the images have "
                f"{side}. Take png."
            )
        coder = {"Pillow": pillow_version, chosen.library: str(features.version(chosen.library))}
        return cls(chosen.name, getattr(image_format, "quality", None), coder)

    @classmethod
    def of_steps(cls, image_format: LossyFormat | None, side: int) -> Coding | None:
        """The coding as which the steps of an optimisation see images of ``side`` pixels; None sees them as they are.

        Raises:
            ConfigError: as of ``of``, or the format is lossless.
        """
        if image_format is None:
            return None
        coding = cls.of(image_format, side)
        require(not coding.format.lossless, "image_format", image_format, "a lossy one, or None")
        return coding

    @classmethod
    def from_record(cls, record: CodingRecord | None) -> Coding:
        """What a manifest names; PNG where it names nothing."""
        return PNG if record is None else cls(record["format"], record.get("quality"), record["coder"])

    def record(self) -> CodingRecord | None:
        """The inverse of ``from_record``."""
        if self == PNG:
            return None
        found: CodingRecord = {"format": self.name, "coder": dict(self.coder)}
        return found if self.quality is None else {**found, "quality": self.quality}

    @property
    def format(self) -> FileFormat:
        return FORMATS[self.name]

    @property
    def suffix(self) -> str:
        return self.format.suffix

    def __str__(self) -> str:
        return self.name if self.quality is None else f"{self.name} at quality {self.quality}"


PNG = Coding()


def check_record(record: Any) -> str | None:
    """What was expected of a manifest's coding record where it is not that, else None."""
    chosen = FORMATS.get(str(record.get("format")))
    if chosen is None:
        return f"a format of {', '.join(FORMATS)}"
    quality = record.get("quality")
    fits = quality is None if chosen.lossless else isinstance(quality, int) and 1 <= quality <= 100
    return None if fits else f"{chosen.name} with {'no quality' if chosen.lossless else 'a quality from 1 to 100'}"


def compressed(image: Tensor, coding: Coding) -> bytes:
    """The file of a uint8 image (C,H,W) by Pillow, in a format that is not PNG.

    The same pixels give the same bytes with the same versions of Pillow and its libraries.
    """
    channels, height, width = image.shape
    pixels = image.movedim(0, -1).cpu().contiguous().numpy().tobytes()
    quality = {} if coding.quality is None else {"quality": coding.quality}
    saving = {**coding.format.saving, **(coding.format.grey if channels == 1 else {}), **quality}
    file = io.BytesIO()
    Image.frombytes(MODES[channels], (width, height), pixels).save(file, coding.format.pillow, **saving)
    return file.getvalue()


def decompressed(data: bytes, coding: Coding, channels: int, size: int) -> bytes:
    """The pixels, row by row, of a file of ``size`` x ``size`` in a format that is not PNG.

    Raises:
        ValueError: what the file is instead, to follow its name.
    """
    chosen, mode = coding.format, MODES[channels]
    Image.init()
    if chosen.pillow not in Image.OPEN:
        raise ValueError(f"is {chosen.pillow}, which Pillow {pillow_version} was built without")
    try:
        with Image.open(io.BytesIO(data), formats=[chosen.pillow]) as image:
            if image.size != (size, size):
                width, height = image.size
                raise OtherSizeError(f"is {width}x{height}; its manifest says {size}x{size}")
            return (image if image.mode == mode else image.convert(mode)).tobytes()
    except (MemoryError, OtherSizeError):
        raise
    except Exception as error:  # Pillow raises many kinds where a file makes no sense
        raise ValueError(f"is damaged: {error}") from error


class OtherSizeError(ValueError):
    """A file of another size than the manifest says."""


PAGE = 4096  # bytes that reach the disk together


def is_whole(data: bytes, coding: Coding) -> bool:
    """Whether a file that is not PNG has all its parts: it can be read, and no page of it was lost with the power."""
    lost = any(not data[start : start + PAGE].strip(b"\0") for start in range(0, len(data), PAGE))
    if lost or (coding.format.pillow == "JPEG" and not data.endswith(b"\xff\xd9")):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=[coding.format.pillow]) as image:
            image.load()
    except Exception:  # of many kinds
        return False
    return True


def as_tensor(pixels: bytes | bytearray, channels: int, size: int) -> Tensor:
    """Rows of pixels (n,H,W,C) -> uint8 (n,C,H,W)."""
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, size, size, channels).movedim(-1, 1)
