"""Image folders: the set as this tool keeps it, ``train/<class>/<00000>.png``, whole."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from gendistill.surrogate.export.stored import StoredSet
from gendistill.surrogate.manifest import CHECKSUMS
from gendistill.surrogate.names import TRAIN


def write(stored: StoredSet, folder: Path) -> None:
    """Copies of the image files and of CHECKSUMS; copies rather than links, so that no edit of one reaches the other.

    Read by datasets.load_dataset, torchvision ImageFolder and timm; with its manifest by SurrogateSet.load.
    """
    for name in stored.manifest["folders"]:
        (folder / TRAIN / name).mkdir(parents=True)
    with closing(stored.images()) as images:
        for image in images:
            (folder / image.name).write_bytes(image.png)
    shutil.copyfile(stored.folder / CHECKSUMS, folder / CHECKSUMS)
