"""The ``patches`` refiner: every image of a pool is replaced by its crop of least cross-entropy under the teachers.

After RDED (arXiv 2312.03526, section 4), whose realism score is minus the cross-entropy to the image's label. Unlike
there, a crop is scored at the resolution of the tile that will store it, and ``select`` chooses what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.data.crops import cropped
from gendistill.data.pixels import to_float, to_uint8
from gendistill.refine.objective import cross_entropies
from gendistill.seeding import numpy_rng
from gendistill.surrogate.multi_formation import through_tile
from gendistill.surrogate.set import SurrogateSet

ROWS = 256  # images of a batch


class PatchRecord(TypedDict):
    """A batch: its images, how many were cropped, and the mean cross-entropy of whole images and of best crops."""

    images: int
    cropped: int
    whole: Tensor
    cross_entropy: Tensor


def best_patches(
    pool: SurrogateSet,
    networks: Sequence[nn.Module],
    *,
    patches: int,
    min_patch: float = 0.25,
    factor: int = 1,
    seed: int = 0,
    batch_size: int = ROWS,
) -> Generator[PatchRecord, None, SurrogateSet]:
    """Of ``patches`` square crops of every image, enlarged to its size, keep the one of least mean cross-entropy.

    The first crop is the whole image, which wins ties; ``random_square_crops`` draws the others. Each is scored as it
    comes back from a tile of an image packed by ``factor``.

    Args:
        pool: The set.
        networks: Classifiers of its classes.
        patches: Crops of every image, at least 1.
        min_patch: Least share of an image's area in a crop, in (0, 1].
        factor: Tiles a side of the images that will store the result; 1 stores whole images.
        seed: Of the crops.
        batch_size: Images of a batch.

    Yields:
        A record a batch.

    Returns:
        The pool's labels and meta with the new images, without soft labels.
    """
    sides, centres = random_square_crops(pool.labels, patches - 1, min_patch, seed)
    device = next(networks[0].parameters()).device
    found = []
    for rows in torch.arange(len(pool.labels)).split(batch_size):
        labels, whole = pool.labels[rows], pool.images[rows].to(device)
        best, least = whole, mean_cross_entropy(networks, whole, labels, factor)
        before = least
        for side, centre in zip(sides, centres, strict=True):
            tried = to_uint8(cropped(to_float(whole), side[rows], centre[rows]))
            loss = mean_cross_entropy(networks, tried, labels, factor)
            best = torch.where((loss < least).to(device)[:, None, None, None], tried, best)
            least = torch.where(loss < least, loss, least)
        found.append(best.cpu())
        yield {
            "images": len(rows),
            "cropped": int((least < before).sum()),
            "whole": before.mean(),
            "cross_entropy": least.mean(),
        }
    return replace(pool, images=torch.cat(found), meta=pool.meta.copy(), soft_labels=None)


def random_square_crops(labels: Tensor, count: int, min_patch: float, seed: int) -> tuple[Tensor, Tensor]:
    """(sides, centres), each (count,N,2), of squares inside the image, (x, y) in [-1, 1] units of it.

    Shares of its area are uniform in [min_patch, 1], places uniform in what then fits. Image i of a class has a stream
    of its own, which neither other images nor the count change.
    """
    seen: Counter[int] = Counter()
    draws = np.empty((len(labels), count, 3), np.float32)
    for position, label in enumerate(labels.tolist()):
        draws[position] = numpy_rng(seed, "patches", label, seen[label]).random((count, 3))
        seen[label] += 1
    share, place = torch.from_numpy(draws).transpose(0, 1).split([1, 2], dim=2)
    sides = (min_patch + (1 - min_patch) * share).sqrt().expand(-1, -1, 2)
    return sides, (2 * place - 1) * (1 - sides)


@torch.no_grad()
def mean_cross_entropy(networks: Sequence[nn.Module], images: Tensor, labels: Tensor, factor: int) -> Tensor:
    """Mean cross-entropy (B,) over the networks of uint8 images (B,C,H,W), seen through a tile."""
    seen = through_tile(images, factor)
    return torch.stack([cross_entropies(network, seen, labels, len(labels)) for network in networks]).mean(0)
