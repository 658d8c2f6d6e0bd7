"""Ratios of collecting class statistics: against a pass that only computes, and against the released organisation."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gendistill.data.dataset import Split
from gendistill.data.pixels import to_float
from gendistill.networks.factories import batch_norm_layers, build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.runtime import peak_memory, reset_peak_memory
from tests.benchmarks.test_training import images, in_turn, store

BATCH = 256


@torch.no_grad()
def only_computed(network: nn.Module, split: Split, layout: torch.memory_format) -> Tensor:
    """Features of all images, with nothing taken from the layers."""
    batches = (to_float(batch).contiguous(memory_format=layout) for batch in split.images.split(BATCH))
    return torch.cat([network.features(batch) for batch in batches])


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("name", ["convnet_bn", "timm:resnet18"])
def test_moments_cost_little_of_a_pass(benchmark: Any, name: str, classes: int) -> None:
    """Batches of 256 at 32 px; both sides channels last, so that the layout's own gain does not pay for the moments."""
    network, split = build_network(name, channels=3, image_size=32, classes=10).eval(), images(BATCH, classes, 32)

    def collect() -> None:
        collect_statistics(network, split, classes, BATCH)

    reset_peak_memory()
    before = peak_memory()
    collect()
    benchmark.extra_info["peak_mib"] = round((peak_memory() - before) / 2**20)
    ours, plain = in_turn(benchmark, collect, lambda: only_computed(network, split, torch.channels_last))
    store(benchmark, ours / plain, 1.10, "the same pass without moments")
    assert ours / plain <= 1.2  # measured 1.03 to 1.08; the rest is for a machine that others use


@torch.no_grad()
def released(network: nn.Module, split: Split, classes: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """One pass for the features; then a loader for every class, whose batches' means and variances are averaged.

    Written from shared facts about the released WMDD code (docs/differences.md), not from the code.
    """
    features = torch.cat([network.features(to_float(x)) for (x,) in DataLoader(TensorDataset(split.images), BATCH)])
    found: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> Any:
        def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
            flat = inputs[0].transpose(0, 1).flatten(1)
            found[name].append(torch.stack([flat.mean(1), flat.var(1, unbiased=False)]))

        return keep

    by_class: dict[str, list[Tensor]] = defaultdict(list)
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in batch_norm_layers(network).items()]
    for label in range(classes):
        for (x,) in DataLoader(TensorDataset(split.images[split.labels == label]), BATCH, num_workers=1):
            network.features(to_float(x))
        for name, batches in found.items():
            by_class[name].append(torch.stack(batches).mean(0))
        found.clear()
    for handle in handles:
        handle.remove()
    stacked = {name: torch.stack(values, 1) for name, values in by_class.items()}
    return features, {n: v[0] for n, v in stacked.items()}, {n: v[1] for n, v in stacked.items()}


@pytest.mark.parametrize(
    ("name", "classes", "count"), [("convnet_bn", 10, 640), ("convnet_bn", 100, 500), ("timm:resnet18", 10, 256)]
)
def test_one_pass_is_faster_than_the_released_organisation(benchmark: Any, name: str, classes: int, count: int) -> None:
    network, split = build_network(name, channels=3, image_size=32, classes=10).eval(), images(count, classes, 32)
    mine, (features, means, variances) = (
        collect_statistics(network, split, classes, BATCH),
        released(network, split, classes),
    )
    assert mine.features.shape == features.shape
    for kind, other in ((mine.means, means), (mine.variances, variances)):
        assert {k: v.shape for k, v in kind.items()} == {k: v.shape for k, v in other.items()}
        for layer, value in kind.items():  # a class fits a batch here, so averaging loses nothing
            torch.testing.assert_close(value, other[layer], rtol=1e-3, atol=1e-4)
    ours, theirs = in_turn(
        benchmark,
        lambda: collect_statistics(network, split, classes, BATCH),
        lambda: released(network, split, classes),
        rounds=3,
    )
    store(benchmark, theirs / ours, 2.0, "a pass for features, then a loader and a pass for every class")
    assert theirs / ours >= 2.0
