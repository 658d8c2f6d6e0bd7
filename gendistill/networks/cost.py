"""What training takes, counted before it starts."""

from __future__ import annotations

import torch
from torch import nn

BACKWARD = 2  # times a forward pass: gradients in the activations and in the weights


@torch.no_grad()
def forward_flop(network: nn.Module, channels: int, image_size: int) -> float:
    """Floating-point operations of one image (two a multiply-add), of convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode  # 0.2 s to import

    device, training = next(network.parameters()).device, network.training
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, channels, image_size, image_size, device=device))
    network.train(training)
    return float(counter.get_total_flops())


def training_flop(network: nn.Module, channels: int, image_size: int, images: float) -> float:
    """Of forward and backward passes of so many images."""
    return (1 + BACKWARD) * images * forward_flop(network, channels, image_size)
