"""Few rows have the bits of many, whatever the kernels do, and cost less where kernels allow it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gendistill.config import DiT, ModelConfig, UNet
from gendistill.generator.codec import PixelCodec
from gendistill.generator.few_rows import FewRows, padded
from gendistill.generator.generator import build_generator
from gendistill.seeding import torch_rng

FULL = 16


class ByRows(nn.Module):
    """A layer whose last bits depend on the number of rows, below ``steady`` rows; it counts the rows it computes."""

    def __init__(self, steady: int) -> None:
        super().__init__()
        self.weight, self.steady, self.seen = nn.Parameter(torch.ones(1)), steady, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x * self.weight + (1e-3 * len(x) if len(x) < self.steady else 0.0)


class Network(nn.Module):
    """Two such layers, and a function between them that ``between`` makes depend on rows."""

    def __init__(self, first: int, second: int, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.second, self.between = ByRows(first), ByRows(second), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


@torch.no_grad()
def rows_of(network: Network, count: int, calls: int = 3) -> tuple[list[int], list[int]]:
    """Rows that each layer computes in the last of some calls, all of which have the bits of the full count."""
    few, x = FewRows(network, network, FULL), torch.randn(count, 4, generator=torch_rng(0, "rows"))
    expected = network(padded(x, FULL))[:count]
    for _ in range(calls):
        network.first.seen, network.second.seen = [], []
        assert torch.equal(few(x), expected)
    return network.first.seen, network.second.seen


@pytest.mark.parametrize("count", [1, 3, 15, 16])
def test_layers_get_as_many_rows_as_their_bits_need(count: int) -> None:
    assert rows_of(Network(1, 1), count) == ([count], [count])
    assert rows_of(Network(1, FULL), count) == ([count], [FULL])


def test_a_layer_gets_the_least_count_that_agrees() -> None:
    assert rows_of(Network(4, 2), 1) == ([4], [2])
    assert rows_of(Network(3, 9), 3) == ([3], [FULL])


def test_where_a_function_between_layers_depends_on_rows_all_are_padded() -> None:
    network = Network(1, 1, lambda x: x + (len(x) < FULL))
    assert rows_of(network, 2) == ([FULL], [FULL])


def test_hooks_are_gone_afterwards() -> None:
    network = Network(FULL, 1)
    rows_of(network, 2)
    assert not network.first._forward_hooks
    assert not network.first._forward_pre_hooks


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "architecture",
    [
        UNet(block_out_channels=(32, 64), norm_num_groups=8),
        DiT(num_layers=2, num_attention_heads=2, attention_head_dim=32, patch_size=2),
    ],
    ids=["unet", "dit"],
)
@torch.no_grad()
def test_networks_give_each_image_the_same_bytes_in_batches_of_every_size(architecture: UNet | DiT, bf16: bool) -> None:
    generator = build_generator(ModelConfig(architecture=architecture), ("a", "b", "c"), 8, 0, codec=PixelCodec(3))
    for i, parameter in enumerate(generator.network.parameters()):
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch_rng(0, "weights", i)))
    generator.network.eval()
    x = torch.randn(FULL, *generator.sample_shape, generator=torch_rng(0, "x"))
    inputs = x, torch.full((FULL,), 500), torch.arange(FULL) % 3
    few = FewRows(generator.network, generator.denoise, FULL)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole = generator.denoise(*inputs)
        for count in (1, 3, 8):
            for start in (0, 5):  # the first call compares, the second does not
                part = few(*(rows[start : start + count] for rows in inputs))
                assert torch.equal(part, whole[start : start + count])
