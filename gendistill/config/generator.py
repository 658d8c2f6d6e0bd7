"""Options of the generator: what it is and how it is trained."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gendistill.config.base import Precision, at_least, in_unit, require

Prediction = Literal["v_prediction", "epsilon"]
Reduction = Literal["per_sample", "global"]
Architecture = Literal["unet", "dit"]
Adaptation = Literal["full", "difffit", "lora"]
Weighting = Literal["none", "alpha_bar"]
Tracker = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The class-conditional network that is trained from scratch: diffusers' UNet2DModel or DiTTransformer2DModel.

    Attributes:
        architecture: ``unet``, or ``dit`` (a diffusion transformer, arXiv 2212.09748).
        block_out_channels: unet: channels by resolution, finest first; the side must divide by 2^(levels - 1).
        layers_per_block: unet: residual layers a resolution.
        attention_levels: unet: how many of the coarsest resolutions carry self-attention.
        norm_num_groups: unet: groups of the group norms.
        num_layers: dit: transformer blocks.
        num_attention_heads: dit: heads a block.
        attention_head_dim: dit: channels a head.
        patch_size: dit: side of a patch; the side of the image or latent must divide by it.
        learned_sigma: dit: predict the reverse variance as well, trained by its variational bound.
        prediction_type: What the network predicts; v (Salimans & Ho 2022, eq. 12) learns faster from scratch.
        noise_schedule: diffusers' name of the beta schedule over 1000 timesteps.
    """

    architecture: Architecture = "unet"
    block_out_channels: tuple[int, ...] = (64, 128, 128)
    layers_per_block: int = 1
    attention_levels: int = 0
    norm_num_groups: int = 16
    num_layers: int = 8
    num_attention_heads: int = 4
    attention_head_dim: int = 64
    patch_size: int = 2
    learned_sigma: bool = False
    prediction_type: Prediction = "v_prediction"
    noise_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"

    def __post_init__(self) -> None:
        section = "finetune.model"
        at_least(self, section, 1, "layers_per_block", "norm_num_groups")
        at_least(self, section, 1, "num_layers", "num_attention_heads", "attention_head_dim", "patch_size")
        channels = self.block_out_channels
        require(len(channels) > 0, f"{section}.block_out_channels", channels, "one number a resolution")
        require(
            all(c > 0 and c % self.norm_num_groups == 0 for c in channels),
            f"{section}.block_out_channels",
            channels,
            f"multiples of norm_num_groups = {self.norm_num_groups}",
        )
        levels = self.attention_levels
        require(0 <= levels <= len(channels), f"{section}.attention_levels", levels, f"0 to {len(channels)}")
        require(
            not self.learned_sigma or (self.architecture == "dit" and self.prediction_type == "epsilon"),
            f"{section}.learned_sigma",
            self.learned_sigma,
            "false, or architecture dit with prediction_type epsilon, whose variational bound is defined",
        )


@dataclass(frozen=True, kw_only=True)
class MinimaxConfig:
    """The two criteria of Minimax Diffusion (arXiv 2311.15529, eq. 4 to 7).

    Attributes:
        representativeness: Weight of the pull toward the farthest real image of the class.
        diversity: Weight of the push from the closest generated image of the class.
        reduction: ``per_sample`` gives every image its own partner; ``global`` one pair a class (the paper).
        memory_size: Images a class in each of the two memories.
        min_alpha_bar: Only images with alpha_bar(t) above this take part: x0 is unreadable in heavier noise.
        weighting: ``alpha_bar`` weights each image by alpha_bar(t) (per_sample alone); ``none`` all alike.
        share_memory: Several processes fill one memory together; false keeps one each, as the released code.
    """

    representativeness: float = 0.02
    diversity: float = 0.05
    reduction: Reduction = "per_sample"
    memory_size: int = 64
    min_alpha_bar: float = 0.2
    weighting: Weighting = "none"
    share_memory: bool = True

    def __post_init__(self) -> None:
        section = "finetune.minimax"
        at_least(self, section, 0, "representativeness", "diversity")
        at_least(self, section, 1, "memory_size")
        in_unit(self, section, "min_alpha_bar")
        require(
            self.weighting == "none" or self.reduction == "per_sample",
            f"{section}.weighting",
            self.weighting,
            "none with reduction global, where one pair a class counts",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Training of the generator: plain diffusion first, then the minimax criteria on top.

    Attributes:
        pretrained: Generator to start from, a folder or Hub id of a diffusers pipeline; plain training is skipped.
        revision: Branch, tag or commit of a Hub id in ``pretrained`` or ``codec``.
        label_map: Condition index of each class name in a pretrained model, where its names do not say it.
        model: The network trained from scratch when there is no pretrained one.
        codec: ``pixels``, or the folder or Hub id of an autoencoder (AutoencoderKL, AutoencoderTiny, AutoencoderDC)
            to train in its latents from scratch; a pretrained generator brings its own.
        latent_cache: Folder that keeps the encoded images for other runs; null keeps them until this run is done.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        minimax: The criteria of the second phase.
        adaptation: What the second phase trains: ``full``, ``difffit`` (biases, norms, scales, class embedding) or
            ``lora``.
        lora_rank: Rank of the LoRA matrices.
        base_steps: Optimiser steps of plain diffusion training.
        minimax_steps: Optimiser steps with the criteria added.
        batch_size: Images an optimiser step, over all processes together.
        learning_rate: Peak rate of AdamW while training from scratch.
        minimax_learning_rate: Peak rate of AdamW in the second phase.
        weight_decay: AdamW's weight decay.
        label_dropout: Share of images whose label becomes the null class, for classifier-free guidance.
        ema_decay: Decay of the averaged weights (warmed up), which are the ones that sample.
        max_grad_norm: Gradient clipping.
        gradient_accumulation_steps: Micro-batches an optimiser step.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        mixed_precision: ``auto`` is bf16 on a GPU that has it and fp32 on CPU; bf16 there took 0.6 of the time.
        compile: torch.compile the network; pays on GPUs and long runs only.
        checkpointing_steps: Optimiser steps between resumable checkpoints.
        checkpoints_total_limit: Newest checkpoints kept.
        preview_steps: Optimiser steps between sample grids in ``previews/``; 0 draws one at the end of each phase.
        report_to: Tracker beside log.jsonl: ``tensorboard`` or ``wandb``.
    """

    pretrained: str | None = None
    revision: str | None = None
    label_map: dict[str, int] | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    codec: str = "pixels"
    latent_cache: Path | None = None
    flip: bool = False
    minimax: MinimaxConfig = field(default_factory=MinimaxConfig)
    adaptation: Adaptation = "full"
    lora_rank: int = 16
    base_steps: int = 400
    minimax_steps: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    minimax_learning_rate: float = 3e-4
    weight_decay: float = 0.0
    label_dropout: float = 0.1
    ema_decay: float = 0.99
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Precision = "auto"
    compile: bool = False
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    preview_steps: int = 0
    report_to: Tracker = "none"

    def __post_init__(self) -> None:
        section = "finetune"
        at_least(self, section, 0, "base_steps", "minimax_steps", "weight_decay", "preview_steps")
        at_least(self, section, 0, "learning_rate", "minimax_learning_rate", "max_grad_norm")
        at_least(self, section, 1, "batch_size", "gradient_accumulation_steps", "checkpointing_steps")
        at_least(self, section, 1, "checkpoints_total_limit", "lora_rank")
        in_unit(self, section, "label_dropout", "ema_decay")
        parts = self.gradient_accumulation_steps
        require(
            self.batch_size % parts == 0,
            f"{section}.batch_size",
            self.batch_size,
            f"a multiple of {parts} micro-batches",
        )
        alone = "pixels when pretrained is given, which brings its own codec"
        require(self.pretrained is None or self.codec == "pixels", f"{section}.codec", self.codec, alone)
        latent = self.pretrained is not None or self.codec != "pixels"
        require(
            self.latent_cache is None or latent,
            f"{section}.latent_cache",
            str(self.latent_cache),
            "null with codec pixels, where nothing is encoded",
        )
        require(
            self.label_map is None or self.pretrained is not None,
            f"{section}.label_map",
            self.label_map,
            "null without finetune.pretrained: a model trained from scratch numbers its classes itself",
        )
