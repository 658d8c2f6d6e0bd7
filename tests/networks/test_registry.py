"""Networks by name."""

from __future__ import annotations

import torch

from gendistill.networks.registry import build_network


def test_two_heads_of_a_timm_network_classify_as_timm_does():
    network = build_network("timm:levit_128s", channels=1, image_size=224, classes=3).eval()
    images = torch.randn(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.net(images))
