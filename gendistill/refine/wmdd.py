"""WMDD (Liu et al. 2023, arXiv 2311.18531): the barycenter refinement, begun from noise or from random real images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from gendistill.config import LossyFormat, WmddConfig
from gendistill.coreset.coresets import coreset_set
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_uint8
from gendistill.errors import require_type, require_types
from gendistill.io import WorkFolder
from gendistill.networks.teacher import Teacher
from gendistill.refine.checks import check_inputs
from gendistill.refine.feature_space import FeatureSpace, ground_space
from gendistill.refine.optimization import refine_images
from gendistill.refine.refiner import with_meta
from gendistill.seeding import torch_rng
from gendistill.surrogate.set import SurrogateSet


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
        config: Weights, steps and the start: ``noise`` of mean 0 and standard deviation 0.5 in [-1, 1], or ``real``.
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
    start, origin = coreset_set(data, "random", ipc, seed=seed), "from real images"
    if config.start == "noise":
        noise = torch.randn(start.images.shape, generator=torch_rng(seed, "wmdd noise", ipc))
        start, origin = replace(start, images=to_uint8(0.5 * noise)), "from noise"
    start = replace(start, meta=start.meta | {"method": "wmdd", "space": origin})
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
    return with_meta(made, teachers, None, "wmdd", begun)
