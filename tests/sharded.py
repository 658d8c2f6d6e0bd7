"""Train a tiny DiT sharded over processes by FSDP2 and whole beside it; the largest differences go to a JSON file.

accelerate refuses FSDP on CPU, so torch's own fully_shard stands in, on what training keeps and restores. Every process
takes the whole batch, so that the mean of their gradients is that of one. tests/test_sharding.py launches it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gendistill import runtime
from gendistill.config import DiT, FinetuneConfig, MinimaxConfig, ModelConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.generator.adaptation import adapt
from gendistill.generator.batch_source import BatchSource, PixelLatents
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import build_generator
from gendistill.generator.trainer import TrainingState, step_losses
from gendistill.seeding import torch_rng

DIT = ModelConfig(
    architecture=DiT(num_layers=2, num_attention_heads=2, attention_head_dim=8, learned_sigma=True),
    prediction_type="epsilon",
)
CRITERIA = MinimaxConfig(min_alpha_bar=0, memory_size=8, share_memory=False)
CONFIG = FinetuneConfig(batch_size=10)
HALF, STEPS = 2, 4
WHOLE, ROOT, BLOCKS = "whole", "root", "blocks"
Tensors = dict[str, Tensor]


def start(data: RealData, method: Any, sharding: str) -> TrainingState:
    """``blocks`` shards each block by itself, which torch refuses where blocks share parameters: so they do not."""
    generator = build_generator(DIT, data.classes, 8, 0, codec=PixelCodec(1))
    tied = sharding != BLOCKS
    with torch.no_grad():
        for i, parameter in enumerate(generator.network.parameters()):
            if not parameter.any() or not tied:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch_rng(0, "start", i)))
    adapted = adapt(generator.network, method, rank=2)
    return _state(generator, adapted)


def shard(state: TrainingState, sharding: str) -> TrainingState:
    """The same with its network sharded, and an optimiser of the shards. One block is called into from outside, so
    what was gathered has to stay for the whole step."""
    mesh, network = init_device_mesh("cpu", (runtime.processes().num_processes,)), state.adapted.network
    for module in [*(network.transformer_blocks if sharding == BLOCKS else ()), network]:
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
    assert all(isinstance(p, DTensor) for p in state.adapted.trainable().values())
    return _state(state.generator, state.adapted)


def _state(generator: Any, adapted: Any) -> TrainingState:
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=1e-3)
    return TrainingState(generator, adapted, optimizer, CONFIG, CRITERIA, runtime.make_accelerator("no"))


def train(state: TrainingState, data: RealData, steps: range) -> Tensors:
    generator = state.generator
    source = BatchSource(generator, PixelLatents(data.train), 0.1, 0, "minimax")
    for step in steps:
        draw = source.draw(step, CONFIG.batch_size, slice(None))
        losses = step_losses(generator, state.adapted.network, draw, generator.alphas_cumprod, state.memories)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.step(state.parameters)
    return state.tensors()


def gap(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    assert all(one[k].shape == other[k].shape and not isinstance(one[k], DTensor) for k in one)
    return max((one[k].float() - other[k].float()).abs().max().item() for k in one)


def compare(data: RealData, method: str, sharding: str, folder: Path) -> dict[str, float]:
    whole, sharded = start(data, method, sharding), shard(start(data, method, sharding), sharding)
    before = {k: v.clone() for k, v in _weights(whole).items()}
    halfway, found = train(whole, data, range(HALF)), train(sharded, data, range(HALF))
    gaps = {"moved": gap(before, _weights(whole)), "state": gap(halfway, found)}
    gaps["merged"] = gap(whole.adapted.merged().state_dict(), sharded.adapted.merged().state_dict())
    checkpoints = runtime.Checkpoints(folder / method / sharding, every=HALF, keep=1)
    if runtime.processes().is_main_process:
        checkpoints.save(HALF, found)
    runtime.processes().wait_for_everyone()
    with sharded.averaged():
        gaps["averaged"] = gap(runtime.unprefixed("ema", found), _weights(sharded))
    gaps["put back"] = gap(runtime.unprefixed("network", found), _weights(sharded))
    end = train(whole, data, range(HALF, STEPS))
    for name, again in {
        "sharded again": shard(start(data, method, sharding), sharding),
        "whole again": start(data, method, sharding),
    }.items():
        assert again.restore(checkpoints) == HALF
        gaps[f"{name}, restored"] = gap(again.tensors(), found)
        gaps[name] = gap(train(again, data, range(HALF, STEPS)), end)
    return gaps


def _weights(state: TrainingState) -> Tensors:
    return {k: runtime.full_tensor(v.detach()) for k, v in state.named.items()}


def main() -> None:
    folder, data = Path(sys.argv[1]), load_data(name="digits")
    assert runtime.processes().num_processes > 1
    cases = [("difffit", ROOT), ("lora", ROOT), ("full", BLOCKS)]
    found = {f"{method} {sharding}": compare(data, method, sharding, folder) for method, sharding in cases}
    if runtime.processes().is_main_process:
        (folder / "gaps.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
