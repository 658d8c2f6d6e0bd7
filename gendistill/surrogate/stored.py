"""A set as it lies on disk, read image by image, so that memory does not grow with it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import torch
from torch import Tensor

from gendistill.config import Format
from gendistill.errors import ArtifactError
from gendistill.io import read_json
from gendistill.progress import track
from gendistill.surrogate.card.entry import EvaluationEvidence, EvaluationRow
from gendistill.surrogate.image_files import decode_files, read_images
from gendistill.surrogate.image_formats import PNG, Coding
from gendistill.surrogate.manifest import Manifest, coding_of, image_paths, read_manifest, verify
from gendistill.surrogate.multi_formation import Factor, factor_of, views_in
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels


@dataclass(frozen=True)
class StoredImage:
    """One image of a set: its position, its label, its file relative to the set and what that holds."""

    position: int
    label: int
    name: str
    data: bytes


@dataclass(frozen=True)
class StoredSet:
    """A surrogate folder. ``soft_labels`` are mapped into memory, not read: only what is asked for comes from disk."""

    folder: Path
    manifest: Manifest
    paths: tuple[Path, ...]
    soft_labels: SoftLabels | None

    @classmethod
    def open(cls, folder: Path) -> StoredSet:
        """Read what describes the set, and see that all of it is as it was made.

        Raises:
            ArtifactError: there is no set, or a file of it is missing, was changed, or does not belong to it.
        """
        manifest = read_manifest(folder)
        problems = verify(folder)
        if problems:
            raise ArtifactError(
                f"{folder} is not as it was made, so it is not exported: {problems[0]}"
                f"{f' and {len(problems) - 1} more' if len(problems) > 1 else ''}. `gendistill verify` lists all."
            )
        paths = tuple(path for paths in image_paths(folder, manifest) for path in paths)
        return cls(folder, manifest, paths, SoftLabels.load(folder, len(paths) * views_in(factor_of(manifest))))

    @property
    def config(self) -> str:
        return f"ipc-{self.manifest['ipc']}"

    @property
    def coding(self) -> Coding:
        """How the images are coded."""
        return coding_of(self.manifest)

    @property
    def factor(self) -> Factor:
        """Views along each side of a stored image."""
        return factor_of(self.manifest)

    @property
    def views(self) -> int:
        """Training images in a stored one."""
        return views_in(self.factor)

    @property
    def labels(self) -> Tensor:
        counts = self.manifest["counts"]
        return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    @property
    def labelled(self) -> bool:
        """Whether every image has soft labels of its own."""
        return self.soft_labels is not None and self.soft_labels.mode == "per_image"

    def images(self) -> Generator[StoredImage, None, None]:
        """In the order of the set, which soft labels per view count in; under a progress bar, so close it."""
        numbered = zip(range(len(self.paths)), self.labels.tolist(), self.paths, strict=True)
        for position, label, path in track(numbered, f"export {self.config}", len(self.paths)):
            yield StoredImage(position, label, path.relative_to(self.folder).as_posix(), path.read_bytes())

    def probabilities(self, position: int) -> Tensor:
        """float32 (V,K): soft labels of the views of one image, for sets that are ``labelled``."""
        assert self.soft_labels is not None
        return self.soft_labels.probabilities(torch.arange(position * self.views, (position + 1) * self.views))

    def pixels(self, position: int) -> Tensor:
        """uint8 (1,C,H,W) of one stored image."""
        path, channels, size = self.paths[position], self.manifest["channels"], self.manifest["image_size"]
        if self.coding == PNG:
            return read_images([path], channels, size)
        return decode_files([path.read_bytes()], self.coding, channels, size, [path])

    def content_hash(self) -> str:
        """The name that an evaluation knows the set by; reads it whole, as the evaluation did."""
        return SurrogateSet.load(self.folder).content_hash()


FULL = "full"
OLD = ("random", "kmeans")  # the baselines of a summary without hashes


class ShownSummary(TypedDict, total=False):
    """What a card reads of summary.json."""

    rows: Required[list[EvaluationRow]]
    protocol: str
    command: str


def read_summary(path: Path) -> Mapping[str, Any]:
    """summary.json of an evaluation, its shape checked.

    Raises:
        ArtifactError: there is none, or it is something else.
    """
    return read_json(path, kind="an evaluation", schema=ShownSummary, fix="Give the summary.json of one.")


def evaluation_of(stored: StoredSet, summary: Mapping[str, Any], content: str | None = None) -> EvaluationEvidence:
    """The evidence part ``evaluation``: rows of this set, of the baselines at its IPC, and of the full data.

    A row is the set's by its content hash (``content``, where it is known); in a summary without any, by method, stage
    and IPC.

    Raises:
        ArtifactError: the set was not evaluated there.
    """
    manifest: Manifest = stored.manifest
    rows: list[EvaluationRow] = summary["rows"]
    named = (manifest.get("method"), manifest.get("stage"), manifest["ipc"])
    hashed = any(row.get("set") for row in rows)
    if hashed:
        content = content or stored.content_hash()
        own = [row for row in rows if content in _hashes(row)]
    else:
        own = [row for row in rows if (row["method"], row.get("stage"), row["ipc"]) == named]
    if not own:
        raise ArtifactError(
            f"The evaluation has no row of {stored.folder} as it is now (method {named[0]}, stage {named[1]}, IPC "
            f"{named[2]}). Evaluate the set, or leave --evaluation out."
        )
    beside = [row for row in rows if _baseline(row, manifest["ipc"], hashed) and row not in own]
    data = summary.get("data")
    return {
        "protocol": str(summary.get("protocol", "unknown")),
        "data": str(data.get("name", "unknown") if isinstance(data, dict) else data),
        "command": str(summary.get("command", "unknown")),
        "rows": [*own, *beside],
    }


def _hashes(row: EvaluationRow) -> list[str | None]:
    """Of the set, or of the several that differ in their synthesis seed, that the row is of."""
    found = row.get("set")
    return [*found] if isinstance(found, list) else [found]


def _baseline(row: EvaluationRow, ipc: int, hashed: bool) -> bool:
    beside = row["ipc"] == ipc and not row.get("set")
    return row["method"] == FULL or (beside and (hashed or row["method"] in OLD))


RECORD, FORMAT = "export.json", 1


class ExportedSet(TypedDict):
    """A set of an export: its folder below the export's, empty where it is that one, and the checksum of its files."""

    folder: str
    checksums: str


class ExportRecord(TypedDict, total=False):
    """export.json: the version of the file, the format, the sets by their names, and how they were exported."""

    export: Required[int]
    format: Required[Format]
    sets: Required[dict[str, ExportedSet]]
    command: str
    versions: dict[str, str]


def read_record(folder: Path) -> ExportRecord | None:
    """The record of a finished export, or None."""
    try:
        record = cast(ExportRecord, read_json(folder / RECORD, kind="an export", schema=ExportRecord, fix=""))
    except ArtifactError:
        return None
    return record if record["export"] == FORMAT else None
