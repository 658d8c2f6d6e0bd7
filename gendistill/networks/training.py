"""One supervised training loop, used for teachers and for every evaluation row."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.data.images import to_float
from gendistill.data.real import Split
from gendistill.data.views import batch_indices
from gendistill.errors import ConfigError
from gendistill.networks.registry import batch_norm_layers
from gendistill.seeding import torch_rng

Batches = Callable[[int], tuple[Tensor, Tensor]]  # step -> (images (B,C,H,W) in [-1, 1], targets (B,) or (B,K))


def augment(images: Tensor, rng: torch.Generator, shift: int, flip: bool) -> Tensor:
    """Per-image random translation by up to ``shift`` pixels (edges repeat) and mirroring. Float (B,C,H,W)."""
    if flip:
        mirrored = torch.rand(len(images), generator=rng).lt(0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        height, width = images.shape[-2:]
        padded = F.pad(images, (shift,) * 4, mode="replicate")
        offset = torch.randint(0, 2 * shift + 1, (2, len(images)), generator=rng).to(images.device)
        rows = offset[0][:, None] + torch.arange(height, device=images.device)
        columns = offset[1][:, None] + torch.arange(width, device=images.device)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        images = padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
    return images


def plain_batches(
    split: Split, *, batch_size: int, shift: int, flip: bool, seed: int, targets: Tensor | None = None
) -> Batches:
    """step -> augmented images of ``split`` with its labels, or with ``targets`` (N,K), on the device of its images."""
    images, wanted = to_float(split.images), split.labels if targets is None else targets.to(split.labels.device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        index = batch_indices(len(split), batch_size, step, seed).to(images.device)
        return augment(images[index], torch_rng(seed, "augment", step), shift, flip), wanted[index]

    return batch


def train_classifier(
    network: nn.Module,
    split: Split,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    shift: int = 0,
    flip: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batches: Batches | None = None,
    temperature: float = 1.0,
    bf16: bool = False,
    compile: bool = False,
) -> Generator[dict[str, Any], None, nn.Module]:
    """AdamW on the mean cross-entropy with a one-cycle cosine rate; yields {step, loss}; returns the network, in eval.

    A set smaller than ``batch_size`` gives batches of its whole size, so equal ``steps`` mean equal optimiser steps.
    ``batches`` replaces the augmented images of ``split`` and their labels. With soft targets made at ``temperature`` T
    the loss is T^2 CE(softmax(logits / T), targets), whose gradients keep their size (Hinton et al. 2015, section 2).
    ``bf16`` runs the network under autocast, ``compile`` compiles it; neither changes what is trained, but rounding.

    Raises:
        ConfigError: batch norm would see a batch of one image.
    """
    require_batch_of_two(network, batch_size, len(split))
    network = network.to(torch.device(device)).to(memory_format=_layout(bf16, compile)).train()
    loss_of = runtime.compiled(classification_loss) if compile else classification_loss
    if batches is None:
        there = Split(split.images.to(device), split.labels.to(device))
        batches = plain_batches(there, batch_size=batch_size, shift=shift, flip=flip, seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    warmup = max(1, steps // 20)
    for step in range(steps):
        rate = min((step + 1) / warmup, 0.5 * (1 + torch.cos(torch.tensor(step / steps * torch.pi)).item()))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        images, targets = (tensor.to(device) for tensor in batches(step))
        images = images.contiguous(memory_format=_layout(bf16, compile))
        loss = loss_of(network, images, targets, temperature, bf16)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield {"step": step + 1, "loss": loss.detach()}
    return network.eval()


def classification_loss(
    network: nn.Module, images: Tensor, targets: Tensor, temperature: float = 1.0, bf16: bool = False
) -> Tensor:
    """T^2 CE(softmax(logits / T), targets), the mean over the batch."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = network(images)
    return temperature**2 * F.cross_entropy(logits.float() / temperature, targets)


def _layout(bf16: bool, compile: bool) -> torch.memory_format:
    """Channels last where it pays: the eager fp32 convolutions of a CPU are a tenth slower with it."""
    return torch.channels_last if bf16 or compile else torch.contiguous_format


def require_batch_of_two(network: nn.Module, batch_size: int, images: int) -> None:
    """Refuse batches of one image where batch norm would see no spread in them."""
    if min(batch_size, images) < 2 and batch_norm_layers(network):
        raise ConfigError(
            f"batch_size is {batch_size} for {images} image(s): batch norm needs at least 2 images a batch. "
            "Raise batch_size, or take a network without batch norm such as 'convnet'."
        )


@torch.no_grad()
def recognised(network: nn.Module, split: Split, batch_size: int = 512) -> Tensor:
    """Which images of ``split`` the network classifies right, bool (N,)."""
    device = next(network.parameters()).device
    guesses = [
        network(to_float(split.images[start : start + batch_size]).to(device)).argmax(1).cpu()
        for start in range(0, len(split), batch_size)
    ]
    return torch.cat(guesses) == split.labels


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of ``split`` that the network classifies right, in [0, 1]."""
    return int(recognised(network, split).sum()) / len(split)
