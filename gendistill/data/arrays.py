"""Images and labels of arrays and PyTorch datasets, as uint8 images (N,C,H,W) and positions in the class names (N,).

Legend: N images, C channels, H and W the sides in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.data.pixels import is_grey, needs_range, prepare, to_pil
from gendistill.errors import DataError
from gendistill.progress import track


def to_stored(images: np.ndarray | Tensor) -> Tensor:
    """Images of any common layout -> a new uint8 tensor (N,C,H,W), as they are stored.

    Args:
        images: (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1 or 3; uint8 in [0, 255] or float in [0, 1].

    Raises:
        DataError: another shape, type or range of values.
    """
    pixels = torch.tensor(images) if isinstance(images, np.ndarray) else torch.as_tensor(images).detach().cpu().clone()
    shape = tuple(pixels.shape)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.dim() == 4 and shape[1] not in (1, 3):
        pixels = pixels.movedim(3, 1)
    if pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
        raise DataError(
            f"The images have shape {shape}; expected (N,H,W), (N,H,W,C) or (N,C,H,W) with 1 or 3 channels. Convert "
            "them to grey or RGB first."
        )
    if pixels.is_floating_point():
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.numel() else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"The images are float from {low:g} to {high:g}; expected float in [0, 1] or uint8 in [0, 255]. Undo "
                "their normalisation."
            )
        pixels = pixels.mul(255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise DataError(f"The images are {pixels.dtype}; expected uint8 in [0, 255] or float in [0, 1].")
    return pixels.contiguous()


def class_names(labels: Any, classes: Sequence[str] | None) -> list[Any]:
    """The classes as named, or the distinct labels in order."""
    if classes is None:
        return sorted({*np.asarray(labels).tolist()})
    if len({*classes}) < len(classes):
        raise DataError(f"classes are {', '.join(classes)}; expected each name once.")
    return list(classes)


def label_indices(labels: Any, count: int, names: list[Any], classes: Sequence[str] | None) -> Tensor:
    """Labels (N,) of ``count`` images as positions in ``names``."""
    values = np.asarray(labels)
    if values.shape != (count,) or values.dtype.kind not in "iuU":
        raise DataError(
            f"The labels are {values.dtype} of shape {values.shape}; expected {count} integers or names, one an image."
        )
    known = list(range(len(names))) if classes is not None and values.dtype.kind != "U" else names
    position = {name: i for i, name in enumerate(known)}
    unknown = sorted({*values.tolist()} - {*position})
    if unknown:
        raise DataError(f"No class has the label {unknown[0]!r}; the classes are {', '.join(map(str, names))}.")
    return torch.tensor([position[value] for value in values.tolist()], dtype=torch.int64)


def square(images: Tensor, size: int | None) -> Tensor:
    """uint8 (N,C,H,W) as square images, resized where a size is given."""
    height, width = images.shape[2:]
    if size is None and height == width:
        return images
    if size is None:
        raise DataError(f"The images are {width}x{height} pixels; expected square ones. Give image_size.")
    if height == width == size:
        return images
    return torch.from_numpy(np.stack([prepare(to_pil(image), size, images.shape[1]) for image in images]))


def read_samples(dataset: Any, size: int | None) -> tuple[Tensor, list[Any]]:
    """(uint8 images (N,C,H,W), labels) of (image, label) samples; grey where every image is."""
    samples = (dataset[i] for i in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)
    images, labels = [], []
    for image, label in track(samples, "read images", len(dataset) if hasattr(dataset, "__len__") else None):
        images.append(_one_image(image, size))
        labels.append(label.item() if hasattr(label, "item") else label)
    channels = max((len(image) for image in images), default=1)
    images = [image.expand(channels, -1, -1) for image in images]
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for height, width in sizes[:5]) or "none"
        raise DataError(f"The images of {type(dataset).__name__} have sizes {found}; expected one. Give image_size.")
    return torch.stack(images), labels


def _one_image(image: Any, size: int | None) -> Tensor:
    """uint8 (C,H,W)."""
    if isinstance(image, Image.Image):
        channels = 1 if is_grey(image) else 3
        if size is None and image.width != image.height:
            raise DataError(f"An image is {image.width}x{image.height} pixels; expected square ones. Give image_size.")
        if needs_range(image):
            raise DataError(
                f"An image has mode {image.mode}, which does not say black and white; expected 8 or 16 bits. Convert "
                "the images to float in [0, 1]."
            )
        return torch.tensor(prepare(image, size or image.width, channels))
    return square(to_stored(image[None]), size)[0]
