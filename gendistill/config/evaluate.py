"""Options of evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from gendistill.config.base import (
    Batch,
    Compile,
    Count,
    Depth,
    Distance,
    NonNegative,
    Options,
    Precision,
    Range,
    Width,
    as_tuple,
    require,
)
from gendistill.registry import DISTILLERS, coresets

Labels = Literal["hard", "soft"]
Protocol = Literal["gendistill", "idc", "dsa", "minimax-hard", "wmdd-soft"]
BESIDE = ("bytes", "coded", "full")  # baselines that no coreset chooses
FEATURES = ("auto", "teacher", "trained")
Decayed = Literal["all", "weights"]


@dataclass(frozen=True, kw_only=True)
class Continual(Options):
    """Class-incremental learning from a memory that is the surrogate set.

    Attributes:
        steps: Number of steps in which the classes arrive: equal numbers of classes, with one more in the first steps
            if they do not divide.
        orders: Number of class orders, drawn from the seed and used in turn by the runs; null: one for every run.
    """

    section: ClassVar[str] = "evaluate.continual"
    kind: ClassVar[str | None] = "continual"
    below: ClassVar[str | None] = "continual"

    steps: Count = 5
    orders: Annotated[int, Range(1, 10_000)] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Evaluation: classifiers trained from scratch on each set, tested once, after the last step.

    Every row has the same networks, optimiser, length of training and training seeds, so only the images differ.
    Null is the protocol's value.

    Attributes:
        task: ``classification`` of all classes at once, or ``continual``: classes arrive in steps, and a classifier is
            trained again on the memory of all classes so far (GDumb), with random images and k-means as the only
            baselines; the options baselines, describe, features and legacy_best belong to classification.
        protocol: ``gendistill`` (equal optimiser steps), or a published protocol: ``idc``, ``dsa``, ``minimax-hard``,
            ``wmdd-soft``; their values are in gendistill/evaluation/protocols.
        network: A name of ``gendistill.NETWORKS``, or a list such as [convnet,resnet18], which gives rows for each.
            Ours have instance norm, or with ``_bn`` batch norm; ``timm:densenet121`` is one of timm's.
        width: Channels of a ConvNet's blocks.
        depth: Blocks of a ConvNet; null takes log2(image size) - 2, between 2 and 6.
        runs: Training runs of every row; run r has training seed r and, for random images, its own draw.
        steps: Optimiser steps of a run, the same for every row.
        epochs: Instead of steps: passes over the images of each row.
        batch_size: Images per step; a smaller set has batches of its size.
        learning_rate: Peak learning rate of the protocol's optimiser.
        weight_decay: Weight decay of the optimiser.
        weight_decay_on: What decays: ``all`` parameters, or ``weights``, those of more than one dimension, which spares
            biases and norms.
        test_crop: Share of the side of test images that is cut from their middle and enlarged to the whole size: 0.875
            sees what resizing to 256 px and cutting 224 px sees; 1 tests whole images.
        shift: Random translation in pixels; 0 turns it off.
        flip: Mirror images at random; wrong for digits, right for most photographs.
        augment: false trains without any augmentation of the protocol; [true,false] gives rows with and without.
        labels: ``soft`` adds rows for the soft labels of labelled sets, and for baselines with the same kind of labels
            by the same teacher; ``hard`` uses hard labels only.
        legacy_best: Also test during training, after every epoch (or twentieth of the steps), and report the highest
            accuracy in a column ``legacy_best``, as in some papers; no verdict uses it.
        baselines: Baselines at each IPC of the sets: ``random`` draws (always), ``kmeans``, ``herding`` and
            ``kcenter``, ``difficulty``, which trains a classifier first, or a coreset of your own; ``bytes``, random
            images with as many bytes as a set with soft labels or packed views; ``coded``, photographs in the image
            format that suits them best, in at most the bytes of each set (chosen by 12 trainings and the validation
            images, for each size in bytes); and ``full``, all real images.
        baseline_cache: Folder that keeps finished runs of baselines for other evaluations; ``auto`` is gendistill in
            the user's cache folder, null keeps none.
        mixed_precision: ``auto`` is bf16 on a GPU that computes in it, and on a CPU with bf16 units if networks are
            compiled; fp32 elsewhere.
        compile: torch.compile the network: on CPU with bf16 2 to 3 times the speed, after 20 s of compiling for each
            size of batch; ``auto`` compiles on a CPU that gains from it in long trainings.
        describe: Measure the sets themselves in comparison with random real sets, and check them for faults.
        features: Features for these measures: ``teacher`` (needs one), ``trained`` (a network trained for this on the
            real images), ``auto`` (the teacher if there is one, else trained), or ``timm:NAME`` or
            ``transformers:NAME``, a folder or a Hub id such as transformers:facebook/dinov2-small.
    """

    section: ClassVar[str] = "evaluate"
    order: ClassVar[str] = "... continual"

    task: Literal["classification"] | Continual = "classification"
    protocol: Protocol = "gendistill"
    network: str | tuple[str, ...] | None = None
    width: Width | None = None
    depth: Depth | None = None
    runs: Annotated[int, Range(3, 10_000)] = 5
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Batch | None = None
    learning_rate: NonNegative | None = None
    weight_decay: NonNegative | None = None
    weight_decay_on: Decayed | None = None
    test_crop: Annotated[float, Range(0, 1, open_low=True)] | None = None
    shift: Distance | None = None
    flip: bool | None = None
    augment: bool | tuple[bool, ...] = True
    labels: Labels | None = None
    legacy_best: bool = False
    baselines: tuple[str, ...] = ("random", "kmeans", "herding", "kcenter", "bytes", "full")
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
        require(not both, f"{section}.epochs", self.epochs, "None with steps, because each gives the length of a run")
        names = as_tuple(self.network)
        require(len(set(names)) == len(names) > 0, f"{section}.network", names, "a network, or several, each once")
        rows = as_tuple(self.augment)
        require(len(set(rows)) == len(rows) > 0, f"{section}.augment", self.augment, "true, false or [true,false]")
        for name in ("shift", "flip"):
            value, unread = getattr(self, name), True not in rows
            require(not (unread and value), f"{section}.{name}", value, "None with augment false, which turns it off")
        for name in self.baselines:
            if name not in BESIDE and not (name in DISTILLERS and DISTILLERS[name].coreset):
                choices = (*coresets(), *BESIDE)
                require(False, "evaluate.baselines", name, f"some of {', '.join(choices)}", choices)
        named = "random" in self.baselines and len(set(self.baselines)) == len(self.baselines)
        require(named, "evaluate.baselines", self.baselines, "each once, with random, the reference of verdicts")
        known = self.features in FEATURES or self.features.startswith(("timm:", "transformers:"))
        require(
            known,
            "evaluate.features",
            self.features,
            f"{', '.join(FEATURES)}, timm:NAME or transformers:NAME",
            FEATURES,
        )
        if isinstance(self.task, Continual):
            require(self.labels != "soft", "evaluate.labels", self.labels, "hard with task continual")
            require(len(names) == 1, "evaluate.network", names, "one network with task continual")
            require(len(rows) == 1, "evaluate.augment", self.augment, "true or false with task continual")
            for name in ("legacy_best", "baselines", "describe", "features"):
                value, usual = getattr(self, name), getattr(EvaluateConfig, name)
                require(value == usual, f"evaluate.{name}", value, f"{usual!r} with task continual, which ignores it")
