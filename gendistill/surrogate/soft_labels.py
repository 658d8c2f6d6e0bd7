"""Soft labels of a set: a teacher's class probabilities, as far as they are stored, and what brings back the rest.

Legend: N decoded images, K classes, B images a batch, S batches, k kept classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor

from gendistill.data.crops import Views, ViewsRecord
from gendistill.errors import ArtifactError
from gendistill.io import inside, read_json, read_tensors, write_json, write_tensors

TENSORS, RECORD, FORMAT = "soft_labels.safetensors", "soft_labels.json", 1
KEYS = ("mode", "classes", "temperature", "views", "teacher", "top_k", "averaged", "steps")
SUM = 0.05  # by which stored probabilities may miss 1: fp16 rounds small ones
MOST_VIEWS = 10**6  # averaged for a label
AGAIN = "Copy the set again, or label it again with `gendistill label`."
Mode = Literal["per_image", "per_view", "online"]


class TeacherFacts(TypedDict, total=False):
    """What is recorded of the teacher of soft labels.

    Attributes:
        hash: Of its weights.
        network: Name of its architecture.
        accuracy: Share of the validation images classified right, in [0, 1]; None where unknown.
        bytes: Size of its weights.
    """

    hash: str
    network: str
    accuracy: float | None
    bytes: int


class LabelRecord(TypedDict, total=False):
    """soft_labels.json; the manifest has the first four keys, and the seed of the views, in ``soft_labels``."""

    mode: Mode
    classes: int
    temperature: float
    top_k: int | None
    averaged: int
    steps: int | None
    views: ViewsRecord
    teacher: TeacherFacts
    format: int
    seed: int


@dataclass(frozen=True)
class SoftLabels:
    """softmax(teacher logits / temperature), as fp16.

    ``per_image``: values (N,K), the mean over views of each image. ``per_view``: values (S,B,K), one for every view of
    the batches that ``views`` replays. ``online``: no values; the teacher gives them again on the same views.
    With ``indices`` (...,k) only the k most probable classes are stored, as values (...,k).

    Attributes:
        mode: One of the three.
        classes: K.
        temperature: Divides the logits; a student is trained at the same one.
        views: The stream of batches; of per_image, the views that were averaged.
        teacher: hash, network, accuracy and bytes of the teacher.
        averaged: per_image: views a label is the mean of, the first being the image itself.
    """

    mode: Mode
    classes: int
    temperature: float
    views: Views
    teacher: TeacherFacts = field(default_factory=TeacherFacts)
    top_k: int | None = None
    averaged: int = 1
    values: Tensor | None = None
    indices: Tensor | None = None

    @property
    def steps(self) -> int | None:
        """Batches that are stored (per_view), or None where their number is free."""
        return len(self.values) if self.mode == "per_view" and self.values is not None else None

    @property
    def recipe(self) -> str:
        """How the targets come about, in a few words; with the batches, where labels belong to batches of views."""
        v = self.views
        parts = [self.mode, f"T {self.temperature:g}"]
        parts += [f"batch {v.batch_size}"] if self.mode != "per_image" else []
        parts += [f"top {self.top_k}"] if self.top_k else []
        parts += [f"{self.averaged} views"] if self.averaged > 1 else []
        parts += [f"crop {v.min_crop:g}"] if v.min_crop < 1 else []
        parts += ["flip"] if v.flip else []
        return ", ".join(parts + ([f"CutMix {v.cutmix:g}"] if v.cutmix else []))

    @property
    def tensors(self) -> dict[str, Tensor]:
        found = {"values": self.values, "indices": self.indices}
        return {name: value.contiguous() for name, value in found.items() if value is not None}

    def probabilities(self, position: int | Tensor) -> Tensor:
        """float32 (...,K) of images (per_image) or of one step (per_view); each row sums to 1."""
        if self.values is None:
            raise ValueError("Online soft labels hold no probabilities; give their teacher the views.")
        indices = None if self.indices is None else self.indices[position]
        return unpacked(self.values[position], indices, self.classes)

    def fingerprint(self) -> dict[str, Tensor]:
        """Everything that decides a target, as tensors to hash."""
        facts = [
            self.mode,
            self.temperature,
            self.top_k,
            sorted(self.views.to_dict().items()),
            self.teacher.get("hash"),
        ]
        return {**self.tensors, "facts": torch.frombuffer(bytearray(repr(facts).encode()), dtype=torch.uint8)}

    def take(self, positions: Tensor) -> SoftLabels:
        """Of these images alone.

        Raises:
            ArtifactError: the labels belong to batches of the whole set.
        """
        if self.mode != "per_image" or self.values is None:
            raise ArtifactError(f"{self.mode} soft labels belong to their whole set; label the smaller set itself.")
        indices = None if self.indices is None else self.indices[positions]
        return SoftLabels(**{**self.__dict__, "values": self.values[positions], "indices": indices})

    def save(self, folder: Path) -> None:
        record: LabelRecord = {
            "format": FORMAT,
            "mode": self.mode,
            "classes": self.classes,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "averaged": self.averaged,
            "steps": self.steps,
            "views": self.views.to_dict(),
            "teacher": self.teacher,
        }
        if self.tensors:
            write_tensors(folder / TENSORS, self.tensors)
        write_json(folder / RECORD, record)

    @classmethod
    def load(cls, folder: Path, images: int) -> SoftLabels | None:
        """What ``folder`` holds for its ``images`` decoded images, or None where there are none.

        Raises:
            ArtifactError: they are damaged, or made for another set.
        """
        record = read_record(folder)
        if not record:
            return None
        tensors = {} if record["mode"] == "online" else read_tensors(inside(folder, TENSORS), fix=AGAIN)[0]
        options: dict[str, Any] = {key: record[key] for key in KEYS[:-1]}  # type: ignore[literal-required]
        options["views"] = Views(**record["views"])
        found = cls(**options, values=tensors.get("values"), indices=tensors.get("indices"))
        found._check(folder, images, record["steps"])
        return found

    def _check(self, folder: Path, images: int, steps: int | None) -> None:
        width = self.classes if self.top_k is None else self.top_k
        rows = {"per_image": (images,), "per_view": (steps, min(self.views.batch_size, images)), "online": None}
        wanted = None if rows[self.mode] is None else (*rows[self.mode], width)  # type: ignore[misc]
        shape = None if self.values is None else tuple(self.values.shape)
        named = None if self.indices is None else tuple(self.indices.shape)
        if shape != wanted or named != (wanted if self.top_k is not None else None):
            raise ArtifactError(
                f"The soft labels in {folder} have shape {shape} (indices {named}), the set needs {wanted}. Copy the "
                "set again, or label it again with `gendistill label`."
            )
        if self.indices is not None and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < self.classes:
            raise ArtifactError(f"The soft labels in {folder} name classes outside 0 to {self.classes - 1}.")
        self.check_values(f"The soft labels in {folder}")

    def check_values(self, what: str) -> None:
        """Refuse a temperature or stored values that are no probabilities.

        Raises:
            ArtifactError: a temperature that is not positive, or values that are not finite, are negative or do not
                sum to 1 (to at most 1 with ``top_k``).
        """
        if not 0 < self.temperature < math.inf:
            raise ArtifactError(f"{what} have temperature {self.temperature}; expected a number above 0. {AGAIN}")
        if self.values is None or not self.values.numel():
            return
        sums, least = self.values.sum(-1, dtype=torch.float32), float(self.values.min())
        low = 0.0 if self.top_k is not None else 1 - SUM
        right = (sums > low) & (sums < 1 + SUM)  # false for NaN
        if not (right.all() and least >= 0):
            wrong = f"{int((~right).sum())} of {right.numel()} rows with another sum, and a least value of {least:g}"
            raise ArtifactError(f"{what} have {wrong}; expected probabilities, which sum to 1. {AGAIN}")


def read_record(folder: Path) -> LabelRecord:
    """soft_labels.json of a set, every key checked; empty where there are none.

    Raises:
        ArtifactError: it is damaged.
    """
    path = inside(folder, RECORD)
    if not path.exists():
        return {}
    record = read_json(path, kind="a set with soft labels", required=KEYS, format=FORMAT, schema=LabelRecord, fix=AGAIN)
    views, steps, top = record["views"], record["steps"], record["top_k"]
    unknown = sorted(views.keys() - ViewsRecord.__annotations__.keys())
    crop, mixed, share = views.get("min_crop", 1), views.get("cutmix", 0), record["teacher"].get("accuracy")
    rules = {
        "views": (
            not unknown and views["batch_size"] >= 1 and 0 < crop <= 1 and 0 <= mixed < math.inf,
            "batch_size of at least 1, min_crop in (0, 1], cutmix of at least 0, and no options of newer versions",
        ),
        "teacher": (share is None or 0 <= share <= 1, "an accuracy from 0 to 1"),
        "temperature": (0 < record["temperature"] < math.inf, "a number above 0"),
        "classes": (record["classes"] >= 1, "a number of at least 1"),
        "averaged": (1 <= record["averaged"] <= MOST_VIEWS, f"a number from 1 to {MOST_VIEWS}"),
        "top_k": (top is None or 1 <= top <= record["classes"], f"null or a number from 1 to {record['classes']}"),
        "steps": (steps is None or steps >= 1, "null or a number of at least 1"),
    }
    for key, (right, expected) in rules.items():
        if not right:
            raise ArtifactError(f"{path} is damaged: {key} is {record[key]!r}; expected {expected}. {AGAIN}")
    return cast(LabelRecord, record)


def packed(probabilities: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor | None]:
    """float (...,K) -> (fp16 values, None), or with ``top_k`` (fp16 values (...,k), int16 or int32 indices (...,k))."""
    if top_k is None:
        return probabilities.half(), None
    values, indices = probabilities.topk(top_k, dim=-1)
    return values.half(), indices.to(torch.int16 if probabilities.shape[-1] <= 1 << 15 else torch.int32)


def unpacked(values: Tensor, indices: Tensor | None, classes: int) -> Tensor:
    """float32 (...,K) that sum to 1; what top-k left out is spread evenly over the other classes."""
    values = values.float()
    if indices is None or indices.shape[-1] == classes:
        full = values if indices is None else torch.zeros(*values.shape[:-1], classes, device=values.device)
        if indices is not None:
            full = full.scatter(-1, indices.long(), values)
        return full / full.sum(-1, keepdim=True)
    rest = (1 - values.sum(-1, keepdim=True)).clamp(min=0) / (classes - indices.shape[-1])
    full = rest.expand(*values.shape[:-1], classes).scatter(-1, indices.long(), values)
    return full / full.sum(-1, keepdim=True)
