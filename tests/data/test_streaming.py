"""Images in a file give the same bytes as images in memory, in whatever reads them, and are never read as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gendistill as gd
from gendistill.config import Blended, DistillConfig, MatchingConfig, PerImage, Representative
from gendistill.data.augmentation import Augmentation
from gendistill.data.class_positions import ClassIndex
from gendistill.data.dataset import RealData
from gendistill.data.mapped import MappedImages, float_table, on_device, read_steps
from gendistill.errors import StorageError
from gendistill.networks.factories import build_network
from gendistill.networks.feature_extractors import features_of
from gendistill.networks.statistics import ClassStatistics, cached_statistics, collect_statistics
from gendistill.networks.training import augmented_batches, predicted
from gendistill.registry import DISTILLERS, coresets
from tests.data.folders import make

CPU = torch.device("cpu")
Result = dict[str, Tensor]
TEACHER = gd.TeacherConfig(network="convnet_bn", steps=4, batch_size=8, width=4, depth=1, shift=1, flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("images"), ("cat", "dog", "bird"), count=14)


@pytest.fixture(scope="module")
def plain(folder: Path) -> RealData:
    return gd.load_data(name=str(folder), cache=None)


@pytest.fixture
def stored(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealData:
    """The same images in a file; whoever asks for all of a split at once fails."""
    data, read = gd.load_data(name=str(folder), cache=tmp_path), MappedImages.__getitem__
    assert isinstance(data.train.images, MappedImages)
    whole = {len(split) for split in (data.train, data.validation, data.test)}

    def some(self: MappedImages, index: Any) -> Tensor:
        all_of_it = isinstance(index, slice) and index == slice(None) and len(self) in whole
        assert not all_of_it, f"all {len(self)} images are read at once"
        return read(self, index)

    monkeypatch.setattr(MappedImages, "__getitem__", some)
    return data


def teacher_of(data: RealData) -> gd.Teacher:
    return gd.train_teacher(data, TEACHER)


def of_teacher(data: RealData) -> Result:
    teacher = teacher_of(data)
    scores = {split: torch.tensor(share) for split, share in teacher.meta["accuracy"].items()}
    return {**teacher.network.state_dict(), **teacher.statistics.tensors(), **scores}


def of_labels(data: RealData) -> Result:
    made = gd.distill(data, "random", ipc=2)
    labelled = gd.label_set(made, teacher_of(data), gd.LabelConfig(mode=PerImage(views=2), min_crop=0.5))
    assert labelled.soft_labels
    return labelled.soft_labels.tensors


def of_reference(data: RealData) -> Result:
    network = build_network("convnet", channels=3, image_size=8, classes=3, width=4, depth=1).eval()
    return {"features": features_of(network)(data.train.images), "classes": predicted(network, data.test)[0]}


def of_coreset(method: str, with_teacher: bool) -> Callable[[RealData], Result]:
    def chosen(data: RealData) -> Result:
        made = gd.distill(data, method, ipc=3, teacher=teacher_of(data) if with_teacher else ())
        return {"images": made.images, "labels": made.labels}

    return chosen


def of_matching(method: str, start: str = "noise") -> Callable[[RealData], Result]:
    def matched(data: RealData) -> Result:
        inner = 1 if method in ("dm", "idm", "cf") else 2
        options = MatchingConfig(start=start, width=4, depth=1, real_batch=5, inner_steps=inner)
        if method == "cf":
            options = replace(options, networks=Blended(pool_size=1, pool_steps=2))
        return {
            "images": gd.distill(
                data, method, 2, config=DistillConfig(method=method, iterations=2, matching=options)
            ).images
        }

    return matched


def of_representatives(data: RealData) -> Result:
    options = MatchingConfig(width=4, depth=1, selection=Representative(interval=1), real_batch=5)
    return {
        "images": gd.distill(data, "dm", 2, config=DistillConfig(method="dm", iterations=2, matching=options)).images
    }


USES: dict[str, Callable[[RealData], Result]] = {
    "teacher": of_teacher,
    "labels": of_labels,
    "features and classes": of_reference,
    **{f"{method} of pixels": of_coreset(method, False) for method in coresets()},
    **{f"{method} of features": of_coreset(method, True) for method in coresets() if DISTILLERS[method].takes_teacher},
    **{method: of_matching(method) for method in ("dc", "dsa", "dm", "idc", "idm", "dream", "cf")},
    **{f"dm from {start}": of_matching("dm", start) for start in ("random", "clustered")},
    "dm of representatives": of_representatives,
}


@pytest.mark.parametrize("use", USES)
def test_a_file_gives_what_memory_gives(use: str, plain: RealData, stored: RealData) -> None:
    made = USES[use]
    expected, found = made(plain), made(stored)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_statistics_in_a_cache_serve_both(plain: RealData, stored: RealData, tmp_path: Path) -> None:
    network = build_network("convnet_bn", channels=3, image_size=8, classes=3, width=4, depth=1)
    for data in (plain, stored):
        cached_statistics("t", network, data.train, 3, cache=tmp_path / "cache")
    assert len([*(tmp_path / "cache").iterdir()]) == 1


def test_features_beyond_the_limit_lie_in_a_file(
    plain: RealData, stored: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDISTILL_CACHE", str(tmp_path / "features"))
    network = build_network("convnet_bn", channels=3, image_size=8, classes=3, width=4, depth=1)
    expected = collect_statistics(network, plain.train, 3, batch_size=8)
    assert isinstance(stored.train.images, MappedImages)
    for images in (stored.train.images, stored.test.images):
        images.limit = 100.0
    found = collect_statistics(network, stored.train, 3, batch_size=8)
    assert (tmp_path / "features").is_dir()
    assert [*(tmp_path / "features").iterdir()] == []  # nobody has to remove it
    assert all(torch.equal(tensor, found.tensors()[name]) for name, tensor in expected.tensors().items())
    assert torch.equal(expected.feature_variance(), found.feature_variance())
    found.save(tmp_path / "statistics", hashed=True)
    assert torch.equal(ClassStatistics.load(tmp_path / "statistics").features, expected.features)
    embed = features_of(network.eval())
    assert torch.equal(embed(stored.test.images), embed(plain.test.images))


def test_a_folder_without_room_for_features_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"features of 9 images, .*GENDISTILL_CACHE"):
        float_table(9, (4,), 10)


def test_images_move_to_a_device_where_they_fit(stored: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    images, meta = stored.train.images, torch.device("meta")
    assert isinstance(images, MappedImages)
    assert on_device(images, CPU) is images
    images.limit = images.nbytes - 1
    assert on_device(images, meta) is images
    images.limit = images.nbytes
    moved = stored.train.to(meta)
    assert isinstance(moved.images, Tensor)
    assert (moved.images.shape, moved.images.device, moved.labels.device) == (images.shape, meta, meta)


def test_the_limit_is_that_of_the_options(folder: Path, tmp_path: Path) -> None:
    data = gd.load_data(name=str(folder), cache=tmp_path, in_memory_gib=2)
    for split in (data.train, data.validation, data.test, data.train.take(torch.tensor([1, 2]))):
        assert isinstance(split.images, MappedImages)
        assert split.images.limit == 2**31


def test_steps_may_be_asked_for_in_any_order(plain: RealData, stored: RealData) -> None:
    steps = (0, 1, 2, 7, 8, 3, 3, 4)
    one, other = (augmented_batches(d.train, Augmentation(flip=True), batch_size=4, seed=1) for d in (plain, stored))
    for step in steps:
        assert all(torch.equal(a, b) for a, b in zip(one(step), other(step), strict=True))
    read = read_steps(stored.train.images, lambda step: torch.tensor([step]), CPU, 3)
    assert [len(read(step)) for step in (0, 1, 2)] == [1, 1, 1]


def test_an_empty_split_of_a_file_is_one_empty_batch(stored: RealData) -> None:
    nothing = stored.train.take(torch.arange(0))
    assert [part.shape for part in nothing.images.split(4)] == [(0, 3, 8, 8)]


def test_positions_of_each_class_are_found_at_once(plain: RealData) -> None:
    labels = plain.train.labels
    index = ClassIndex(labels)
    assert all(torch.equal(index.of(c), torch.nonzero(labels == c).flatten()) for c in range(4))
