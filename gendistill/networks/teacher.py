"""Teacher: a trained classifier with its class statistics, as a folder of safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from gendistill import runtime
from gendistill.config import DataConfig
from gendistill.data.dataset import RealData, Split, check_classes
from gendistill.data.sources import read_data
from gendistill.errors import ArtifactError, GendistillError
from gendistill.hashing import hash_bytes, hash_tensors
from gendistill.networks.registry import batch_norm_layers, build_network
from gendistill.networks.statistics import ClassStatistics
from gendistill.networks.statistics_cache import cached_statistics
from gendistill.progress import note

FILE, FORMAT = "teacher.json", 1


@dataclass
class Teacher:
    """``spec`` rebuilds the network; ``meta`` has accuracies and the data it was trained on."""

    network: nn.Module
    statistics: ClassStatistics
    classes: tuple[str, ...]
    spec: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)

    def hash(self) -> str:
        return hash_tensors(self.network.state_dict())

    def facts(self) -> dict[str, Any]:
        """What labels say of their teacher; bytes are those of its weights."""
        weights = self.network.state_dict().values()
        return {
            "hash": self.hash(),
            "network": self.spec["name"],
            "accuracy": self.meta.get("accuracy", {}).get("validation"),
            "bytes": sum(tensor.nbytes for tensor in weights),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        self.statistics.save(folder / "statistics.safetensors")
        record = {"format": FORMAT, "classes": list(self.classes), "network": self.spec, **self.meta}
        (folder / FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Teacher:
        """Raises ArtifactError where the folder is no teacher or its weights do not fit."""
        folder = Path(folder)
        try:
            record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder} is not a teacher folder ({FILE}: {error}). Make one with `gendistill teacher`."
            ) from error
        missing = [key for key in ("network", "classes") if not (isinstance(record, dict) and key in record)]
        if missing:
            raise ArtifactError(f"{folder / FILE} has no {' and no '.join(missing)}, so it is of no teacher.")
        network = build_network(**record["network"])
        try:
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as error:
            raise ArtifactError(f"{folder / 'model.safetensors'} does not fit its {FILE}: {error}") from error
        meta = {k: v for k, v in record.items() if k not in ("format", "classes", "network")}
        statistics = ClassStatistics.load(folder / "statistics.safetensors")
        unknown = sorted(statistics.means.keys() - batch_norm_layers(network).keys())
        if unknown:
            raise ArtifactError(
                f"{folder / 'statistics.safetensors'} has moments of layers that the network has not: "
                f"{', '.join(unknown[:5])}. Run `gendistill teacher` again."
            )
        return cls(network.eval(), statistics, tuple(record["classes"]), record["network"], meta)


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
