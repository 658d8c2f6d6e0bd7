"""Any classifier of images as a network with ``features`` and ``classify``, which teachers need.

Legend: B images, (C,H,W) an image in [-1, 1], D features, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gendistill.errors import ConfigError

HEADS = ("fc", "classifier", "head", "heads")  # names that torchvision, timm and transformers give the last layer
NEEDED = (
    "a module with features(images) -> (B,D), classify(features) -> (B,K) and forward(images) -> (B,K), or one that "
    f"ends with a Linear layer of K outputs in {', '.join(HEADS[:-1])} or {HEADS[-1]}"
)


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
    _try(network, name, torch.zeros(2, channels, image_size, image_size), classes)
    return network


@torch.no_grad()
def _try(network: Any, name: str, images: Tensor, classes: int) -> None:
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
