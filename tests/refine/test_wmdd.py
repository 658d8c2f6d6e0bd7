"""WMDD from noise and from real images by the command line: what it makes, keeps and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gendistill.cli import USAGE
from gendistill.config import TeacherConfig, WmddConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.refine.wmdd import class_noise, pixel_moments, wmdd
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import files, gendistill
from tests.processes import start


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(width=16, steps=100))


@pytest.fixture(scope="module")
def folder(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wmdd") / "teacher"
    teacher.save_pretrained(path)
    return path


def test_class_noise_has_the_moments_of_every_pixel_of_the_class(digits: RealData) -> None:
    train = digits.train
    for label in (0, 7):
        own = train.of_class(label)
        mean, std = pixel_moments(train, own)
        pixels = train.images[own].double() / 127.5 - 1
        torch.testing.assert_close(mean.double(), pixels.mean(0), rtol=0, atol=1e-6)
        torch.testing.assert_close(std.double(), pixels.std(0, unbiased=False), rtol=0, atol=1e-6)
        flipped = pixel_moments(train, own.flip(0))
        assert torch.equal(mean, flipped[0])
        assert torch.equal(std, flipped[1])
    noise, labels = torch.randn(3, *train.images.shape[1:]), torch.tensor([7, 0, 7])
    found = class_noise(noise, labels, train)
    torch.testing.assert_close(
        found[1], torch.add(*(pixel_moments(train, train.of_class(0))[k] * (noise[1] if k else 1) for k in (0, 1)))
    )
    assert torch.equal(class_noise(noise[2:], labels[2:], train)[0], found[2])


def test_class_noise_leaves_dark_what_is_dark_in_the_class(digits: RealData, teacher: Teacher) -> None:
    """Pixels that every real image of a class has black stay so from class noise, and become grey from other noise."""
    dark = torch.stack([digits.train.images[digits.train.of_class(c)].amax(0) == 0 for c in range(10)])
    assert dark.any()
    shares = {}
    for kind in ("class_noise", "noise"):
        made = wmdd(digits, teacher, 2, WmddConfig(start=kind, steps=60))
        shares[kind] = made.images[dark[made.labels]].float().mean() / 255
    assert shares["class_noise"] < 0.15 < shares["noise"]


def test_from_noise_the_teacher_comes_to_recognise_the_images(digits: RealData, teacher: Teacher) -> None:
    made = wmdd(digits, teacher, 2, WmddConfig(start="noise", pixel_weight=0.0, steps=80, learning_rate=0.1))
    with torch.no_grad():
        right = teacher.network(made.split.images.float() / 127.5 - 1).argmax(1) == made.labels
    assert right.float().mean() >= 0.9
    assert made.meta["w2"]["after"] < 0.5 * made.meta["w2"]["before"]
    assert (made.meta["method"], made.meta["stages"]) == ("wmdd", ["wmdd"])


def test_from_real_images_it_starts_at_the_random_baseline(digits: RealData, teacher: Teacher) -> None:
    made = wmdd(digits, teacher, 2, WmddConfig(start="real", steps=0), seed=4)
    assert torch.equal(made.images, distill(digits, "random", 2, seed=4).images)
    moved = wmdd(digits, teacher, 2, WmddConfig(start="real", steps=20), seed=4)
    assert moved.meta["w2"]["after"] < made.meta["w2"]["after"]


@pytest.mark.slow
def test_the_command_writes_sets_and_a_killed_one_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options = ["distill", "--method", "wmdd", "--teacher", folder, "--ipc", "[1,2]", "--wmdd.steps", 30,
               "--wmdd.batch_size", 4]  # fmt: skip
    assert gendistill(*options, "--output_dir", tmp_path / "whole") == 0
    process = start(*options, "--output_dir", tmp_path / "killed")
    chunks = tmp_path / "killed.partial" / "chunks"
    while process.poll() is None and len(list(chunks.glob("*/*.safetensors"))) < 2:
        pass
    process.kill()
    assert chunks.is_dir(), "it ended before it was killed"
    assert gendistill(*options, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "latest") == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not (tmp_path / "killed" / "chunks").exists()
    assert SurrogateSet.load(tmp_path / "killed" / "ipc-2").ipc == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "wmdd"], "expected a teacher folder"),
        (["--method", "random", "--teacher", "."], "expected null with method random"),
        (["--method", "wmdd", "--wmdd.min_crop", 0], "more than 0"),
        (["--method", "wmdd", "--wmdd.weights", "free", "--wmdd.solver", "sinkhorn"], "fixed with solver sinkhorn"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message) -> None:
    assert gendistill("distill", *options, "--output_dir", tmp_path / "out") == USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_batch_norm_is_refused_with_the_way_out(digits: RealData, tmp_path: Path, capsys) -> None:
    train_teacher(digits, TeacherConfig(network="convnet", width=8, steps=2)).save_pretrained(tmp_path / "t")
    options = ["--method", "wmdd", "--teacher", tmp_path / "t", "--output_dir", tmp_path / "out", "--ipc", 1]
    assert gendistill("distill", *options) == USAGE
    assert "batch_norm_weight 0" in capsys.readouterr().err
    assert gendistill("distill", *options, "--wmdd.batch_norm_weight", 0, "--wmdd.steps", 2) == 0
