"""The space of barycenters and assignments: features of every teacher and pixels, in units of class variances.

    c(x, y) = mean over teachers of ||f(x) - f(y)||^2 / Var_c f  +  w ||x - y||^2 / Var_c x

Pixels are averaged to at most 64 px a side.

WMDD (2311.18531) uses the features of one teacher alone. A teacher's features lose what it does not need, but a
student learns from pixels; with w = 1 on digits the refined sets gained 5 points at IPC 1 (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.config import ObjectiveConfig
from gendistill.data.dataset import RealData, Split
from gendistill.data.mapped import Images, block_of
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_json, hash_tensors
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_images import check_teacher, with_statistics_of
from gendistill.networks.training import infer, inference_rows

SIDE = 64  # px: a class of photographs would not fit in memory pixel by pixel, nor do atoms need more
ROWS = 512  # images of a batch


@dataclass(frozen=True)
class FeatureSpace:
    """The teachers, the scales of every part, and the real training images, whose points are computed by class.

    Attributes:
        teachers: Their networks give the features.
        feature_scales: (K,) of every teacher.
        pixel_scale: (K,); 0 leaves pixels out.
        train: The real training images, in the order of the teachers' statistics.
        identity: Hash of the real images, the teachers and the options, but not of the points, which another CPU
            rounds otherwise.
    """

    teachers: tuple[Teacher, ...]
    feature_scales: tuple[Tensor, ...]
    pixel_scale: Tensor
    train: Split
    identity: str

    @classmethod
    def build(
        cls,
        teachers: Sequence[Teacher],
        train: Split,
        pixel_weight: float,
        *,
        scaled: bool = True,
        fingerprint: str | None = None,
    ) -> FeatureSpace:
        """The space of the images that every teacher's statistics were collected on, in the same order.

        Args:
            teachers: With statistics of ``train``.
            train: The real images.
            pixel_weight: w, at least 0.
            scaled: Divide features by class variances; WMDD does not.
            fingerprint: Of the data that ``train`` belongs to; None computes one of ``train``.

        Raises:
            ArtifactError: the statistics belong to other images.
        """
        for teacher in teachers:
            if not torch.equal(teacher.statistics.labels, train.labels):
                raise ArtifactError(
                    "The teacher's statistics are of other images than these; run `gendistill teacher` again."
                )
        classes, scales = int(train.labels.max()) + 1, []
        for teacher in teachers:
            variance = _floored(teacher.statistics.feature_variance()) if scaled else torch.ones(classes)
            scales.append((len(teachers) * variance).rsqrt())
        pixel_scale = torch.zeros(classes)
        if pixel_weight:
            spread = [_coarse(train.images, train.of_class(c)).var(0, unbiased=False).sum() for c in range(classes)]
            pixel_scale = pixel_weight**0.5 * _floored(torch.stack(spread)).rsqrt()
        if fingerprint is None:
            fingerprint = hash_tensors({"hashes": torch.from_numpy(train.hashes.copy()), "labels": train.labels})
        identity = hash_json([fingerprint, [teacher.hash() for teacher in teachers], pixel_weight, scaled])
        return cls(tuple(teachers), tuple(scales), pixel_scale, train, identity)

    @property
    def labels(self) -> Tensor:
        """Classes (N,) of the real training images."""
        return self.train.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.teachers[0].classes

    @property
    def networks(self) -> list[nn.Module]:
        return [teacher.network for teacher in self.teachers]

    def factors(self, labels: Tensor) -> list[Tensor]:
        """What the parts of images of classes ``labels`` (B,) are multiplied with, (B,1) each, on the labels' device.

        Pixels come last, and are left out where their weight is 0.
        """
        scales = [*self.feature_scales, *([self.pixel_scale] if self.pixel_scale.any() else [])]
        return [scale.to(labels.device)[labels][:, None] for scale in scales]

    @staticmethod
    def embed(features: Sequence[Tensor], images: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Features (B,D_t) of each teacher, images (B,C,H,W) in [-1, 1] and their ``factors`` -> points (B,D).

        Differentiable.
        """
        pixels = [shrunk(images).flatten(1)] if len(factors) > len(features) else []
        return _scaled([*features, *pixels], factors)

    def of_class(self, label: int) -> np.ndarray:
        """Real points (n,D) of one class."""
        return self.real_points(self.train.of_class(label)).numpy()

    def real_points(self, index: Tensor) -> Tensor:
        """Points (n,D) of the real training images at ``index`` (n,)."""
        factors, parts = self.factors(self.labels[index]), [t.statistics.features[index] for t in self.teachers]
        if len(factors) > len(parts):
            parts.append(_coarse(self.train.images, index))
        return _scaled(parts, factors)

    def points(self, images: Tensor, labels: Tensor) -> Tensor:
        """Stored uint8 images (N,C,H,W) -> points (N,D) on the CPU."""
        device = next(self.networks[0].parameters()).device

        def batch(x: Tensor, y: Tensor) -> Tensor:
            x = to_float(x).to(device)
            features = [network.features(x) for network in self.networks]  # type: ignore[operator]
            return self.embed(features, x, self.factors(y.to(device))).cpu()

        rows = min(inference_rows(network, ROWS, images.shape[1:]) for network in self.networks)
        return infer(batch, images, labels, batch_size=rows)


def shrunk(images: Tensor) -> Tensor:
    """Images (B,C,H,W) averaged over squares of pixels to at most ``SIDE`` pixels a side: as they are up to that."""
    return images if images.shape[-1] <= SIDE else F.avg_pool2d(images, -(-images.shape[-1] // SIDE))


def _coarse(images: Images, index: Tensor) -> Tensor:
    """Shrunk pixels (n,D) in [-1, 1] of the uint8 images at ``index`` (n,)."""
    rows = min(ROWS, block_of(images))
    return torch.cat([shrunk(to_float(images[part])).flatten(1) for part in index.split(rows)])


def _scaled(parts: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    """(B,D) of parts (B,D_i), each multiplied with its factor (B,1)."""
    return torch.cat([part.float() * factor for part, factor in zip(parts, factors, strict=True)], 1)


def _floored(variances: Tensor) -> Tensor:
    """Class variances (K,), at least 1 % of their mean: a class of one image, or of copies, has variance 0."""
    return variances.clamp(min=max(0.01 * float(variances.mean()), torch.finfo(torch.float32).tiny))


def ground_space(
    teachers: Sequence[Teacher], data: RealData, config: ObjectiveConfig, *, cache: Path | None = None
) -> FeatureSpace:
    """The space in which sets are refined: features of every teacher and pixels, with the real images as points.

    The networks go to this process's device. ``points(images, labels)`` gives the points of other images, and
    ``of_class(label)`` those of the real images of a class.

    Args:
        teachers: At least one.
        data: The real images, of which ``data.train`` are the points.
        config: A RefineConfig or WmddConfig; ``pixel_weight`` and ``feature_loss`` are read.
        cache: Folder of class statistics; those of a teacher that was trained on other images are collected otherwise.

    Raises:
        ArtifactError: a teacher of other classes, or one that was trained on test images of ``data``.
    """
    for place, teacher in enumerate(teachers, 1):
        check_teacher("the teacher" if len(teachers) == 1 else f"teacher {place} of {len(teachers)}", teacher, data)
        teacher.network.to(runtime.device())
    fitted = [with_statistics_of(teacher, data, cache) for teacher in teachers]
    scaled = config.feature_loss == "squared"
    return FeatureSpace.build(fitted, data.train, config.pixel_weight, scaled=scaled, fingerprint=data.fingerprint())
