"""Folders of tiny images for the tests of sources."""

import numpy as np
import torch
from PIL import Image

from gendistill.data.sources import load_data

SIZE = 8


def pixels(seed, channels=3, size=SIZE):
    shape = (size, size, 3) if channels == 3 else (size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(folder, count=6, channels=3, size=SIZE, seed=0):
    """``count`` different PNG files; returns their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [pixels(1000 * seed + i, channels, size) for i in range(count)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03d}.png")
    return arrays


def make(root, classes=("cat", "dog"), count=6, **options):
    """A flat folder of class folders; returns the root."""
    for i, name in enumerate(classes):
        fill(root / name, count, seed=i, **options)
    return root


def load(root, **options):
    return load_data(name=str(root), **options)


def everything(data):
    """Images (N,C,H,W) and labels of the three splits together."""
    splits = (data.train, data.validation, data.test)
    return torch.cat([s.pixels for s in splits]), torch.cat([s.labels for s in splits])


def as_set(images):
    return {bytes(i.numpy()) for i in images}


def of_label(data, label):
    images, labels = everything(data)
    return as_set(images[labels == label])


def stored(arrays):
    return {np.ascontiguousarray(a.transpose(2, 0, 1) if a.ndim == 3 else a).tobytes() for a in arrays}
