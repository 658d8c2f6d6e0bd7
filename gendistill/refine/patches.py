"""The ``patches`` refiner: every image of a pool is replaced by its crop of least cross-entropy under the teachers.

After RDED (arXiv 2312.03526, section 4), whose realism score is minus the cross-entropy to the image's label. Unlike
there, a crop is scored at the resolution of the tile that will store it, and ``select`` chooses what is kept. Crops
have random places, or lie where a teacher's class activation map is largest.

Legend: N images, B of a batch, C channels, H = W their side in pixels, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.config import PatchPlaces
from gendistill.data.crops import cropped
from gendistill.data.pixels import to_float, to_uint8
from gendistill.networks.pieces import piece_rows
from gendistill.networks.training import inference_rows
from gendistill.refine.objective import cross_entropies
from gendistill.seeding import numpy_rng
from gendistill.surrogate.multi_formation import through_tile
from gendistill.surrogate.set import SurrogateSet

ROWS = 256  # images of a batch
LEVELS = 2**16  # of an activation map: its sums are then exact
ATTENTION = (nn.Softmax, nn.Dropout)  # modules that give probabilities (B,heads,T,T), which are no maps of positions


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
    places: PatchPlaces = "random",
    factor: int = 1,
    seed: int = 0,
    batch_size: int = ROWS,
) -> Generator[PatchRecord, None, SurrogateSet]:
    """Of ``patches`` square crops of every image, enlarged to its size, keep the one of least mean cross-entropy.

    The first crop is the whole image, which wins ties; ``random_square_crops`` or ``active_crops`` places the others.
    Each is scored as it comes back from a tile of an image packed by ``factor``.

    Args:
        pool: The set.
        networks: Classifiers of its classes.
        patches: Crops of every image, at least 1.
        min_patch: Least share of an image's area in a crop, in (0, 1].
        places: ``random``, or ``activation``: where the class activation map has its largest sum.
        factor: Tiles a side of the images that will store the result; 1 stores whole images.
        seed: Of random crops; ``activation`` draws nothing.
        batch_size: Images of a batch.

    Yields:
        A record a batch.

    Returns:
        The pool's labels and meta with the new images, without soft labels.
    """
    drawn = random_square_crops(pool.labels, patches - 1, min_patch, seed) if places == "random" else None
    device = next(networks[0].parameters()).device
    found = []
    for rows in torch.arange(len(pool.labels)).split(batch_size):
        labels, whole = pool.labels[rows], pool.images[rows].to(device)
        best, least = whole, mean_cross_entropy(networks, whole, labels, factor)
        before = least
        if drawn is None:
            sides, centres = active_crops(networks, whole, labels, patches - 1, min_patch)
        else:
            sides, centres = (one[:, rows] for one in drawn)
        for side, centre in zip(sides, centres, strict=True):
            tried = to_uint8(cropped(to_float(whole), side, centre))
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


def active_crops(
    networks: Sequence[nn.Module], images: Tensor, labels: Tensor, count: int, min_patch: float
) -> tuple[Tensor, Tensor]:
    """(sides, centres), each (count,B,2), of the squares in uint8 ``images`` with the largest sum of activation.

    Sides are spread evenly from sqrt(min_patch) to 1, without 1, in whole pixels. Every network's map is divided by its
    sum, and the mean over the networks decides. Nothing is drawn, and an image does not depend on others.
    """
    side = images.shape[-1]
    whole = to_float(images)
    maps = torch.stack([activation_maps(network, whole, labels.to(images.device)) for network in networks])
    maps = (maps / maps.sum((2, 3), keepdim=True).clamp(min=torch.finfo().tiny)).mean(0)
    shares = torch.linspace(min_patch**0.5, 1, count + 1)[:-1]
    pixels = [max(1, round(side * share)) for share in shares.tolist()]
    sides, centres = torch.empty(2, count, len(images), 2)
    for row, one in enumerate(pixels):
        sides[row], centres[row] = one / side, densest_crops(maps, one)
    return sides, centres


def activation_maps(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Class activation maps (B,H,W), at least 0: where the image's features speak for its class y.

        M = relu(sum over channels k of alpha_k A_k),  alpha_k = mean over positions of d logit_y / d A_k

    This is Grad-CAM (arXiv 1610.02391, eq. 1 and 2), enlarged bilinearly to the images. A is the last output of a
    module with the shape (B,K,h,h), h > 1. So it is found in every network: the last block of one with convolutions,
    mostly the embedded patches of a transformer, and the image itself where there is no other. The gradient in the
    pixels needs no such map, but is too noisy to place a crop. A map is 0 where no channel speaks for the class.

    Args:
        network: A classifier; it is put into evaluation mode.
        images: (B,C,H,W) in [-1, 1].
        labels: (B,), the classes, on the device of the images.
    """
    network.eval()
    rows = inference_rows(network, piece_rows(network, images), images.shape[1:])
    maps = []
    for part, wanted in zip(images.split(rows), labels.split(rows), strict=True):
        features, gradients = _last_map(network, part, wanted)
        active = (gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
        maps.append(F.interpolate(active.float(), images.shape[-2:], mode="bilinear")[:, 0])
    return torch.cat(maps)


def _last_map(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The last feature map (B,K,h,h), h > 1, and the gradient of the labels' logits in it."""
    last = images.detach().clone().requires_grad_()

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal last
        if isinstance(module, ATTENTION) or not isinstance(output, Tensor):
            return
        shape = output.shape
        if len(shape) == 4 and shape[0] == len(images) and shape[2] == shape[3] > 1:
            last = output

    handles = [module.register_forward_hook(look) for module in network.modules()]
    try:
        with torch.enable_grad():
            logits = network(last)
            (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), last)
    finally:
        for handle in handles:
            handle.remove()
    return last.detach(), gradient


def densest_crops(maps: Tensor, side: int) -> Tensor:
    """Centres (B,2) of the squares with the largest sum of each map, (x, y) in [-1, 1] units, on the CPU.

    Of equal sums it is the one nearest the centre of the image, and of equally near ones the first by rows. Maps are
    rounded to ``LEVELS`` levels of their maximum, so that sums are exact and equal ones are found to be equal.

    Args:
        maps: (B,H,W), at least 0.
        side: Of the squares, in pixels, from 1 to H.
    """
    count, height, width = maps.shape
    levels = (maps.double() / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo().tiny) * LEVELS).round().long()
    integral = F.pad(levels.cumsum(1).cumsum(2), (1, 0, 1, 0))
    below, above = integral[:, side:], integral[:, :-side]
    sums = below[..., side:] - below[..., :-side] - above[..., side:] + above[..., :-side]
    tops, lefts = (torch.arange(size - side + 1, device=maps.device) for size in (height, width))
    far = (2 * tops - height + side).square()[:, None] + (2 * lefts - width + side).square()
    largest = sums == sums.amax((1, 2), keepdim=True)
    place = torch.where(largest, far, far.max() + 1).reshape(count, -1).argmin(1)
    top, left = place // len(lefts), place % len(lefts)
    return torch.stack([(2 * left + side) / width - 1, (2 * top + side) / height - 1], 1).cpu()


@torch.no_grad()
def mean_cross_entropy(networks: Sequence[nn.Module], images: Tensor, labels: Tensor, factor: int) -> Tensor:
    """Mean cross-entropy (B,) over the networks of uint8 images (B,C,H,W), seen through a tile."""
    seen = through_tile(images, factor)
    return torch.stack([cross_entropies(network, seen, labels, len(labels)) for network in networks]).mean(0)
