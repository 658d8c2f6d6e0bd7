"""Options of the teacher."""

from dataclasses import dataclass

from gendistill.config.base import Compile, Precision, at_least


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
        at_least(self, "teacher", 1, "width", "steps", "batch_size")
        at_least(self, "teacher", 0, "learning_rate", "weight_decay", "shift")
