"""Options of the distillers that need no generator."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

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
    Sizes,
    Tiles,
    Whole,
    Width,
    as_tuple,
    check_sizes,
    hints,
    option_name,
    require,
    shown,
)
from gendistill.config.flat import registered_options, to_dict, to_flat
from gendistill.config.images import ImageFormat, LossyFormat, format_of_steps
from gendistill.config.refine import BarycenterWeights, WmddConfig
from gendistill.config.teacher import ClassifierConfig
from gendistill.errors import ConfigError
from gendistill.registry import DISTILLERS

MatchingStart = Literal["noise", "random", "clustered"]
Distance = Literal["cosine", "mse", "l1"]
Augmentation = Literal["none", "one", "all", "color_crop"]
NetworkTraining = Literal["none", "surrogate", "real"]
Score = Literal["confidence", "el2n", "variability", "forgetting"]
Preference = Literal["easy", "hard"]


@dataclass(frozen=True, kw_only=True)
class Representative(Options):
    """Real images that stand for their class: those nearest to the clusters of its features (DREAM, arXiv 2302.14416).

    Attributes:
        interval: Inner steps between two clusterings, 10 by default; with dm 50, because a clustering takes as long as
            four of its steps.
        per_cluster: Images selected from every cluster.
        cluster_weights: ``free`` clusters of k-means (the paper, and the default of method dream), or ``fixed`` ones of
            equal mass (default of the others): with few candidates free clusters select outliers, and are worse than
            random (docs/results.md).
        candidates: Images of a class that are embedded and clustered, by default 4 times real_batch; 0 is all (the
            paper, and the default of method dream).
        dimensions: Dimensions of a random projection of the features, by default 256; 0 is no projection (the paper,
            and the default of method dream).
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "representative"

    interval: Count | None = None
    per_cluster: Count = 1
    cluster_weights: BarycenterWeights | None = None
    candidates: Whole | None = None
    dimensions: Annotated[int, Range(0, 65536)] | None = None


@dataclass(frozen=True, kw_only=True)
class Gradient(Options):
    """Gradients of the training loss are matched.

    Attributes:
        distance: ``cosine`` by output row, ``mse`` or ``l1``.
        match_head: Also match the gradient of the classification layer.
        feature_weight: Weight of the distance of mean features (DREAM+).
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "gradient"

    distance: Distance | None = None
    match_head: bool | None = None
    feature_weight: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class Features(Options):
    """Mean features are matched.

    Attributes:
        class_aware: Weight of the cross-entropy of the views times the network's accuracy, both as fractions; 0 with
            dm: only a queue knows the accuracy of its networks.
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "features"

    class_aware: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class Characteristic(Options):
    """Characteristic functions of the features are matched (NCFM, arXiv 2502.20653).

    Attributes:
        frequencies: At which they are compared, drawn anew in every step.
        amplitude_weight: Weight of the difference of their amplitudes; that of their phases has the rest of 1.
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "characteristic"

    frequencies: Count | None = None
    amplitude_weight: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Fresh(Options):
    """A new network every iteration.

    Attributes:
        train_on: Images on which networks are trained between inner steps.
        warm_steps: Training steps on real images before a network is first used.
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "fresh"

    train_on: NetworkTraining | None = None
    warm_steps: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class Queue(Options):
    """Networks at all stages of training, of which every iteration draws one (IDM, arXiv 2307.09742).

    Attributes:
        size: Largest number of networks.
        interval: Iterations between two new ones.
        most_steps: Steps after which a network is no longer trained; 0 is no limit.
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "queue"

    size: Annotated[PerClass | None, Flat("queue_size")] = None
    interval: Annotated[Count | None, Flat("queue_interval")] = None
    most_steps: Annotated[Whole, Flat("queue_most_steps")] = 0


@dataclass(frozen=True, kw_only=True)
class Blended(Options):
    """Between fresh and trained networks (NCFM, arXiv 2502.20653): every iteration draws one and how far it has come.

    Attributes:
        pool_size: Networks that are trained, each when it is first drawn.
        pool_steps: Training steps of each on real images.
    """

    section: ClassVar[str] = "distill.matching"
    kind: ClassVar[str | None] = "blended"

    pool_size: PerClass | None = None
    pool_steps: Count | None = None


ImageOptimizer = Literal["sgd", "adam"]


@dataclass(frozen=True, kw_only=True)
class MatchingConfig(Options):
    """Options of methods dc, dsa, dm, idc, dream, idm and cf. Null is the method's value (matching/methods.py).

    Attributes:
        network: A name of ``gendistill.NETWORKS``; null is ``resnetap10`` for idc and dream from 128 px on, else
            ``convnet``. Ours have instance norm, or with ``_bn`` batch norm.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        start: ``noise``; ``random`` real images; ``clustered``: real images nearest to the k-means centres of their
            class, in the features of a fresh network (DREAM; null with representative selection); or the folder of a
            surrogate set.
        factor: Views per side in a stored image: factor x factor images in the bytes of one; a list such as [1,2]
            stores the views of each factor.
        inner_steps: Steps of the images on each network.
        optimizer: Of the images; null is ``adam`` for cf, ``sgd`` for the others. Another one needs a learning_rate.
        learning_rate: Learning rate of the images, in units of the range [0, 1]; for idc and dream the rate at IPC 10
            and 28, 32 or 224 px, which is scaled (methods.py).
        momentum: Momentum of the images: of SGD, or Adam's first.
        real_batch: Real images of a class in a step.
        most_views: Largest number of views of a class in a step, drawn again in every step; 0 is all.
        selection: Matching methods: real images of a step, ``random`` or ``representative`` (DREAM); null is the
            method's, ``random`` for all but dream.
        objective: What is matched: gradients, mean features or characteristic functions, with options that differ from
            the method's.
        augmentation: Augmentation of real images and views alike: ``one`` of six operations per step (DSA; of five
            without ``flip``), ``all`` of colour, crop and cutout (IDC), ``color_crop`` (IDC on MNIST) or ``none``.
        flip: Mirror images at random; wrong for digits, right for most photographs. DSA, DM and IDM mirror photographs,
            IDC and DREAM mirror none.
        networks: Fresh networks, a queue of them, or blended ones, with options that differ from the method's.
        train_steps: Steps of network training between inner steps, or per iteration for a queue; epochs with train_on
            surrogate.
        train_batch: Images per step of network training.
        train_learning_rate: Learning rate of SGD for networks; null is 0.01, and 0.1 with idc and dream for 100 and
            more classes of 128 px and more.
        cutmix: Probability that a batch of network training is mixed.
        classes_per_chunk: Classes computed together; null depends on the device: gradient matching uses 1 on a CPU,
            where that is fastest, and up to 10 on a GPU, fewer above 32 px; feature matching as many as fit into its
            batches.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU with bf16 units if networks are
            compiled; fp32 elsewhere.
        compile: torch.compile matching and network training; ``auto`` compiles where a long run gains from it:
            compiling takes 20 s and more.
        checkpoint_every: Iterations between two checkpoints.
        snapshot_every: Iterations between two snapshots of the sets in ``snapshots/`` and of their pictures in
            ``previews/``; 0 is none.
    """

    section: ClassVar[str] = "distill.matching"
    above: ClassVar[tuple[str, ...]] = ("selection",)
    order: ClassVar[str] = (
        "... train_on train_steps warm_steps train_batch train_learning_rate cutmix queue_size queue_interval "
        "queue_most_steps pool_size pool_steps classes_per_chunk mixed_precision compile checkpoint_every "
        "snapshot_every"
    )

    network: str | None = None
    width: Width = 128
    depth: Depth | None = None
    start: MatchingStart | Path | None = None
    factor: Tiles | list[Tiles] | None = None
    inner_steps: Count | None = None
    optimizer: ImageOptimizer | None = None
    learning_rate: Positive | None = None
    momentum: Annotated[float, Range(0, 1, open_high=True)] | None = None
    real_batch: Batch | None = None
    most_views: Whole | None = None
    selection: Literal["random"] | Representative | None = None
    objective: Gradient | Features | Characteristic | None = None
    augmentation: Augmentation | None = None
    flip: bool = False
    networks: Fresh | Queue | Blended | None = None
    train_steps: Whole | None = None
    train_batch: Batch | None = None
    train_learning_rate: NonNegative | None = None
    cutmix: Share | None = None
    classes_per_chunk: Count | None = None
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
    checkpoint_every: Count | None = None
    snapshot_every: Whole = 0

    @property
    def train_on(self) -> NetworkTraining | None:
        """What fresh networks learn from; null where the method says so, and with a queue."""
        return self.networks.train_on if isinstance(self.networks, Fresh) else None

    def check(self) -> None:
        super().check()
        sides = () if self.factor is None else as_tuple(self.factor)
        fits = self.factor is None or len(set(sides)) == len(sides) > 0
        require(fits, f"{self.section}.factor", self.factor, "a number of at least 1, or different ones such as [1,2]")

    def check_method(self, method: str) -> None:
        """Refuse an objective or networks of another method."""
        for place, choice in (("objective", self.objective), ("networks", self.networks)):
            if choice is None or choice.kind in DISTILLERS[method].choices:
                continue
            kind, ours = type(choice), DISTILLERS.ours()
            names = [name for name in ours if choice.kind in DISTILLERS[name].choices]
            text = f"with method {method}: {kind.__name__} is an option of {', '.join(names)}"
            for name in hints(kind):
                value, usual = getattr(choice, name), getattr(kind, name)
                require(value == usual, option_name(kind, name), value, f"{shown(usual)} {text}")
            require(False, f"{self.section}.{place}", choice, f"None {text}")


@dataclass(frozen=True, kw_only=True)
class DifficultyConfig(ClassifierConfig):
    """Method difficulty: real images that a classifier finds easy or hard to learn.

    Attributes:
        score: What makes an image hard: ``confidence``, a low mean probability of its class over the epochs; ``el2n``,
            a large mean distance of the probabilities from its label; ``variability``, a large standard deviation of
            the probability of its class; ``forgetting``, many changes of the answer from right to wrong.
        prefer: Take the ``easy`` images of each class or the ``hard`` ones, which were worse than random at every
            measured number (docs/results.md).
        epochs: Passes of a training over the real images; after each they are scored, which takes a third of its time.
        trainings: Trainings from different weights, over which scores are averaged.
    """

    section: ClassVar[str] = "distill.difficulty"
    order: ClassVar[str] = "score prefer epochs trainings ..."

    score: Score = "confidence"
    prefer: Preference = "easy"
    epochs: Annotated[int, Range(2, 100_000)] = 10
    trainings: Count = 1


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Options):
    """A distiller that needs no generator.

    Attributes:
        method: Name of the distiller.
        ipc: Images per class: a number, or a list such as [1,5,10].
        iterations: Matching methods: outer iterations, each with one network; null is the published number.
        wmdd: Options of method wmdd.
        matching: Options of methods dc, dsa, dm, idc, dream, idm and cf.
        difficulty: Options of method difficulty.
        options: Options of a method of your own, by name.
        image_format: Format of the image files: ``png`` or ``webp_lossless``, which keep every pixel, or ``webp``,
            ``jpeg`` or ``avif`` with an image_quality; the pixels of such a set are the decoded ones.
        compression_aware: wmdd and matching methods: code and decode the images in every step, so that what is
            optimised is what a lossy image_format stores.
    """

    section: ClassVar[str] = "distill"
    order: ClassVar[str] = "method ipc selection ..."

    method: str = "kmeans"
    ipc: Sizes = (1, 5, 10)
    iterations: Count | None = None
    wmdd: WmddConfig = field(default_factory=WmddConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    options: dict[str, Any] | None = None
    image_format: ImageFormat = "png"
    compression_aware: bool = False

    @property
    def step_format(self) -> LossyFormat | None:
        """The format as which steps code the images, where they do."""
        return format_of_steps(self.image_format, self.compression_aware, self.section)

    def check(self) -> None:
        super().check()
        check_sizes(self.ipc, "distill.ipc")
        if self.method not in DISTILLERS:
            raise ConfigError(f"distill.{DISTILLERS.unknown(self.method)}")
        chosen = DISTILLERS[self.method]
        if (own := method_options(self)) is not None:
            object.__setattr__(self, "options", to_dict(own))
        for name in ("wmdd", "matching", "difficulty"):
            if name not in chosen.sections:
                given = _changed(getattr(self, name), name)
                kinds = [one for one in DISTILLERS.ours() if name in DISTILLERS[one].sections]
                given += ["iterations"] if name == "matching" and self.iterations is not None else []
                text = f"none of them with method {self.method}; they are options of {', '.join(kinds)}"
                require(not given, "distill", ", ".join(given), text)
        self.matching.check_method(self.method)
        kinds = [one for one in DISTILLERS.ours() if "compression_aware" in DISTILLERS[one].sections]
        text = f"false with method {self.method}; it is an option of {', '.join(kinds)}"
        reads = self.step_format is None or self.method in kinds
        require(reads, "distill.compression_aware", self.compression_aware, text)


def method_options(config: DistillConfig) -> Any:
    """``config.options`` as the dataclass that the method was registered with; None where it has none."""
    kind = DISTILLERS[config.method].options
    return registered_options(kind, config.options, "distill.options", f"method {config.method}")


def _changed(own: Options, prefix: str) -> list[str]:
    """The flat options that differ from the default's."""
    usual = to_flat(type(own)())
    changed = [name for name, value in to_flat(own).items() if value != usual[name]]
    return [name if name in own.above else f"{prefix}.{name}" for name in changed]
