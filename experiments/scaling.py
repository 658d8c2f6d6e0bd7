"""Operations, bytes and hours of every stage for ImageNet-1K at 256 px with a DiT-XL/2, counted, not run.

    python -m experiments.scaling --tflops 989

Machine: any; nothing is computed but shapes (tensors on the device "meta"). It took 20 s.

Result (docs/scaling.md#imagenet-1k-at-256-px-with-a-dit-xl2-counted): on one GPU the pool for selection limits, from
eight on what is not shared. Forward operations are counted by torch's FlopCounterMode (two a multiply-add) on the
networks as diffusers and timm build them; a training step is three forward passes. Hours are operations over a rate:
``--tflops`` times ``--share`` of it that is reached. They are estimates until a GPU has measured the share.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

IMAGES, CLASSES, TEST, SIDE = 1_281_167, 1000, 50_000, 256
IPC, POOL = 50, 200
TRAIN = 3  # forward passes that a training step costs


class Stage(NamedTuple):
    """What one stage takes: operations, bytes it writes, and whether processes share it."""

    name: str
    text: str
    flop: float
    size: float
    shared: str


def forward(network: nn.Module, *inputs: Any, **named: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs, **named)
    return float(counter.get_total_flops())


def dit() -> float:
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        network = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
            sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
        label = torch.zeros(1, dtype=torch.long)
        return forward(network, torch.empty(1, 4, 32, 32), timestep=label, class_labels=label)


def autoencoder() -> tuple[float, float]:
    """(encode, decode) one image."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        encode = forward(network.encoder, torch.empty(1, 3, SIDE, SIDE))
        return encode, forward(network.decoder, torch.empty(1, 4, SIDE // 8, SIDE // 8))


def classifier(side: int = 224) -> float:
    import timm

    with torch.device("meta"):
        return forward(timm.create_model("resnet18"), torch.empty(1, 3, side, side))


def stages() -> Iterator[Stage]:
    generator, (encode, decode), student = dit(), autoencoder(), classifier()
    pixels, made, pool = IMAGES * 3 * SIDE**2, IPC * CLASSES, POOL * CLASSES
    yield Stage("store", f"{IMAGES:,} JPEG files decoded once", 0, pixels, "processor cores")
    yield Stage("teacher", "ResNet-18, 90 epochs", TRAIN * student * 90 * IMAGES, 45e6, "data parallel")
    yield Stage("statistics", "one pass, 512 features an image", student * IMAGES, IMAGES * 512 * 4, "images")
    latents = IMAGES * 2 * 4 * (SIDE // 8) ** 2 * 4
    yield Stage("latents", "all images, mean and deviation", encode * IMAGES, latents, "one process encodes")
    steps = 12_000 * 8
    yield Stage("finetune", "12 000 steps of batch 8", TRAIN * generator * steps, 2.7e9, "data parallel")
    sampling = 2 * generator * 25 + decode
    yield Stage("sample", f"IPC {IPC}, 25 steps, guidance", sampling * made, made * 100e3, "images")
    yield Stage("sample a pool", f"{POOL} a class, for selection", sampling * pool, pool * 100e3, "images")
    yield Stage("refine", f"IPC {IPC}, 300 steps", TRAIN * student * 300 * made, made * 100e3, "chunks of classes")
    yield Stage("label", f"IPC {IPC}, 300 views", student * 300 * made, made * 300 * 1000 * 2, "images")
    run = 300 * TRAIN * student * made + student * TEST
    yield Stage("evaluate, one run", f"IPC {IPC}, ResNet-18, 300 epochs", run, 0, "runs")
    yield Stage("evaluate, all images", "ResNet-18, 90 epochs, one run", TRAIN * student * 90 * IMAGES, 0, "runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=989.0, help="dense bf16 peak of one GPU, in TFLOP/s")
    parser.add_argument("--share", type=float, default=0.3, help="of the peak that is reached")
    options = parser.parse_args()
    rate = options.tflops * 1e12 * options.share
    print(f"{'stage':<22}{'work':<34}{'PFLOP':>10}{'GB written':>12}{'1 GPU':>10}{'8 GPUs':>10}{'64 GPUs':>10}  shared")
    for one in stages():
        hours = one.flop / rate / 3600
        spread = [hours / (n if one.shared != "one process encodes" else 1) for n in (1, 8, 64)]
        if one.name.startswith("evaluate"):
            spread = [hours] * 3  # a run is not divided; several runs are
        columns = "".join(f"{h:>9.2f}h" for h in spread) if one.flop else f"{'':>30}"
        print(f"{one.name:<22}{one.text:<34}{one.flop / 1e15:>10,.0f}{one.size / 1e9:>12,.1f}{columns}  {one.shared}")


if __name__ == "__main__":
    main()
