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


def to_float(images: Tensor) -> Tensor:
    """uint8 (B,C,H,W) in [0, 255] -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float (B,C,H,W), clipped to [-1, 1] -> uint8 in [0, 255], rounded to nearest."""
    return images.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)


def is_grey(image: Image.Image) -> bool:
    """Whether ``prepare`` loses nothing by keeping one channel."""
    return image.mode in ("1", "L") or image.mode.startswith("I")


def prepare(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Grey or RGB uint8 (C,size,size): upright by EXIF, the central square, resampled by antialiased bicubic.

    Transparent pixels are laid over white; 16-bit grey images are scaled to 8 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # "I;16", "I;16B", or "I" as Pillow opens 16-bit PGM
        image = Image.fromarray((np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


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
