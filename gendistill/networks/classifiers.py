"""ConvNet-d, the field's standard small classifier (DC, DSA, DM, IDC use it with d = 3)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from gendistill.errors import ConfigError
from gendistill.networks.pooling import Halving


def default_depth(image_size: int) -> int:
    """round(log2(size)) - 2 kept within 2 to 6: 2 at 8 px, 3 at 28 and 32 px, 4 at 64 px, 6 from 224 px on."""
    return min(max(2, round(math.log2(image_size)) - 2), 6)


class ConvNet(nn.Module):
    """``depth`` blocks of [3x3 convolution, norm, ReLU, 2x2 average pooling], then one linear layer.

    Input (B,C,H,W) in [-1, 1]; ``features`` gives (B,D), ``classify`` maps those to logits (B,K).
    Instance norm is GroupNorm(width, width), as in the released DC code; batch norm is for teachers.
    """

    def __init__(
        self,
        *,
        channels: int,
        image_size: int,
        classes: int,
        width: int = 128,
        depth: int | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        deepest = int(math.log2(image_size))
        depth = default_depth(image_size) if depth is None else depth
        if not 1 <= depth <= deepest:
            raise ConfigError(
                f"A ConvNet of depth {depth} does not fit {image_size} px images; expected 1 to {deepest}."
            )
        layers: list[nn.Module] = []
        for level in range(depth):
            norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(width, width)
            layers += [nn.Conv2d(width if level else channels, width, 3, padding=1), norm, nn.ReLU(), Halving()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(width * (image_size >> depth) ** 2, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))
