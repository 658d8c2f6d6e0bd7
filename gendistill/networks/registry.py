"""Networks by name: ``convnet``, ``convnet_bn`` and ``timm:NAME``."""

from __future__ import annotations

import difflib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gendistill.errors import ConfigError
from gendistill.networks.convnet import ConvNet
from gendistill.seeding import derive

CHOICES = "convnet, convnet_bn, or timm:NAME (such as timm:resnet10t)"


class Classifier(Protocol):
    """What every network here offers beside being an nn.Module."""

    def features(self, images: Tensor) -> Tensor: ...
    def classify(self, features: Tensor) -> Tensor: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class TimmClassifier(nn.Module):
    """A timm network with our two steps; below 64 px the stem keeps the resolution.

    The change of stem is the usual one for small images: a 3x3 convolution of stride 1 and no max pooling, where the
    network has a ``conv1`` and a ``maxpool`` as timm's ResNets do.
    """

    def __init__(self, name: str, *, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        import timm

        if name not in timm.list_models():
            close = difflib.get_close_matches(name, timm.list_models(), 5)
            raise ConfigError(f"timm has no network {name!r}; names like it: {', '.join(close) or 'none'}.")
        net: Any = timm.create_model(name, in_chans=channels, num_classes=classes)
        if image_size < 64 and hasattr(net, "conv1") and hasattr(net, "maxpool"):
            width = net.feature_info[0]["num_chs"]
            net.conv1, net.maxpool = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.Identity()
        self.net = net

    def features(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)

    def classify(self, features: Tensor) -> Tensor:
        """The mean of the heads where timm has one for distillation beside the usual."""
        heads = self.net.get_classifier()
        return torch.stack([head(features) for head in heads]).mean(0) if isinstance(heads, tuple) else heads(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def build_network(
    name: str,
    *,
    channels: int,
    image_size: int,
    classes: int,
    width: int = 128,
    depth: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """A freshly initialised classifier for (B,channels,image_size,image_size) images in [-1, 1].

    The same ``seed`` gives the same weights; the global generator is left as it was.

    Raises:
        ConfigError: the name is unknown, or the network cannot take images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "network", name))
        if name in ("convnet", "convnet_bn"):
            return ConvNet(
                channels=channels,
                image_size=image_size,
                classes=classes,
                width=width,
                depth=depth,
                batch_norm=name == "convnet_bn",
            )
        if name.startswith("timm:"):
            network = TimmClassifier(name[5:], channels=channels, image_size=image_size, classes=classes)
            _check_size(network, name, channels, image_size)
            return network
    raise ConfigError(f"network is {name!r}; expected {CHOICES}.")


def _check_size(network: nn.Module, name: str, channels: int, image_size: int) -> None:
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{name} cannot take {image_size} px images with {channels} channel(s): {reason}") from error
    finally:
        network.train(training)


def batch_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm layers that normalise images' feature maps, by module name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
