"""A collection in a file guides selection and refinement as one in memory does, read class by class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gendistill.config import RefineConfig, TeacherConfig, WmddConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.networks.statistics import collect_statistics
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.refine.feature_space import ground_space
from gendistill.refine.refiner import refine_set
from gendistill.refine.wmdd import wmdd
from tests.data.mapped import MOST, noise, stored


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(width=8, steps=30))


@pytest.mark.parametrize("weights", ["fixed", "free"])
def test_selected_and_refined_images_are_those_of_memory(digits: RealData, teacher: Teacher, weights: str) -> None:
    pool, config = distill(digits, "random", 6, seed=5), RefineConfig(steps=3, weights=weights)
    found = [refine_set(pool, teacher, data, 2, config) for data in (digits, stored(digits))]
    for plain, mapped in zip(*found, strict=True):
        assert plain.content_hash() == mapped.content_hash()
        assert plain.meta.get("w2") == mapped.meta.get("w2")


def test_wmdd_images_are_those_of_memory(digits: RealData, teacher: Teacher) -> None:
    found = [wmdd(data, teacher, 2, WmddConfig(steps=2)) for data in (digits, stored(digits))]
    assert torch.equal(found[0].images, found[1].images)


def test_no_step_of_a_refinement_reads_all_images_together(teacher: Teacher) -> None:
    data = noise(3 * MOST, classes=10, channels=1)
    guide = replace(teacher, statistics=collect_statistics(teacher.network, data.train, 10), classes=data.classes)
    guide = replace(guide, meta={**guide.meta, "data": data.describe()})
    many = stored(data)
    space = ground_space([guide], many, RefineConfig())
    assert space.of_class(3).shape[0] == int((data.train.labels == 3).sum())
    refine_set(distill(many, "random", 2), guide, many, 1, RefineConfig(steps=1), space=space)
