"""The ``patches`` refiner: every image of a pool becomes the crop of it that the teachers are surest of.

After RDED (arXiv 2312.03526, section 4), whose realism score is minus the cross-entropy to the image's label. Here a
crop is judged as it will be seen once it was stored in a tile, and what is stored is left to ``select``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.data.crops import cropped
from gendistill.data.pixels import to_float, to_uint8
from gendistill.refine.acceptance import cross_entropies
from gendistill.refine.pack import through_tile
from gendistill.seeding import numpy_rng
from gendistill.surrogate.set import SurrogateSet

ROWS = 256  # images looked at at once


def best_patches(
    pool: SurrogateSet,
    networks: Sequence[nn.Module],
    *,
    patches: int,
    min_patch: float = 0.25,
    factor: int = 1,
    seed: int = 0,
    batch_size: int = ROWS,
) -> Generator[dict[str, Any], None, SurrogateSet]:
    """Of ``patches`` square crops of every image, enlarged to its size, keep the one of least mean cross-entropy.

    The first crop is the whole image, which ties keep; ``random_square_crops`` draws the others. Each is judged as it
    comes back from a tile of an image packed by ``factor``. Yields a record a batch, with mean cross-entropies;
    returns the pool's labels and meta with the new images, whose soft labels are nobody's.
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
        means = {"whole": before.mean(), "cross_entropy": least.mean()}
        yield {"images": len(rows), "cropped": int((least < before).sum()), **means}
    return replace(pool, images=torch.cat(found), meta=dict(pool.meta), soft_labels=None)


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
