"""SurrogateSet: the product. On disk ``train/<class>/<00000>.png`` beside manifest.json and a README.md card."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.data.images import to_pil
from gendistill.data.real import Split
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_folder, hash_tensors
from gendistill.surrogate.card import write_card

MANIFEST, FORMAT = "manifest.json", 1
TRAIN = "train"
LONGEST_NAME = 120  # bytes of a folder name that every file system takes, after quoting


@dataclass(frozen=True)
class SurrogateSet:
    """Stored images uint8 (N,C,H,W) with labels (N,) into ``classes``; ``meta`` is the provenance for the manifest."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.labels) // len(self.classes)

    @property
    def split(self) -> Split:
        return Split(self.images, self.labels)

    def of_class(self, label: int) -> Tensor:
        """Images (n,C,H,W) of one class, in order."""
        return self.images[self.labels == label]

    def prefix(self, ipc: int) -> SurrogateSet:
        """The first ``ipc`` images of every class."""
        keep = torch.cat([torch.nonzero(self.labels == c).flatten()[:ipc] for c in range(len(self.classes))])
        return SurrogateSet(self.images[keep], self.labels[keep], self.classes, dict(self.meta))

    def content_hash(self) -> str:
        """Of pixels, labels and class names."""
        names = torch.frombuffer(bytearray("\0".join(self.classes).encode()), dtype=torch.uint8)
        return hash_tensors({"images": self.images, "labels": self.labels, "classes": names})

    def save(self, folder: str | Path) -> None:
        """Write the folder, which must be new; the caller makes it appear at once by renaming."""
        folder = Path(folder)
        for label, name in enumerate(self.classes):
            target = folder / TRAIN / folder_name(name, label)
            target.mkdir(parents=True)
            for i, image in enumerate(self.of_class(label)):
                to_pil(image).save(target / image_name(i))
        seal(folder, self.classes, tuple(self.images.shape[1:]), self.meta)

    @classmethod
    def load(cls, folder: str | Path) -> SurrogateSet:
        """Read a folder written by ``save``.

        Raises:
            ArtifactError: no manifest, an unreadable image, or counts that disagree with the manifest.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        size, channels = manifest["image_size"], manifest["channels"]
        images, labels = [], []
        for label, name in enumerate(manifest["folders"]):
            if Path(name).name != name or name in ("", ".."):
                raise ArtifactError(f"{folder / MANIFEST} names the unsafe folder {name!r}; expected a plain name.")
            paths = sorted((folder / TRAIN / name).glob("*.png"))
            images += [_read(path, size, channels) for path in paths]
            labels += [label] * len(paths)
        if len(labels) != manifest["stored_images"]:
            raise ArtifactError(
                f"{folder} holds {len(labels)} images, its manifest says {manifest['stored_images']}. "
                "Copy the folder again, or make it again with the manifest's command."
            )
        return cls(
            torch.from_numpy(np.stack(images)),
            torch.tensor(labels),
            tuple(manifest["classes"]),
            {k: v for k, v in manifest.items() if k not in _COUNTED},
        )


def seal(folder: Path, classes: tuple[str, ...], shape: tuple[int, ...], meta: dict[str, Any]) -> None:
    """Write manifest and card for the images (C,H,W of ``shape``) that stand in ``folder/train``."""
    files = list((folder / TRAIN).rglob("*.png"))
    manifest = {
        "format": FORMAT,
        "classes": list(classes),
        "folders": [folder_name(name, label) for label, name in enumerate(classes)],
        "ipc": len(files) // len(classes),
        "image_size": int(shape[-1]),
        "channels": int(shape[0]),
        "stored_images": len(files),
        "decoded_images": len(files),
        "factor": 1,
        "bytes": {"images": sum(f.stat().st_size for f in files), "labels": 0},
        "images_hash": hash_folder(folder / TRAIN),
        **meta,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(folder / "README.md", manifest)


_COUNTED = {
    "format",
    "classes",
    "folders",
    "ipc",
    "image_size",
    "channels",
    "stored_images",
    "decoded_images",
    "factor",
    "bytes",
    "images_hash",
}


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{folder} is not a surrogate set: it has no {MANIFEST}. Expected a folder such as RUN/samples/ipc-10."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise ArtifactError(f"{folder / MANIFEST} has format {found!r}; this version reads {FORMAT}.")
    wrong = [key for key, holds in _SHAPE.items() if not holds(manifest.get(key))]
    if wrong or len(manifest["classes"]) != len(manifest["folders"]):
        raise ArtifactError(f"{folder / MANIFEST} is damaged: look at {', '.join(wrong or ['classes', 'folders'])}.")
    return manifest


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


_SHAPE = {
    "classes": _names,
    "folders": _names,
    "image_size": lambda v: isinstance(v, int) and v > 0,
    "channels": lambda v: v in (1, 3),
    "stored_images": lambda v: isinstance(v, int) and v > 0,
}


def image_name(index: int) -> str:
    return f"{index:05d}.png"


def folder_name(name: str, label: int) -> str:
    """A class name as one safe folder name: percent-encoded where needed, its index where too long or empty."""
    safe = quote(name, safe=" !#$&'()+,-;=@[]^_`{}~.").strip()
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if re.match(r"__|class-\d{5}", safe):  # datasets skips the one, the other is the stand-in of an unusable name
        safe = f"%{ord(safe[0]):02X}" + safe[1:]
    if not safe or len(safe.encode()) > LONGEST_NAME or unquote(safe) != name:
        safe = f"class-{label:05d}"
    return safe


def _read(path: Path, size: int, channels: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.size != (size, size):
                raise ArtifactError(f"{path} is {image.width}x{image.height}; its manifest says {size}x{size}.")
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Copy or make the set again.") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
