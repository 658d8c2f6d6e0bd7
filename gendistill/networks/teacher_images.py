"""The real images that a teacher was trained on: read again, and compared with those that it is used for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from gendistill import runtime
from gendistill.config import DataConfig
from gendistill.config.flat import unflatten
from gendistill.data.dataset import RealData, check_classes
from gendistill.data.sources import read_data
from gendistill.errors import ArtifactError, ConfigError, GendistillError
from gendistill.networks.statistics import cached_statistics
from gendistill.networks.teacher import FILE, MADE_AGAIN, Teacher, TeacherMeta, read_record
from gendistill.progress import note


def real_images(config: DataConfig | None, folder: Path | None) -> tuple[RealData, DataConfig]:
    """The real images and how they are read: by ``config``, or as those of the teacher in ``folder``, else digits.

    Raises:
        ArtifactError: the teacher does not say what it was trained on, or those images have changed.
    """
    if config is None and folder is not None:
        record, usual = read_record(folder), DataConfig()
        if "data_config" not in record and record.get("data", {}).get("name") == usual.name:
            data = read_data(usual)
            if not _is_of_others(record, data):
                return data, usual
        return _own_data(record, str(folder)), _data_config(record, str(folder))
    config = config or DataConfig()
    return read_data(config), config


def _own_data(meta: TeacherMeta, what: str) -> RealData:
    data = read_data(_data_config(meta, what))
    fingerprint = meta.get("data", {}).get("fingerprint")
    if fingerprint is None or not data.is_of(fingerprint):
        raise ArtifactError(
            f"The images at {data.name} changed since {what} was trained on them; run `gendistill teacher` again."
        )
    return data


def _data_config(meta: TeacherMeta, what: str) -> DataConfig:
    """The options that read the images of a teacher again.

    Raises:
        ArtifactError: it has none, or they cannot be.
    """
    if "data_config" not in meta:
        raise ArtifactError(
            f"{what} does not say how to read the images it was trained on. Give --data, or a teacher that `gendistill "
            "teacher` made."
        )
    try:
        return unflatten(DataConfig, meta["data_config"])
    except ConfigError as error:
        raise ArtifactError(f"{what} has a data_config in its {FILE} that cannot be: {error} {MADE_AGAIN}") from error


def trained_elsewhere(teacher: Teacher, data: RealData) -> bool:
    """Whether it is known to be trained on other images or splits."""
    return _is_of_others(teacher.meta, data)


def _is_of_others(meta: TeacherMeta, data: RealData) -> bool:
    own = meta.get("data", {}).get("fingerprint")
    return own is not None and not data.is_of(own)


def check_teacher(what: str, teacher: Teacher, data: RealData) -> None:
    """Refuse a teacher that does not fit the data, or that was trained on their test images.

    The images of a teacher that was trained on others, or on other splits, are read again and compared with the test
    split pixel by pixel. Test images that are also in the data's own training split are not counted.

    Raises:
        ArtifactError: other classes, channels or image size; test images among those it was trained on; or those
            cannot be read again.
    """
    check_classes(what, teacher.classes, data)
    shape = teacher.spec.get("channels"), teacher.spec.get("image_size")
    if shape != (data.channels, data.image_size):
        raise ArtifactError(
            f"{what} takes images of {shape[0]} channel(s) and {shape[1]} px, the data have {data.channels} and "
            f"{data.image_size} px; expected the same. Give another --data.image_size or teacher."
        )
    if not trained_elsewhere(teacher, data):
        return
    advice = "Give the --data options it was made with, or a teacher that was trained without these test images."
    try:
        seen = _own_data(teacher.meta, what).train
    except GendistillError as error:
        raise ArtifactError(
            f"{what} was trained on other images or splits than these, and whether test images are among them is "
            f"unknown: {error} {advice}"
        ) from error
    in_its_own, here = seen.find(data.test.hashes) >= 0, data.train.find(data.test.hashes) >= 0
    leaks = len(np.unique(data.test.hashes[(in_its_own & ~here).numpy()], axis=0))
    if leaks:
        raise ArtifactError(
            f"{what} was trained on other splits than these: {leaks} of the {len(data.test)} test images are among its "
            f"training images. {advice}"
        )


def with_statistics_of(teacher: Teacher, data: RealData, cache: Path | None) -> Teacher:
    """The teacher with class statistics of ``data.train``: its own, or collected, where it was trained on others.

    ``cache`` keeps collected ones. Where several processes run, all call this and share the pass.
    """
    if not trained_elsewhere(teacher, data):
        return teacher
    if runtime.processes().is_main_process:
        note(
            "The teacher was trained on other images than these (compared with the test split); class statistics of "
            f"these {len(data.train)} are collected."
        )
    found = cached_statistics(teacher.hash(), teacher.network, data.train, len(data.classes), cache=cache, shared=True)
    return replace(teacher, statistics=found)
