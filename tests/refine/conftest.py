"""A teacher and a pool of digits; files that need others have their own."""

from __future__ import annotations

import pytest

from gendistill.config import TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.surrogate.set import SurrogateSet


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(width=16, steps=80))


@pytest.fixture(scope="module")
def pool(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 6, seed=5)
