"""Exports: surrogate sets as one folder that other tools read, as parquet, webdataset, imagefolder or DD-Ranking."""

from __future__ import annotations

import io
import math
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.lib.format import write_array
from torch import Tensor

from gendistill.config import Format, ImageFormat, kind_of, require
from gendistill.errors import ArtifactError, ConfigError
from gendistill.io import inside, replaceable, write_json, write_text
from gendistill.surrogate import soft_labels
from gendistill.surrogate.card.card import CARD, card
from gendistill.surrogate.card.entry import EVIDENCE, PAIRS, CardEntry, Evidence, read_entry
from gendistill.surrogate.ddranking import write_ddranking
from gendistill.surrogate.hub_datasets import find_surrogate, without_local_paths
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.manifest import (
    CHECKSUMS,
    LABELS,
    MANIFEST,
    TRAIN,
    command_line,
    provenance_of,
    versions,
    write_manifest,
)
from gendistill.surrogate.set import SurrogateSet, SurrogateWriter
from gendistill.surrogate.stored import FORMAT, RECORD, StoredImage, StoredSet, evaluation_of, read_summary

if TYPE_CHECKING:
    from datasets import Features

PARQUET_BYTES = 500_000_000  # bytes of images and labels a file
ROWS = 100  # a row group, which is what is in memory


def write_parquet(stored: StoredSet, folder: Path, shard: int = PARQUET_BYTES) -> None:
    """``train-00000-of-0000N.parquet``, at most about ``shard`` bytes each, rows in the order of the set.

    ``image``: the file as it is stored. ``label``: a ClassLabel with the names of the classes, in their order.
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
    row: dict[str, Any] = {"image": {"bytes": image.data, "path": image.name}, "label": image.label}
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


TAR_IMAGES = 10_000  # images a tar file


def write_webdataset(stored: StoredSet, folder: Path, shard: int = TAR_IMAGES) -> None:
    """``train-000000.tar``, ... with samples in the order of the set, all of one class together: shuffle them.

    The key of a sample is its position, ``00000042``. ``.png``, or the ending of another format: the file as it is
    stored. ``.cls``: the label as text;
    the names are ``classes`` of manifest.json. ``.npy``: for soft labels per image, float32 probabilities (K,), or
    (V,K) where an image is decoded to several. Both datasets and webdataset decode these, neither unpickles
    them. Headers hold no time and no user, so equal sets give equal bytes.
    """
    with closing(stored.images()) as images:
        for number in range(math.ceil(len(stored.paths) / shard)):
            with tarfile.open(folder / f"train-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for image in islice(images, shard):
                    for ending, data in _tar_sample(stored, image).items():
                        header = tarfile.TarInfo(f"{image.position:08d}.{ending}")  # mtime 0, uid 0, gid 0, no names
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))


def _tar_sample(stored: StoredSet, image: StoredImage) -> dict[str, bytes]:
    sample = {stored.coding.suffix[1:]: image.data, "cls": str(image.label).encode()}
    if stored.labelled:
        probabilities = stored.probabilities(image.position)
        sample["npy"] = _npy(probabilities[0] if stored.views == 1 else probabilities)
    return sample


def _npy(tensor: Tensor) -> bytes:
    out = io.BytesIO()
    write_array(out, tensor.numpy(), allow_pickle=False)
    return out.getvalue()


def write_imagefolder(stored: StoredSet, folder: Path) -> None:
    """Copies of the image files and of CHECKSUMS; copies rather than links, so that no edit of one reaches the other.

    Read by datasets.load_dataset, torchvision ImageFolder and timm; with its manifest by SurrogateSet.load.
    """
    for name in stored.manifest["folders"]:
        (folder / TRAIN / name).mkdir(parents=True)
    with closing(stored.images()) as images:
        for image in images:
            (folder / image.name).write_bytes(image.data)
    shutil.copyfile(inside(stored.folder, CHECKSUMS), folder / CHECKSUMS)


def write_recoded(stored: StoredSet, folder: Path, image_format: ImageFormat) -> StoredSet:
    """The set in ``folder``, with its images in another format; soft labels and weights stay.

    Images are coded one by one, from the pixels that the stored files hold; a lossy format changes these once more, so
    that what was measured of the set is left out.

    Raises:
        ConfigError: Pillow was built without the format, or it cannot hold images of this size.
    """
    manifest = stored.manifest
    coding, seen = Coding.of(image_format, manifest["image_size"]), [0] * len(manifest["classes"])
    if coding == stored.coding:
        return stored
    with SurrogateWriter(folder, manifest["classes"], coding) as writer, closing(stored.images()) as images:
        for image in images:
            writer.put(image.label, seen[image.label], stored.pixels(image.position)[0])
            seen[image.label] += 1
    for name in (*LABELS, *((EVIDENCE, PAIRS) if coding.format.lossless else ())):
        if inside(stored.folder, name).is_file():
            shutil.copyfile(stored.folder / name, folder / name)
    shape = manifest["channels"], manifest["image_size"], manifest["image_size"]
    meta, weights = provenance_of(manifest), manifest.get("weights")
    meta["recoded_from"] = str(stored.coding)
    write_manifest(folder, manifest["classes"], shape, meta, factor=stored.factor, weights=weights, coding=coding)
    return StoredSet.open(folder)


WRITERS: dict[str, Callable[[StoredSet, Path], None]] = {
    "imagefolder": write_imagefolder,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "ddranking": write_ddranking,
}


def check_fit(sets: Sequence[StoredSet], format: Format, image_format: ImageFormat | None = None) -> None:
    """Whether the sets fit into one export, with their images in another format if one is given.

    Raises:
        ArtifactError: their classes or channels differ, or two have the same IPC.
        ConfigError: several as ddranking.
    """
    if format == "ddranking" and len(sets) > 1:
        raise ConfigError(f"format ddranking takes one set, not {len(sets)}; export them one by one.")
    for one in sets:
        if format == "webdataset" and (kind_of(image_format) or one.coding.name) == "avif":
            what = f"{one.folder} holds AVIF images" if image_format is None else "image_format is 'avif'"
            raise ArtifactError(
                f"{what}, which readers of tar files do not decode. Export as parquet or imagefolder, or with "
                "another --image_format."
            )
    seen: dict[str, StoredSet] = {}
    for stored in sets:
        if stored.config in seen:
            raise ArtifactError(
                f"{seen[stored.config].folder} and {stored.folder} both have IPC {stored.manifest['ipc']}, which would "
                f"both be called {stored.config}. Export them apart."
            )
        seen[stored.config] = stored
        for what, differ in (("classes", _first_difference), ("channels", _channels)):
            difference = differ(sets[0].manifest, stored.manifest)
            if difference:
                raise ArtifactError(
                    f"{sets[0].folder} and {stored.folder} have different {what} ({difference}); sets of one export "
                    "share them. Export these apart."
                )


def _first_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    names = enumerate(zip_longest(first["classes"], second["classes"]))
    return next((f"class {i} is {a!r} and {b!r}" for i, (a, b) in names if a != b), "")


def _channels(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    found = [first["channels"], second["channels"]]
    return f"{found[0]} and {found[1]}" if found[0] != found[1] else ""


def write_export(
    sets: Sequence[StoredSet],
    folder: Path,
    format: Format,
    evidence: Mapping[str, Evidence] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the sets into ``folder``, an empty one: a single set flat, each of several as ``ipc-K/``.

    Beside the data of the format stand manifest.json, evidence.json and soft_labels.json of each set, and its soft
    labels where the format has no place for them. ``evidence`` has parts to add by config; ``facts`` go into
    export.json. Of every path on this computer the last part alone is written, because exports are published.

    Raises:
        ArtifactError: the sets do not fit into one export, or not into the format.
        ConfigError: several as ddranking.
    """
    check_fit(sets, format)
    entries, record = [], {}
    for stored in sets:
        part = stored.config if len(sets) > 1 else ""
        target = folder / part
        target.mkdir(exist_ok=True)
        WRITERS[format](stored, target)
        entry = read_entry(stored.folder, stored.manifest, folder=part)
        more: Evidence = (evidence or {}).get(stored.config, {})
        shown = without_local_paths({**entry.evidence, **more})
        entry = replace(entry, manifest=without_local_paths(entry.manifest), evidence=shown)
        _write_companions(stored, target, format, entry)
        entries.append(entry)
        record[stored.config] = {"folder": part, "checksums": stored.manifest["checksums"]}
    write_text(folder / CARD, card(entries, format=format), errors="replace")
    facts = without_local_paths(facts or {})
    write_json(folder / RECORD, {"export": FORMAT, "format": format, "sets": record, **facts})


def _write_companions(stored: StoredSet, target: Path, format: Format, entry: CardEntry) -> None:
    write_json(target / MANIFEST, entry.manifest, hashed=True)
    if entry.evidence:
        write_json(target / EVIDENCE, entry.evidence, hashed=True)
    in_columns = stored.labelled and format != "imagefolder"
    for name in (PAIRS, soft_labels.RECORD, *(() if in_columns else (soft_labels.TENSORS,))):
        if inside(stored.folder, name).is_file():
            shutil.copyfile(stored.folder / name, target / name)


def export(
    sets: SurrogateSet | str | Path | Sequence[SurrogateSet | str | Path],
    folder: str | Path,
    format: Format = "imagefolder",
    *,
    evaluation: str | Path | None = None,
    image_format: ImageFormat | None = None,
) -> Path:
    """Write sets as one folder in a format of other tools, with a dataset card.

    Args:
        sets: One set, or several with different images per class: in memory, a folder, or a Hub id.
        folder: Where to write; it must be new or empty. It appears when it is complete.
        format: ``imagefolder``, ``parquet``, ``webdataset``, or ``ddranking`` (one set).
        evaluation: A summary.json whose accuracies of these sets the card shows.
        image_format: Of the image files; None is that of each set. Of another lossy format the pixels differ, so that
            an evaluation of the sets as they were says nothing on the export.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder is not empty, a set is damaged, or the sets do not fit together or into the format.
        ConfigError: an image format that Pillow was built without, or one for a format that has its own.

    Example:
        >>> gd.export(["run/refined/ipc-1", "run/refined/ipc-10"], "export", "parquet")  # doctest: +SKIP
    """
    target = replaceable(Path(folder))
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ArtifactError(f"{target} is not empty. Give a new folder, or delete it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    items = [sets] if isinstance(sets, SurrogateSet | str | Path) else list(sets)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        made, paths = Path(place) / "export", []
        for number, one in enumerate(items):
            if isinstance(one, SurrogateSet):
                one.save(Path(place) / str(number))
            paths.append(Path(place) / str(number) if isinstance(one, SurrogateSet) else find_surrogate(one))
        made.mkdir()
        export_folders(paths, made, format, evaluation, image_format)
        if target.is_dir():
            target.rmdir()
        made.rename(target)
    return target


def export_folders(
    paths: Sequence[Path],
    folder: Path,
    format: Format,
    evaluation: str | Path | None = None,
    image_format: ImageFormat | None = None,
) -> list[StoredSet]:
    """Write the sets in ``paths`` into ``folder``, an empty one; returns them. See ``export``."""
    if image_format is not None:
        require(format != "ddranking", "image_format", image_format, "None with format ddranking, which holds PNG")
        lossless = Coding.of(image_format).format.lossless
        expected = "None with a lossy image_format, whose pixels were not evaluated"
        require(lossless or evaluation is None, "evaluation", evaluation, expected)
    summary = read_summary(Path(evaluation)) if evaluation is not None else None
    sets = [StoredSet.open(path) for path in paths]
    check_fit(sets, format, image_format)
    if image_format is None:
        return _export(sets, folder, format, summary)
    with TemporaryDirectory(prefix=".recoded.", dir=folder) as place:
        parts = [Path(place) / str(number) for number in range(len(sets))]
        recoded = [write_recoded(one, part, image_format) for one, part in zip(sets, parts, strict=True)]
        return _export(recoded, folder, format, summary)


def _export(sets: list[StoredSet], folder: Path, format: Format, summary: Mapping[str, Any] | None) -> list[StoredSet]:
    """``write_export`` with the rows of a summary on the cards."""
    evidence: dict[str, Evidence] = {}
    if summary is not None:
        evidence = {stored.config: {"evaluation": evaluation_of(stored, summary)} for stored in sets}
    write_export(sets, folder, format, evidence, {"command": command_line(), "versions": versions()})
    return sets
