"""What stages hold in memory does not grow with the pixels of a class or a collection: large images are looked at in
smaller batches and blocks, and methods that compare distances get those."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gendistill.data.dataset import RealData, Split, mean_and_std
from gendistill.data.mapped import BLOCK, CentralImages, block_of, central
from gendistill.data.pixels import central_share, to_float
from gendistill.networks.factories import build_network
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.training import infer, inference_rows
from tests.data.mapped import mapped, noise
from tests.data.peak_memory import SIDE, STAGES, write_noise
from tests.processes import run_python

MIB = 2**20
MOST = {  # MiB; all 600 images are 86 as bytes, 344 as floats, and 920 as feature maps of width 8
    "statistics": 500,
    "kmeans": 250,
    "evaluate": 300,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("noise"))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("stage", STAGES)
def test_large_images_take_the_memory_of_a_batch(stage: str, store: Path) -> None:
    done = run_python(f"from tests.data import peak_memory; peak_memory.main({stage!r}, {str(store)!r})")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) / MIB < MOST[stage]


def test_blocks_and_batches_are_smaller_for_large_images_alone() -> None:
    small, large = torch.empty(0, 3, 64, 64), torch.empty(0, 3, SIDE, SIDE)
    network = build_network("convnet_bn", channels=3, image_size=32, classes=2, width=4)
    assert (block_of(small), block_of(large)) == (BLOCK, 222)
    assert inference_rows(network, 512, small.shape[1:]) == 512
    assert inference_rows(network, 512, large.shape[1:]) == 55
    assert inference_rows(network, 512, (3, 10_000, 10_000)) == 1
    assert inference_rows(network.to("meta"), 512, large.shape[1:]) == 512


def test_statistics_do_not_depend_on_the_size_of_batches() -> None:
    train = noise(60, classes=3).train
    network = build_network("convnet_bn", channels=3, image_size=8, classes=3, width=4, depth=1).eval()
    one, other = (collect_statistics(network, train, 3, batch_size=size).tensors() for size in (60, 7))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


def test_mean_and_deviation_of_large_images_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 4000 images every n-th one counts."""
    images = torch.randint(0, 256, (4001, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.zeros(4001, dtype=torch.int64))
    values = to_float(images[::2]).double()
    assert mean_and_std(split) == pytest.approx((float(values.mean()), float(values.std())), rel=1e-6)
    monkeypatch.setattr("gendistill.data.dataset.STATISTICS_BYTES", 0)
    for one in (split, mapped(split)):
        assert mean_and_std(one) == pytest.approx((float(values.mean()), float(values.std())), rel=1e-12)


@pytest.mark.parametrize("limit", [None, 10.0])
def test_central_images_are_cut_once_where_they_fit(digits: RealData, limit: float | None) -> None:
    images, wanted = mapped(digits.test).images, central_share(digits.test.pixels, 0.75)
    images.limit = limit
    cuts, found = [], central(images, 0.75)
    assert isinstance(found, CentralImages)
    cut = found._cut
    found._cut = lambda index: (cuts.append(index), cut(index))[1]
    for _ in range(2):
        assert torch.equal(torch.cat([*found.split(100)]), wanted)
    assert torch.equal(found[torch.tensor([7, 2])], wanted[[7, 2]])
    assert torch.equal(found[7], wanted[7])
    blocks = -(-len(images) // 100)
    assert len(cuts) == (1 if limit is None else 2 * blocks + 2)


def test_images_that_are_not_cut_stay_as_they_are(digits: RealData) -> None:
    images = mapped(digits.test).images
    assert central(images, 1.0) is images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_inference_joins_batches_of_one_result_or_two(dtype: torch.dtype) -> None:
    values = torch.arange(14).view(7, 2)
    assert torch.equal(infer(lambda x: x.to(dtype), values, batch_size=3), values.to(dtype))
    one, other = infer(lambda x: (x.to(dtype), x[:, 0]), values, batch_size=3)
    assert torch.equal(one, values.to(dtype))
    assert torch.equal(other, values[:, 0])
    assert infer(lambda x: x.to(dtype), values[:0], batch_size=3).shape == (0, 2)
