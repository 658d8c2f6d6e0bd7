"""The types of the columns of a table, as ``datasets`` describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Feature:
    """The type of a column.

    Attributes:
        kind: The name of its class in ``datasets``, such as ``Image``.
        dtype: Of its values, such as ``int64``; empty where they are no single values.
        names: Of the classes, where its values are labels.
        has_bytes: Whether its values are records with encoded bytes.
    """

    kind: str
    dtype: str = ""
    names: tuple[str, ...] | None = None
    has_bytes: bool = False

    @property
    def is_image(self) -> bool:
        return self.kind == "Image"

    @property
    def is_image_like(self) -> bool:
        """Whether it has encoded files, of which nothing need say that they are images."""
        return self.is_image or self.has_bytes or self.dtype.endswith("binary")

    @property
    def is_label(self) -> bool:
        return self.names is not None

    @property
    def is_number(self) -> bool:
        """Whether its values are whole numbers without names."""
        return not self.is_label and self.dtype.startswith(("int", "uint"))

    @property
    def is_label_like(self) -> bool:
        return self.is_label or self.dtype.startswith(("int", "uint", "string", "large_string"))


def features_of(columns: Mapping[str, Any]) -> dict[str, Feature]:
    """Of ``datasets.Features``."""
    return {name: _feature(one) for name, one in columns.items()}


def _feature(one: Any) -> Feature:
    names = getattr(one, "names", None)
    return Feature(
        type(one).__name__,
        str(getattr(one, "dtype", "")),
        tuple(names) if names is not None else None,
        isinstance(one, dict) and "bytes" in one,
    )


def features_of_schema(schema: Any) -> dict[str, Feature]:
    """Of a schema of pyarrow; without ``datasets``, whose import takes a second, where every column is a plain one."""
    try:
        described = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        plain = {field.name: _plain(described[field.name], field) for field in schema}
    except (KeyError, TypeError, ValueError):  # nothing is described, or in another way
        plain = {}
    found = {name: feature for name, feature in plain.items() if feature is not None}
    if found and len(found) == len(plain):
        return found
    import datasets

    return features_of(datasets.Features.from_arrow_schema(schema))


def _plain(described: Mapping[str, Any], field: Any) -> Feature | None:
    """An image, a label or a value that is stored as it is described; None for all else."""
    kind, stored = described["_type"], str(field.type) if field.nullable else ""
    if kind == "Image" and stored == "struct<bytes: binary, path: string>":
        return Feature(kind, "PIL.Image.Image")
    names = described.get("names")
    if kind == "ClassLabel" and stored == "int64" and isinstance(names, list) and len({*names}) == len(names):
        return Feature(kind, "int64", tuple(map(str, names))) if described.get("num_classes") is None else None
    return Feature(kind, stored) if kind == "Value" and stored == described["dtype"] else None
