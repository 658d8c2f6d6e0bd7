"""Options of the distillers that need no generator."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from gendistill.config.base import (
    Compile,
    Count,
    NonNegative,
    Options,
    Positive,
    Precision,
    Range,
    Share,
    Sizes,
    Whole,
    as_tuple,
    check_sizes,
    require,
)
from gendistill.config.refine import BarycenterWeights, WmddConfig
from gendistill.errors import ConfigError
from gendistill.registry import DISTILLERS

MatchingMethod = Literal["dc", "dsa", "dm", "idc", "idm"]
SelectionKind = Literal["random", "representative"]
MatchingStart = Literal["noise", "random", "clustered"]
Distance = Literal["cosine", "mse", "l1"]
Augmentation = Literal["none", "one", "all"]
NetworkTraining = Literal["none", "surrogate", "real"]


@dataclass(frozen=True)
class Of:
    """The part of a matching run that an option belongs to: ``gradient``, ``queue`` or ``representative``."""

    part: str


@dataclass(frozen=True, kw_only=True)
class MatchingConfig(Options):
    """Options of methods dc, dsa, dm, idc and idm. Null is the method's value (matching/methods.py).

    Attributes:
        network: ``convnet``, ``resnet10``, ``resnet18``, ``resnetap10`` (instance norm), one of these with ``_bn``
            (batch norm), or ``timm:NAME``; null is ``resnetap10`` for idc from 128 px on, else ``convnet``.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        start: ``noise``; ``random`` real images; ``clustered``: real images nearest to the k-means centres of their
            class, in the features of a fresh network (DREAM; null with representative selection); or the folder of a
            surrogate set.
        factor: Views per side in a stored image: factor x factor images in the bytes of one; a list such as [1,2]
            stores the views of each factor.
        inner_steps: Steps of the images on each network.
        learning_rate: Learning rate of SGD for the images, in units of the range [0, 1]; for idc the rate at IPC 10 and
            28, 32 or 224 px, which is scaled (methods.py).
        momentum: Momentum of SGD for the images.
        real_batch: Real images of a class in a step.
        most_views: Largest number of views of a class in a step, drawn again in every step; 0 is all.
        interval: representative selection: inner steps between two clusterings, 10 by default; with dm 50, because a
            clustering takes as long as four of its steps.
        per_cluster: representative selection: images selected from every cluster.
        cluster_weights: representative selection: ``free`` clusters of k-means (the paper), or ``fixed`` ones of equal
            mass: with few candidates free clusters select outliers, and are worse than random (docs/matching.md).
        candidates: representative selection: images of a class that are embedded and clustered, by default 4 times
            real_batch; 0 is all (the paper).
        dimensions: representative selection: dimensions of a random projection of the features; 0 is no projection (the
            paper).
        distance: gradient matching: ``cosine`` by output row, ``mse`` or ``l1``.
        match_head: gradient matching: also match the gradient of the classification layer.
        feature_weight: gradient matching: weight of the distance of mean features (DREAM+).
        class_aware: idm: weight of the cross-entropy of the views times the network's accuracy, both as fractions.
        augmentation: Augmentation of real images and views alike: ``one`` of six operations per step (DSA; of five
            without ``flip``), ``all`` of colour, crop and cutout (IDC), or ``none``.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        train_on: Images on which networks are trained between inner steps.
        train_steps: Steps of this training; epochs with train_on surrogate.
        warm_steps: Training steps on real images before a network is first used.
        train_batch: Images per step of network training.
        train_learning_rate: Learning rate of SGD for networks.
        cutmix: Probability that a batch of network training is mixed.
        queue_size: idm: largest number of networks.
        queue_interval: idm: iterations between two new ones.
        queue_most_steps: idm: steps after which a network is no longer trained; 0 is no limit.
        classes_per_chunk: Classes computed together; null depends on the device: gradient matching uses 1 on a CPU,
            where that is fastest, and up to 10 on a GPU, fewer above 32 px; feature matching as many as fit into its
            batches.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU with bf16 units if networks are
            compiled; fp32 elsewhere.
        compile: torch.compile matching and network training; ``auto`` compiles on such a CPU if the run is long enough:
            compiling takes 20 s and more.
        checkpoint_every: Iterations between two checkpoints.
        snapshot_every: Iterations between two snapshots of the sets in ``snapshots/`` and of their pictures in
            ``previews/``; 0 is none.
    """

    section: ClassVar[str] = "distill.matching"

    network: str | None = None
    width: Count = 128
    depth: Count | None = None
    start: MatchingStart | Path | None = None
    factor: Count | list[Count] | None = None
    inner_steps: Count | None = None
    learning_rate: Positive | None = None
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    real_batch: Count | None = None
    most_views: Whole | None = None
    interval: Annotated[Count | None, Of("representative")] = None
    per_cluster: Annotated[Count, Of("representative")] = 1
    cluster_weights: Annotated[BarycenterWeights, Of("representative")] = "fixed"
    candidates: Annotated[Whole | None, Of("representative")] = None
    dimensions: Annotated[Whole, Of("representative")] = 256
    distance: Annotated[Distance | None, Of("gradient")] = None
    match_head: Annotated[bool | None, Of("gradient")] = None
    feature_weight: Annotated[NonNegative | None, Of("gradient")] = None
    class_aware: Annotated[NonNegative | None, Of("queue")] = None
    augmentation: Augmentation | None = None
    flip: bool = False
    train_on: NetworkTraining | None = None
    train_steps: Whole | None = None
    warm_steps: Whole | None = None
    train_batch: Count | None = None
    train_learning_rate: NonNegative = 0.01
    cutmix: Share | None = None
    queue_size: Annotated[Count | None, Of("queue")] = None
    queue_interval: Annotated[Count | None, Of("queue")] = None
    queue_most_steps: Annotated[Whole, Of("queue")] = 0
    classes_per_chunk: Count | None = None
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
    checkpoint_every: Count | None = None
    snapshot_every: Whole = 0

    def check(self) -> None:
        super().check()
        sides = () if self.factor is None else as_tuple(self.factor)
        fits = self.factor is None or len(set(sides)) == len(sides) > 0
        require(fits, f"{self.section}.factor", self.factor, "a number of at least 1, or different ones such as [1,2]")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Options):
    """A distiller that needs no generator.

    Attributes:
        method: Name of the distiller.
        ipc: Images per class: a number, or a list such as [1,5,10].
        selection: Matching methods: real images of a step, ``random`` or ``representative`` (DREAM).
        iterations: Matching methods: outer iterations, each with one network; null is the published number.
        wmdd: Options of method wmdd.
        matching: Options of methods dc, dsa, dm, idc and idm.
        options: Options of a method of your own, by name.
    """

    section: ClassVar[str] = "distill"

    method: str = "kmeans"
    ipc: Sizes = (1, 5, 10)
    selection: SelectionKind = "random"
    iterations: Count | None = None
    wmdd: WmddConfig = field(default_factory=WmddConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    options: dict[str, bool | int | float | str | None] | None = None

    def check(self) -> None:
        super().check()
        check_sizes(self.ipc, "distill.ipc")
        if self.method not in DISTILLERS:
            raise ConfigError(f"distill.{DISTILLERS.unknown(self.method)}")
        methods, chosen = get_args(MatchingMethod), DISTILLERS[self.method]
        chosen.parse(self.options, self.method)
        if "wmdd" not in chosen.sections:
            given = [f"wmdd.{f.name}" for f in fields(WmddConfig) if getattr(self.wmdd, f.name) != f.default]
            text = f"none of them with method {self.method}; they are options of wmdd"
            require(not given, "distill", ", ".join(given), text)
        if "matching" not in chosen.sections:
            given = [
                f"matching.{f.name}" for f in fields(MatchingConfig) if getattr(self.matching, f.name) != f.default
            ]
            given += [name for name in ("selection", "iterations") if getattr(self, name) not in (None, "random")]
            text = f"none of them with method {self.method}; they are options of {', '.join(methods)}"
            require(not given, "distill", ", ".join(given), text)
