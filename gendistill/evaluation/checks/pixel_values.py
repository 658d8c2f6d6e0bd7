"""Pixel values that are not those of real images: another range or normalisation, inverted, flat or grey images.

Legend: C channels; histograms (C,256) count grey levels. Distances of histograms are those of Wasserstein, in grey
levels, the mean over the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gendistill.data.class_positions import evenly_spaced
from gendistill.evaluation.checks import VALUE_RANGE, Finding, counted, list_names
from gendistill.evaluation.reference import SHOWN, DescribedSet, RealReference
from gendistill.seeding import torch_rng

DRAWS = 20  # random real sets of the set's size
FAR = 12.0  # grey levels: about a twentieth of the range
CLOSER, CERTAINLY_CLOSER = 3.0, 5.0  # times, than to the real ones: images matched to features gain contrast too
LEVELS = torch.arange(256, dtype=torch.float64)


def histogram(images: Tensor) -> Tensor:
    """Shares (C,256) of the grey levels of uint8 images (N,C,H,W), float64."""
    channels = images.movedim(1, 0).flatten(1)
    return torch.stack([torch.bincount(x.long(), minlength=256).double() / x.numel() for x in channels])


def distance(one: Tensor, other: Tensor) -> float:
    """W1 of two histograms (C,256), in grey levels."""
    return (one - other).cumsum(1).abs().sum(1).mean().item()


def mapped(shares: Tensor, levels: Tensor) -> Tensor:
    """The histogram once every grey level g of channel c is ``levels`` (C,256)[c,g], rounded and clipped."""
    to = levels.round().clamp(0, 255).long()
    return torch.zeros_like(shares).scatter_add_(1, to, shares)


def mistakes(real: Tensor) -> dict[str, Tensor]:
    """How images with these shares of grey levels (C,256) are stored by mistake: new grey levels (C,256) by name."""
    channels, unit = len(real), LEVELS / 255
    mean = (real * unit).sum(1, keepdim=True)
    std = ((real * unit.square()).sum(1, keepdim=True) - mean.square()).clamp(min=1e-6).sqrt()
    found = {
        "standardised (their mean subtracted, divided by their standard deviation) and then stored as if from 0 to 1": (
            unit - mean
        )
        / std,
        "scaled to -1 to 1 and then stored as if from 0 to 1": (2 * unit - 1).expand(channels, -1),
        "of 0 to 1 stored as if from -1 to 1, which washes them out": ((unit + 1) / 2).expand(channels, -1),
        "of 0 to 1 stored without the factor of 255": unit.expand(channels, -1) / 255,
        "inverted (255 - value)": 1 - unit.expand(channels, -1),
    }
    return {name: 255 * levels for name, levels in found.items()}


def check_pixel_values(subject: DescribedSet, real: RealReference) -> list[Finding]:
    """Faults of images that are no copies of training images: copies have the right values, even an unusual choice."""
    new = subject.position[subject.copies.exact["train"][subject.position] < 0]
    pick = new[evenly_spaced(len(new), SHOWN)]
    if not len(pick):
        return []
    return range_findings(subject.views.images[pick], real.images, subject.names(pick), real.seed)


def range_findings(made: Tensor, real: Tensor, files: Sequence[str], seed: int = 0) -> list[Finding]:
    """Faults of the pixel values of ``made``, compared with random sets of ``real``, both uint8 (N,C,H,W).

    ``files`` name the images of ``made``.
    """
    found = [*_flat_images(made, real, files), *_grey_images(made, real)]
    made = made[~_is_flat(made)]
    if not len(made):
        return found
    shares, usual = histogram(made), histogram(real)
    off = distance(shares, usual)
    size = min(len(made), max(1, len(real) // 2))
    picks = (torch.randperm(len(real), generator=torch_rng(seed, "pixels", d))[:size] for d in range(DRAWS))
    random = max(distance(histogram(real[pick]), usual) for pick in picks)
    if off <= max(FAR, 2 * random):
        return found
    return [*found, _mistaken(shares, usual, off) or _other_values(made, real, off, random)]


def _mistaken(shares: Tensor, usual: Tensor, off: float) -> Finding | None:
    """The mistake whose outcome is by far the closest to the set."""
    found = {name: distance(shares, mapped(usual, levels)) for name, levels in mistakes(usual).items()}
    name = min(found, key=lambda n: found[n])
    if found[name] > min(off / CLOSER, FAR):
        return None
    certain = found[name] <= off / CERTAINLY_CLOSER
    likely = "are those" if certain else "resemble those"
    fix = "undo it" if certain else "if this is not intended, undo it"
    return Finding(
        VALUE_RANGE,
        f"The pixel values {likely} of real images {name}: {off:.0f} grey levels away from the real ones, "
        f"{found[name]:.0f} from real ones stored in that way; {fix} before images are stored as 0 to 255.",
        "error" if certain else "warning",
    )


def _other_values(made: Tensor, real: Tensor, off: float, random: float) -> Finding:
    def said(images: Tensor) -> str:
        means, stds = _moments(images)
        return f"mean {_listed(means)}, standard deviation {_listed(stds)}"

    return Finding(
        VALUE_RANGE,
        f"The pixel values of {counted(len(made), 'image')} are unlike those of real images ({said(made)} by channel; "
        f"real {said(real)}; {off:.0f} grey levels apart, random real sets of this size at most {random:.0f}); if that "
        "is not meant, check the normalisation they were stored with.",
        "warning",
    )


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the grey levels by channel, (C,) each."""
    shares = histogram(images)
    mean = (shares * LEVELS).sum(1)
    return mean, ((shares * LEVELS.square()).sum(1) - mean.square()).clamp(min=0).sqrt()


def _listed(values: Tensor) -> str:
    return "/".join(f"{v:.0f}" for v in values.tolist())


def _flat_images(made: Tensor, real: Tensor, files: Sequence[str]) -> list[Finding]:
    at = torch.nonzero(_is_flat(made)).flatten().tolist()
    if not at or _is_flat(real).float().mean() > 0.01:
        return []
    return [
        Finding(
            "constant images",
            f"Images of one flat colour: {len(at):,} of {len(made):,} ({list_names([files[i] for i in at])}); "
            "replace or drop them, and look at what made them.",
        )
    ]


def _is_flat(images: Tensor) -> Tensor:
    flat = images.flatten(2)
    return (flat.amax(2) == flat.amin(2)).all(1)


def _grey_images(made: Tensor, real: Tensor) -> list[Finding]:
    if made.shape[1] == 1 or _is_grey(real).float().mean() > 0.2:
        return []
    count = int(_is_grey(made).sum())
    if count <= max(1, len(made) // 2):
        return []
    return [
        Finding(
            "grey images",
            f"Grey images, where the real ones have colour: {count:,} of {len(made):,}; store all three channels.",
        )
    ]


def _is_grey(images: Tensor, most: int = 2) -> Tensor:
    """Whether the channels of each image differ by at most ``most`` grey levels."""
    return (images.amax(1).int() - images.amin(1).int()).flatten(1).amax(1) <= most
