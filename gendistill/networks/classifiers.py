"""ConvNet-d, the field's standard small classifier (DC, DSA, DM, IDC use it with d = 3), and small ResNets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.errors import ConfigError


class AvgPool2x2(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2), rounded down: to rounding what nn.AvgPool2d(2) gives, with no state either.

    On a CPU PyTorch's kernel for NCHW runs over single values; sums of neighbouring rows, then of columns, take a
    quarter of its time, half with the backward pass, and 13 % off a compiled matching step. The kernel stays where it
    is the better one: on a GPU, and eager in channels last or in half precision, whose sums would be rounded twice.
    """

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        plain = images.is_contiguous() and images.dtype.itemsize >= 4
        summed = images.device.type == "cpu" and (plain or torch.compiler.is_compiling())
        if not summed or min(height, width) < 2:
            return F.avg_pool2d(images, 2)
        even = images[..., : height // 2 * 2, : width // 2 * 2]
        upper, lower = even.unflatten(-2, (-1, 2)).unbind(-2)
        left, right = (upper + lower).unflatten(-1, (-1, 2)).unbind(-1)
        return (left + right) * 0.25


def default_depth(image_size: int) -> int:
    """round(log2(size)) - 2 kept within 2 to 6: 2 at 8 px, 3 at 28 and 32 px, 4 at 64 px, 6 from 224 px on."""
    return min(max(2, round(math.log2(image_size)) - 2), 6)


class Classifier(nn.Module):
    """A ``body`` (B,C,H,W) -> features (B,D), and a ``head``, one linear layer, to logits (B,K)."""

    body: nn.Module
    head: nn.Module

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class ConvNet(Classifier):
    """``depth`` blocks of [3x3 convolution, norm, ReLU, 2x2 average pooling], then one linear layer.

    Input (B,C,H,W) in [-1, 1]; ``features`` gives (B,D), ``classify`` maps those to logits (B,K).
    Instance norm is GroupNorm(width, width), as in the released DC code; batch norm is for teachers. Grey images of
    28 px (MNIST) are padded by 3 in the first convolution, as there: their maps are those of 32 px.
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
        self.padding = 3 if (channels, image_size) == (1, 28) else 1  # of the first convolution
        layers: list[nn.Module] = []
        for level in range(depth):
            norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(width, width)
            inside, padding = (width, 1) if level else (channels, self.padding)
            layers += [nn.Conv2d(inside, width, 3, padding=padding), norm, nn.ReLU(), AvgPool2x2()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.classes, self._unpadded = classes, width * (image_size >> depth) ** 2
        self.head = nn.Linear(width * ((image_size + 2 * (self.padding - 1)) >> depth) ** 2, classes)

    def fit_head(self, features: int) -> None:
        """Pad the first convolution by 1 where stored weights have the ``features`` of that: grey images of 28 px were
        not padded by 3 before."""
        if self.padding > 1 and features == self._unpadded:
            first: Any = next(self.body.children())
            first.padding, self.padding = (1, 1), 1
            self.head = nn.Linear(features, self.classes)


LEAST = 3  # positions a side: of one, instance norm is a constant; of 2 x 2, its derivatives explode
Norm = Callable[[int], nn.Module]


class ResNet(Classifier):
    """A stem, four stages of basic blocks (He et al., arXiv 1512.03385), the mean over positions, one linear layer.

    Input (B,C,H,W) in [-1, 1]; ``features`` gives (B,8*width), ``classify`` maps those to logits (B,K). ``blocks``
    (1,1,1,1) is ResNet-10, (2,2,2,2) ResNet-18: with 3 channels and 10 classes 4 903 242 and 11 173 962 parameters up
    to 128 px, 7 680 more above. Stages have 1, 2, 4 and 8 times ``width`` channels; IDC's own for CIFAR half of that.
    All but the first halve their maps while 3 x 3 are left: the published networks from 24 px on, below that less.

    With ``average_pooling`` it is IDC's ResNetAP, of as many parameters: wherever a ResNet strides or takes a maximum,
    a convolution of stride 1 and average pooling, whose gradients in the images are smooth.

    Norm is GroupNorm(C, C), instance norm, for matching, or batch norm, for teachers. Convolutions start from He's
    normal distribution by their outputs, as in IDC.

    Raises:
        ConfigError: the images are smaller than 3 px.
    """

    def __init__(
        self,
        *,
        channels: int,
        image_size: int,
        classes: int,
        blocks: Sequence[int] = (1, 1, 1, 1),
        width: int = 64,
        batch_norm: bool = False,
        average_pooling: bool = False,
    ) -> None:
        super().__init__()
        if image_size < LEAST:
            raise ConfigError(f"A ResNet does not fit {image_size} px images; expected {LEAST} px or more.")
        norm = nn.BatchNorm2d if batch_norm else _instance_norm
        reduction = 1 if image_size <= 64 else 2 if image_size <= 128 else 4
        layers = _stem(channels, width, reduction, norm, average_pooling)
        inside, side = width, image_size // reduction
        for stage, count in enumerate(blocks):
            halved = stage > 0 and side // 2 >= LEAST
            side //= 2 if halved else 1
            for place in range(count):
                layers.append(Block(inside, width << stage, halved and place == 0, norm, average_pooling))
                inside = width << stage
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inside, classes)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Block(nn.Module):
    """ReLU(branch(x) + shortcut(x)): two 3x3 convolutions with their norms; halved, the first one or a pooling does it.

    The shortcut is the identity where shapes allow it, else a 1x1 convolution with a norm.
    """

    def __init__(self, inside: int, outside: int, halved: bool, norm: Norm, average_pooling: bool) -> None:
        super().__init__()
        stride = 2 if halved and not average_pooling else 1

        def pooled() -> list[nn.Module]:
            return [AvgPool2x2()] if halved and average_pooling else []

        first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.branch = nn.Sequential(first, norm(outside), nn.ReLU(), *pooled(), second, norm(outside))
        self.shortcut: nn.Module = nn.Identity()
        if halved or inside != outside:
            one = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(one, *pooled(), norm(outside))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.branch(images) + self.shortcut(images))


def _instance_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


def _stem(channels: int, width: int, reduction: int, norm: Norm, average_pooling: bool) -> list[nn.Module]:
    """IDC's three: all resolution is kept up to 64 px, a half up to 128 px, a quarter above."""
    kernel = 7 if reduction == 4 else 3
    stride = 2 if reduction == 4 and not average_pooling else 1
    layers = [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), norm(width), nn.ReLU()]
    if average_pooling:
        return layers + [AvgPool2x2() for _ in range(reduction // 2)]
    return layers if reduction == 1 else [*layers, nn.MaxPool2d(3, 2, 1)]
