"""Options of the generator and its training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from gendistill.config.base import (
    Batch,
    Compile,
    Count,
    Depth,
    Flat,
    NonNegative,
    Options,
    PerClass,
    Positive,
    Precision,
    Range,
    Share,
    Side,
    Whole,
    Width,
    require,
)

Prediction = Literal["v_prediction", "epsilon"]
Reduction = Literal["per_sample", "global"]
Weighting = Literal["none", "alpha_bar"]
OptimizerName = Literal["auto", "adamw", "muon"]
RateSchedule = Literal["cosine", "constant"]
LossWeighting = Literal["auto", "none", "velocity"]
Tracker = Literal["none", "tensorboard", "wandb"]
HEAD = 8  # channels of an attention head of diffusers' UNet


@dataclass(frozen=True, kw_only=True)
class UNet(Options):
    """diffusers' UNet2DModel.

    Attributes:
        block_out_channels: Channels by resolution, finest first; the side must be divisible by 2^(levels - 1).
        layers_per_block: Residual layers per resolution.
        attention_levels: Number of the coarsest resolutions that have self-attention.
        norm_num_groups: Groups of the group norms.
    """

    section: ClassVar[str] = "finetune.model"
    kind: ClassVar[str | None] = "unet"

    block_out_channels: tuple[Width, ...] = (32, 64, 128)
    layers_per_block: Depth = 1
    attention_levels: Annotated[int, Range(0, 256)] = 0
    norm_num_groups: Width = 16

    def check(self) -> None:
        super().check()
        channels, groups, levels = self.block_out_channels, self.norm_num_groups, self.attention_levels
        name = f"{self.section}.block_out_channels"
        require(len(channels) > 0, name, channels, "one number a resolution")
        require(all(c % groups == 0 for c in channels), name, channels, f"multiples of norm_num_groups = {groups}")
        require(levels <= len(channels), f"{self.section}.attention_levels", levels, f"0 to {len(channels)}")
        wide = not levels or min(channels[-levels:]) >= HEAD
        require(wide, name, channels, f"at least {HEAD} channels where there is attention, one head")


@dataclass(frozen=True, kw_only=True)
class DiT(Options):
    """A diffusion transformer (arXiv 2212.09748): diffusers' DiTTransformer2DModel.

    Attributes:
        num_layers: Transformer blocks.
        num_attention_heads: Heads per block.
        attention_head_dim: Channels per head.
        patch_size: Side of a patch; the side of the image or latent must be divisible by it.
        learned_sigma: Also predict the reverse variance, trained by its variational bound.
    """

    section: ClassVar[str] = "finetune.model"
    kind: ClassVar[str | None] = "dit"

    num_layers: Depth = 8
    num_attention_heads: Width = 4
    attention_head_dim: Width = 64
    patch_size: Side = 2
    learned_sigma: bool = False

    def check(self) -> None:
        super().check()
        width, heads = self.num_attention_heads * self.attention_head_dim, self.num_attention_heads
        expected = f"num_attention_heads (here {heads}) times it a multiple of 4, for sines and cosines of two sides"
        require(width % 4 == 0, f"{self.section}.attention_head_dim", self.attention_head_dim, expected)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Options):
    """The class-conditional network that is trained from scratch: diffusers' UNet2DModel or DiTTransformer2DModel.

    Attributes:
        architecture: ``unet``, or ``dit`` (a diffusion transformer, arXiv 2212.09748).
        prediction_type: Target of the network: ``v_prediction`` (Salimans & Ho 2022, eq. 12), which learns faster from
            scratch, or ``epsilon``.
        noise_schedule: diffusers' name of the beta schedule over 1000 timesteps.
    """

    section: ClassVar[str] = "finetune.model"

    architecture: UNet | DiT = UNet()
    prediction_type: Prediction = "v_prediction"
    noise_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"

    def check(self) -> None:
        super().check()
        learned = isinstance(self.architecture, DiT) and self.architecture.learned_sigma
        expected = "false, or prediction_type epsilon, whose variational bound is defined"
        require(not learned or self.prediction_type == "epsilon", "finetune.model.learned_sigma", True, expected)


@dataclass(frozen=True, kw_only=True)
class MinimaxConfig(Options):
    """The two criteria of Minimax Diffusion (arXiv 2311.15529, eq. 4 to 7).

    Attributes:
        representativeness: Weight of the pull toward the farthest real image of the class.
        diversity: Weight of the push from the closest generated image of the class.
        reduction: ``per_sample`` gives every image its own partner; ``global`` uses one pair per class (the paper).
        memory_size: Images per class in each of the two memories.
        min_alpha_bar: Use only images with alpha_bar(t) of at least this: x0 is not recognisable in stronger noise.
        weighting: ``alpha_bar`` weights each image by alpha_bar(t) (per_sample only); ``none`` gives equal weights.
        share_memory: All processes share one memory; false keeps one in each process, as the released code.
    """

    section: ClassVar[str] = "finetune.minimax"

    representativeness: NonNegative = 0.02
    diversity: NonNegative = 0.05
    reduction: Reduction = "per_sample"
    memory_size: PerClass = 64
    min_alpha_bar: Share = 0.2
    weighting: Weighting = "none"
    share_memory: bool = True

    def check(self) -> None:
        super().check()
        fits = self.weighting == "none" or self.reduction == "per_sample"
        expected = "none with reduction global, which uses one pair per class"
        require(fits, "finetune.minimax.weighting", self.weighting, expected)


@dataclass(frozen=True, kw_only=True)
class LoRA(Options):
    """Low-rank matrices added to the frozen weights (arXiv 2106.09685).

    Attributes:
        rank: Rank of the LoRA matrices.
    """

    section: ClassVar[str] = "finetune"
    kind: ClassVar[str | None] = "lora"

    rank: Annotated[Width, Flat("lora_rank")] = 16


@dataclass(frozen=True, kw_only=True)
class LogNormal(Options):
    """Timesteps whose noise-to-signal ratio sigma / sqrt(alpha_bar) is log-normal, as EDM trains (arXiv 2206.00364).

    Attributes:
        mean: Mean of the logarithm of the noise-to-signal ratio of the timesteps that are trained.
        std: Its standard deviation.
    """

    section: ClassVar[str] = "finetune"
    kind: ClassVar[str | None] = "log_normal"

    mean: Annotated[float, Range(-20, 20), Flat("noise_mean")] = 0.0
    std: Annotated[Positive, Flat("noise_std")] = 1.0


Timesteps = Literal["uniform"] | LogNormal


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Training of the generator: plain diffusion first, then the minimax criteria on top.

    Attributes:
        pretrained: Generator to start from, a folder or Hub id of a diffusers pipeline, or the name of one that comes
            with gendistill; there is then no plain training.
        revision: Branch, tag or commit of a Hub id in ``pretrained`` or ``codec``.
        label_map: Condition index of each class name in a pretrained model, if its names are not enough.
        model: The network that is trained from scratch if there is no pretrained one.
        codec: ``pixels``, or the folder or Hub id of an autoencoder (AutoencoderKL, AutoencoderTiny, AutoencoderDC), in
            whose latents a network is trained from scratch; a pretrained generator has its own.
        latent_cache: Folder that keeps the encoded images for other runs; null removes them at the end of the run.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        minimax: The criteria of the second phase.
        adaptation: Weights that the second phase trains: ``full``, ``difffit`` (biases, norms, scales, class embedding)
            or ``lora``.
        base_steps: Optimiser steps of plain diffusion training.
        minimax_steps: Optimiser steps with the criteria.
        batch_size: Images per optimiser step, over all processes together.
        learning_rate: Peak learning rate in training from scratch; null is 6e-3 for Muon and 1e-3 for AdamW.
        minimax_learning_rate: Peak learning rate in the second phase.
        optimizer: ``muon`` orthogonalises the updates of hidden matrices and convolutions, ``adamw`` does not; ``auto``
            is Muon in training from scratch, where it learned faster, and AdamW in the second phase and where FSDP or
            DeepSpeed divides the weights.
        timesteps: Of plain training: ``log_normal``, most of them of middle noise, where an image takes shape; or
            ``uniform``, which the second phase always draws.
        loss_weighting: Of the noise levels in plain training: ``velocity``, of v_prediction, weighs middle noise up to
            twice as much, as rectified flow does; ``none``, as the second phase always trains, weighs all alike;
            ``auto`` is velocity with v_prediction, where short trainings learned more, and none with epsilon.
        rate_schedule: Course of both learning rates: ``cosine`` warms up over 5 % of the steps and falls to 5 % of the
            peak; ``constant`` is the peak at every step.
        weight_decay: Decoupled weight decay.
        label_dropout: Share of images whose label is replaced by the null class, for classifier-free guidance.
        ema_decay: Decay of the averaged weights (with warm-up); sampling uses these weights.
        max_grad_norm: Largest norm of the gradient; larger ones are clipped.
        gradient_accumulation_steps: Micro-batches per optimiser step.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU with bf16 units if the network is
            compiled; fp32 elsewhere.
        compile: torch.compile the network; ``auto`` compiles on a CPU that gains from it in a long training.
        checkpointing_steps: Largest number of optimiser steps between resumable checkpoints.
        checkpoint_minutes: Longest time between resumable checkpoints.
        checkpoints_total_limit: Number of newest checkpoints to keep.
        max_minutes: Longest time of training of this command: it then saves a checkpoint and finishes with the averaged
            weights of the steps that were done. The same command with --resume_from_checkpoint trains on.
        preview_steps: Optimiser steps between sample grids in ``previews/``; 0 draws one at the end of each phase.
        report_to: Tracker in addition to log.jsonl: ``tensorboard`` or ``wandb``.
    """

    section: ClassVar[str] = "finetune"

    pretrained: str | None = None
    revision: str | None = None
    label_map: dict[str, int] | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    codec: str = "pixels"
    latent_cache: Path | None = None
    flip: bool = False
    minimax: MinimaxConfig = field(default_factory=MinimaxConfig)
    adaptation: Literal["full", "difffit"] | LoRA = "full"
    base_steps: Whole = 1000
    minimax_steps: Whole = 100
    batch_size: Batch = 32
    learning_rate: NonNegative | None = None
    minimax_learning_rate: NonNegative = 3e-4
    optimizer: OptimizerName = "auto"
    timesteps: Timesteps = LogNormal()
    loss_weighting: LossWeighting = "auto"
    rate_schedule: RateSchedule = "cosine"
    weight_decay: NonNegative = 0.0
    label_dropout: Share = 0.1
    ema_decay: Share = 0.99
    max_grad_norm: NonNegative = 1.0
    gradient_accumulation_steps: Count = 1
    gradient_checkpointing: bool = False
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
    checkpointing_steps: Count = 100
    checkpoint_minutes: Positive = 1.0
    checkpoints_total_limit: Count = 2
    max_minutes: Positive | None = None
    preview_steps: Whole = 0
    report_to: Tracker = "none"

    def check(self) -> None:
        super().check()
        parts, section = self.gradient_accumulation_steps, "finetune"
        whole = self.batch_size % parts == 0
        require(whole, f"{section}.batch_size", self.batch_size, f"a multiple of {parts} micro-batches")
        alone = "pixels with pretrained, which has its own codec"
        require(self.pretrained is None or self.codec == "pixels", f"{section}.codec", self.codec, alone)
        latent = self.pretrained is not None or self.codec != "pixels"
        cached = self.latent_cache
        expected = "None with codec pixels, which encodes nothing"
        require(cached is None or latent, f"{section}.latent_cache", cached, expected)
        whole = self.optimizer != "muon" or self.pretrained is None or self.adaptation == "full"
        expected = "auto or adamw with pretrained, unless adaptation is full: muon is for whole matrices"
        require(whole, f"{section}.optimizer", self.optimizer, expected)
        weighted = self.loss_weighting == "velocity" and self.pretrained is None
        fits = not weighted or self.model.prediction_type == "v_prediction"
        require(fits, f"{section}.loss_weighting", "velocity", "auto or none with prediction_type epsilon")
        if self.pretrained is not None:  # there is no plain training that they could act on
            alone = "null with finetune.pretrained, whose only rate is minimax_learning_rate"
            require(self.learning_rate is None, f"{section}.learning_rate", self.learning_rate, alone)
        numbered = self.label_map is None or self.pretrained is not None
        expected = "None without finetune.pretrained: a model trained from scratch numbers its classes itself"
        require(numbered, f"{section}.label_map", self.label_map, expected)


@dataclass(frozen=True, kw_only=True)
class GeneratorExport(Options):
    """A generator for other people: without its variant ``base``, with a card.

    Attributes:
        dtype: Type in which the weights of the network are stored; they are read in fp32.
        data_licence: Licence of the images it was trained on, in the spelling of the Hub; null uses the one that the
            generator's record has.
        results: Markdown text with measurements, for the card.
    """

    kind: ClassVar[str | None] = "diffusers"

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    data_licence: str | None = None
    results: str | None = None
