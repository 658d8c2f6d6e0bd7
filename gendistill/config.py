"""Every stage's options: one frozen dataclass drives Python, YAML and flags. No torch in here.

Defaults are those of the embedded digits run; configs/*.yaml say what was measured with them.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gendistill.errors import ConfigError

Prediction = Literal["v_prediction", "epsilon"]
Reduction = Literal["per_sample", "global"]
Scheduler = Literal["dpmsolver++", "ddim", "ddpm", "unipc", "heun"]
Precision = Literal["auto", "no", "bf16"]
Compile = bool | Literal["auto"]
Architecture = Literal["unet", "dit"]
Adaptation = Literal["full", "difffit", "lora"]
Weighting = Literal["none", "alpha_bar"]
Guidance = Literal["none", "cfg", "mode"]
Start = Literal["noise", "prototypes"]
Tracker = Literal["none", "tensorboard", "wandb"]
LabelMode = Literal["per_image", "per_view", "online"]
Labels = Literal["hard", "soft"]
Task = Literal["classification", "continual"]
Format = Literal["imagefolder", "parquet", "webdataset", "ddranking"]
Projection = Literal["pca", "tsne"]
CoresetMethod = Literal["random", "kmeans", "herding", "kcenter"]
Baseline = Literal["random", "kmeans", "herding", "kcenter", "bytes", "full"]
MatchingMethod = Literal["dc", "dsa", "dm", "idc", "idm"]
Method = Literal[CoresetMethod, "wmdd", MatchingMethod]
SelectionKind = Literal["random", "representative"]
MatchingStart = Literal["noise", "random", "clustered"]
Distance = Literal["cosine", "mse", "l1"]
Augmentation = Literal["none", "one", "all"]
NetworkTraining = Literal["none", "surrogate", "real"]
WmddStart = Literal["noise", "real"]
FeatureLoss = Literal["squared", "published", "released"]
BatchNormLoss = Literal["normalised", "published"]
BarycenterWeights = Literal["fixed", "free"]
BarycenterSolver = Literal["exact", "sinkhorn"]
Sizes = int | tuple[int, ...]
Protocol = Literal["gendistill", "idc", "dsa", "minimax-hard", "wmdd-soft"]
FEATURES = ("auto", "teacher", "trained")


def need(condition: bool, option: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{option} is {value!r}; expected {expected}.")


def _at_least(config: Any, section: str, low: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        need(value >= low, f"{section}.{name}", value, f"a number of at least {low:g}")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value or several, as several."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def sizes(ipc: Sizes) -> tuple[int, ...]:
    """The IPC numbers, ascending."""
    return (ipc,) if isinstance(ipc, int) else tuple(sorted(ipc))


def _check_sizes(config: Any, section: str) -> None:
    found = sizes(config.ipc)
    need(len(found) > 0, f"{section}.ipc", config.ipc, "at least one number")
    need(all(ipc >= 1 for ipc in found), f"{section}.ipc", config.ipc, "images per class of at least 1")
    need(len(set(found)) == len(found), f"{section}.ipc", config.ipc, "each number once")


def _in_unit(config: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        need(0 <= value <= 1, f"{section}.{name}", value, "a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The real images.

    Attributes:
        name: ``digits`` (built in), a folder of class folders, a folder of parquet files, or a Hub id.
        image_size: Side of the square images in pixels; null keeps the size that the images share.
        test_fraction: Share of each class held out as test split when the source has none.
        validation_fraction: Share of each class carved from train, kept from every training and from the test.
        split_seed: Seed of those two splits; apart from the run's seed, so that runs share their splits.
        max_per_class: Keep at most this many training images of a class (null: all); for quick tries.
        revision: Branch, tag or commit of a Hub id.
        licence: Licence of the images, as the Hub spells it, for the cards of sets made from them; null takes what a
            Hub dataset says of itself.
    """

    name: str = "digits"
    image_size: int | None = None
    test_fraction: float = 0.25
    validation_fraction: float = 0.1
    split_seed: int = 0
    max_per_class: int | None = None
    revision: str | None = None
    licence: str | None = None

    @property
    def folder(self) -> Path | None:
        """The name as a folder, where it is one."""
        path = Path(self.name).expanduser()
        return path if self.name != "digits" and path.is_dir() else None

    def __post_init__(self) -> None:
        need(bool(self.name), "data.name", self.name, "digits, a folder or a Hub id")
        size = self.image_size
        need(size is None or size >= 4, "data.image_size", size, "null or at least 4 pixels")
        limit = self.max_per_class
        need(limit is None or limit >= 4, "data.max_per_class", limit, "null or at least 4")
        for name in ("test_fraction", "validation_fraction"):
            value = getattr(self, name)
            need(0 < value < 0.9, f"data.{name}", value, "a share between 0 and 0.9")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The classifier whose features and batch-norm statistics guide selection and refinement.

    Attributes:
        network: ``convnet``, ``resnet10``, ``resnet18``, ``resnetap10`` (instance norm), one of these with ``_bn``
            (batch norm, which refinement can match), or ``timm:NAME`` such as ``timm:resnet10t``.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW, decayed along a cosine.
        weight_decay: AdamW's weight decay.
        shift: Random translation in pixels as augmentation; 0 turns it off.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU that does where it compiles too,
            for alone it costs time there; fp32 elsewhere.
        compile: torch.compile the network: on CPU with bf16 2 to 3 times the speed, after 20 s of compiling; ``auto``
            does on such a CPU where the work makes up for that.
    """

    network: str = "convnet_bn"
    width: int = 64
    depth: int | None = None
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    shift: int = 0
    flip: bool = False
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        _at_least(self, "teacher", 1, "width", "steps", "batch_size")
        _at_least(self, "teacher", 0, "learning_rate", "weight_decay", "shift")


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
        _at_least(self, section, 1, "layers_per_block", "norm_num_groups")
        _at_least(self, section, 1, "num_layers", "num_attention_heads", "attention_head_dim", "patch_size")
        channels = self.block_out_channels
        need(len(channels) > 0, f"{section}.block_out_channels", channels, "one number a resolution")
        need(
            all(c > 0 and c % self.norm_num_groups == 0 for c in channels),
            f"{section}.block_out_channels",
            channels,
            f"multiples of norm_num_groups = {self.norm_num_groups}",
        )
        levels = self.attention_levels
        need(0 <= levels <= len(channels), f"{section}.attention_levels", levels, f"0 to {len(channels)}")
        need(
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
        _at_least(self, section, 0, "representativeness", "diversity")
        _at_least(self, section, 1, "memory_size")
        _in_unit(self, section, "min_alpha_bar")
        need(
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
        _at_least(self, section, 0, "base_steps", "minimax_steps", "weight_decay", "preview_steps")
        _at_least(self, section, 0, "learning_rate", "minimax_learning_rate", "max_grad_norm")
        _at_least(self, section, 1, "batch_size", "gradient_accumulation_steps", "checkpointing_steps")
        _at_least(self, section, 1, "checkpoints_total_limit", "lora_rank")
        _in_unit(self, section, "label_dropout", "ema_decay")
        parts = self.gradient_accumulation_steps
        need(
            self.batch_size % parts == 0,
            f"{section}.batch_size",
            self.batch_size,
            f"a multiple of {parts} micro-batches",
        )
        alone = "pixels when pretrained is given, which brings its own codec"
        need(self.pretrained is None or self.codec == "pixels", f"{section}.codec", self.codec, alone)
        latent = self.pretrained is not None or self.codec != "pixels"
        need(
            self.latent_cache is None or latent,
            f"{section}.latent_cache",
            str(self.latent_cache),
            "null with codec pixels, where nothing is encoded",
        )
        need(
            self.label_map is None or self.pretrained is not None,
            f"{section}.label_map",
            self.label_map,
            "null without finetune.pretrained: a model trained from scratch numbers its classes itself",
        )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sampling surrogate sets from one generator; the IPC-5 set is the first five of the IPC-10 set.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        classes: Names of the classes to sample; null takes all of the generator's.
        pool: Images per class of a further set, ``pool``, for refinement to select from; 0 writes none.
        base: Also sample the same sets from the generator's plain-diffusion weights, into ``base``.
        num_inference_steps: Denoising steps.
        scheduler: Solver by name.
        guidance: ``none``, ``cfg`` (classifier-free), or ``mode`` (toward k-means modes of the real images, MGD3).
        guidance_scale: Of classifier-free guidance, alone or beside mode guidance; 1 is off and halves the cost.
        guidance_interval: Noise levels t/T between which classifier-free guidance acts.
        mode_scale: Strength of mode guidance.
        mode_stop: Mode guidance ends at this noise level t/T, so that the model alone finishes the details.
        modes: k-means clusters a class, of mode guidance and of prototypes; image i takes cluster i mod modes.
        start: ``noise``, or ``prototypes``: cluster centres of the real images, noised and denoised again (D4M).
        strength: How much noise prototypes get: the share of the denoising steps that are run.
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it, fp32 elsewhere.
        compile: torch.compile the network; on two CPU cores 1.7 times the speed for a DiT, after 16 s of compiling.
        batch_size: Images denoised at once; changes speed and memory, on CPU never the images.
    """

    ipc: Sizes = (1, 5, 10)
    classes: tuple[str | int, ...] | None = None
    pool: int = 100
    base: bool = True
    num_inference_steps: int = 10
    scheduler: Scheduler = "dpmsolver++"
    guidance: Guidance = "none"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    mode_scale: float = 0.1
    mode_stop: float = 0.5
    modes: int = 10
    start: Start = "noise"
    strength: float = 0.7
    mixed_precision: Precision = "auto"
    compile: bool = False
    batch_size: int = 128

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """``classes`` as text: YAML reads a name such as 3 as a number."""
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    @property
    def needs_real_images(self) -> bool:
        return self.guidance == "mode" or self.start == "prototypes"

    def __post_init__(self) -> None:
        section = "sample"
        _check_sizes(self, section)
        _at_least(self, section, 1, "num_inference_steps", "batch_size", "guidance_scale", "modes")
        names = self.class_names
        need(names is None or len(set(names)) == len(names) > 0, "sample.classes", names, "null, or names, each once")
        need(self.num_inference_steps <= 1000, "sample.num_inference_steps", self.num_inference_steps, "at most 1000")
        _at_least(self, section, 0, "pool", "mode_scale")
        _in_unit(self, section, "mode_stop", "strength")
        need(self.strength > 0, "sample.strength", self.strength, "more than 0")
        low, high = self.guidance_interval
        need(0 <= low < high <= 1, "sample.guidance_interval", [low, high], "two ascending numbers from 0 to 1")
        scale = self.guidance_scale
        need(self.guidance != "none" or scale == 1, "sample.guidance_scale", scale, "1 with guidance none; say cfg")
        need(self.guidance != "cfg" or scale > 1, "sample.guidance_scale", scale, "more than 1 with guidance cfg")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What refined images descend on, and how far they may go (WMDD, arXiv 2311.18531).

    Attributes:
        steps: Optimiser steps on the images; 0 stops after the selection.
        learning_rate: Peak rate of Adam(0.5, 0.9) on pixels in [-1, 1] (or on latents of about unit std), decayed along
            a cosine.
        feature_weight: Weight of the distance to an image's own atom.
        batch_norm_weight: Weight of the per-class batch-norm matching; 0 needs no batch norm in the teacher.
        cross_entropy_weight: Weight of the teacher's cross-entropy.
        feature_loss: ``squared`` distances in class variances, ``published`` ones in raw features, or ``released``:
            their unsquared norm over the batch.
        batch_norm_loss: ``normalised`` by layer, so that a weight carries over between networks, or ``published``.
        pixel_weight: Weight of pixels beside teacher features in the ground cost of barycenter and assignment. On
            digits 3 was best; on photographs less, the less the more images a class has.
        weights: Barycenter weights: ``fixed`` at 1/IPC, or ``free``: each image weighs what its atom stands for.
        solver: ``exact`` plans, or entropic ones by ``sinkhorn``.
        trust_region: Largest change of a pixel, in units of the range [-1, 1]; 2 is no bound.
        delta_size: Side at which the change is optimised, then enlarged; null for the image's own; less is smoother.
        blend_every: Every so many steps the change is shrunk by ``blend``; 0 never.
        blend: What is left of the change then.
        min_crop: Least share of an image's area that a step's random crop shows; 1 shows all.
        flip: Mirror what a step shows at random; wrong for digits, right for most photographs.
        roll: Largest random cyclic shift of what a step shows, in pixels.
        batch_size: Images in the networks at once, whole classes together; a class of more goes in pieces, at one more
            forward pass. It does not change what is made, but rounding.
        mixed_precision: ``auto`` is bf16 on a GPU or CPU that computes in it (half the time; images differ by a few of
            255 levels), fp32 elsewhere.
    """

    steps: int = 200
    learning_rate: float = 0.03
    feature_weight: float = 1.0
    batch_norm_weight: float = 1.0
    cross_entropy_weight: float = 0.1
    feature_loss: FeatureLoss = "squared"
    batch_norm_loss: BatchNormLoss = "normalised"
    pixel_weight: float = 0.3
    weights: BarycenterWeights = "fixed"
    solver: BarycenterSolver = "exact"
    trust_region: float = 1.0
    delta_size: int | None = None
    blend_every: int = 0
    blend: float = 0.5
    min_crop: float = 1.0
    flip: bool = False
    roll: int = 0
    batch_size: int = 128
    mixed_precision: Precision = "auto"

    def _check(self, section: str) -> None:
        _at_least(self, section, 0, "steps", "learning_rate", "trust_region", "pixel_weight", "blend_every", "roll")
        _at_least(self, section, 0, "feature_weight", "batch_norm_weight", "cross_entropy_weight")
        _at_least(self, section, 1, "batch_size")
        _in_unit(self, section, "blend", "min_crop")
        need(self.min_crop > 0, f"{section}.min_crop", self.min_crop, "more than 0")
        size = self.delta_size
        need(size is None or size >= 1, f"{section}.delta_size", size, "null or at least 1")
        need(
            self.blend_every > 0 or self.blend == 0.5, f"{section}.blend", self.blend, "left alone without blend_every"
        )
        need(
            self.weights == "fixed" or self.solver == "exact",
            f"{section}.weights",
            self.weights,
            "fixed with solver sinkhorn",
        )


@dataclass(frozen=True, kw_only=True)
class WmddConfig(ObjectiveConfig):
    """The WMDD back-end (arXiv 2311.18531): the refiner's optimisation, from noise or from random real images.

    Attributes:
        start: ``noise``, or ``real``: random real images.
    """

    start: WmddStart = "noise"
    trust_region: float = 2.0
    pixel_weight: float = 0.0

    def __post_init__(self) -> None:
        self._check("distill.wmdd")


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Methods dc, dsa, dm, idc and idm: four choices of one engine. Null is the method's value (matching/presets.py).

    Attributes:
        network: ``convnet``, ``resnet10``, ``resnet18``, ``resnetap10`` (instance norm), one of these with ``_bn``
            (batch norm), or ``timm:NAME``.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        start: ``noise``; ``random`` real images; ``clustered``: real images nearest to the k-means centres of their
            class, on a fresh network's features (DREAM, and null with representative selection); or the folder of a
            surrogate set.
        factor: Views a side in a stored image: factor x factor images stored in the bytes of one; of several such as
            [1,2], the views of each.
        inner_steps: Steps of the images on each network.
        learning_rate: SGD's for the images, in units of the range [0, 1]; idc: at IPC 10 and 28, 32 or 224 px, and
            scaled (presets.py).
        momentum: SGD's for the images.
        real_batch: Real images of a class in a step.
        most_views: Views of a class in a step, drawn anew; 0 is all.
        interval: representative selection: inner steps between two clusterings, 10 unless given; dm: 50, as one takes
            the time of four of its steps.
        per_cluster: representative selection: images taken of every cluster.
        cluster_weights: representative selection: ``free`` clusters of k-means (the paper), or ``fixed`` ones of equal
            mass: of few candidates free clusters choose outliers, and are worse than random (docs/matching.md).
        candidates: representative selection: images of a class that are embedded and clustered, 4 times
            real_batch unless given; 0 is all (the paper).
        dimensions: representative selection: random projection of the features to so many; 0 is none (the paper).
        distance: gradient matching: ``cosine`` by output row, ``mse`` or ``l1``.
        match_head: gradient matching: the classifier's gradient takes part.
        feature_weight: gradient matching: weight of the distance of mean features, DREAM+'s addition.
        class_aware: feature matching: weight of the cross-entropy of the views times the network's accuracy (IDM), both
            as fractions.
        augmentation: Shared by real images and views: ``one`` of six operations a step (DSA), ``all`` of colour, crop
            and cutout (IDC), or ``none``.
        flip: Mirrored images are images of the same class; wrong for digits.
        train_on: What networks learn from between inner steps.
        train_steps: Steps of that; epochs with train_on surrogate.
        warm_steps: Steps on real images before a network is first matched on.
        train_batch: Images a step of network training.
        train_learning_rate: SGD's for networks.
        cutmix: Probability that a batch of network training is mixed.
        queue_size: idm: most networks at once.
        queue_interval: idm: iterations between two new ones.
        queue_most_steps: idm: steps after which a network learns no more; 0 is no limit.
        classes_per_chunk: Classes computed at once; null suits the device: gradient matching takes 1 on a CPU, where
            that is fastest, and 10 on a GPU; feature matching takes as many as fit its batches.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU that does where it compiles too;
            fp32 elsewhere.
        compile: torch.compile matching and network training; ``auto`` does on such a CPU where the run makes up for the
            20 s and more that compiling takes.
        checkpoint_every: Iterations between two checkpoints.
        snapshot_every: Iterations between two snapshots of the sets, in ``snapshots/``, and of their pictures, in
            ``previews/``; 0 is none.
    """

    network: str = "convnet"
    width: int = 128
    depth: int | None = None
    start: MatchingStart | Path | None = None
    factor: int | list[int] | None = None
    inner_steps: int | None = None
    learning_rate: float | None = None
    momentum: float = 0.5
    real_batch: int | None = None
    most_views: int | None = None
    interval: int | None = None
    per_cluster: int = 1
    cluster_weights: BarycenterWeights = "fixed"
    candidates: int | None = None
    dimensions: int = 256
    distance: Distance | None = None
    match_head: bool | None = None
    feature_weight: float | None = None
    class_aware: float | None = None
    augmentation: Augmentation | None = None
    flip: bool = False
    train_on: NetworkTraining | None = None
    train_steps: int | None = None
    warm_steps: int | None = None
    train_batch: int | None = None
    train_learning_rate: float = 0.01
    cutmix: float | None = None
    queue_size: int | None = None
    queue_interval: int | None = None
    queue_most_steps: int = 0
    classes_per_chunk: int | None = None
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
    checkpoint_every: int | None = None
    snapshot_every: int = 0

    def __post_init__(self) -> None:
        section = "distill.matching"
        counts = ("inner_steps", "real_batch", "interval", "train_batch", "queue_size", "queue_interval")
        others = ("classes_per_chunk", "checkpoint_every")
        given = [name for name in (*counts, *others) if getattr(self, name) is not None]
        _at_least(self, section, 1, "width", "per_cluster", *given)
        weights = ("learning_rate", "candidates", "most_views", "feature_weight", "class_aware", "train_steps")
        given = [name for name in (*weights, "warm_steps", "cutmix") if getattr(self, name) is not None]
        _at_least(self, section, 0, "dimensions", "queue_most_steps", "snapshot_every", *given)
        _at_least(self, section, 0, "momentum", "train_learning_rate")
        sides = () if self.factor is None else as_tuple(self.factor)
        fits = self.factor is None or (min(sides, default=0) >= 1 and len(set(sides)) == len(sides))
        need(fits, f"{section}.factor", self.factor, "a number of at least 1, or different ones such as [1,2]")
        need(self.momentum < 1, f"{section}.momentum", self.momentum, "less than 1")
        need(self.cutmix is None or self.cutmix <= 1, f"{section}.cutmix", self.cutmix, "a probability")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distiller run straight on the real images.

    Attributes:
        method: Which distiller.
        ipc: Images per class: a number, or a list such as [1,5,10].
        selection: Matching methods: the real images of a step, ``random`` or ``representative`` (DREAM).
        iterations: Matching methods: outer iterations, a network each; null is the published number.
        wmdd: Options of method wmdd.
        matching: Options of methods dc, dsa, dm, idc and idm.
    """

    method: Method = "kmeans"
    ipc: Sizes = (1, 5, 10)
    selection: SelectionKind = "random"
    iterations: int | None = None
    wmdd: WmddConfig = field(default_factory=WmddConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)

    def __post_init__(self) -> None:
        _check_sizes(self, "distill")
        limit = self.iterations
        need(limit is None or limit >= 1, "distill.iterations", limit, "null or at least 1")
        methods = get_args(MatchingMethod)
        if self.method != "wmdd":
            given = [f"wmdd.{f.name}" for f in fields(WmddConfig) if getattr(self.wmdd, f.name) != f.default]
            text = f"none of them with method {self.method}; they are options of wmdd"
            need(not given, "distill", ", ".join(given), text)
        if self.method not in methods:
            given = [
                f"matching.{f.name}" for f in fields(MatchingConfig) if getattr(self.matching, f.name) != f.default
            ]
            given += [name for name in ("selection", "iterations") if getattr(self, name) not in (None, "random")]
            text = f"none of them with method {self.method}; they are options of {', '.join(methods)}"
            need(not given, "distill", ", ".join(given), text)


@dataclass(frozen=True, kw_only=True)
class RefineConfig(ObjectiveConfig):
    """Selection by barycenter assignment, then barycenter and batch-norm refinement of what was chosen.

    Attributes:
        ipc: Images per class of the sets to write: a number, or a list such as [1,5,10].
        select: Choose from the set by assignment; false takes its first images as they are.
        gate: Keep a refinement only where it helps: W2 of its class falls, and where ``held_out`` is given, that
            network's cross-entropy on the image does not rise.
        pack: Factor of multi-formation: pack x pack images, each refined by itself, shrunk into every stored one.
        latent_trust_region: With a generator, largest change of a latent, in units of about its std; the bound of
            trust_region on pixels holds besides.
        patches: Crops tried of every image of the set, the whole one among them; the one that the teachers are surest
            of takes its place before the selection. 1 keeps whole images.
        min_patch: Least share of an image's area that such a crop has.
        match_iterations: Iterations of distribution matching (method dm of distill, with its presets) that carry the
            refined images on; 0 is none. What 100 gain is in docs/refinement.md.
    """

    ipc: Sizes = (1, 5, 10)
    select: bool = True
    gate: bool = False
    pack: int = 1
    latent_trust_region: float = 0.5
    patches: int = 1
    min_patch: float = 0.25
    match_iterations: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self, "refine")
        self._check("refine")
        _at_least(self, "refine", 1, "pack", "patches")
        _at_least(self, "refine", 0, "latent_trust_region", "match_iterations")
        need(0 < self.min_patch <= 1, "refine.min_patch", self.min_patch, "a share above 0, at most 1")
        alike = self.patches > 1 and self.min_patch == 1
        unread = self.patches == 1 and self.min_patch not in (0.25, 1)
        need(not unread, "refine.min_patch", self.min_patch, "left alone with patches 1, which cuts nothing")
        need(not alike, "refine.patches", self.patches, "1 with min_patch 1, where every crop is the whole image")
        need(self.pack == 1 or self.weights == "fixed", "refine.weights", self.weights, "fixed with pack above 1")
        need(not self.gate or self.steps > 0, "refine.gate", self.gate, "false with steps 0, which refine nothing")
        if self.match_iterations:
            need(self.weights == "fixed", "refine.weights", self.weights, "fixed with match_iterations")
            need(not self.gate, "refine.gate", self.gate, "false with match_iterations, which moves every image")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Soft labels by a teacher.

    Attributes:
        mode: ``per_image`` stores one mean over views an image; ``per_view`` one for every view of every batch, with
            the seed that replays the views; ``online`` nothing but that seed: the teacher labels while training.
        temperature: Divides the teacher's logits; students train at the same one.
        top_k: Keep only the most probable classes of each label (null: all); the rest shares what is left evenly.
        views: per_image: views averaged; 1 is the image itself as it is.
        steps: per_view: batches to label, which is how long a training can be.
        batch_size: per_view, online: images a batch.
        min_crop: Least share of an image's area that a random crop keeps; 1 does not crop.
        flip: Mirror views at random; wrong for digits, right for most photographs.
        cutmix: per_view, online: alpha of CutMix's Beta(alpha, alpha); 0 does not mix.
    """

    mode: LabelMode = "per_image"
    temperature: float = 4.0
    top_k: int | None = None
    views: int = 1
    steps: int = 200
    batch_size: int = 64
    min_crop: float = 1.0
    flip: bool = False
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        section = "label"
        _at_least(self, section, 1, "views", "steps", "batch_size")
        _at_least(self, section, 0, "cutmix")
        need(self.temperature > 0, f"{section}.temperature", self.temperature, "more than 0")
        need(self.top_k is None or self.top_k >= 1, f"{section}.top_k", self.top_k, "null or at least 1")
        need(0 < self.min_crop <= 1, f"{section}.min_crop", self.min_crop, "a share above 0, at most 1")
        per_image = self.mode == "per_image"
        need(
            not (per_image and self.cutmix),
            f"{section}.cutmix",
            self.cutmix,
            "0 with mode per_image, whose labels belong to one image",
        )
        same = per_image and self.views > 1 and self.min_crop == 1 and not self.flip
        need(not same, f"{section}.views", self.views, "1 where neither min_crop nor flip makes views differ")
        need(per_image or self.views == 1, f"{section}.views", self.views, f"1 with mode {self.mode}")
        need(
            self.mode != "online" or self.top_k is None,
            f"{section}.top_k",
            self.top_k,
            "null with mode online, which stores nothing",
        )


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Class-incremental learning from a memory that is the surrogate set.

    Attributes:
        steps: Steps in which the classes arrive, as many in each as divide evenly, one more in the first ones.
        orders: Orders of the classes, drawn from the seed, that the runs go round; null: one for every run.
    """

    steps: int = 5
    orders: int | None = None

    def __post_init__(self) -> None:
        section = "evaluate.continual"
        _at_least(self, section, 1, "steps")
        need(self.orders is None or self.orders >= 1, f"{section}.orders", self.orders, "null or at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The judge: classifiers trained from scratch on each set, tested once at the last step.

    Every row has the same networks, optimiser, length of training and training seeds, so only the images differ. Null
    is the protocol's value.

    Attributes:
        task: ``classification`` of all classes at once, or ``continual``: classes arrive in steps, and a classifier is
            trained anew on the memory of those that have come (GDumb), beside random and k-means alone; baselines,
            describe, features and legacy_best belong to classification.
        protocol: ``gendistill`` (equal optimiser steps), or as others evaluate: ``idc``, ``dsa``, ``minimax-hard``,
            ``wmdd-soft``; gendistill/evaluate/protocols has their values.
        network: ``convnet``, ``resnet10``, ``resnet18``, ``resnetap10`` (instance norm), one of these with ``_bn``
            (batch norm), or ``timm:NAME`` such as ``timm:densenet121`` or ``timm:vit_tiny_patch16_224``; or a list of
            them, such as [convnet,resnet18], with rows of each.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        runs: Training runs of every row; run r has training seed r, and its own draw where the row is random.
        steps: Optimiser steps of a run, the same for every row.
        epochs: Instead of steps: passes over a row's own images.
        batch_size: Images a step; a smaller set gives batches of its size.
        learning_rate: Peak rate of the protocol's optimiser.
        weight_decay: The optimiser's.
        shift: Random translation in pixels; 0 turns it off.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        augment: false trains without any augmentation of the protocol; [true,false] has rows with and without.
        labels: ``soft`` adds rows for the soft labels of labelled sets, and for baselines labelled by the same teacher
            in the same way; ``hard`` leaves them aside.
        legacy_best: Also test along the way, after every epoch (or twentieth of the steps), and give the highest
            accuracy in a column ``legacy_best``, as others report; no verdict reads it.
        baselines: What stands beside the sets, at each of their IPC: ``random`` draws (always), ``kmeans``,
            ``herding`` and ``kcenter``; ``bytes``, random images of as many bytes as a set takes with soft labels or
            packed views; and ``full``, all real images.
        baseline_cache: Folder that keeps the baselines' finished runs for other evaluations; ``auto`` is gendistill in
            the user's cache folder, null keeps none.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU that does where it compiles too,
            for alone it costs time there; fp32 elsewhere.
        compile: torch.compile the network: on CPU with bf16 2 to 3 times the speed, after 20 s of compiling for each
            size of batch; ``auto`` does on such a CPU where the trainings make up for that.
        describe: Measure the sets themselves beside random real ones, and look for faults in them.
        features: What that measures in: ``teacher`` (needs one), ``trained`` (a network trained for it on the real
            images), ``auto`` (the teacher where one is given, else trained), or ``timm:NAME`` or ``transformers:NAME``,
            a folder or a Hub id such as transformers:facebook/dinov2-small.
        continual: Options of task continual.
    """

    task: Task = "classification"
    protocol: Protocol = "gendistill"
    network: str | tuple[str, ...] | None = None
    width: int | None = None
    depth: int | None = None
    runs: int = 5
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    shift: int | None = None
    flip: bool | None = None
    augment: bool | tuple[bool, ...] = True
    labels: Labels | None = None
    legacy_best: bool = False
    baselines: tuple[Baseline, ...] = ("random", "kmeans", "herding", "kcenter", "bytes", "full")
    baseline_cache: Literal["auto"] | Path | None = "auto"
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
    describe: bool = True
    features: str = "auto"
    continual: ContinualConfig = field(default_factory=ContinualConfig)

    def __post_init__(self) -> None:
        section = "evaluate"
        _at_least(self, section, 3, "runs")
        counts = ("width", "steps", "epochs", "batch_size")
        _at_least(self, section, 1, *(name for name in counts if getattr(self, name) is not None))
        weights = ("learning_rate", "weight_decay", "shift")
        _at_least(self, section, 0, *(name for name in weights if getattr(self, name) is not None))
        both = self.steps is not None and self.epochs is not None
        need(not both, f"{section}.epochs", self.epochs, "null with steps, which say how long a run is")
        names = as_tuple(self.network)
        need(len(set(names)) == len(names) > 0, f"{section}.network", names, "a network, or several, each once")
        rows = as_tuple(self.augment)
        need(len(set(rows)) == len(rows) > 0, f"{section}.augment", self.augment, "true, false or [true,false]")
        for name in ("shift", "flip"):
            value, unread = getattr(self, name), True not in rows
            need(not (unread and value), f"{section}.{name}", value, "null with augment false, which leaves it out")
        named = "random" in self.baselines and len(set(self.baselines)) == len(self.baselines)
        need(named, "evaluate.baselines", self.baselines, "each once, random among them, which verdicts are against")
        known = self.features in FEATURES or self.features.startswith(("timm:", "transformers:"))
        need(known, "evaluate.features", self.features, f"{', '.join(FEATURES)}, timm:NAME or transformers:NAME")
        if self.task == "classification":
            unread = self.continual == ContinualConfig()
            need(unread, "evaluate.continual", to_dict(self.continual), "left alone without task continual")
        else:
            need(self.labels != "soft", "evaluate.labels", self.labels, "hard with task continual")
            need(len(names) == 1, "evaluate.network", names, "one network with task continual")
            need(len(rows) == 1, "evaluate.augment", self.augment, "true or false with task continual")
            for name in ("legacy_best", "baselines", "describe", "features"):
                value, usual = getattr(self, name), getattr(EvaluateConfig, name)
                need(value == usual, f"evaluate.{name}", value, f"{usual!r}: nothing reads it in task continual")


def section(config: Any, kind: type) -> Any:
    """The fields of ``config`` that belong to its base ``kind``, as a plain ``kind``: a command's stage options."""
    return kind(**{f.name: getattr(config, f.name) for f in fields(kind)})


def to_dict(config: Any) -> Any:
    """Plain data (for YAML and JSON) of a config: paths as text, tuples as lists."""
    if is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, Path) else config
