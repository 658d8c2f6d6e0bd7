"""One-pass class statistics against two passes in float64."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from pyarrow.parquet import ParquetFile
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import prepare, to_float
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, ConfigError, DataError, StorageError
from gendistill.hashing import hash_tensors
from gendistill.networks import statistics
from gendistill.networks.factories import batch_norm_layers, build_network
from gendistill.networks.statistics import (
    ClassMoments,
    ClassStatistics,
    Members,
    batch_norm_inputs,
    cached_statistics,
    collect_statistics,
)
from gendistill.objectives import refinement
from gendistill.progress import show_progress
from tests.conftest import CIFAR10
from tests.objectives.references import batch_norm_loss, class_moments
from tests.processes import launch

CPU = torch.device("cpu")
CLASSES = 4
LABELS = torch.tensor([0, 2, 2, 0, 1, 2, 2, 2, 0, 2, 2, 1, 2])  # ragged; class 3 is absent


def some_images(seed=0):
    """Grey images whose brightness depends on the class, so that batch means differ."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 100, (len(LABELS), 1, 16, 16), generator=rng)
    return Split((noise + 50 * LABELS[:, None, None, None]).to(torch.uint8), LABELS)


def small(name, channels=1, size=16, classes=CLASSES):
    return build_network(name, channels=channels, image_size=size, classes=classes, width=8)


def two_passes(inputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means and variances (K,C) of (B,C,...) by class in float64, the plain way; zeros for an absent class."""
    flat = inputs.double().flatten(2) if inputs.dim() > 2 else inputs.double()[..., None]
    mean, variance = torch.zeros(2, classes, flat.shape[1], dtype=torch.float64)
    for c in labels.unique():
        own = flat[labels == c]
        mean[c] = own.mean((0, 2))
        variance[c] = (own - mean[c][:, None]).square().mean((0, 2))
    return mean, variance


def assert_exact(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], relative: float = 1e-6) -> None:
    """Means to within a part of themselves or of the deviation, variances to within a part of themselves."""
    (mean, variance), (mean_, variance_) = found, expected
    assert ((mean - mean_).abs() <= relative * (mean_.abs() + variance_.sqrt())).all()
    torch.testing.assert_close(variance.double(), variance_, rtol=relative, atol=1e-30)


def gathered(parts: list[tuple[Tensor, Tensor]], classes: int) -> ClassMoments:
    """Moments of (inputs, labels) taken up one after another."""
    total = ClassMoments(classes, parts[0][0].shape[1], CPU)
    for inputs, labels in parts:
        total.add(inputs, Members.of(labels, CPU))
    return total


def in_batches(found: ClassMoments) -> tuple[Tensor, Tensor]:
    return found.mean, found.variance()


# moments -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 0.01])
@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (5, 7), (5, 16, 16), (3, 2, 4, 4)], ids=str)
def test_a_large_mean_and_a_small_spread_cancel_nothing(shape, spread):
    """Channel means up to 1000, and classes 300 apart, each with deviations that fp32 barely holds."""
    rng = torch.Generator().manual_seed(0)
    level = torch.linspace(-1000, 1000, shape[0]).reshape(-1, *(1 for _ in shape[1:]))
    apart = 300.0 * LABELS.reshape(-1, *(1 for _ in shape))
    inputs = level + apart + spread * torch.randn(len(LABELS), *shape, generator=rng)
    found = gathered([(inputs[:5], LABELS[:5]), (inputs[5:], LABELS[5:])], CLASSES)
    assert_exact(in_batches(found), two_passes(inputs, LABELS, CLASSES))
    assert found.count.flatten().tolist() == [n * inputs[0, 0].numel() for n in (3, 2, 8, 0)]


def test_moments_of_large_maps_taken_in_pieces_are_the_same_in_any_layout(monkeypatch):
    monkeypatch.setitem(refinement.CHUNK, "cpu", 2000)  # fewer numbers than one image has
    rng = torch.Generator().manual_seed(1)
    inputs = 10 + torch.randn(len(LABELS), 6, 24, 20, generator=rng)
    expected = two_passes(inputs, LABELS, CLASSES)
    for layout in (inputs, inputs.contiguous(memory_format=torch.channels_last), inputs.mT.contiguous().mT):
        assert_exact(in_batches(gathered([(layout, LABELS)], CLASSES)), expected)


@given(cuts=st.sets(st.integers(1, len(LABELS) - 1)), seed=st.integers(0, 99), level=st.sampled_from([0.0, 1.0, 1e3]))
@settings(max_examples=60, deadline=None)
def test_moments_do_not_depend_on_how_the_data_is_cut_into_batches(cuts, seed, level):
    rng = torch.Generator().manual_seed(seed)
    inputs = level + torch.randn(len(LABELS), 3, 4, 4, generator=rng) * torch.rand(len(LABELS), 3, 1, 1, generator=rng)
    ends = [0, *sorted(cuts), len(LABELS)]
    parts = [(inputs[a:b], LABELS[a:b]) for a, b in pairwise(ends)]
    together = in_batches(gathered([(inputs, LABELS)], CLASSES))
    assert_exact(in_batches(gathered(parts, CLASSES)), together, 1e-9)
    assert_exact(together, two_passes(inputs, LABELS, CLASSES))


def test_the_spread_between_batches_counts():
    """Two batches of constant images: their own variances are 0, so averaging those would give 0."""
    inputs = torch.tensor([1.0, 5.0])[:, None, None, None].expand(2, 1, 4, 4)
    labels = torch.zeros(1, dtype=torch.int64)
    found = gathered([(inputs[:1], labels), (inputs[1:], labels)], 1)
    assert (found.mean.item(), found.variance().item()) == (3.0, 4.0)


def test_half_precision_inputs_are_taken_up_in_fp32():
    inputs = torch.randn(len(LABELS), 4, 16, 16, generator=torch.Generator().manual_seed(2)).bfloat16() + 100
    assert_exact(in_batches(gathered([(inputs, LABELS)], CLASSES)), two_passes(inputs, LABELS, CLASSES))


# one pass ------------------------------------------------------------------------------------------------------------


def what_the_layers_saw(network: nn.Module) -> dict[str, list[Tensor]]:
    """Fills with each forward pass, by hooks of the test's own."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            keep = seen.setdefault(name, [])
            module.register_forward_hook(lambda m, inputs, output, keep=keep: keep.append(inputs[0].clone()))
    return seen


@pytest.mark.parametrize("batch_size", [5, 13, 100, 1])
@pytest.mark.parametrize("name", ["convnet_bn", "resnet10_bn", "resnet18_bn", "timm:resnet10t"])
def test_moments_equal_two_passes_in_float64(name, batch_size):
    network, split = small(name), some_images()
    seen = what_the_layers_saw(network)
    found = collect_statistics(network, split, CLASSES, batch_size)
    assert set(found.means) == set(found.variances) == set(seen)
    for layer, inputs in seen.items():
        expected = two_passes(torch.cat(inputs), LABELS, CLASSES)
        assert_exact((found.means[layer], found.variances[layer]), expected)
    with torch.no_grad():
        features = network.features(to_float(split.images))
    torch.testing.assert_close(found.features, features, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("convnet_bn", 1), ("resnet10_bn", 1), ("resnet18_bn", 1), ("timm:resnet10t", 2), ("timm:regnety_002", 4),
        ("timm:efficientnet_b0", 4),
    ],
)  # fmt: skip
def test_the_batch_size_does_not_matter_on_real_images(digits: RealData, name, times):
    """Beyond the rounding of the network itself, which computes batches of other sizes in another order."""
    images = digits.train.images[:64].repeat_interleave(times, 2).repeat_interleave(times, 3)
    network, split = small(name, size=images.shape[-1], classes=10), Split(images, digits.train.labels[:64])
    one, other = (collect_statistics(network, split, 10, size) for size in (64, 23))
    for layer, mean in one.means.items():
        variance, deviation = one.variances[layer], one.variances[layer].mean().sqrt()
        assert ((other.means[layer] - mean).abs() <= 1e-5 * (mean.abs() + deviation)).all()
        assert ((other.variances[layer] - variance).abs() <= 1e-5 * (variance + deviation * mean.abs())).all()
    torch.testing.assert_close(other.features, one.features, rtol=1e-4, atol=1e-5)


def first_of_cifar10(count: int) -> Split:
    """Without decoding the rest of the file."""
    file = next(CIFAR10.glob("train-*.parquet"), None)
    if file is None:
        pytest.skip(f"no CIFAR-10 parquet files in {CIFAR10}")
    rows = next(ParquetFile(file).iter_batches(count)).to_pylist()
    images = [prepare(Image.open(io.BytesIO(row["image"]["bytes"])), 32, 3) for row in rows]
    return Split(torch.from_numpy(np.stack(images)), torch.tensor([row["label"] for row in rows]))


def test_moments_of_resnet10t_on_cifar10_are_exact():
    split = first_of_cifar10(30)
    network = small("timm:resnet10t", channels=3, size=32, classes=10)
    seen = what_the_layers_saw(network)
    found = collect_statistics(network, split, 10, 16)
    assert len(found.means) == 12
    for layer, inputs in seen.items():
        expected = two_passes(torch.cat(inputs), split.labels, 10)
        assert_exact((found.means[layer], found.variances[layer]), expected)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet10_bn", 12), ("resnet18_bn", 20), ("resnetap10_bn", 12), ("timm:resnet18", 20), ("timm:resnet10t", 14),
        ("timm:resnet50", 53), ("timm:efficientnet_b0", 49), ("timm:regnety_002", 44), ("timm:densenet121", 121),
        ("timm:convnext_atto", 0), ("timm:vit_tiny_patch16_224", 0),
    ],
)  # fmt: skip
def test_all_batch_norm_layers_are_found_and_run_once(name, layers):
    with torch.device("meta"):
        network = build_network(name, channels=3, image_size=224, classes=2).eval()
    calls: list[str] = []
    for layer, module in batch_norm_layers(network).items():
        module.register_forward_pre_hook(lambda m, inputs, layer=layer: calls.append(layer))
    with batch_norm_inputs(network) as seen:
        network.features(torch.zeros(2, 3, 224, 224, device="meta"))
    assert seen.keys() == batch_norm_layers(network).keys()
    assert len(seen) == len(calls) == layers


def test_the_stem_of_small_images_has_two_batch_norm_layers_fewer():
    assert len(batch_norm_layers(small("timm:resnet10t", size=16))) == 12


def test_a_network_without_batch_norm_gives_features_alone():
    found = collect_statistics(small("convnet"), some_images(), CLASSES)
    assert found.means == found.variances == {}
    assert len(found.features) == len(LABELS)


class Windows(nn.Module):
    """As timm's levit and efficientvit_m: batch norm sees four windows of every image as rows of their own."""

    def __init__(self, by_image=True, calls=1):
        super().__init__()
        self.norm, self.by_image, self.calls = nn.BatchNorm2d(1), by_image, calls

    def features(self, images):
        windows = images.unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 1, 8, 8)
        for _ in range(self.calls):
            windows = self.norm(windows if self.by_image else windows[1:])
        return windows.reshape(-1, 64)[: len(images)]


def test_windows_of_an_image_count_to_its_class():
    split = some_images()
    found = collect_statistics(Windows(), split, CLASSES, 5)
    assert_exact((found.means["norm"], found.variances["norm"]), two_passes(to_float(split.images), LABELS, CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("efficientvit_m0", 128), ("levit_128s", 224)])
def test_windows_and_tokens_of_timm_networks_count_to_their_own_images(name, size):
    """In the statistics and in the loss, against two passes in float64 over what each image gives alone."""
    split = Split(nn.functional.interpolate(some_images().images, (size, size)), LABELS)
    network = build_network(f"timm:{name}", channels=1, image_size=size, classes=CLASSES).eval()
    alone: list[dict[str, Tensor]] = []
    with torch.no_grad(), batch_norm_inputs(network) as seen:
        for image in to_float(split.images):
            network.features(image[None])
            alone.append(dict(seen))
        network.features(to_float(split.images))
    found = collect_statistics(network, split, CLASSES, 5)
    assert {len(inputs) for inputs in seen.values()} > {len(LABELS)}
    for layer, inputs in seen.items():
        rows = len(inputs) // len(LABELS)
        expected = two_passes(torch.cat([one[layer] for one in alone]), LABELS.repeat_interleave(rows), CLASSES)
        for mean, variance in (
            (found.means[layer], found.variances[layer]),
            class_moments(inputs, LABELS, CLASSES)[:2],
        ):
            assert ((mean - expected[0]).abs() <= 1e-4 * (expected[0].abs() + expected[1].sqrt() + 1e-3)).all()
            torch.testing.assert_close(variance.double(), expected[1], rtol=1e-3, atol=1e-6)
    assert batch_norm_loss(seen, LABELS, found.means, found.variances) < 1e-6


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Windows(calls=2), "norm runs twice"), (Windows(by_image=False), "norm gets 51 rows a batch of 13")],
)
def test_layers_without_moments_by_image_are_refused(network, reason):
    with pytest.raises(ConfigError, match=reason):
        collect_statistics(network, some_images(), CLASSES)


def test_a_split_that_has_no_image_or_unknown_labels_is_refused():
    network, split = small("convnet_bn"), some_images()
    with pytest.raises(DataError, match="no image"):
        collect_statistics(network, split.take(torch.arange(0)), CLASSES)
    with pytest.raises(DataError, match="labels up to 2; expected images with labels below 2"):
        collect_statistics(network, split, 2)


def test_collecting_leaves_running_statistics_as_they_were():
    network = small("convnet_bn")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    collect_statistics(network, some_images(), CLASSES)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_hooks_are_gone_after_the_block():
    network = small("convnet_bn")
    with batch_norm_inputs(network) as seen:
        network(torch.zeros(2, 1, 16, 16))
    first = dict(seen)
    network(torch.ones(2, 1, 16, 16))
    assert len(first) == 2
    assert all(seen[k] is v for k, v in first.items())


def test_batch_norm_inputs_carry_a_gradient_to_the_images():
    images = torch.zeros(2, 1, 16, 16, requires_grad=True)
    network = small("convnet_bn").eval()
    with batch_norm_inputs(network) as seen:
        network(images)
        sum(v.square().sum() for v in seen.values()).backward()
    assert images.grad.abs().sum() > 0


def test_feature_variance_by_hand():
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, 5.0]])
    found = ClassStatistics(features, torch.tensor([0, 0, 1, 1]), {}, {})
    assert found.feature_variance().tolist() == [1.0, 4.0]
    assert torch.equal(found.of_class(1), features[2:])


# files ---------------------------------------------------------------------------------------------------------------


def equal(one: ClassStatistics, other: ClassStatistics) -> bool:
    return hash_tensors(one.tensors()) == hash_tensors(other.tensors())


def test_statistics_survive_a_file(tmp_path):
    found = collect_statistics(small("convnet_bn"), some_images(), CLASSES)
    found.save(tmp_path / "statistics.safetensors")
    again = ClassStatistics.load(tmp_path / "statistics.safetensors")
    assert equal(again, found)
    assert again.means.keys() == found.means.keys() == again.variances.keys()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not safetensors", save({"x": torch.zeros(1)})],
    ids=["missing", "empty", "damaged", "other"],
)
def test_unreadable_statistics_are_an_artifact_error(tmp_path, content):
    path = tmp_path / "statistics.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"statistics\.safetensors"):
        ClassStatistics.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean/b": torch.tensor([[torch.nan]])}, "mean/b that are not finite"),
        ({"features": torch.tensor([[torch.inf]])}, "features that are not finite"),
        ({"mean/c": torch.zeros(1, 1)}, "only a mean or only a variance"),
    ],
    ids=["moments", "features", "half"],
)
def test_statistics_that_are_no_numbers_are_refused(tmp_path, changes, message):
    whole = {"features": torch.zeros(1, 1), "labels": torch.zeros(1, dtype=torch.long)}
    whole |= {"mean/b": torch.zeros(1, 1), "var/b": torch.ones(1, 1)}
    path = tmp_path / "statistics.safetensors"
    path.write_bytes(save(whole))
    assert ClassStatistics.load(path).means.keys() == {"b"}
    path.write_bytes(save(whole | changes))
    with pytest.raises(ArtifactError, match=message):
        ClassStatistics.load(path)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """One entry for every pass that the cache lets happen."""
    made: list[int] = []

    def counted(*arguments, **keywords):
        made.append(1)
        return collect_statistics(*arguments, **keywords)

    monkeypatch.setattr(statistics, "collect_statistics", counted)
    return made


def test_statistics_of_the_same_key_are_collected_once(tmp_path, passes):
    network, split, cache = small("convnet_bn"), some_images(), tmp_path / "new" / "cache"
    first, again = (cached_statistics("t", network, split, CLASSES, cache=cache) for _ in range(2))
    assert equal(first, again)
    assert len(passes) == 1
    assert [p.name[:11] for p in cache.iterdir()] == ["statistics-"]


def test_anything_that_changes_the_statistics_makes_them_anew(tmp_path, passes):
    network, split = small("convnet_bn"), some_images()
    darker = Split(split.images // 2, split.labels)
    variants = [
        ("t", split, CLASSES), ("u", split, CLASSES), ("t", darker, CLASSES), ("t", split, CLASSES + 1),
        ("t", Split(split.images, split.labels.flip(0)), CLASSES),
    ]  # fmt: skip
    for name, images, classes in variants:
        cached_statistics(name, network, images, classes, cache=tmp_path)
    assert len(passes) == len(list(tmp_path.iterdir())) == len(variants)


def test_no_folder_keeps_nothing(tmp_path, passes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        cached_statistics("t", small("convnet_bn"), some_images(), CLASSES, cache=None)
    assert (len(passes), list(tmp_path.iterdir())) == (2, [])


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_damaged_file_is_made_again_with_a_note(tmp_path, passes, capsys, harm):
    network, split = small("convnet_bn"), some_images()
    first = cached_statistics("t", network, split, CLASSES, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    harmed = {"cut": content[:-9], "bit": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "empty": b""}
    path.write_bytes(harmed[harm])
    with show_progress():
        assert equal(cached_statistics("t", network, split, CLASSES, cache=tmp_path), first)
    assert path.name in capsys.readouterr().err
    assert path.read_bytes() == content
    assert len(passes) == 2


def test_another_ones_file_is_neither_used_nor_replaced(tmp_path, passes):
    network, split = small("convnet_bn"), some_images()
    mine = cached_statistics("t", network, split, CLASSES, cache=tmp_path / "cache")
    cached_statistics("t", network, Split(split.images // 2, LABELS), CLASSES, cache=tmp_path / "other")
    (path,), (other,) = (tmp_path / "cache").iterdir(), (tmp_path / "other").iterdir()
    foreign = other.read_bytes()
    path.write_bytes(foreign)
    assert equal(cached_statistics("t", network, split, CLASSES, cache=tmp_path / "cache"), mine)
    assert path.read_bytes() == foreign
    assert len(passes) == 3


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [("file", ArtifactError, "is a file; expected a folder"), ("file/cache", StorageError, "Choose another folder")],
)
def test_a_cache_that_cannot_be_a_folder_is_refused_before_the_pass(tmp_path, passes, place, error, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        cached_statistics("t", small("convnet_bn"), some_images(), CLASSES, cache=tmp_path / place)
    assert not passes


# processes -----------------------------------------------------------------------------------------------------------


def digits_in_batches(folder: Path, shared: bool) -> None:
    """Statistics in nine batches, in one, and twice through a cache; what the two processes below run."""
    from gendistill.runtime import processes

    rank = processes().process_index if shared else 0
    split = load_data().train.take(torch.arange(170))
    network = small("convnet_bn", size=8, classes=10)
    save_file(collect_statistics(network, split, 10, 20, shared=shared).tensors(), folder / f"many-{rank}")
    save_file(collect_statistics(network, split, 10, 200, shared=shared).tensors(), folder / f"one-{rank}")
    for turn in ("first", "again"):
        found = cached_statistics("t", network, split, 10, cache=folder / "cache", batch_size=20, shared=shared)
        save_file(found.tensors(), folder / f"{turn}-{rank}")


@pytest.mark.slow
def test_two_processes_share_the_pass_of_one(tmp_path):
    for name in ("two", "alone"):
        (tmp_path / name).mkdir()
    (done,) = launch((Path(__file__), tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-2000:]
    digits_in_batches(tmp_path / "alone", shared=False)
    two = {p.name: load_file(p) for p in (tmp_path / "two").iterdir() if p.is_file()}
    alone = load_file(tmp_path / "alone" / "many-0")
    for rank in (0, 1):
        found = two[f"many-{rank}"]
        assert torch.equal(found["features"], alone["features"])
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)
        assert hash_tensors(two[f"one-{rank}"]) == hash_tensors(load_file(tmp_path / "alone" / "one-0"))
        assert hash_tensors(two[f"first-{rank}"]) == hash_tensors(two[f"again-{rank}"]) == hash_tensors(found)
    assert len([*(tmp_path / "two" / "cache").iterdir()]) == 1


if __name__ == "__main__":
    digits_in_batches(Path(sys.argv[1]), shared=True)
