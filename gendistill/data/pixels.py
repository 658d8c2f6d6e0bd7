"""Pixels: the one home of value ranges, and the way from a file to a square uint8 image.

Legend: B images, C channels, H = W the side in pixels. Stored images are uint8 in [0, 255]; every network sees
float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

SIXTEEN_BITS = (0.0, 65535.0)
CUT = 64  # images that are floats at once while they are cut


def to_float(images: Tensor) -> Tensor:
    """uint8 (B,C,H,W) in [0, 255] -> float32 in [-1, 1]."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float (B,C,H,W), clipped to [-1, 1] -> uint8 in [0, 255], rounded to nearest."""
    return images.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)


def is_grey(image: Image.Image) -> bool:
    """Whether ``prepare`` loses nothing by keeping one channel."""
    return image.mode in ("1", "L") or is_deep(image)


def is_deep(image: Image.Image) -> bool:
    """Whether its grey values have more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def needs_range(image: Image.Image) -> bool:
    """Whether nothing says which of its values is black and which is white: 32 bits, a sign, or real numbers.

    Pillow opens 16-bit PGM as mode I, with values from 0 to 65535.
    """
    return image.mode.startswith("F") or (image.mode == "I" and image.format not in ("PPM", "PNG"))


def to_eight_bits(image: Image.Image, value_range: tuple[float, float]) -> Image.Image:
    """Grey values of more bits as 8 bits: equal steps of whole numbers, real numbers rounded; clipped to the range.

    Raises:
        ValueError: a value is no number.
    """
    low, high = value_range
    values = np.asarray(image)
    if np.isnan(values).any():
        raise ValueError("it has values that are no numbers")
    values = values.astype(np.float64).clip(low, high) - low
    whole = np.asarray(image).dtype.kind in "iu"
    scaled = np.floor(values * (256 / (high - low + 1))) if whole else np.round(values * (255 / (high - low)))
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def prepare(
    image: Image.Image,
    size: int,
    channels: int,
    value_range: tuple[float, float] | None = None,
    *,
    exact: bool = True,
) -> np.ndarray:
    """Grey or RGB uint8 (C,size,size): upright by EXIF, the central square, resampled by antialiased bicubic.

    Transparent pixels are laid over white; grey images of more bits are scaled to 8 bits.

    Args:
        image: Of any mode and size.
        size: Side of the result.
        channels: 1 or 3.
        value_range: Black and white of grey images with more than 8 bits; null takes ``SIXTEEN_BITS``.
        exact: False decodes a JPEG file at 1/2, 1/4 or 1/8 of its size where that leaves at least twice ``size``: its
            own cosine transform averages pixels then, and the rest of the way is bicubic.

    Raises:
        ValueError: the image needs a range, or has values that are no numbers.
    """
    if value_range is None and needs_range(image):
        raise ValueError(f"nothing says which of its values is black and which is white (mode {image.mode})")
    if not exact and image.format == "JPEG":
        image.draft(image.mode, (2 * size, 2 * size))
    image = ImageOps.exif_transpose(image)
    if is_deep(image):
        image = to_eight_bits(image, value_range or SIXTEEN_BITS)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def central_share(images: Tensor, share: float) -> Tensor:
    """The central square of ``share`` of the side of uint8 images (B,C,H,W), enlarged to their size by bicubic.

    With 0.875 it is what resizing to 256 px and cutting 224 px from the middle shows. The square has a whole number of
    pixels, rounded.
    """
    side = images.shape[-1]
    kept = max(1, round(share * side))
    if kept == side:
        return images
    low = (side - kept) // 2
    found, central = torch.empty_like(images), images[..., low : low + kept, low : low + kept]
    for there, part in zip(found.split(CUT), central.split(CUT), strict=True):
        there.copy_(F.interpolate(part.float(), side, mode="bicubic", antialias=True).round_().clamp_(0, 255))
    return found


def tile(images: Sequence[Tensor], columns: int, side: int = 48) -> Tensor:
    """Batches of uint8 images (b,C,H,W) -> one image (C,rows*h,columns*w) of all of them, row by row.

    Small images are enlarged by the whole factor that brings them nearest to ``side`` pixels from below.
    """
    flat = torch.cat(list(images))
    empty = flat.new_zeros((-len(flat) % columns, *flat.shape[1:]))
    grid = torch.cat([flat, empty]).unflatten(0, (-1, columns))  # (rows,columns,C,H,W)
    factor = max(1, side // flat.shape[-1])
    sheet = grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return sheet.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (C,H,W) with one or three channels -> a Pillow image of mode L or RGB."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0).copy())
