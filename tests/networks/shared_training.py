"""A network with batch norm after three steps on batches of 7, in float64, as several processes train it together.

The launch script of ``tests/processes.py`` takes the file to write.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from safetensors.torch import save_file
from torch import Tensor

from gendistill.data.dataset import Split
from gendistill.networks.data_parallel import WholeBatchNorm
from gendistill.networks.factories import build_network
from gendistill.networks.training import train_classifier
from gendistill.progress import finish
from gendistill.runtime import processes
from gendistill.seeding import torch_rng

SIZE = 7


def batch(step: int) -> tuple[Tensor, Tensor]:
    rng = torch_rng(0, "batch", step)
    return torch.rand(SIZE, 1, 16, 16, generator=rng).double() * 2 - 1, torch.randint(3, (SIZE,), generator=rng)


def trained(*, shared: bool) -> dict[str, Tensor]:
    """The weights and the running statistics; a process beside the first one begins with others."""
    state = processes()
    network = build_network("resnet10_bn", channels=1, image_size=16, classes=3, width=8, seed=state.process_index)
    split = Split(torch.zeros(SIZE, 1, 16, 16, dtype=torch.uint8), torch.zeros(SIZE, dtype=torch.int64))
    options = {"steps": 3, "batch_size": SIZE, "learning_rate": 0.01, "weight_decay": 0.0, "optimizer": "sgd"}
    with WholeBatchNorm() if shared else nullcontext():
        finish(train_classifier(network.double(), split, batches=batch, shared=shared, **options))
    return network.state_dict()


if __name__ == "__main__":
    found = trained(shared=True)
    if processes().is_main_process:
        save_file(found, sys.argv[1])
