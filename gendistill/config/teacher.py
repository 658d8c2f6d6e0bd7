"""Options of the teacher and of its soft labels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from gendistill.config.base import (
    Batch,
    Compile,
    Count,
    Depth,
    Distance,
    NonNegative,
    Options,
    Positive,
    PositiveShare,
    Precision,
    Side,
    Width,
    require,
)


@dataclass(frozen=True, kw_only=True)
class Pretrained(Options):
    """A published classifier as the teacher.

    Attributes:
        source: ``timm:NAME``, the folder or Hub id of a timm or transformers classifier, or a safetensors file.
        network: Architecture of a safetensors file, ``timm:NAME`` or ``torchvision:NAME``; null reads config.json
            beside it. Images are prepared as for the library's default weights of this name; ``timm:NAME.TAG`` and
            ``torchvision:NAME.WEIGHTS`` name others.
        revision: Branch, tag or commit of a Hub id.
        head: Last layer: ``mapped`` keeps the network's own rows of the classes, found by name or WordNet id; ``new``
            fits one on the features; ``auto`` maps if every class has its row, and fits one otherwise.
        label_map: Row of each class name in the network's last layer, if its names are not enough.
        tune: What is trained for ``steps``: ``none``, the ``head``, or ``all`` weights.
        input_size: Side in pixels to which the network resizes images; null is the network's own.
    """

    section: ClassVar[str] = "teacher.pretrained"
    short: ClassVar[str | None] = "source"

    source: str
    network: str | None = None
    revision: str | None = None
    head: Literal["auto", "mapped", "new"] = "auto"
    label_map: dict[str, int] | None = None
    tune: Literal["none", "head", "all"] = "none"
    input_size: Side | None = None

    def check(self) -> None:
        super().check()
        require(self.source.strip() != "", "teacher.pretrained", self.source, "a name, a folder, a Hub id or a file")
        maps = self.label_map is None or self.head != "new"
        require(maps, f"{self.section}.label_map", self.label_map, "null with head new, which has no rows to map")
        kinds = ("timm:", "torchvision:")
        known = self.network is None or (self.network.startswith(kinds) and not self.network.endswith(":"))
        require(known, f"{self.section}.network", self.network, "timm:NAME or torchvision:NAME")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Options):
    """A classifier and how it is trained on the real images, except for how long.

    Attributes:
        network: A name of ``gendistill.NETWORKS``. Ours have instance norm, or with ``_bn`` batch norm, which
            refinement can match; ``timm:resnet10t`` is one of timm's.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        batch_size: Images per step.
        learning_rate: Peak learning rate of AdamW, with cosine decay.
        weight_decay: Weight decay of AdamW.
        shift: Random translation in pixels as augmentation; 0 turns it off.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU with bf16 units if the network is
            compiled; fp32 elsewhere.
        compile: torch.compile the network: on CPU with bf16 2 to 3 times the speed, after 20 s of compiling; ``auto``
            compiles on a CPU that gains from it in a long training.
        checkpointing_steps: Largest number of optimiser steps between resumable checkpoints; one is also saved when the
            last is a minute old, and after the last step. null saves these alone.
    """

    network: str = "convnet_bn"
    width: Width = 64
    depth: Depth | None = None
    batch_size: Batch = 64
    learning_rate: NonNegative = 2e-3
    weight_decay: NonNegative = 1e-2
    shift: Distance = 0
    flip: bool = False
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
    checkpointing_steps: Count | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ClassifierConfig):
    """The classifier whose features and batch-norm statistics guide selection and refinement.

    Attributes:
        steps: Optimiser steps.
        pretrained: Published classifier to take instead of training one: ``timm:NAME``, a folder, a Hub id or a
            safetensors file; ``pretrained.tune`` says what of it is trained.
    """

    section: ClassVar[str] = "teacher"
    order: ClassVar[str] = "network width depth steps ..."

    steps: Count = 400
    pretrained: Pretrained | None = None

    @property
    def trains(self) -> bool:
        """Whether there is any training."""
        return self.pretrained is None or self.pretrained.tune != "none"

    @property
    def unused(self) -> list[str]:
        """Options that differ from their defaults and decide nothing, because the network is a published one."""
        names = ["network", "width", "depth"] if self.pretrained else []
        training = ["steps", "batch_size", "learning_rate", "weight_decay", "shift", "flip"]
        names += [] if self.trains else [*training, "mixed_precision", "compile", "checkpointing_steps"]
        return [name for name in names if getattr(self, name) != getattr(TeacherConfig, name)]


@dataclass(frozen=True, kw_only=True)
class PerImage(Options):
    """One label per image: the mean over its views.

    Attributes:
        top_k: Keep only the most probable classes of each label (null: all); the remaining probability is divided
            evenly among the others.
        views: Views averaged; 1 is the image itself.
    """

    section: ClassVar[str] = "label"
    kind: ClassVar[str | None] = "per_image"

    top_k: Count | None = None
    views: Count = 1


@dataclass(frozen=True, kw_only=True)
class PerView(Options):
    """One label for every view of every batch, with the seed that reproduces the views.

    Attributes:
        top_k: Keep only the most probable classes of each label (null: all); the remaining probability is divided
            evenly among the others.
        steps: Batches to label, which is the longest possible training.
        batch_size: Images per batch.
        cutmix: Alpha of CutMix's Beta(alpha, alpha); 0 does not mix.
    """

    section: ClassVar[str] = "label"
    kind: ClassVar[str | None] = "per_view"

    top_k: Count | None = None
    steps: Count = 200
    batch_size: Batch = 64
    cutmix: NonNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class Online(Options):
    """No stored labels, only the seed that reproduces the views: the teacher labels during training.

    Attributes:
        batch_size: Images per batch.
        cutmix: Alpha of CutMix's Beta(alpha, alpha); 0 does not mix.
    """

    section: ClassVar[str] = "label"
    kind: ClassVar[str | None] = "online"

    batch_size: Batch = 64
    cutmix: NonNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class LabelConfig(Options):
    """Soft labels by a teacher.

    Attributes:
        mode: ``per_image`` stores one label per image, the mean over its views; ``per_view`` one label for every view
            of every batch, with the seed of the views; ``online`` only that seed: the teacher labels during training.
        temperature: Divides the logits of the teacher; students are trained with the same temperature.
        min_crop: Smallest share of an image's area in a random crop; 1 does not crop.
        flip: Mirror views at random; wrong for digits, right for most photographs.
    """

    section: ClassVar[str] = "label"
    order: ClassVar[str] = "mode temperature top_k views steps batch_size min_crop flip cutmix"

    mode: PerImage | PerView | Online = PerImage()
    temperature: Positive = 4.0
    min_crop: PositiveShare = 1.0
    flip: bool = False

    @property
    def top_k(self) -> int | None:
        """Classes kept of each stored label; null keeps all."""
        return None if isinstance(self.mode, Online) else self.mode.top_k

    def check(self) -> None:
        super().check()
        if isinstance(self.mode, PerImage):
            same = self.mode.views > 1 and self.min_crop == 1 and not self.flip
            require(not same, "label.views", self.mode.views, "1 without min_crop and flip: all views are equal")
