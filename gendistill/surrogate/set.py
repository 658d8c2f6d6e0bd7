"""SurrogateSet: the product. On disk ``train/<class>/<00000>.png`` beside manifest.json and a README.md card."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill.data.dataset import Split
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_tensors
from gendistill.surrogate.multi_formation import Factor, decode, factor_of, views_in
from gendistill.surrogate.manifest import COUNTED, MANIFEST, image_paths, read_manifest, seal
from gendistill.surrogate.image_files import read_images
from gendistill.surrogate.soft_labels import SoftLabels
from gendistill.surrogate.writer import write_images


@dataclass(frozen=True)
class SurrogateSet:
    """Stored images uint8 (N,C,H,W) with labels (N,) into ``classes``; ``meta`` is the provenance for the manifest.

    Every stored image holds ``factor`` x ``factor`` views to train on, or those of several factors (decode.py); soft
    labels belong to the views.
    ``weights`` (N,), of mean 1 in every class, say how much each stored image counts in training; None is 1 for all.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    factor: Factor = 1
    soft_labels: SoftLabels | None = None
    weights: Tensor | None = None

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
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            meta=dict(self.meta),
            soft_labels=soft,
            weights=None if self.weights is None else self.weights[index],
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
        write_images(folder, self.classes, self.images, self.labels)
        self.finish(folder)

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write all but the images, which stand in ``folder`` already; returns the manifest."""
        order = torch.argsort(self.labels, stable=True)
        if self.soft_labels:
            ordered = torch.equal(order, torch.arange(len(order)))
            (self if ordered else self.take(order)).soft_labels.save(folder)  # type: ignore[union-attr]
        weights = {} if self.weights is None else {"weights": self.weights[order].tolist()}
        return seal(folder, self.classes, self.images.shape[1:], {**self.meta, **weights}, factor=self.factor)

    @classmethod
    def load(cls, folder: str | Path) -> SurrogateSet:
        """Read a folder written by ``save``.

        Raises:
            ArtifactError: no manifest, images missing, too many, unreadable or of another size than it says.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        factor = factor_of(manifest)
        paths = image_paths(folder, manifest)
        images = read_images([p for ps in paths for p in ps], manifest["channels"], manifest["image_size"])
        labels = torch.arange(len(paths)).repeat_interleave(torch.tensor([len(ps) for ps in paths]))
        return cls(
            images,
            labels,
            tuple(manifest["classes"]),
            {k: v for k, v in manifest.items() if k not in COUNTED},
            factor,
            SoftLabels.load(folder, len(images) * views_in(factor)),
            torch.tensor(manifest["weights"]) if "weights" in manifest else None,
        )
