"""Teachers beside real images: whether the two belong together, and statistics of images that a teacher did not see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gendistill import runtime
from gendistill.config import DataConfig
from gendistill.data.dataset import RealData, Split
from gendistill.errors import ArtifactError, GendistillError
from gendistill.hashing import hash_bytes
from gendistill.networks.statistics_cache import cached_statistics
from gendistill.networks.teacher import Teacher
from gendistill.progress import note
from gendistill.stages.folder import check_classes, read_data


def teacher_data(folder: Path) -> RealData:
    """The real images a teacher was trained on, read again and checked by fingerprint."""
    return _own_data(Teacher.from_pretrained(folder), str(folder))


def _own_data(teacher: Teacher, what: str) -> RealData:
    if "data_config" not in teacher.meta:
        raise ArtifactError(f"{what} does not say how to read the images it was trained on; run `gendistill teacher`.")
    data = read_data(DataConfig(**teacher.meta["data_config"]))
    if data.fingerprint() != teacher.meta["data"]["fingerprint"]:
        raise ArtifactError(
            f"The images at {data.name} changed since {what} was trained on them; run `gendistill teacher` again."
        )
    return data


def trained_elsewhere(teacher: Teacher, fingerprint: str | None) -> bool:
    """Whether it was trained on other images or splits than those of this fingerprint, where both are known."""
    told = teacher.meta.get("data", {}).get("fingerprint")
    return None not in (told, fingerprint) and told != fingerprint


def check_teacher(what: str, teacher: Teacher, data: RealData) -> None:
    """Refuse a teacher that does not fit the data, or that has seen test images of theirs.

    The images of a teacher trained on others, or on other splits, are read again and compared with the test split
    pixel by pixel. Test images that the data's own training split holds as well count for nothing.

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
    if not trained_elsewhere(teacher, data.fingerprint()):
        return
    mend = "Give the --data options it was made with, or a teacher that was trained without these test images."
    try:
        seen = _digests(_own_data(teacher, what).train)
    except GendistillError as error:
        raise ArtifactError(
            f"{what} was trained on other images or splits than these, and whether test images are among them cannot "
            f"be seen: {error} {mend}"
        ) from error
    leaks = len((_digests(data.test) & seen) - _digests(data.train))
    if leaks:
        raise ArtifactError(
            f"{what} was trained on other splits than these: {leaks} of the {len(data.test)} test images are among its "
            f"training images. {mend}"
        )


def _digests(split: Split) -> set[str]:
    return {hash_bytes(image.numpy().tobytes()) for image in split.images}


def with_statistics_of(teacher: Teacher, data: RealData, cache: Path | None) -> Teacher:
    """The teacher with class statistics of ``data.train``: its own, or collected, where it was trained on others.

    ``cache`` keeps collected ones. Where several processes run, all call this and share the pass.
    """
    if not trained_elsewhere(teacher, data.fingerprint()):
        return teacher
    if runtime.processes().is_main_process:
        note(
            "The teacher was trained on other images than these (compared with the test split); class statistics of "
            f"these {len(data.train)} are taken."
        )
    found = cached_statistics(teacher.hash(), teacher.network, data.train, len(data.classes), cache=cache, shared=True)
    return replace(teacher, statistics=found)
