"""Teachers of other images: statistics of these are collected and kept; who saw the test images is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from gendistill import progress
from gendistill.cli import USAGE
from gendistill.config import RefineConfig, TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ArtifactError, DivergenceError, GendistillError
from gendistill.hashing import hash_tensors
from gendistill.io import read_tensors, write_tensors
from gendistill.networks import training
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.statistics import ClassStatistics, collect_statistics
from gendistill.networks.teacher import FILE, Teacher
from gendistill.networks.teacher_images import check_teacher, real_images
from gendistill.networks.teacher_training import train_teacher
from gendistill.refine.feature_space import ground_space
from gendistill.seeding import torch_rng
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import edit, files, gendistill

FEW = ("--data.max_per_class", 40)
TINY = ("--steps", 60, "--width", 8)
BAR = "class statistics: "
WMDD = ("distill", "--method", "wmdd", "--ipc", 1, "--wmdd.steps", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as an image folder whose test split is its own, so that no limit on training images moves it."""
    root, bunch = tmp_path_factory.mktemp("digits"), load_digits()
    for i, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        place = root / ("test" if i % 4 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(place / f"{i:04d}.png")
    return root


def trained(target: Path, *options: object) -> Path:
    assert gendistill("teacher", *TINY, *options, "--output_dir", target) == 0
    return target


@pytest.fixture(scope="module")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first 40 images a class."""
    return trained(tmp_path_factory.mktemp("few") / "teacher", "--data.name", folder, *FEW)


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first 40 built-in digits a class, from which the test split is carved."""
    return trained(tmp_path_factory.mktemp("built-in") / "teacher", *FEW)


def test_the_images_of_a_teacher_are_found_by_its_record_alone(built_in: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((built_in / FILE).read_bytes())
    (data, config), (expected, same) = (real_images(None, place) for place in (tmp_path, built_in))
    assert (data.fingerprint(), config) == (expected.fingerprint(), same)
    (tmp_path / FILE).unlink()
    with pytest.raises(ArtifactError, match="teacher folder"):
        real_images(None, tmp_path)


def test_flop_are_counted_only_where_they_decide(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("counted")

    monkeypatch.setattr(training, "training_flop", never)
    for choices in ({"compile": False}, {"mixed_precision": "no"}):
        train_teacher(digits, TeacherConfig(steps=1, width=4, depth=1, **choices))


@pytest.mark.slow
def test_statistics_of_other_images_are_collected_once_and_kept(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    given = (*WMDD, "--teacher", teacher, "--data.name", folder)
    cache = ("--statistics_cache", tmp_path / "cache")
    assert gendistill(*given, *cache, "--output_dir", tmp_path / "first") == 0
    said = capsys.readouterr().err
    assert "trained on other images than these (compared with the test split)" in said
    assert BAR in said
    (path,) = (tmp_path / "cache").iterdir()
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert gendistill(*given, *cache, "--output_dir", tmp_path / "again") == 0
    said = capsys.readouterr().err
    assert f"class statistics read from {path}" in said
    assert BAR not in said
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert gendistill(*given, "--output_dir", tmp_path / "without") == 0
    assert files(tmp_path / "first") == files(tmp_path / "again") == files(tmp_path / "without")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    expected = collect_statistics(Teacher.from_pretrained(teacher).network, load_data(name=str(folder)).train, 10)
    assert hash_tensors(ClassStatistics.load(path).tensors()) == hash_tensors(expected.tensors())
    made = SurrogateSet.load(tmp_path / "first" / "ipc-1").meta
    (seen,) = made["teacher_data"]
    assert sum(seen["counts"]["train"]) == 360 < sum(made["data"]["counts"]["train"])


def test_a_teacher_of_the_same_images_keeps_its_own_statistics(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*WMDD, "--teacher", teacher, "--data.name", folder, *FEW, "--statistics_cache", tmp_path / "cache")
    assert gendistill(*given, "--output_dir", tmp_path / "out") == 0
    assert "class statistics" not in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert "teacher_data" not in SurrogateSet.load(tmp_path / "out" / "ipc-1").meta


def test_a_teacher_of_fewer_training_images_suits_all_of_them(built_in: Path, tmp_path: Path) -> None:
    assert gendistill(*WMDD, "--teacher", built_in, "--output_dir", tmp_path / "out") == 0


@pytest.mark.parametrize("other", [(), FEW], ids=["all", "few"])
def test_a_teacher_that_saw_test_images_is_refused_with_their_number(
    built_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: tuple[object, ...]
) -> None:
    seed = ("--data.split_seed", 1)
    assert gendistill(*WMDD, "--teacher", built_in, *other, *seed, "--output_dir", tmp_path / "out") == USAGE
    data, own = load_data(max_per_class=40 if other else None, split_seed=1), load_data(max_per_class=40)
    test, train = ({x.numpy().tobytes() for x in split.images} for split in (data.test, own.train))
    assert f"{len(test & train)} of the {len(data.test)} test images are among" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_test_images_that_the_training_split_repeats_are_no_reason_to_refuse(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    (twin,) = (tmp_path / "data" / "train" / "0").glob("0010.png")
    shutil.copy(twin, tmp_path / "data" / "test" / "0" / "copy.png")
    teacher = Teacher.from_pretrained(trained(tmp_path / "teacher", "--data.name", tmp_path / "data", *FEW))
    data = load_data(name=str(tmp_path / "data"))
    check_teacher("the teacher", teacher, data)
    alone = replace(data, train=data.train.take(torch.arange(200, len(data.train))))  # without that image
    with pytest.raises(ArtifactError, match=r"1 of the 4\d\d test images"):
        check_teacher("the teacher", teacher, alone)


def test_other_classes_and_sizes_are_refused(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "renamed")
    for split in ("train", "test"):
        (tmp_path / "renamed" / split / "9").rename(tmp_path / "renamed" / split / "nine")
    cache = ("--statistics_cache", tmp_path / "cache")
    for options, message in (
        (("--data.name", tmp_path / "renamed"), "expected the same in the same order"),
        (("--data.name", folder, "--data.image_size", 16), "takes images of 1 channel(s) and 8 px"),
    ):
        assert gendistill(*WMDD, "--teacher", teacher, *options, *cache, "--output_dir", tmp_path / "out") == USAGE
        assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["renamed"]


@pytest.mark.slow
def test_a_teacher_whose_own_images_are_gone_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "old")
    teacher = trained(tmp_path / "teacher", "--data.name", tmp_path / "old", *FEW)
    given = (*WMDD, "--teacher", teacher, "--data.name", folder, "--output_dir", tmp_path / "out")
    (next((tmp_path / "old" / "train" / "3").iterdir())).unlink()
    assert gendistill(*given) == USAGE
    assert "changed since the teacher was trained on them" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "old")
    assert gendistill(*given) == USAGE
    assert "whether test images are among them is unknown" in capsys.readouterr().err


def test_the_cache_is_for_wmdd_alone_and_not_in_the_output(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gendistill("distill", "--statistics_cache", tmp_path, "--output_dir", tmp_path / "out") == USAGE
    assert "expected null with method kmeans" in capsys.readouterr().err
    inside = ("--statistics_cache", tmp_path / "out" / "cache", "--output_dir", tmp_path / "out")
    assert gendistill(*WMDD, "--teacher", teacher, *inside) == USAGE
    assert "holds the input" in capsys.readouterr().err


@pytest.mark.slow
def test_refinement_collects_for_a_second_teacher_of_another_split(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have as many images of every class in the same order, but not the same images."""
    second = trained(tmp_path / "second", "--data.name", folder, *FEW, "--data.split_seed", 1)
    data = load_data(name=str(folder), max_per_class=40)
    teachers = [Teacher.from_pretrained(path) for path in (teacher, second)]
    assert torch.equal(teachers[1].statistics.labels, data.train.labels)
    space = ground_space(teachers, data, RefineConfig())
    expected = collect_statistics(teachers[1].network, data.train, 10)
    assert torch.equal(space.teachers[1].statistics.features, expected.features)
    assert not torch.equal(teachers[1].statistics.features, expected.features)
    distill(data, "random", 3).save(tmp_path / "pool")
    refine = ("refine", "--surrogate", tmp_path / "pool", "--ipc", 1, "--steps", 2, "--output_dir", tmp_path / "out")
    assert gendistill(*refine, "--teacher", f"[{teacher},{second}]", "--statistics_cache", tmp_path / "cache") == 0
    assert "class statistics of these 360 are collected" in capsys.readouterr().err
    assert len(list((tmp_path / "cache").iterdir())) == 1
    stage = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert "statistics_cache" not in stage["settings"]["options"]


def test_a_held_out_network_that_saw_test_images_is_refused(
    folder: Path, teacher: Path, built_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill(load_data(max_per_class=40), "random", 3).save(tmp_path / "pool")
    spied = trained(tmp_path / "spied", *FEW, "--data.split_seed", 1)
    refine = ("refine", "--surrogate", tmp_path / "pool", "--teacher", built_in, "--ipc", 1, "--gate", "true")
    assert gendistill(*refine, "--held_out", spied, "--output_dir", tmp_path / "out") == USAGE
    assert "the held-out teacher was trained on other splits than these" in capsys.readouterr().err


def test_a_teacher_needs_no_validation_images(tmp_path: Path) -> None:
    images, labels = torch.zeros(20, 8, 8, dtype=torch.uint8).numpy(), [0, 1] * 10
    data = RealData.from_arrays(images, labels, validation=(images[:0], torch.tensor([], dtype=torch.int64)))
    made = train_teacher(data, TeacherConfig(steps=1, width=4))
    assert made.meta["accuracy"].keys() == {"train"}
    made.save_pretrained(tmp_path / "teacher")
    assert Teacher.from_pretrained(tmp_path / "teacher").facts()["accuracy"] is None


def test_a_teacher_whose_weights_are_no_numbers_is_refused(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / "model.safetensors"
    weights = read_tensors(path, fix="")[0]
    weights["head.bias"] = torch.full_like(weights["head.bias"], torch.nan)
    write_tensors(path, weights)
    with pytest.raises(ArtifactError, match="not finite, such as 'head"):
        Teacher.from_pretrained(tmp_path / "teacher")
    broken = Teacher.from_pretrained(teacher)
    broken.network.load_state_dict(weights)
    made = distill(load_data(max_per_class=40), "random", 1)
    with pytest.raises(DivergenceError, match="not finite"):
        label_set(made, broken)


SPECS = {
    "channels": (0, -3, 10**7, 10**30),
    "image_size": (0, -1, 10**7, 60_000),
    "classes": (0, -3, 9, 10**30),
    "width": (0, -3, 10**7, 10**30),
    "depth": (0, -1, 10**7, 9),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SPECS.items() for value in values])
def test_a_number_that_no_network_has_is_refused_before_it_takes_memory(
    teacher: Path, tmp_path: Path, name: str, value: int
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / "teacher.json"
    edit(path, network=json.loads(path.read_text())["network"] | {name: value})
    with pytest.raises(GendistillError, match=rf"network\.{name} is {value}; expected|does not fit|does not fit its"):
        Teacher.from_pretrained(tmp_path / "teacher")


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.safetensors", "teacher.json"])
def test_a_changed_bit_of_a_teacher_is_noticed(teacher: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / name
    data = path.read_bytes()
    at = data.index(b'"accuracy"') + 3 if name == "teacher.json" else len(data) - 9
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ArtifactError, match=f"{name} (is damaged: its tensors do not match|was changed after)"):
        Teacher.from_pretrained(tmp_path / "teacher")


STATISTICS = {
    "other classes": (lambda s: s | {"labels": s["labels"] + 5}, "labels that are no classes; expected 0 to 9"),
    "negative classes": (lambda s: s | {"labels": -s["labels"]}, "labels that are no classes"),
    "fewer labels": (lambda s: s | {"labels": s["labels"][1:]}, r"expected \(N,D\) and \(N,\)"),
    "flat features": (lambda s: s | {"features": s["features"][:, 0]}, r"expected \(N,D\) and \(N,\)"),
    "whole features": (lambda s: s | {"features": s["features"].int()}, "features that are no fp32"),
    "fewer moments": (lambda s: s | {n: v[1:] for n, v in s.items() if "/" in n}, r"moments \(9, 8\) .*\(10, 8\)"),
    "negative variances": (lambda s: s | {n: -v for n, v in s.items() if "var/" in n}, "a negative variance"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_that_are_not_of_the_network_are_refused(teacher: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    path, (change, said) = tmp_path / "teacher" / "statistics.safetensors", STATISTICS[case]
    write_tensors(path, change(read_tensors(path, fix="")[0]))
    with pytest.raises(ArtifactError, match=said):
        Teacher.from_pretrained(tmp_path / "teacher")


@pytest.mark.parametrize(
    "change",
    [{"data_config": {"nme": "digits"}}, {"data_config": {"image_size": "big"}}, {"data_config": {}, "data": {}}],
)
def test_a_teacher_whose_images_cannot_be_read_again_is_one_message(
    teacher: Path, tmp_path: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    edit(tmp_path / "teacher" / "teacher.json", **change)
    made = tmp_path / "set"
    distill(load_data(max_per_class=40), "random", 1).save(made)
    options = ("--teacher", tmp_path / "teacher", "--output_dir", tmp_path / "shown")
    assert gendistill("show", made, *options) == USAGE
    assert re.search("data_config in its teacher.json that cannot be|changed since", capsys.readouterr().err)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / "model.safetensors"
    write_tensors(path, read_tensors(path, fix="")[0] | {"head.bias": torch.zeros(3)})
    with pytest.raises(ArtifactError, match=r"does not fit .*head.bias.*\[3\].*\[10\]"):
        Teacher.from_pretrained(tmp_path / "teacher")


def test_a_teacher_of_mnist_that_was_stored_before_its_images_were_padded_still_loads(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (80, 1, 28, 28), dtype=torch.uint8, generator=torch_rng(0))
    data = RealData.from_arrays(images, torch.arange(80) % 2, classes=("a", "b"))
    teacher = train_teacher(data, TeacherConfig(network="convnet_bn", width=4, steps=2, batch_size=8))
    assert teacher.network.head.in_features == 4 * 16
    teacher.save_pretrained(tmp_path / "new")
    assert Teacher.from_pretrained(tmp_path / "new").hash() == teacher.hash()
    teacher.network.fit_head(4 * 9)  # as it was
    teacher.save_pretrained(tmp_path / "old")
    found = Teacher.from_pretrained(tmp_path / "old")
    assert found.network.body[0].padding == (1, 1)
    teacher.network.cpu().eval()
    shown = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(found.network(shown), teacher.network(shown))


@pytest.mark.parametrize("below", ["", "cache"])
def test_a_statistics_cache_that_is_a_file_is_refused_even_where_it_is_not_needed(
    built_in: Path, tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    options = ("--teacher", built_in, "--statistics_cache", tmp_path / "file" / below)
    assert gendistill(*WMDD, *options, "--output_dir", tmp_path / "out") == USAGE
    assert re.search("statistics_cache is .* is a file; expected a folder", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
