"""WebDataset: tar files of samples, for readers that stream."""

from __future__ import annotations

import io
import math
import tarfile
from contextlib import closing
from itertools import islice
from pathlib import Path

from numpy.lib.format import write_array
from torch import Tensor

from gendistill.surrogate.export.stored import StoredImage, StoredSet

SHARD = 10_000  # images a tar file


def write(stored: StoredSet, folder: Path, shard: int = SHARD) -> None:
    """``train-000000.tar``, ... with samples in the order of the set, all of one class together: shuffle them.

    The key of a sample is its position, ``00000042``. ``.png``: the file as it is stored. ``.cls``: the label as text;
    the names are ``classes`` of manifest.json. ``.npy``: for soft labels per image, float32 probabilities (K,), or
    (V,K) where an image is decoded to several. Both datasets and webdataset decode these, neither unpickles
    them. Headers hold no time and no user, so equal sets give equal bytes.
    """
    with closing(stored.images()) as images:
        for number in range(math.ceil(len(stored.paths) / shard)):
            with tarfile.open(folder / f"train-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for image in islice(images, shard):
                    for ending, data in _sample(stored, image).items():
                        header = tarfile.TarInfo(f"{image.position:08d}.{ending}")  # mtime 0, uid 0, gid 0, no names
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))


def _sample(stored: StoredSet, image: StoredImage) -> dict[str, bytes]:
    sample = {"png": image.png, "cls": str(image.label).encode()}
    if stored.labelled:
        probabilities = stored.probabilities(image.position)
        sample["npy"] = _npy(probabilities[0] if stored.views == 1 else probabilities)
    return sample


def _npy(tensor: Tensor) -> bytes:
    out = io.BytesIO()
    write_array(out, tensor.numpy(), allow_pickle=False)
    return out.getvalue()
