"""Networks by name: ConvNets and ResNets with instance norm or (``_bn``) batch norm, and ``timm:NAME``."""

from __future__ import annotations

import difflib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gendistill.errors import ConfigError
from gendistill.networks.classifiers import ConvNet, ResNet
from gendistill.seeding import derive

RESNETS: dict[str, dict[str, Any]] = {
    "resnet10": {"blocks": (1, 1, 1, 1)},
    "resnet18": {"blocks": (2, 2, 2, 2)},
    "resnetap10": {"blocks": (1, 1, 1, 1), "average_pooling": True},
}
NAMES = tuple(f"{name}{norm}" for name in ("convnet", *RESNETS) for norm in ("", "_bn"))
CHOICES = f"{', '.join(NAMES)}, or timm:NAME (such as timm:resnet10t)"


class Classifier(Protocol):
    """What every network here offers beside being an nn.Module."""

    def features(self, images: Tensor) -> Tensor: ...
    def classify(self, features: Tensor) -> Tensor: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class TimmClassifier(nn.Module):
    """A timm network with our two steps, in the form that is usual for small images where it has one.

    Below 64 px the stem of ResNets and DenseNets keeps the resolution: a 3x3 convolution of stride 1, no max pooling.
    Transformers made for one size are made for this one, in patches of theirs or smaller, at least 8 a side.
    """

    def __init__(self, name: str, *, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        import timm

        if name not in timm.list_models():
            close = difflib.get_close_matches(name, timm.list_models(), 5)
            raise ConfigError(f"timm has no network {name!r}; names like it: {', '.join(close) or 'none'}.")
        options: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
        self.net: Any = timm.create_model(name, **options)
        patches = _patches(self.net, image_size)
        if patches:
            self.net = timm.create_model(name, **options, **patches)
        if image_size < 64:
            _keep_resolution(self.net, channels)

    def features(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)

    def classify(self, features: Tensor) -> Tensor:
        """The mean of the heads where timm has one for distillation beside the usual."""
        heads = self.net.get_classifier()
        return torch.stack([head(features) for head in heads]).mean(0) if isinstance(heads, tuple) else heads(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def _patches(net: Any, image_size: int) -> dict[str, Any]:
    """img_size and patch_size to make a transformer with; nothing where it takes any size, or this one already.

    The patch is the largest divisor of the side that is not above the network's own and leaves 8 patches a side.
    """
    embedding = getattr(net, "patch_embed", None)
    size, patch = (getattr(embedding, name, None) for name in ("img_size", "patch_size"))
    if not (isinstance(size, tuple) and isinstance(patch, tuple)) or size == (image_size, image_size):
        return {}
    fitting = max(p for p in range(1, patch[0] + 1) if p == 1 or (image_size % p == 0 and image_size // p >= 8))
    return {"img_size": image_size} | ({} if fitting == patch[0] else {"patch_size": fitting})


def _keep_resolution(net: Any, channels: int) -> None:
    """Replace the stem where it is a ResNet's (``conv1``, ``maxpool``) or a DenseNet's (``conv0``, ``pool0``)."""
    if hasattr(net, "conv1") and hasattr(net, "maxpool"):
        width = net.feature_info[0]["num_chs"]
        net.conv1, net.maxpool = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.Identity()
    stem: Any = getattr(net, "features", None)
    if hasattr(stem, "conv0") and hasattr(stem, "pool0"):
        stem.conv0 = nn.Conv2d(channels, stem.conv0.out_channels, 3, padding=1, bias=False)
        stem.pool0 = nn.Identity()


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
        base, batch_norm = name.removesuffix("_bn"), name.endswith("_bn")
        shape: dict[str, Any] = {"channels": channels, "image_size": image_size, "classes": classes}
        if base == "convnet":
            return ConvNet(**shape, width=width, depth=depth, batch_norm=batch_norm)
        if base in RESNETS:
            return ResNet(**shape, **RESNETS[base], batch_norm=batch_norm)
        if name.startswith("timm:"):
            return _timm_network(name, channels, image_size, classes)
    raise ConfigError(f"network is {name!r}; expected {CHOICES}.")


def _timm_network(name: str, channels: int, image_size: int, classes: int) -> nn.Module:
    """The network, once it has taken an image of this size."""
    try:
        network = TimmClassifier(name[5:], channels=channels, image_size=image_size, classes=classes).eval()
        with torch.no_grad():
            network(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{name} cannot take {image_size} px images with {channels} channel(s): {reason}") from error
    return network.train()


def batch_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm layers that normalise images' feature maps, by module name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
