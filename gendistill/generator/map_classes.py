"""Class names meet a generator's conditions: by its own names, and ImageNet's (WordNet ids too) where it has 1000."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from gendistill.errors import ArtifactError
from gendistill.generator.class_mapping import check_label_map, imagenet_names, label_map_for
from gendistill.generator.generator import Generator

_log = logging.getLogger("gendistill")


def condition_names(generator: Generator) -> list[tuple[str, ...]]:
    """Every name of each condition.

    A model of 1000 conditions is ImageNet's when it says so in its names, or when it says nothing (a DiT that was saved
    again by diffusers has lost them).
    """
    names = [list(n) for n in generator.names] or [[] for _ in range(generator.conditions)]
    for name, index in generator.label_map.items():
        if name not in names[index]:
            names[index].append(name)
    reference = reference_names(generator)
    if reference:
        names = [[*own, *(n for n in more if n not in own)] for own, more in zip(names, reference, strict=True)]
    return [tuple(n) for n in names]


def reference_names(generator: Generator) -> list[tuple[str, ...]] | None:
    """ImageNet's names by condition, where the conditions are ImageNet's."""
    if generator.conditions != 1000:
        return None
    reference = imagenet_names()
    told = [(own, ref) for own, ref in zip(generator.names, reference, strict=False) if own and not own[0].isdigit()]
    if not told:
        _log.warning("The generator does not name its 1000 conditions; they are taken for ImageNet-1k's, in order.")
        return reference
    return reference if sum(bool(set(own) & set(ref)) for own, ref in told) > len(told) / 2 else None


def map_classes(generator: Generator, classes: tuple[str, ...], given: Mapping[str, int] | None = None) -> Generator:
    """The generator for these classes, each with the condition of its name or the one ``given``.

    Raises:
        ArtifactError: a class that the model lacks, or a name that several conditions have.
        ConfigError: ``given`` names unknown classes or conditions.
    """
    own = {c: generator.label_map[c] for c in classes if c in generator.label_map}
    label_map = label_map_for(classes, condition_names(generator), own | dict(given or {}))
    mapped = generator.for_classes(classes, label_map)
    check_labels(mapped, trusted={**(generator.meta.get("given_labels") or {}), **(given or {})})
    return mapped


def check_labels(generator: Generator, trusted: Mapping[str, int] | None = None) -> None:
    """Assert that every class has one distinct condition, and ImageNet's classes their own; ``trusted`` ones are not
    compared with ImageNet."""
    reference = reference_names(generator) if generator.names else None
    kept = tuple(c for c in generator.classes if c not in (trusted or {}))
    check_label_map(generator.classes, generator.label_map, generator.conditions)
    if reference:
        check_label_map(kept, {c: generator.label_map[c] for c in kept}, generator.conditions, reference)


def check_manifest_labels(what: str, classes: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Assert the label map that a surrogate set carries, where a generator made it.

    Raises:
        ArtifactError: a class without a condition of its own.
    """
    if "label_map" not in meta:
        return
    try:
        check_label_map(classes, meta["label_map"], int(meta["conditions"]))
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{what} has a label map that does not fit its classes: {error}") from error
