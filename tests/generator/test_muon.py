"""Muon: near-orthogonal updates of the size of AdamW's, and training that goes on to the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from torch import nn

from gendistill.config import DiT, FinetuneConfig, ModelConfig, UNet
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError
from gendistill.generator.batch_source import PixelLatents
from gendistill.generator.finetuning import finetune, start_generator
from gendistill.generator.muon import Muon, hidden_matrices, orthogonalise
from gendistill.generator.networks import build_network
from gendistill.generator.trainer import train_generator, used_optimizer
from gendistill.io import WorkFolder
from gendistill.runtime import make_accelerator
from gendistill.seeding import torch_rng

MODEL = ModelConfig(architecture=UNet(block_out_channels=(16, 32), norm_num_groups=8))
CONFIG = FinetuneConfig(model=MODEL, base_steps=3, minimax_steps=2, batch_size=10, optimizer="muon")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 40), (2, 40, 6)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch_rng(0, "matrices"), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalise(matrices)
    along = torch.diagonal(u.mT @ found @ v.mT, dim1=-2, dim2=-1)
    large = s > 0.05 * s.amax()  # five iterations lift no smaller ones
    assert bool(((along[large] > 0.6) & (along[large] < 1.3)).all())
    torch.testing.assert_close(u @ torch.diag_embed(along) @ v, found, atol=1e-9, rtol=0)


def test_updates_are_those_of_a_plain_loop_and_adamw_has_the_rest() -> None:
    rng = torch_rng(0, "muon")
    weights = {"mid_block.conv.weight": (4, 2, 3, 3), "mid_block.conv.bias": (4,), "conv_in.weight": (4, 2)}
    mine = {k: nn.Parameter(torch.randn(shape, generator=rng)) for k, shape in weights.items()}
    plain = {k: nn.Parameter(p.detach().clone()) for k, p in mine.items()}
    fast = Muon(mine, lr=0.1, weight_decay=0.01)
    slow = torch.optim.AdamW([p for k, p in plain.items() if k != "mid_block.conv.weight"], lr=0.1, weight_decay=0.01)
    momentum = torch.zeros(4, 18)
    for _ in range(3):
        gradients = {k: torch.randn(p.shape, generator=rng) for k, p in mine.items()}
        for side in (mine, plain):
            for k, p in side.items():
                p.grad = gradients[k].clone()
        fast.step()
        slow.step()
        gradient = gradients["mid_block.conv.weight"].reshape(4, 18)
        momentum = 0.95 * momentum + gradient
        step = orthogonalise(gradient + 0.95 * momentum)
        with torch.no_grad():
            weight = plain["mid_block.conv.weight"]
            weight.copy_((1 - 0.1 * 0.01) * weight - 0.1 * 0.2 * 18**0.5 * step.view(4, 2, 3, 3))
        assert all(torch.equal(p.grad, gradients[k]) for k, p in mine.items() if p.grad is not None)
    for k, p in mine.items():
        torch.testing.assert_close(p, plain[k], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "some", "others"),
    [
        (UNet(block_out_channels=(16, 32), norm_num_groups=8), "mid_block.resnets.0.conv1.weight", "conv_in.weight"),
        (
            DiT(num_layers=2, num_attention_heads=2, attention_head_dim=8),
            "transformer_blocks.0.attn1.to_q.weight",
            "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight",
        ),
    ],
)
def test_embeddings_and_the_ends_of_a_network_are_not_hidden(architecture: UNet | DiT, some: str, others: str) -> None:
    network = build_network(ModelConfig(architecture=architecture), 3, (1, 8, 8), 0)
    parameters = dict(network.named_parameters())
    hidden = hidden_matrices(parameters)
    assert some in hidden
    assert others in parameters
    assert others not in hidden
    assert not [k for k in hidden if parameters[k].ndim < 2 or "emb" in k.split(".")[-2]]


@pytest.mark.slow
def test_a_training_in_pieces_ends_with_the_same_bytes_and_adamw_is_another(digits: RealData, tmp_path: Path) -> None:
    whole = finetune(digits, CONFIG)[0]
    folder, short = WorkFolder(tmp_path, tmp_path / "log.jsonl"), replace(CONFIG, max_minutes=1e-9)
    while "stopped" in (generator := finetune(digits, short, folder=folder)[0]).meta:
        assert len(list((tmp_path / "checkpoints").iterdir())) > 0
    assert generator.hash() == whole.hash()
    assert finetune(digits, replace(CONFIG, optimizer="adamw"))[0].hash() != whole.hash()


@pytest.mark.slow
def test_muon_learns_faster_than_adamw(digits: RealData) -> None:
    """Denoising loss of the last steps, at the best of three rates each."""

    def loss(optimizer: str, rate: float) -> float:
        config = replace(CONFIG, optimizer=optimizer, learning_rate=rate, base_steps=30, batch_size=16)
        loop = train_generator(
            start_generator(digits, config, 0), PixelLatents(digits.train), config, accelerator=make_accelerator()
        )
        return sum([record["denoising"].item() for record in loop][-10:]) / 10

    best = {name: min(loss(name, rate) for rate in (1e-3, 3e-3, 1e-2)) for name in ("adamw", "muon")}
    assert best["muon"] < 0.97 * best["adamw"]


def test_auto_is_muon_from_scratch_where_every_process_has_whole_weights() -> None:
    whole, divided = (SimpleNamespace(distributed_type=kind) for kind in (DistributedType.NO, DistributedType.FSDP))

    def used(optimizer: str, accelerator: Any, method: str = "full", minimax: bool = False) -> tuple[str, float]:
        config = FinetuneConfig(optimizer=optimizer)
        return tuple(used_optimizer(config, method, accelerator, minimax=minimax).values())

    assert used("auto", whole) == ("muon", 6e-3)
    assert used("auto", divided) == used("adamw", whole) == ("adamw", 1e-3)
    assert used("auto", whole, minimax=True) == used("muon", divided, "lora", minimax=True) == ("adamw", 3e-4)
    assert used("muon", whole, minimax=True) == ("muon", 3e-4)
    with pytest.raises(ConfigError, match=r"optimizer is muon, which needs whole weights.*expected auto or adamw"):
        used("muon", divided)


def test_the_estimate_of_memory_has_one_moment_of_orthogonalised_matrices(digits: RealData) -> None:
    generator, seen = start_generator(digits, CONFIG, 0), []
    parameters = dict(generator.network.named_parameters())
    hidden = sum(parameters[name].numel() for name in hidden_matrices(parameters))
    config, latents = replace(CONFIG, base_steps=2), PixelLatents(digits.train)
    list(train_generator(generator, latents, config, accelerator=make_accelerator(), estimate=seen.append))
    assert seen[0].state_bytes == 4 * (5 * seen[0].parameters - hidden)


def test_what_muon_cannot_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer is 'muon'.*expected auto or adamw"):
        FinetuneConfig(pretrained="x", adaptation="difffit", optimizer="muon")
    FinetuneConfig(pretrained="x", optimizer="muon")
