"""The class-conditional networks: diffusers' UNet2DModel and DiTTransformer2DModel, built and loaded.

Both are called ``network(x, t, class_labels=condition).sample`` with t (B,) long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from torch import nn

from gendistill import runtime
from gendistill.config import DiT, ModelConfig, UNet
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.loading import load_model
from gendistill.seeding import derive

Network: TypeAlias = UNet2DModel | DiTTransformer2DModel
LAST_OF_RESIDUALS = ("conv2", "to_out.0", "conv_out")  # zero at first (Ho et al. 2020); diffusers draws them
KINDS: dict[str, tuple[str, type]] = {"unet": ("unet", UNet2DModel), "dit": ("transformer", DiTTransformer2DModel)}


def kind_of(network: nn.Module) -> str:
    """``unet`` or ``dit``."""
    return next(name for name, (_, kind) in KINDS.items() if isinstance(network, kind))


def folder_of(network: nn.Module) -> str:
    """The network's folder inside a diffusers pipeline folder."""
    return KINDS[kind_of(network)][0]


def build_network(config: ModelConfig, classes: int, sample_shape: tuple[int, int, int], seed: int) -> Network:
    """A freshly initialised network for ``sample_shape`` (c,h,w), ``classes`` conditions and a null class after them.

    Raises:
        ConfigError: the side does not divide by the UNet's down-sampling or the DiT's patch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "generator"))
        if isinstance(config.architecture, UNet):
            return _unet(config.architecture, classes, *sample_shape[:2])
        return _dit(config.architecture, classes, *sample_shape[:2])


def _unet(config: UNet, classes: int, channels: int, size: int) -> UNet2DModel:
    levels = len(config.block_out_channels)
    factor = 2 ** (levels - 1)
    if size % factor or size // factor < 2:
        raise ConfigError(
            f"Samples of {size} x {size} do not fit a UNet of {levels} resolutions: the side must be a multiple of "
            f"{factor} and at least {2 * factor}. Change --data.image_size, or give finetune.model.block_out_channels "
            "another number of entries."
        )
    plain = levels - config.attention_levels
    network = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * config.attention_levels,
        up_block_types=("AttnUpBlock2D",) * config.attention_levels + ("UpBlock2D",) * plain,
        add_attention=config.attention_levels > 0,
        norm_num_groups=config.norm_num_groups,
        num_class_embeds=classes + 1,
    )
    for name, module in network.named_modules():
        if name.endswith(LAST_OF_RESIDUALS):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def _dit(config: DiT, classes: int, channels: int, size: int) -> DiTTransformer2DModel:
    if size % config.patch_size:
        raise ConfigError(
            f"Samples of {size} x {size} do not divide into patches of finetune.model.patch_size = "
            f"{config.patch_size}; give another patch size or --data.image_size."
        )
    network = DiTTransformer2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels * (2 if config.learned_sigma else 1),
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        patch_size=config.patch_size,
        num_embeds_ada_norm=classes,
    )
    _initialise_dit(network)
    return drop_no_labels(network)


def _initialise_dit(network: DiTTransformer2DModel) -> None:
    """adaLN-zero (Peebles & Xie 2022, section 3.2): every block starts as the identity. diffusers leaves that out."""
    last = [network.proj_out_1, network.proj_out_2, *(block.norm1.linear for block in network.transformer_blocks)]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    first, *others = [block.norm1.emb for block in network.transformer_blocks]
    nn.init.normal_(first.class_embedder.embedding_table.weight, std=0.02)
    for other in others:  # one embedding for all blocks, as in the original; diffusers gives each block its own
        other.load_state_dict(first.state_dict())


def training_flop(network: Network, images: float) -> float:
    """Floating-point operations of forward and backward passes of so many images."""
    device = next(network.parameters()).device
    shape = int(network.config.in_channels), *2 * (int(network.config.sample_size),)
    t = torch.zeros(1, dtype=torch.long, device=device)
    forward = runtime.forward_flop(network, torch.zeros(1, *shape, device=device), t, class_labels=t)
    return (1 + runtime.BACKWARD) * images * forward


def drop_no_labels(network: Any) -> Any:
    """Turn off the DiT's own label dropout, which diffusers draws once PER BLOCK; training drops once per image."""
    if isinstance(network, DiTTransformer2DModel):
        for block in network.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0
    return network


def class_rows(network: Network) -> int:
    """Rows of the class table: the conditions and, where there is one, the null class after them.

    Raises:
        ArtifactError: the network takes no class.
    """
    if isinstance(network, DiTTransformer2DModel):
        return int(network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings)
    if getattr(network, "class_embedding", None) is None or network.config.num_class_embeds is None:
        raise ArtifactError(
            "The UNet has no class embedding; expected a class-conditional one (num_class_embeds in its config.json)."
        )
    return int(network.config.num_class_embeds)


def load_network(pipeline: Path, variant: str | None = None) -> Network:
    """The network of a diffusers pipeline folder, from safetensors only, in fp32.

    Raises:
        ArtifactError: the folder has no network of a known class, or its weights are pickled, damaged or missing.
    """
    folder, kind = next(
        ((pipeline / name, kind) for name, kind in KINDS.values() if (pipeline / name / "config.json").is_file()),
        (None, None),
    )
    if folder is None or kind is None:
        raise ArtifactError(
            f"{pipeline} holds neither unet/config.json nor transformer/config.json; expected a diffusers pipeline "
            "folder with a UNet2DModel or a DiTTransformer2DModel."
        )
    network = load_model(kind, folder, variant)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it would draw from the global random stream, and no run could be repeated
    return drop_no_labels(network)


def load_scheduler(folder: Path, network: Network) -> DDPMScheduler:
    """The noise schedule of a diffusers pipeline folder, which must fit the network.

    Raises:
        ArtifactError: it cannot be read, or predicts something other than epsilon or v.
    """
    try:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except Exception as error:
        raise ArtifactError(f"{folder / 'scheduler'} cannot be read: {error}") from error
    alphas, steps = scheduler.alphas_cumprod, scheduler.config.num_train_timesteps
    if alphas.shape != (steps,) or not bool(((alphas >= 0) & (alphas <= 1)).all()) or not bool(alphas[0] > 0):
        raise ArtifactError(
            f"{folder / 'scheduler'} has alphas of shape {tuple(alphas.shape)}, from {alphas.min():g} to "
            f"{alphas.max():g}; expected {steps} numbers from 0 to 1."
        )
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ArtifactError(
            f"{folder / 'scheduler'} predicts {scheduler.config.prediction_type!r}; expected epsilon or v_prediction."
        )
    if scheduler.config.prediction_type != "epsilon" and network.config.out_channels == 2 * network.config.in_channels:
        raise ArtifactError(f"The network in {folder} learns sigma but predicts v; expected epsilon with it.")
    return scheduler
