"""WMDD (Liu et al. 2023, arXiv 2311.18531): the barycenter refinement, begun from noise or from random real images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gendistill.config import LossyFormat, WmddConfig
from gendistill.coreset.coresets import coreset_set
from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import block_of
from gendistill.data.pixels import to_uint8
from gendistill.errors import require_type, require_types
from gendistill.io import WorkFolder
from gendistill.networks.teacher import Teacher
from gendistill.refine.checks import check_inputs
from gendistill.refine.feature_space import FeatureSpace, ground_space
from gendistill.refine.optimization import refine_images
from gendistill.refine.refiner import decisive, with_meta
from gendistill.seeding import torch_rng
from gendistill.surrogate.manifest import with_options
from gendistill.surrogate.set import SurrogateSet

ORIGINS = {"class_noise": "from class noise", "noise": "from noise", "real": "from real images"}  # in rows
ROWS = 128  # images of a class that are in memory at once


def wmdd(
    data: RealData,
    teacher: Teacher | Sequence[Teacher],
    ipc: int,
    config: WmddConfig | None = None,
    *,
    seed: int = 0,
    folder: WorkFolder | None = None,
    space: FeatureSpace | None = None,
    image_format: LossyFormat | None = None,
) -> SurrogateSet:
    """``ipc`` images of every class that match a Wasserstein barycenter of the teacher's features of the class.

    Args:
        data: The real images.
        teacher: The classifier whose features and batch-norm statistics are matched, or several.
        ipc: Images of each class.
        config: Weights, steps and the start: ``class_noise`` of the mean and standard deviation of each pixel in the
            class, ``noise`` of mean 0 and standard deviation 0.5 in [-1, 1], as published, or ``real``.
        seed: Of the start, the atoms and the augmentation.
        folder: Keeps finished chunks, so that a killed run continues; several processes need it.
        space: The teachers' features of the real images, where a caller has them already.
        image_format: As of ``refine_images``: the lossy format as which every step codes the images.

    Returns:
        The set; its ``meta`` has the mean class W2 before and after.

    Raises:
        ConfigError: the same teacher twice, or one without batch norm where its statistics are matched.
        ArtifactError: a teacher of other classes, or one that was trained on test images of ``data``.
    """
    begun, config = time.perf_counter(), config or WmddConfig()
    require_type("data", data, RealData)
    teachers = require_types("teacher", teacher, Teacher)
    start = coreset_set(data, "random", ipc, seed=seed)
    if config.start != "real":
        noise = torch.randn(start.images.shape, generator=torch_rng(seed, "wmdd noise", ipc))
        like = class_noise(noise, start.labels, data.train) if config.start == "class_noise" else 0.5 * noise
        start = replace(start, images=to_uint8(like))
    start = replace(start, meta=start.meta | {"method": "wmdd", "space": ORIGINS[config.start]})
    check_inputs(start, teachers, data, config)
    space = space or ground_space(teachers, data, config)
    made = refine_images(
        start,
        space,
        config,
        seed=seed,
        folder=folder,
        label=f"ipc {ipc}",
        own=config.start == "real",
        image_format=image_format,
    )
    made = replace(made, meta=with_options(made.meta, "wmdd", decisive(config)))
    return with_meta(made, teachers, None, "wmdd", begun)


def class_noise(noise: Tensor, labels: Tensor, train: Split) -> Tensor:
    """Noise with the pixels' moments of each class: mean_c + std_c * noise, in [-1, 1] units of the images.

    The descent hardly moves a background that the start has wrong, and other networks than the teacher learn it: on
    Fashion-MNIST, 10 images a class, 63.8 % from noise of one grey level and 76.8 % from this (docs/results.md).

    Args:
        noise: (N,C,H,W) of mean 0 and variance 1.
        labels: (N,) classes.
        train: The real images.
    """
    found = torch.empty_like(noise)
    for label in labels.unique().tolist():
        mean, std = pixel_moments(train, train.of_class(label))
        found[labels == label] = mean + std * noise[labels == label]
    return found


def pixel_moments(train: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,H,W), in [-1, 1] units, of each pixel of the images at ``index``.

    The sums are of integers, and so exact in any order.
    """
    first, second = torch.zeros(2, *train.images.shape[1:], dtype=torch.int64)
    for rows in index.split(min(ROWS, block_of(train.images))):
        values = train.images[rows].to(torch.int64)
        first += values.sum(0)
        second += values.square().sum(0)
    mean = first.double() / len(index)
    variance = (second.double() / len(index) - mean.square()).clamp(min=0)
    return (mean / 127.5 - 1).float(), (variance.sqrt() / 127.5).float()
