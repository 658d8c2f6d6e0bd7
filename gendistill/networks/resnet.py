"""ResNet-10, ResNet-18 and ResNetAP-10 as dataset condensation uses them (DC, arXiv 2006.05929; IDC, 2205.14959)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.errors import ConfigError
from gendistill.networks.pooling import Halving

LEAST = 3  # positions a side: of one, instance norm is a constant; of 2 x 2, its derivatives explode
Norm = Callable[[int], nn.Module]


class ResNet(nn.Module):
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

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class Block(nn.Module):
    """ReLU(branch(x) + shortcut(x)): two 3x3 convolutions with their norms; halved, the first one or a pooling does it.

    The shortcut is the identity where shapes allow it, else a 1x1 convolution with a norm.
    """

    def __init__(self, inside: int, outside: int, halved: bool, norm: Norm, average_pooling: bool) -> None:
        super().__init__()
        stride = 2 if halved and not average_pooling else 1

        def pooled() -> list[nn.Module]:
            return [Halving()] if halved and average_pooling else []

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
        return layers + [Halving() for _ in range(reduction // 2)]
    return layers if reduction == 1 else [*layers, nn.MaxPool2d(3, 2, 1)]
