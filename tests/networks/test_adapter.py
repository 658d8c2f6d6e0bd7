"""A module of one's own as a teacher: it trains, guides and labels, and a save without a registered name is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gendistill.config import LabelConfig, RefineConfig, TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.networks.factories import WithFeatures, as_classifier, build_network
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.teacher_training import train_teacher
from gendistill.refine.refiner import refine_set

QUICK = TeacherConfig(steps=30)


class Plain(nn.Module):
    """As torchvision has them: no features, a last linear layer named ``fc``."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.fc = nn.Linear(8 * 64, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


class Headless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.flatten(1))


class Inconsistent(Headless):
    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1) + 1

    def classify(self, features: Tensor) -> Tensor:
        return self.last(features)


def test_a_module_without_features_gets_those_its_last_layer_receives() -> None:
    plain, images = Plain().eval(), torch.rand(3, 1, 8, 8)
    network = as_classifier(plain, channels=1, image_size=8, classes=10)
    assert isinstance(network, WithFeatures)
    assert torch.equal(network.features(images), plain.body(images))
    assert torch.equal(network.classify(network.features(images)), plain(images))
    assert torch.equal(network(images), plain(images))


def test_a_module_with_features_and_classify_is_taken_as_it_is() -> None:
    network = build_network("convnet", channels=1, image_size=8, classes=10, width=4)
    assert as_classifier(network, channels=1, image_size=8, classes=10) is network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Headless(), "Headless has no features"),
        (Plain(classes=3), "with K 10"),
        (Inconsistent(), "classify\\(features\\(x\\)\\) equals forward"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "ends with a Linear layer"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_gives_no_features_is_refused_with_what_is_needed(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_classifier(network, channels=1, image_size=8, classes=10)


def test_a_network_of_other_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="fails on images 2x3x8x8"):
        as_classifier(Plain(), channels=3, image_size=8, classes=10)


def test_it_trains_guides_and_labels(digits: RealData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = train_teacher(digits, QUICK, network=Plain())
    assert teacher.meta["accuracy"]["validation"] > 0.5
    assert list(teacher.statistics.means) == ["network.body.1"]
    pool = distill(digits, "random", 4)
    _, refined = refine_set(pool, teacher, digits, 2, RefineConfig(steps=5))
    assert refined.meta["w2"]["after"] < refined.meta["w2"]["before"]
    labelled = label_set(refined, teacher, LabelConfig())
    assert labelled.soft_labels is not None
    with pytest.raises(ConfigError, match="register_network"):
        teacher.save_pretrained(tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


def test_a_registered_name_replaces_that_of_the_options(digits: RealData, tmp_path: Path) -> None:
    teacher = train_teacher(digits, TeacherConfig(steps=2, width=4), network="convnet")
    assert teacher.spec["name"] == "convnet"
    assert "convnet" in repr(teacher)
    teacher.save_pretrained(tmp_path / "teacher")
