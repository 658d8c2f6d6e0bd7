"""Starts: the same whichever other sizes are asked for, and images of the right class."""

from __future__ import annotations

import pytest
import torch

from gendistill.config import DataConfig
from gendistill.data.sources import load_data
from gendistill.errors import ConfigError
from gendistill.matching.starts import starts
from gendistill.networks.registry import build_network


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


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_more_images_than_a_class_has_are_refused(data, kind):
    with pytest.raises(ConfigError, match="lower"):
        starts(data, (20,), 2, kind, build, seed=0)
