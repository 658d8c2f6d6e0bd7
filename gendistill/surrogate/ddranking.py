"""DD-Ranking (Li et al. 2025, arXiv 2505.13300): a set as its evaluators take it, ready to be scored.

What they take was read in github.com/NUS-HPC-AI-Lab/DD-Ranking: compute_metrics of ddranking/metrics/hard_label.py and
soft_label.py, get_dataset of ddranking/utils/data.py, the losses in ddranking/loss/, and demo_soft.py.

``images.pt``, for ``image_tensor``: float32 (N,3,H,W), class by class, scaled to [0, 1] and normalised like its test
images. Those have CIFAR-10's mean and deviation for its data sets of 32 px, CIFAR-10 and CIFAR-100, and ImageNet's for
all others, TinyImageNet included; so the side decides here. Leave its ``use_zca`` off.
``labels.pt``: with soft labels per image, ``soft_labels`` of its mode S: float32 (N,K) logits, which its losses divide
by ``temperature`` before the softmax: give it the temperature of soft_labels.json. Otherwise ``hard_labels``:
int64 (N,).
``lr.pt``, for ``syn_lr``: 0.01, the default_lr of its configs: no rate was learned with these images. Without it
DD-Ranking searches for one.
``00000/00000.png``, for ``image_path``: folders whose sorted order is that of the classes, with PNG files whatever the
set has. It takes labels from the folders then, so soft labels must come from a teacher (mode M).

Its ``ipc`` is that of training images: a set decoded to several views an image is written view by view.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from gendistill.data.pixels import to_pil
from gendistill.errors import ArtifactError
from gendistill.surrogate.image_formats import PNG
from gendistill.surrogate.manifest import image_name
from gendistill.surrogate.multi_formation import decode, factor_of
from gendistill.surrogate.stored import StoredImage, StoredSet

CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # mean, deviation by channel
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_SIDE = 32
LEARNING_RATE = 0.01
LEAST = 2.0**-25  # probabilities below are 0 in fp16, in which they are stored


def write_ddranking(stored: StoredSet, folder: Path) -> None:
    """The tensors, which are in memory at once, and the folders.

    Raises:
        ArtifactError: classes of different sizes; DD-Ranking counts on one IPC.
    """
    counts = stored.manifest["counts"]
    if len(set(counts)) > 1:
        raise ArtifactError(
            f"{stored.folder} has {min(counts)} to {max(counts)} images a class; DD-Ranking takes sets with the same "
            "number in every class."
        )
    for label in range(len(counts)):
        (folder / f"{label:05d}").mkdir()
    side = stored.manifest["image_size"]
    images = torch.empty(len(stored.paths) * stored.views, 3, side, side)
    with closing(stored.images()) as read:
        for image in read:
            views = decode(stored.pixels(image.position), factor_of(stored.manifest))
            first = image.position * stored.views
            images[first : first + stored.views] = normalised(views)
            _write_files(image, views, folder / f"{image.label:05d}", first - image.label * counts[0] * stored.views)
    torch.save(images, folder / "images.pt")
    torch.save(_labels(stored), folder / "labels.pt")
    torch.save(torch.tensor(LEARNING_RATE), folder / "lr.pt")


def normalised(images: Tensor) -> Tensor:
    """uint8 (B,C,H,W), grey or RGB -> float32 (B,3,H,W) as DD-Ranking normalises images of this side."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR if images.shape[-1] <= CIFAR_SIDE else IMAGENET))
    return (images.float().div(255) - mean) / deviation


def _write_files(image: StoredImage, views: Tensor, folder: Path, first: int) -> None:
    if len(views) == 1 and image.name.endswith(PNG.suffix):
        (folder / image_name(first)).write_bytes(image.data)
        return
    for number, view in enumerate(views, first):
        to_pil(view).save(folder / image_name(number), "PNG")


def _labels(stored: StoredSet) -> Tensor:
    if not stored.labelled:
        return stored.labels.repeat_interleave(stored.views)
    assert stored.soft_labels is not None
    probabilities = torch.cat([stored.probabilities(position) for position in range(len(stored.paths))])
    return probabilities.clamp(min=LEAST).log() * stored.soft_labels.temperature
