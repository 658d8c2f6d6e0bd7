"""The ground space of barycenters and assignments: teacher features and pixels, each scaled by its class variance.

    c(x, y) = ||f(x) - f(y)||^2 / Var_c f  +  w ||x - y||^2 / Var_c x

WMDD (2311.18531) uses features alone. A teacher's features forget what it does not need, and a student starts from
pixels; with w = 1 on digits the refined sets gained 5 points at IPC 1 (docs/differences.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.data.images import to_float
from gendistill.data.real import Split
from gendistill.errors import ArtifactError
from gendistill.networks.statistics import ClassStatistics


@dataclass(frozen=True)
class GroundSpace:
    """Scales (K,) of both parts, and the real training images embedded: ``real`` (N,D) with ``labels`` (N,)."""

    feature_scale: Tensor
    pixel_scale: Tensor
    real: Tensor
    labels: Tensor

    @classmethod
    def build(cls, statistics: ClassStatistics, train: Split, pixel_weight: float) -> GroundSpace:
        """From the images the statistics were collected on, in the same order.

        Raises:
            ArtifactError: the statistics belong to other images.
        """
        if not torch.equal(statistics.labels, train.labels):
            raise ArtifactError(
                "The teacher's statistics are of other images than these; run `gendistill teacher` again."
            )
        pixels = to_float(train.images).flatten(1)
        classes = int(train.labels.max()) + 1
        spread = torch.stack([pixels[train.labels == c].var(0, unbiased=False).sum() for c in range(classes)])
        tiny = torch.finfo(torch.float32).tiny
        space = cls(
            statistics.feature_variance().clamp(min=tiny).rsqrt(),
            pixel_weight**0.5 * spread.clamp(min=tiny).rsqrt(),
            torch.empty(0),
            train.labels,
        )
        embedded = space.embed(statistics.features, to_float(train.images), train.labels)
        return cls(space.feature_scale, space.pixel_scale, embedded, train.labels)

    def embed(self, features: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Features (B,D) and images (B,C,H,W) in [-1, 1] of classes ``labels`` -> (B, D + CHW), differentiable.

        Pixels are left out where their weight is 0.
        """
        scaled = features.float() * self.feature_scale.to(features.device)[labels][:, None]
        if not self.pixel_scale.any():
            return scaled
        pixels = images.float().flatten(1) * self.pixel_scale.to(images.device)[labels][:, None]
        return torch.cat([scaled, pixels], 1)

    def of_class(self, label: int) -> np.ndarray:
        """Real points (n,D) of one class."""
        return self.real[self.labels == label].numpy()


@torch.no_grad()
def embed_set(network: nn.Module, space: GroundSpace, images: Tensor, labels: Tensor, batch_size: int = 512) -> Tensor:
    """Stored uint8 images (N,C,H,W) -> points (N,D) on the CPU."""
    device = next(network.parameters()).device
    points = []
    for start in range(0, len(labels), batch_size):
        x = to_float(images[start : start + batch_size]).to(device)
        y = labels[start : start + batch_size].to(device)
        points.append(space.embed(network.features(x), x, y).cpu())  # type: ignore[operator]
    return torch.cat(points)
