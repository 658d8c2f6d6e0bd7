"""Tiny random autoencoders of the three classes; all make 16 px to 8 or 4."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

from gendistill.seeding import derive


def kl(seed: int = 0, **config: Any) -> AutoencoderKL:
    settings = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "scaling_factor": 0.7,
    }
    return _build(AutoencoderKL, seed, settings | config)


def tiny(seed: int = 0, **config: Any) -> AutoencoderTiny:
    settings = {
        "encoder_block_out_channels": (8,) * 3,
        "decoder_block_out_channels": (8,) * 3,
        "num_encoder_blocks": (1,) * 3,
        "num_decoder_blocks": (1,) * 3,
        "scaling_factor": 1.3,
        "shift_factor": 0.2,
    }
    return _build(AutoencoderTiny, seed, settings | config)


def dc(seed: int = 0, **config: Any) -> AutoencoderDC:
    settings = {"latent_channels": 8, "attention_head_dim": 4, "scaling_factor": 0.4}
    for side in ("encoder", "decoder"):
        settings |= {
            f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            f"{side}_block_out_channels": (8, 16, 16),
            f"{side}_layers_per_block": (1, 1, 1),
            f"{side}_qkv_multiscales": ((), (), (5,)),
        }
    return _build(AutoencoderDC, seed, settings | config)


def _build(cls: Any, seed: int, config: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, cls.__name__))
        return cls(**config)
