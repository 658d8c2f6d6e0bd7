"""Options of the teacher."""

from dataclasses import dataclass
from typing import ClassVar

from gendistill.config.base import Compile, Count, NonNegative, Options, Precision, Whole


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Options):
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

    section: ClassVar[str] = "teacher"

    network: str = "convnet_bn"
    width: Count = 64
    depth: Count | None = None
    steps: Count = 400
    batch_size: Count = 64
    learning_rate: NonNegative = 2e-3
    weight_decay: NonNegative = 1e-2
    shift: Whole = 0
    flip: bool = False
    mixed_precision: Precision = "auto"
    compile: Compile = "auto"
