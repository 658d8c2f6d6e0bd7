"""All that a checkpoint of the generator's training holds, and how it is saved and restored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from gendistill.config import FinetuneConfig, MinimaxConfig
from gendistill.errors import ArtifactError
from gendistill.generator.adaptation import Adapted
from gendistill.generator.generator import Generator
from gendistill.generator.memory import MinimaxMemories
from gendistill.runtime import (
    Checkpoints,
    flatten_optimizer,
    full_tensor,
    prefixed,
    restore_optimizer,
    sharded_like,
    unprefixed,
)

if TYPE_CHECKING:
    from gendistill.runtime import Accelerator


class TrainingState:
    """Trained parameters, optimiser, running average (EMA) of the parameters, and the minimax memories.

    Batches are functions of (seed, phase, step) and the networks have no dropout of their own, so the step in the
    checkpoint's name is the state of every random stream.
    """

    def __init__(
        self,
        generator: Generator,
        adapted: Adapted,
        optimizer: Any,
        config: FinetuneConfig,
        criteria: MinimaxConfig | None,
        accelerator: Accelerator,
    ) -> None:
        self.generator, self.adapted, self.optimizer = generator, adapted, optimizer
        self.named = adapted.trainable()
        self.parameters = list(self.named.values())
        self.ema = EMAModel(self.parameters, decay=config.ema_decay)
        size = (len(generator.classes), math.prod(generator.sample_shape))
        self.memories = MinimaxMemories(*size, criteria, accelerator, generator.device) if criteria else None

    def tensors(self) -> dict[str, Tensor]:
        """The state as whole tensors; every process calls it, because sharded tensors are gathered."""
        return {
            **prefixed("network", {k: full_tensor(v.detach()) for k, v in self.named.items()}),
            **flatten_optimizer(self.optimizer),
            **prefixed("ema", {k: full_tensor(v) for k, v in zip(self.named, self.ema.shadow_params, strict=True)}),
            "ema_step": torch.tensor(self.ema.optimization_step),
            **prefixed("memory", self.memories.state_dict() if self.memories else {}),
        }

    @torch.no_grad()
    def restore(self, checkpoints: Checkpoints | None) -> int:
        """Load the newest checkpoint, if there is one; returns the number of steps it has done.

        Raises:
            ArtifactError: the checkpoint is damaged, or belongs to another model, adaptation or number of processes.
        """
        found = checkpoints.latest() if checkpoints else None
        if found is None:
            return 0
        step, state = found
        weights, averages = unprefixed("network", state), unprefixed("ema", state)
        shapes = {k: tuple(v.shape) for k, v in self.named.items()}
        if {k: tuple(v.shape) for k, v in weights.items()} != shapes:
            raise ArtifactError(
                f"The checkpoint of step {step} in {checkpoints.folder if checkpoints else ''} belongs to another "
                "model or adaptation; resume with the settings it was made with, or start again with --overwrite."
            )
        for shadow, (name, parameter) in zip(self.ema.shadow_params, self.named.items(), strict=True):
            parameter.copy_(sharded_like(weights[name], parameter))
            shadow.copy_(sharded_like(averages[name], shadow))
        restore_optimizer(self.optimizer, state)
        self.ema.optimization_step = int(state["ema_step"])
        if self.memories:
            self.memories.load_state_dict(unprefixed("memory", state))
        return step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running averages in place of the weights, in evaluation mode, until the block ends."""
        training = self.adapted.network.training
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.adapted.network.eval()
        try:
            yield
        finally:
            self.ema.restore(self.parameters)
            self.adapted.network.train(training)
