"""Starts: the same whichever other sizes are asked for, and images of the right class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gendistill.config import DataConfig, LabelConfig, PerView, TeacherConfig
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ArtifactError, ConfigError
from gendistill.matching.synthetic import of_set, starts
from gendistill.networks.factories import build_network
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.teacher_training import train_teacher


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(max_per_class=24))


def build(seed):
    return build_network("convnet", channels=1, image_size=8, classes=10, width=4, seed=seed)


@pytest.mark.parametrize("kind", ["noise", "random", "clustered"])
def test_a_start_does_not_depend_on_other_sizes(data, kind):
    both = starts(data, (1, 3), 2, kind, build, seed=0)
    for ipc, one in zip((1, 3), both, strict=True):
        (alone,) = starts(data, (ipc,), 2, kind, build, seed=0)
        assert torch.equal(one.images, alone.images)
        assert (one.ipc, one.factor, len(one.images)) == (ipc, 2, 10 * ipc)
    (other,) = starts(data, (3,), 2, kind, build, seed=1)
    assert not torch.equal(both[1].images, other.images)


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_real_starts_are_different_images_of_their_class(data, kind):
    (found,) = starts(data, (3,), 1, kind, build, seed=0)
    assert len(found.images.flatten(1).unique(dim=0)) == 30
    for label in range(10):
        own = data.train.images[data.train.of_class(label)].float() / 255
        distances = torch.cdist(found.images[3 * label : 3 * label + 3].flatten(1), own.flatten(1))
        assert distances.min(1).values.max() < 1e-3


def test_several_factors_start_as_the_largest_alone(data):
    (several,), (largest,) = (starts(data, (2,), factor, "random", build, seed=0) for factor in ((1, 2), 2))
    assert torch.equal(several.images, largest.images)
    whole, tiles = several.decoded(several.images[6:8]).unflatten(0, (2, 5)).split([1, 4], 1)
    assert torch.equal(tiles.flatten(0, 1), largest.decoded(largest.images[6:8]))
    assert torch.equal(whole.flatten(0, 1), 2 * several.images[6:8] - 1)


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_more_images_than_a_class_has_are_refused(data, kind):
    with pytest.raises(ConfigError, match="lower"):
        starts(data, (20,), 2, kind, build, seed=0)


def test_a_start_that_is_a_folder_is_not_taken_for_random(data):
    with pytest.raises(ConfigError, match="expected noise, random, clustered"):
        starts(data, (1,), 1, Path("folder"), build, seed=0)


def test_a_short_class_is_named(data):
    named = replace(data, classes=tuple("abcdefghij"))
    with pytest.raises(ConfigError, match=r"\(ipc x factor\^2\), but class 'a' has"):
        starts(named, (20,), 2, "random", build, seed=0)


@pytest.mark.parametrize(
    ("ipc", "stored", "factor", "words"),
    [
        (2, 1, 2, r"starts from 8 images of every class \(ipc x factor\^2\), but class '0' has 4"),
        (1, 2, 1, "holds 2x2 views in an image; expected whole images[.]"),
        (1, 2, 3, "expected whole images or 3x3 views"),
        (1, 2, (1, 2), "holds 2x2 views in an image; expected whole images or 1x1 and 2x2 views"),
    ],
)
def test_a_set_that_cannot_be_a_start_is_refused_in_words(data, ipc, stored, factor, words):
    given = replace(distill(data, "random", 4), factor=stored)
    with pytest.raises(ArtifactError, match=words):
        of_set(given, data, ipc, factor)


def test_a_start_with_soft_labels_of_views_gives_its_images(data):
    """Which are labels of the whole set, so that it has no prefix with them."""
    given = distill(data, "random", 4)
    teacher = train_teacher(data, TeacherConfig(steps=1, width=4))
    labelled = label_set(given, teacher, LabelConfig(mode=PerView(steps=2)))
    for factor in (1, 2):
        found, plain = (of_set(one, data, 1, factor).images for one in (labelled, given))
        assert torch.equal(found, plain)
