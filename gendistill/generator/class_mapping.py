"""Class mapping: which condition of a generator each class of the data has, by name or as the user says.

A wrong index is a wrong label on every image of the class, so nothing is guessed: a name that several conditions share,
a class that the model lacks and two classes with one condition are refused.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gendistill.errors import ArtifactError, ConfigError

IMAGENET = 1000
SHOWN = 5
OTHERWISE = {  # what else helps where classes do not match, by the section of a model's options
    "finetune": "train without finetune.pretrained",
    "teacher.pretrained": "choose teacher.pretrained.head new, which is fitted on the features",
}
Names = Sequence[tuple[str, ...]]
_log = logging.getLogger("gendistill")


class MappingError(ArtifactError):
    """Classes do not match a model's conditions one to one; ``why`` says how, without what the user can do."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True)
class ClassMapping:
    """The classes of a generator and the conditions of its network.

    Attributes:
        classes: Class names in index order.
        label_map: Condition index of each class.
        conditions: Number of conditions, without the null class.
        names: All names of each condition, by condition index; empty where the model does not name them.
    """

    classes: tuple[str, ...]
    label_map: dict[str, int]
    conditions: int
    names: Names = ()

    def condition(self, labels: Tensor) -> Tensor:
        """Class index (B,) -> condition index (B,)."""
        return torch.tensor([self.label_map[name] for name in self.classes], device=labels.device)[labels]

    def select(self, classes: tuple[str, ...], label_map: Mapping[str, int]) -> ClassMapping:
        """Other classes on the same conditions, each with its index in ``label_map``."""
        return replace(self, classes=classes, label_map={name: int(label_map[name]) for name in classes})

    def map_classes(
        self, classes: tuple[str, ...], given: Mapping[str, int] | None = None, trusted: Collection[str] = ()
    ) -> ClassMapping:
        """The mapping for these classes, each with the index in ``given`` or the condition of its name.

        Names are compared with the model's own and, where its 1000 conditions are ImageNet's, with ImageNet's lemmas
        and WordNet ids.

        Args:
            classes: Class names of the data, in index order.
            given: Condition index of some classes.
            trusted: Further classes whose index the user gave earlier; their names are not compared with ImageNet's.

        Raises:
            ArtifactError: a class that the model lacks, or a name that several conditions have.
            ConfigError: ``given`` names unknown classes or conditions.
        """
        own = {name: self.label_map[name] for name in classes if name in self.label_map}
        mapped = self.select(classes, label_map_for(classes, self.condition_names(), {**own, **(given or {})}))
        mapped.check({*trusted, *(given or {})})
        return mapped

    def check(self, trusted: Collection[str] = ()) -> None:
        """Check that each class has its own condition, and that ImageNet's classes have the conditions of their names.

        Args:
            trusted: Classes that are not compared with ImageNet.

        Raises:
            ArtifactError: a class has no condition, a condition has two classes, or an index is not ImageNet's.
        """
        check_label_map(self.classes, self.label_map, self.conditions)
        reference = self.imagenet_names() if self.names else None
        if reference:
            kept = tuple(name for name in self.classes if name not in trusted)
            check_label_map(kept, {name: self.label_map[name] for name in kept}, self.conditions, reference)

    def condition_names(self) -> list[tuple[str, ...]]:
        """Every name of each condition: its own, those of the classes it has, and ImageNet's where it is ImageNet's."""
        names = [list(own) for own in self.names] or [[] for _ in range(self.conditions)]
        for name, index in self.label_map.items():
            names[index].append(name)
        for own, more in zip(names, self.imagenet_names() or (), strict=False):
            own.extend(more)
        return [tuple(dict.fromkeys(own)) for own in names]

    def imagenet_names(self) -> list[tuple[str, ...]] | None:
        """ImageNet's names by condition, where the conditions are ImageNet's, else None.

        A model of 1000 conditions is ImageNet's when more than half of its names are, or when it has none: diffusers
        drops the names of a DiT when it saves the model again.
        """
        if self.conditions != IMAGENET:
            return None
        reference = imagenet_names()
        pairs = [(own, ref) for own, ref in zip(self.names, reference, strict=False) if own and not own[0].isdigit()]
        if not pairs:
            _log.warning("The model does not name its 1000 classes; they are taken for ImageNet-1k's, in order.")
            return reference
        return reference if sum(bool(set(own) & set(ref)) for own, ref in pairs) > len(pairs) / 2 else None


def label_map_for(
    classes: tuple[str, ...], names: Names, given: Mapping[str, int] | None = None, section: str = "finetune"
) -> dict[str, int]:
    """Condition index of every class.

    A class gets the condition that has its name; if there is none, the one whose name differs only in case, spaces,
    hyphens and underscores. A name with commas is a list of names, and the condition must have all of them
    ("maillot, tank suit").

    Args:
        classes: Class names of the data, such as ``tench`` or ``n01440764``.
        names: By condition index, without the null class: all that the condition is called.
        given: Condition indices of some or all classes; they replace matching by name.
        section: Options of the model, in which messages name ``label_map``.

    Raises:
        MappingError: a class has no condition or several, or two classes have one.
        ConfigError: ``given`` names an unknown class or condition.
    """
    given = dict(given or {})
    _check_given(classes, given, len(names), section)
    finder = _Finder(names)
    found = {name: [given[name]] if name in given else finder.find(name) for name in classes}
    problems = [finder.explain(name, indices) for name, indices in found.items() if len(indices) != 1]
    if problems:
        more = f" ({len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        first = next(name for name, indices in found.items() if len(indices) != 1)
        why = f"the classes do not match the model's conditions: {'; '.join(problems[:SHOWN])}{more}"
        raise MappingError(
            f'{why[0].upper()}{why[1:]}. Give the index in {section}.label_map, as {{"{first}": INDEX}} with INDEX '
            f"from 0 to {len(names) - 1}, rename the class, or {OTHERWISE[section]}.",
            why,
        )
    label_map = {name: indices[0] for name, indices in found.items()}
    _check_distinct(label_map, section)
    return label_map


def check_label_map(
    classes: tuple[str, ...], label_map: Mapping[str, int], conditions: int, reference: Names | None = None
) -> None:
    """Check that every class has one condition of its own.

    Args:
        conditions: Number of conditions, without the null class.
        reference: ImageNet's names by index. With 1000 conditions, a class that has one of them must have its index;
            leave it out for a model whose 1000 conditions are others.

    Raises:
        ArtifactError: a class is missing or unknown, an index is out of range, used twice, or not ImageNet's.
    """
    if set(label_map) != set(classes):
        odd = sorted(set(label_map) ^ set(classes))
        raise ArtifactError(
            f"The label map does not name exactly the {len(classes)} classes; they differ in {_some(odd)}. "
            "Run `gendistill finetune` again."
        )
    outside = [f"{name!r}: {i!r}" for name, i in label_map.items() if not _is_index(i, conditions)]
    if outside:
        raise ArtifactError(f"The label map has {_some(outside)}; expected indices from 0 to {conditions - 1}.")
    _check_distinct(label_map)
    if reference is None or conditions != IMAGENET:
        return
    finder = _Finder(reference)
    true = {name: finder.find(name) for name in classes}
    wrong = [
        f"{n!r}: {label_map[n]}, not {finder.show(true[n])}" for n in classes if true[n] and label_map[n] not in true[n]
    ]
    if wrong:
        raise ArtifactError(
            f"The label map differs from ImageNet's indices: {'; '.join(wrong[:SHOWN])}. Correct finetune.label_map, "
            "or rename classes that mean something else."
        )


def check_manifest_labels(what: str, classes: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Check the label map in the manifest of a surrogate set, if a generator made the set.

    Raises:
        ArtifactError: a class has no condition, or shares one.
    """
    if "label_map" not in meta:
        return
    try:
        check_label_map(classes, meta["label_map"], int(meta["conditions"]))
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{what} has a label map that does not fit its classes: {error}") from error


class _Finder:
    """Conditions by name, exactly and loosely."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.exact: dict[str, set[int]] = {}
        self.loose: dict[str, set[int]] = {}
        for i, aliases in enumerate(names):
            for part in [part for alias in aliases for part in _parts(alias)]:
                self.exact.setdefault(part, set()).add(i)
                self.loose.setdefault(_loosen(part), set()).add(i)

    def find(self, name: str) -> list[int]:
        """Every condition that the name can mean, ascending."""
        parts = _parts(name)
        found = set.intersection(*(self.exact.get(part, set()) for part in parts))
        found = found or set.intersection(*(self.loose.get(_loosen(part), set()) for part in parts))
        return sorted(found)

    def explain(self, name: str, indices: list[int]) -> str:
        """Why a class does not have exactly one condition."""
        if indices:
            return f"{name!r} can be {self.show(indices)}"
        near = difflib.get_close_matches(_loosen(name), self.loose, 3)
        close = sorted({i for part in near for i in self.loose[part]})
        return f"the model has no {name!r}" + (f", but {self.show(close)}" if close else " and no similar name")

    def show(self, indices: list[int]) -> str:
        return " or ".join(f"{i} ({', '.join(self.names[i])})" for i in indices)


def _parts(name: str) -> list[str]:
    return [part.strip() for part in name.split(",") if part.strip()] or [name]


def _loosen(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _is_index(value: object, conditions: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < conditions


def _check_given(classes: tuple[str, ...], given: Mapping[str, int], conditions: int, section: str) -> None:
    unknown = sorted(set(given) - set(classes))
    if unknown:
        raise ConfigError(
            f"{section}.label_map names {_some(unknown)}, which the data do not have; its classes are {_some(classes)}."
        )
    for name, index in given.items():
        if not _is_index(index, conditions):
            raise ConfigError(
                f"{section}.label_map has {name!r}: {index!r}; expected a condition index from 0 to {conditions - 1}."
            )


def _check_distinct(label_map: Mapping[str, int], section: str = "finetune") -> None:
    owners: dict[int, list[str]] = {}
    for name, index in label_map.items():
        owners.setdefault(index, []).append(name)
    shared = [f"{i} is {' and '.join(map(repr, names))}" for i, names in owners.items() if len(names) > 1]
    if shared:
        why = f"several classes have one condition: {'; '.join(shared[:SHOWN])}"
        raise MappingError(
            f"{why[0].upper()}{why[1:]}. Every class needs its own: correct {section}.label_map or merge the classes.",
            why,
        )


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:SHOWN]) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


@cache
def _table() -> tuple[tuple[str, ...], ...]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(
        (wordnet, *(lemma.strip() for lemma in info.label_name_to_description(wordnet).split(",")))
        for wordnet in info.label_names()
    )


def imagenet_names() -> list[tuple[str, ...]]:
    """(WordNet id, lemma, ...) of each of the 1000 classes, such as ("n01440764", "tench", "Tinca tinca").

    The order is that of the sorted WordNet ids, which torchvision, timm and the DiT checkpoints share. Lemmas are not
    unique: cranes are birds (134) and machines (517).
    """
    return list(_table())
