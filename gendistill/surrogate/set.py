"""SurrogateSet: the product. On disk ``train/<class>/<00000>.png``, or in another format of images, beside
manifest.json and a README.md card."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from gendistill.config import ImageFormat
from gendistill.data.dataset import Split
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_tensors
from gendistill.io import atomic
from gendistill.surrogate.card.card import write_card
from gendistill.surrogate.image_files import (
    decode_files,
    file_sizes,
    is_complete,
    read_files,
    read_images,
    recode,
    write_files,
    write_image,
)
from gendistill.surrogate.image_formats import PNG, Coding
from gendistill.surrogate.manifest import (
    MANIFEST,
    TRAIN,
    Manifest,
    Provenance,
    check_labels,
    coding_of,
    folder_names,
    image_name,
    image_paths,
    provenance_of,
    read_checksums,
    read_manifest,
    write_manifest,
)
from gendistill.surrogate.multi_formation import Factor, decode, factor_of, views_in
from gendistill.surrogate.soft_labels import SoftLabels

WAITING = 256  # images that may wait for the disk before the producer does


class SurrogateWriter:
    """Writes ``folder/train/<class>/<00000>.png`` as images come; a context manager that waits for the last file.

    An error of the disk is raised by the next ``put`` or at the end.
    """

    def __init__(self, folder: Path, classes: Sequence[str], coding: Coding = PNG, threads: int = 2) -> None:
        self.paths, self.coding = _folders(folder, classes), coding
        self._pool = ThreadPoolExecutor(threads)
        self._pending: list[Future[None]] = []

    def path(self, label: int, index: int) -> Path:
        return self.paths[label] / image_name(index, self.coding.suffix)

    def has(self, label: int, index: int) -> bool:
        """Whether the whole file is there; one that a loss of power cut short is not."""
        return is_complete(self.path(label, index), self.coding)

    def put(self, label: int, index: int, image: Tensor) -> None:
        """Queue one uint8 image (C,H,W)."""
        self._collect(WAITING - 1)
        self._pending.append(self._pool.submit(write_image, self.path(label, index), image, self.coding))

    def _collect(self, allowed: int) -> None:
        while self._pending and (len(self._pending) > allowed or self._pending[0].done()):
            self._pending.pop(0).result()

    def __enter__(self) -> SurrogateWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._collect(0)
        finally:
            self._pool.shutdown(cancel_futures=True)


def write_images(
    folder: Path, classes: Sequence[str], images: Tensor, labels: Tensor, coded: CodedImages | None = None
) -> None:
    """Write uint8 images (N,C,H,W) with labels (N,) where ``SurrogateWriter`` would, each class in its order."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    names = [(here, i) for here, n in zip(_folders(folder, classes), counts, strict=True) for i in range(n)]
    coding, files = (PNG, None) if coded is None else (coded.coding, coded.files)
    paths = [here / image_name(i, coding.suffix) for here, i in names]
    write_files(paths, images, torch.argsort(labels, stable=True), files)


def _folders(folder: Path, classes: Sequence[str]) -> list[Path]:
    """That of each class, which is there from now on."""
    found = [folder / TRAIN / name for name in folder_names(classes)]
    for path in found:
        path.mkdir(parents=True, exist_ok=True)
    return found


def link_prefix(source: Path, target: Path, classes: Sequence[str], ipc: int, suffix: str = PNG.suffix) -> None:
    """The first ``ipc`` images of every class of ``source`` as a folder of its own, sharing the bytes on disk."""
    for name in folder_names(classes):
        folder = Path(TRAIN) / name
        (target / folder).mkdir(parents=True, exist_ok=True)
        for index in range(ipc):
            link(source / folder / image_name(index, suffix), target / folder / image_name(index, suffix))


def link(source: Path, target: Path) -> None:
    """Let the file appear as ``target`` too: as a link, or a copy where the file system has no links between them."""
    try:
        os.link(source, target)
    except FileExistsError:
        if not target.samefile(source) and not filecmp.cmp(source, target, shallow=False):
            target.unlink()  # an older file, or one that a loss of power cut short
            link(source, target)
    except OSError:
        with atomic(target, sync=False) as partial:  # the manifest is written after all images are on the disk
            shutil.copyfile(source, partial)


@dataclass(frozen=True)
class CodedImages:
    """The image files of a set that is not stored as PNG.

    Attributes:
        coding: Format, quality and coder.
        files: The files, in the order of the images.
        pixels: Hash of the images that the files hold.
    """

    coding: Coding
    files: tuple[bytes, ...]
    pixels: str

    @classmethod
    def of(cls, images: Tensor, coding: Coding, files: tuple[bytes, ...]) -> CodedImages:
        return cls(coding, files, hash_tensors({"images": images}))

    def holds(self, images: Tensor) -> bool:
        """Whether the files are those of these images."""
        return self.pixels == hash_tensors({"images": images})


@dataclass(frozen=True)
class SurrogateSet:
    """A small labelled set of images that classifiers are trained on, with its provenance.

    Attributes:
        images: Stored images, uint8 (N,C,H,W) in [0, 255], class after class.
        labels: int64 (N,), positions in ``classes``.
        classes: Names in index order.
        meta: What the manifest says of how the set was made.
        factor: f, where each stored image holds f x f views to train on, or several such numbers (``decode``).
        soft_labels: Probabilities of the views, where a teacher labelled them.
        weights: (N,), of mean 1 in every class: how much each stored image counts in training; None is 1 for all.
        coded: The files of images that are not stored as PNG; ``stored_as`` makes them. Files of other images than
            ``images`` count for nothing.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    meta: Provenance = field(default_factory=Provenance)
    factor: Factor = 1
    soft_labels: SoftLabels | None = None
    weights: Tensor | None = None
    coded: CodedImages | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        views = "" if self.factor == 1 else f", {self.views} views of each"
        soft = f", {self.soft_labels.mode} soft labels" if self.soft_labels else ""
        name = self.meta.get("method", "unknown method")
        made = " + ".join([name, *(stage for stage in self.meta.get("stages", ()) if stage not in (name, "label"))])
        coding = "" if self.coding == PNG else f", {self.coding}"
        images = f"{len(self.labels)} images of {size}{views}"
        return f"SurrogateSet({made}, {len(self.classes)} classes, {images}{soft}{coding})"

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return len(self.labels) // len(self.classes)

    @property
    def counts(self) -> list[int]:
        """Stored images of each class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    @property
    def views(self) -> int:
        """Views in a stored image."""
        return views_in(self.factor)

    @property
    def split(self) -> Split:
        """What a classifier trains on: the decoded views with their hard labels."""
        return Split(decode(self.images, self.factor), self.labels.repeat_interleave(self.views))

    @property
    def coding(self) -> Coding:
        """How ``save`` codes the images."""
        return self._coded.coding if self._coded else PNG

    @property
    def _coded(self) -> CodedImages | None:
        """The image files, where they are those of the images."""
        return self.coded if self.coded and self.coded.holds(self.images) else None

    @property
    def image_bytes(self) -> int:
        """Bytes of the image files that ``save`` writes."""
        return sum(map(len, self._coded.files)) if self._coded else sum(file_sizes(self.images))

    def stored_as(self, image_format: ImageFormat) -> SurrogateSet:
        """The set as it is when its images are stored in a format: a lossy one changes the pixels.

        The images of the result are decoded from the files that ``save`` then writes, so that what is trained on in
        memory and what is read from disk are the same. A set that is stored so already is returned as it is.

        Args:
            image_format: ``png`` or ``webp_lossless``, which keep every pixel, or ``gd.Webp``, ``gd.Jpeg`` or
                ``gd.Avif`` with a quality from 1 to 100.

        Raises:
            ConfigError: Pillow was built without the format, or it cannot hold images of this size.

        Example:
            >>> small = made.stored_as(gd.Webp(quality=80))
            >>> small.save("kmeans-webp/ipc-10")
        """
        coding = Coding.of(image_format, int(self.images.shape[-1]))
        if coding == self.coding:
            return self
        if coding == PNG:
            return replace(self, coded=None)
        images, files = recode(self.images, coding)
        return replace(self, images=images, coded=CodedImages.of(images, coding, files))

    def of_class(self, label: int) -> Tensor:
        """Stored images (n,C,H,W) of one class, in order."""
        return self.images[self.labels == label]

    def take(self, index: Tensor) -> SurrogateSet:
        """The stored images at ``index``, with the soft labels that are theirs.

        Raises:
            ArtifactError: soft labels that belong to batches of the whole set.
        """
        views = (index[:, None] * self.views + torch.arange(self.views)).flatten()
        soft = self.soft_labels.take(views) if self.soft_labels else None
        coded, images = self._coded, self.images[index]
        if coded:
            coded = CodedImages.of(images, coded.coding, tuple(coded.files[i] for i in index.tolist()))
        return replace(
            self,
            images=images,
            labels=self.labels[index],
            meta=self.meta.copy(),
            soft_labels=soft,
            weights=None if self.weights is None else self.weights[index],
            coded=coded,
        )

    def prefix(self, ipc: int) -> SurrogateSet:
        """The first ``ipc`` stored images of every class.

        Raises:
            ArtifactError: a class has fewer.
        """
        least = min(self.counts)
        if not 1 <= ipc <= least:
            name = self.classes[self.counts.index(least)]
            raise ArtifactError(f"ipc is {ipc}, but class {name!r} has {least} images; expected 1 to {least}.")
        return self.take(torch.cat([torch.nonzero(self.labels == c).flatten()[:ipc] for c in range(len(self.classes))]))

    def content_hash(self) -> str:
        """Of pixels, labels, class names, decode factor, weights and soft labels."""
        names = torch.frombuffer(bytearray("\0".join(self.classes).encode(errors="replace")), dtype=torch.uint8)
        tensors = {"images": self.images, "labels": self.labels, "classes": names}
        if self.factor != 1:
            tensors["factor"] = torch.tensor(self.factor)
        if self.weights is not None:
            tensors["weights"] = self.weights
        if self.soft_labels:
            tensors |= {f"soft {k}": v for k, v in self.soft_labels.fingerprint().items()}
        return hash_tensors(tensors)

    def save(self, folder: str | Path) -> None:
        """Write the folder, which must be new; the caller makes it appear at once by renaming.

        Raises:
            ArtifactError: a set is there already.
        """
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            raise ArtifactError(f"{folder} holds a surrogate set already; give a new folder.")
        write_images(folder, self.classes, self.images, self.labels, self._coded)
        self.finish(folder)

    def finish(self, folder: Path) -> Manifest:
        """Write all but the images, which stand in ``folder`` already; returns the manifest."""
        order = torch.argsort(self.labels, stable=True)
        if self.soft_labels:
            ordered = torch.equal(order, torch.arange(len(order)))
            (self if ordered else self.take(order)).soft_labels.save(folder)  # type: ignore[union-attr]
        weights = None if self.weights is None else self.weights[order].tolist()
        manifest = write_manifest(
            folder,
            self.classes,
            self.images.shape[1:],
            self.meta,
            factor=self.factor,
            weights=weights,
            coding=self.coding,
        )
        write_card(folder, manifest)
        return manifest

    @classmethod
    def load(cls, folder: str | Path) -> SurrogateSet:
        """Read a folder written by ``save``.

        Raises:
            ArtifactError: no manifest, images missing, too many, unreadable or of another size than it says, or soft
                labels that were changed. Images in a format without checksums of its own, which is any but PNG, are
                compared with CHECKSUMS.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        factor = factor_of(manifest)
        paths = image_paths(folder, manifest)
        images, coded = _read_coded(folder, manifest, [p for ps in paths for p in ps])
        check_labels(folder, manifest)
        labels = torch.arange(len(paths)).repeat_interleave(torch.tensor([len(ps) for ps in paths]))
        return cls(
            images,
            labels,
            tuple(manifest["classes"]),
            provenance_of(manifest),
            factor,
            SoftLabels.load(folder, len(images) * views_in(factor)),
            torch.tensor(manifest["weights"]) if "weights" in manifest else None,
            coded,
        )


def _read_coded(folder: Path, manifest: Manifest, paths: Sequence[Path]) -> tuple[Tensor, CodedImages | None]:
    """The images of a set, and where they are not PNG their files."""
    coding, channels, size = coding_of(manifest), manifest["channels"], manifest["image_size"]
    if coding == PNG:
        return read_images(paths, channels, size), None
    digests = read_checksums(folder, manifest)
    files = read_files(paths, [digests.get(path.relative_to(folder).as_posix(), "") for path in paths])
    images = decode_files(files, coding, channels, size, paths)
    return images, CodedImages.of(images, coding, files)


def files_of(made: SurrogateSet) -> Sequence[str]:
    """Of the stored images, in their order."""
    seen, suffix = [0] * len(made.classes), made.coding.suffix
    folders, found = folder_names(made.classes), []
    for label in made.labels.tolist():
        found.append(f"{TRAIN}/{folders[label]}/{image_name(seen[label], suffix)}")
        seen[label] += 1
    return found
