"""Checkpoints of a classifier's training, from which an interrupted one goes on to the same bytes.

Batches and rates are functions of the step. So the state is what training changes in the network, the optimiser, and
the random generators that dropout draws from, of every process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gendistill import parallel
from gendistill.config import to_dict
from gendistill.config.teacher import ClassifierConfig
from gendistill.data.dataset import RealData
from gendistill.hashing import hash_json, hash_tensors
from gendistill.runtime import (
    Checkpoints,
    CheckpointTimer,
    flatten_optimizer,
    prefixed,
    processes,
    restore_optimizer,
    restoring,
    unprefixed,
)

CHECKPOINTS = "checkpoints"  # their folder, in that of a stage
LONGEST = 1_000_000_000  # steps of a training


class TrainingCheckpoints:
    """When the state of one training is saved, and how it is restored; every process of it calls all methods alike.

    A state is saved every ``store.every`` steps, when the last one is a minute old, and after the last step.

    Args:
        store: Where the states are. Each is written by the main process and read by all.

    Attributes:
        done: Steps that the newest state has.
        seconds: What those took, in all the runs that it needed; zero before ``restore``.
    """

    def __init__(self, store: Checkpoints) -> None:
        self.store, self.seconds = store, 0.0
        self.done = max(store.steps(), default=0)
        self._begun, self._timer = time.perf_counter(), CheckpointTimer(self.done, parallel.most)

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put the newest state into a network, which is on its device, and its optimiser; returns the steps done.

        Raises:
            ArtifactError: the checkpoint is damaged, or belongs to another training.
        """
        found = self.store.latest()
        self._begun = time.perf_counter()
        if found is None:
            return 0
        self.done, state = found
        with torch.no_grad(), restoring(self.store.file(self.done)):
            for name, tensor in _changing(network):
                tensor.copy_(state[f"network.{name}"])
            restore_optimizer(optimizer, state)
            self.seconds = float(state["seconds"])
            _restore_generators(unprefixed(f"random.{processes().process_index}", state))
        self._timer.restart(self.done)
        return self.done

    def save_if_due(self, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, *, last: bool) -> None:
        """Save the state after this step, the ``last`` one of all or one between, where it is time to."""
        if not (last or step % self.store.every == 0 or self._timer.is_due(step)):
            return
        start = time.perf_counter()
        own = prefixed(f"random.{processes().process_index}", _generators(optimizer))
        generators = parallel.gathered(own)
        if processes().is_main_process:
            seconds = torch.tensor(self.seconds + start - self._begun, dtype=torch.float64)
            weights = prefixed("network", dict(_changing(network)))
            self.store.save(step, {**weights, **flatten_optimizer(optimizer), **generators, "seconds": seconds})
        self._timer.restart(step, took=parallel.most(time.perf_counter() - start))


def checkpoints_in(
    folder: Path, network: nn.Module, data: RealData, config: ClassifierConfig, seed: int
) -> TrainingCheckpoints:
    """Those of one training on ``data``, which the network's first weights, the options and the seed identify."""
    options = to_dict(replace(config, checkpointing_steps=None))
    identity = {"data": data.fingerprint(), "network": hash_tensors(network.state_dict())}
    identity["options"] = hash_json([options, seed])
    every = config.checkpointing_steps or LONGEST
    return TrainingCheckpoints(Checkpoints(folder, every, 1, identity))


def _changing(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the state dict that training changes: no weights that it leaves as they are."""
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return ((name, tensor) for name, tensor in network.state_dict().items() if name not in fixed)


def _generators(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the generators that dropout draws from on the device of the training."""
    device = optimizer.param_groups[0]["params"][0].device
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_generators(state: dict[str, Tensor]) -> None:
    """A process that had none, because fewer ran before, keeps its own."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].clone())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
