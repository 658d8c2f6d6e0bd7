"""Parquet as datasets writes it: columns ``image``, ``label`` and, for soft labels per image, ``soft_label``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gendistill.errors import ArtifactError
from gendistill.surrogate.export.stored import StoredImage, StoredSet

if TYPE_CHECKING:
    from datasets import Features

SHARD = 500_000_000  # bytes of images and labels a file
ROWS = 100  # a row group, which is what is in memory


def write(stored: StoredSet, folder: Path, shard: int = SHARD) -> None:
    """``train-00000-of-0000N.parquet``, at most about ``shard`` bytes each, rows in the order of the set.

    ``image``: the PNG file as it is stored. ``label``: a ClassLabel with the names of the classes, in their order.
    ``soft_label``: float32 probabilities (K,), or (V,K) where an image is decoded to several.
    Read by datasets.load_dataset and, as ``hfds/FOLDER``, by timm.

    Raises:
        ArtifactError: two classes have one name, which ClassLabel cannot tell apart.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = _columns(stored).arrow_schema
    counts = list(_rows_by_shard(stored, shard))
    with closing(stored.images()) as images:
        for number, count in enumerate(counts):
            with ParquetWriter(folder / f"train-{number:05d}-of-{len(counts):05d}.parquet", schema) as writer:
                for start in range(0, count, ROWS):
                    rows = [_row(stored, image) for image in islice(images, min(ROWS, count - start))]
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _columns(stored: StoredSet) -> Features:
    from datasets import ClassLabel, Features, Image, List, Value

    names = stored.manifest["classes"]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ArtifactError(
            f"{stored.folder} has two classes called {twice!r}, which parquet's labels cannot tell apart. Export it as "
            "imagefolder or webdataset."
        )
    columns = {"image": Image(), "label": ClassLabel(names=names)}
    if stored.labelled:
        row = List(Value("float32"))
        columns["soft_label"] = row if stored.views == 1 else List(row)
    return Features(columns)


def _row(stored: StoredSet, image: StoredImage) -> dict[str, Any]:
    row: dict[str, Any] = {"image": {"bytes": image.png, "path": image.name}, "label": image.label}
    if stored.labelled:
        rows = list(stored.probabilities(image.position).numpy())
        row["soft_label"] = rows[0] if stored.views == 1 else rows
    return row


def _rows_by_shard(stored: StoredSet, shard: int) -> Iterator[int]:
    """How many images go into each file: as many as fit, at least one."""
    label = 4 * len(stored.manifest["classes"]) * stored.views if stored.labelled else 0
    rows = size = 0
    for path in stored.paths:
        more = path.stat().st_size + label
        if rows and size + more > shard:
            yield rows
            rows = size = 0
        rows, size = rows + 1, size + more
    yield rows
