"""Options of the judge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from gendistill.config.base import Compile, Count, NonNegative, Options, Precision, Range, Whole, as_tuple, require

Labels = Literal["hard", "soft"]
Baseline = Literal["random", "kmeans", "herding", "kcenter", "bytes", "full"]
Protocol = Literal["gendistill", "idc", "dsa", "minimax-hard", "wmdd-soft"]
FEATURES = ("auto", "teacher", "trained")


@dataclass(frozen=True, kw_only=True)
class Continual(Options):
    """Class-incremental learning from a memory that is the surrogate set.

    Attributes:
        steps: Steps in which the classes arrive, as many in each as divide evenly, one more in the first ones.
        orders: Orders of the classes, drawn from the seed, that the runs go round; null: one for every run.
    """

    section: ClassVar[str] = "evaluate.continual"
    kind: ClassVar[str | None] = "continual"
    below: ClassVar[str | None] = "continual"

    steps: Count = 5
    orders: Count | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """The judge: classifiers trained from scratch on each set, tested once at the last step.

    Every row has the same networks, optimiser, length of training and training seeds, so only the images differ. Null
    is the protocol's value.

    Attributes:
        task: ``classification`` of all classes at once, or ``continual``: classes arrive in steps, and a classifier is
            trained anew on the memory of those that have come (GDumb), beside random and k-means alone; baselines,
            describe, features and legacy_best belong to classification.
        protocol: ``gendistill`` (equal optimiser steps), or as others evaluate: ``idc``, ``dsa``, ``minimax-hard``,
            ``wmdd-soft``; gendistill/evaluation/protocols has their values.
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
    """

    section: ClassVar[str] = "evaluate"
    order: ClassVar[str] = "... continual"

    task: Literal["classification"] | Continual = "classification"
    protocol: Protocol = "gendistill"
    network: str | tuple[str, ...] | None = None
    width: Count | None = None
    depth: Count | None = None
    runs: Annotated[int, Range(3)] = 5
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    learning_rate: NonNegative | None = None
    weight_decay: NonNegative | None = None
    shift: Whole | None = None
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

    @property
    def continual(self) -> Continual:
        """The options of task continual, or its defaults."""
        return self.task if isinstance(self.task, Continual) else Continual()

    def check(self) -> None:
        super().check()
        section = "evaluate"
        both = self.steps is not None and self.epochs is not None
        require(not both, f"{section}.epochs", self.epochs, "null with steps, which say how long a run is")
        names = as_tuple(self.network)
        require(len(set(names)) == len(names) > 0, f"{section}.network", names, "a network, or several, each once")
        rows = as_tuple(self.augment)
        require(len(set(rows)) == len(rows) > 0, f"{section}.augment", self.augment, "true, false or [true,false]")
        for name in ("shift", "flip"):
            value, unread = getattr(self, name), True not in rows
            require(not (unread and value), f"{section}.{name}", value, "null with augment false, which leaves it out")
        named = "random" in self.baselines and len(set(self.baselines)) == len(self.baselines)
        require(named, "evaluate.baselines", self.baselines, "each once, random among them, which verdicts are against")
        known = self.features in FEATURES or self.features.startswith(("timm:", "transformers:"))
        require(known, "evaluate.features", self.features, f"{', '.join(FEATURES)}, timm:NAME or transformers:NAME")
        if isinstance(self.task, Continual):
            require(self.labels != "soft", "evaluate.labels", self.labels, "hard with task continual")
            require(len(names) == 1, "evaluate.network", names, "one network with task continual")
            require(len(rows) == 1, "evaluate.augment", self.augment, "true or false with task continual")
            for name in ("legacy_best", "baselines", "describe", "features"):
                value, usual = getattr(self, name), getattr(EvaluateConfig, name)
                require(value == usual, f"evaluate.{name}", value, f"{usual!r}: nothing reads it in task continual")
