"""Networks by name: ConvNets and ResNets with instance norm or (``_bn``) batch norm, and ``timm:NAME``; and any module
as a network with ``features`` and ``classify``, which teachers need.

Legend: B images, (C,H,W) an image in [-1, 1], D features, K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.errors import ConfigError
from gendistill.networks.classifiers import ConvNet, ResNet
from gendistill.registry import NETWORKS, accepted
from gendistill.seeding import derive

HEADS = ("fc", "classifier", "head", "heads")  # names that torchvision, timm and transformers give the last layer
NEEDED = (
    "a module with features(images) -> (B,D), classify(features) -> (B,K) and forward(images) -> (B,K), or one that "
    f"ends with a Linear layer of K outputs in {', '.join(HEADS[:-1])} or {HEADS[-1]}"
)


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


convnet, convnet_bn = partial(ConvNet, batch_norm=False), partial(ConvNet, batch_norm=True)


def _resnet(blocks: int, *, batch_norm: bool, average_pooling: bool = False) -> Callable[..., ResNet]:
    """A factory of ResNets of one width, with so many blocks in each of the four stages."""

    def build(*, channels: int, image_size: int, classes: int) -> ResNet:
        shape: dict[str, Any] = {"channels": channels, "image_size": image_size, "classes": classes}
        return ResNet(**shape, blocks=(blocks,) * 4, batch_norm=batch_norm, average_pooling=average_pooling)

    return build


resnet10, resnet10_bn = _resnet(1, batch_norm=False), _resnet(1, batch_norm=True)
resnet18, resnet18_bn = _resnet(2, batch_norm=False), _resnet(2, batch_norm=True)
resnetap10 = _resnet(1, batch_norm=False, average_pooling=True)
resnetap10_bn = _resnet(1, batch_norm=True, average_pooling=True)


def timm_network(variant: str, *, channels: int, image_size: int, classes: int) -> nn.Module:
    """timm's network of this name, once it has taken an image of this size."""
    try:
        network = TimmClassifier(variant, channels=channels, image_size=image_size, classes=classes).eval()
        with torch.no_grad():
            network(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"timm:{variant} cannot take {image_size} px images with {channels} channel(s): {reason}"
        ) from error
    return network.train()


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

    Args:
        name: A registered network, or one of a family such as ``timm:resnet10t``.
        channels: Of the images.
        image_size: Side of the images in pixels.
        classes: Number of logits.
        width: Of networks that take one, such as a ConvNet.
        depth: Likewise; null is the network's own.
        seed: The same seed gives the same weights; the global generator is left as it was.

    Raises:
        ConfigError: the name is unknown, or the network cannot take images of this size.
    """
    factory, variant = NETWORKS[name], name.partition(":")[2]
    shape: dict[str, Any] = {"channels": channels, "image_size": image_size, "classes": classes}
    own = accepted(factory, {"width": width, "depth": depth})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "network", name))
        network = factory(variant, **shape) if variant else factory(**shape, **own)
    return as_classifier(network, **shape) if NETWORKS.is_added(name) else network


def takes_option(name: str, option: str) -> bool:
    """Whether the factory of a network has a parameter of this name, such as ``width``."""
    return bool(accepted(NETWORKS[name], {option: None}))


def batch_norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm layers that normalise images' feature maps, by module name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


class WithFeatures(nn.Module):
    """A classifier that ends with a linear layer: its features (B,D) are what that layer receives."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network, self._head = network, head

    def features(self, images: Tensor) -> Tensor:
        received: list[Tensor] = []
        head = self.network.get_submodule(self._head)
        handle = head.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return received[0]

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.network.get_submodule(self._head)(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def as_classifier(network: nn.Module, *, channels: int, image_size: int, classes: int) -> nn.Module:
    """``network`` itself where it has ``features`` and ``classify``, else wrapped in ``WithFeatures``.

    Args:
        network: Maps images (B,channels,image_size,image_size) in [-1, 1] to logits (B,classes).
        channels: Of the images.
        image_size: Side of the images in pixels.
        classes: K.

    Raises:
        ConfigError: there is neither, the network does not take such images, or it gives something else.
    """
    name = type(network).__name__
    if not all(callable(getattr(network, part, None)) for part in ("features", "classify")):
        heads = [
            path
            for path, module in network.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == classes and path.split(".")[0] in HEADS
        ]
        if not heads:
            raise ConfigError(f"The network {name} has no features to guide with; expected {NEEDED}, with K {classes}.")
        network = WithFeatures(network, heads[-1])
    check_classifier(network, name, torch.zeros(2, channels, image_size, image_size), classes)
    return network


@torch.no_grad()
def check_classifier(network: Any, name: str, images: Tensor, classes: int) -> None:
    """Refuse a network that fails on ``images`` (2,C,H,W), or whose features do not give its K logits."""
    training, parameter = network.training, next(network.parameters(), images)
    images = images.to(parameter.device)
    try:
        network.eval()
        features, logits = network.features(images), network(images)
        again = network.classify(features)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        shape = "x".join(map(str, images.shape))
        raise ConfigError(f"The network {name} fails on images {shape}: {error}. Expected {NEEDED}.") from error
    finally:
        network.train(training)
    if features.ndim != 2 or logits.shape != (2, classes) or not torch.allclose(again, logits, atol=1e-4):
        raise ConfigError(
            f"The network {name} gives features {tuple(features.shape)} and logits {tuple(logits.shape)} for two "
            f"images; expected (2,D), (2,{classes}), and that classify(features(x)) equals forward(x)."
        )
