"""Refinement losses of WMDD (arXiv 2311.18531) as pure functions of tensors.

Legend: features (B,D); labels (B,) int64; a layer's inputs (R,C,H,W) or (R,C), R being B or, where a layer sees several
windows or tokens of an image as rows, a multiple of it, image by image; means and variances (K,C) by class; G classes
that are present; T the channels of all L layers side by side. Moments of rows are taken over S positions (R,C,...),
in chunks that fit in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def feature_loss(features: Tensor, atoms: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Mean over images of ||f_i - atom_i||^2 / scale_i, atom i being image i's own (WMDD eq. 9).

    Args:
        features: f (B,D).
        atoms: (B,D).
        scale: (B,), such as the total feature variance of the image's class: then a loss of 1 is the mean squared
            distance of a real image to its class mean. 1 where features are scaled already.

    Differs: the released code takes the unsquared norm over the batch (``released_feature_loss``).
    """
    return ((features.float() - atoms).square().sum(1) / scale).mean()


def released_feature_loss(features: Tensor, atoms: Tensor) -> Tensor:
    """||F - atoms||_F over the batch, unsquared, as in WMDD's code: its gradient does not vanish near the atoms."""
    return (features.float() - atoms).square().sum().clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def _image_moments(inputs: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """(mean, variance), both (B,C), of each image; its rows count as positions."""
    mean, variance = row_moments(inputs)
    if len(mean) == images:
        return mean, variance
    mean, variance = (part.unflatten(0, (images, -1)) for part in (mean, variance))
    centre = mean.mean(1)
    return centre, (variance + (mean - centre[:, None]).square()).mean(1)


@dataclass(frozen=True)
class RealMoments:
    """Real moments of the classes present in a batch, the channels of all layers side by side.

    Attributes:
        widths: Channels of every layer, by name.
        share: (G,B) weights of the images in the moments of their class.
        mean: (G,T).
        variance: (G,T).
        floor: (T,) 1 % of the layer's mean class variance.
    """

    widths: dict[str, int]
    share: Tensor
    mean: Tensor
    variance: Tensor
    floor: Tensor

    @classmethod
    def of(cls, labels: Tensor, means: Mapping[str, Tensor], variances: Mapping[str, Tensor]) -> RealMoments:
        """For images of classes ``labels`` (B,), on their device, from moments (K,C) by layer; waits for the device."""
        present, group = labels.unique(return_inverse=True)
        rows = present.to(next(iter(means.values())).device)
        widths = {name: value.shape[1] for name, value in means.items()}
        smallest = torch.finfo(torch.float32).eps
        floors = [(0.01 * variances[n].mean()).clamp(min=smallest).expand(width) for n, width in widths.items()]
        mean, variance = (torch.cat([part[name][rows] for name in widths], 1) for part in (means, variances))
        members = torch.nn.functional.one_hot(group, len(present)).T.float()
        share = members / members.sum(1, keepdim=True)
        return cls(widths, share, *(value.to(labels.device) for value in (mean, variance, torch.cat(floors))))

    def of_images(self, inputs: Mapping[str, Tensor], images: int) -> tuple[Tensor, Tensor]:
        """(mean, variance), both (B,T), of each of so many images from the layers' inputs."""
        means, variances = zip(*(_image_moments(inputs[name], images) for name in self.widths), strict=True)
        return torch.cat(means, 1), torch.cat(variances, 1)

    def by_class(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance), both (G,T), of classes from those of all their images (B,T).

        By matrix products, since indexed sums are unordered on a GPU.
        """
        centre = self.share @ mean
        between = (mean - self.share.gt(0).T.to(mean.dtype) @ centre).square()
        return centre, self.share @ (variance + between)

    def layers(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values (G,T) -> (G,C) of every layer."""
        return values.split([*self.widths.values()], 1)


def normalised_gap(mean: Tensor, variance: Tensor, real: RealMoments) -> Tensor:
    """Per-class BN matching, normalised, of class moments (G,T): mean over layers and present classes of
    mean_c (delta mean)^2 / var + mean_c (delta std)^2 / var, var being the real class variance plus 1 % of the layer's.

    WMDD's eq. 10 sums the unnormalised norms ||delta var|| + ||delta mean||, whose size grows with depth and width; the
    division makes a weight carry over between architectures.
    """
    scale = real.variance + real.floor
    gap = (mean - real.mean).square() + ((variance + real.floor).sqrt() - scale.sqrt()).square()
    return torch.stack([layer.mean() for layer in real.layers(gap / scale)]).mean()


def published_gap(mean: Tensor, variance: Tensor, real: RealMoments) -> Tensor:
    """Of class moments (G,T): sum over layers of the mean over present classes of ||delta var|| + ||delta mean|| (WMDD
    eq. 10)."""
    gaps = [
        layer.square().sum(1) for part in (mean - real.mean, variance - real.variance) for layer in real.layers(part)
    ]
    # a gradient of 0 where a norm is 0
    return torch.stack(gaps).clamp(min=torch.finfo(torch.float32).tiny).sqrt().mean(1).sum()


CHUNK = {"cpu": 2**19}  # floats that stay in a core's cache from their mean to the sum of their squares
OTHER_CHUNK = 2**24


def row_sums(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, sum of x - mean, sum of (x - mean)^2), fp32 (R,C), over the positions of (R,C,...).

    The second one is the rounding error of the mean, which the corrected two-pass algorithm needs.
    """
    where = tuple(range(2, inputs.dim()))
    step = max(1, CHUNK.get(inputs.device.type, OTHER_CHUNK) // inputs[0].numel())
    room = torch.empty_like(inputs[:step], dtype=torch.float32)  # in the layout of the input
    parts = []
    for part in inputs.split(step):
        values = part.float()
        mean = values.mean(where, keepdim=True)
        centred = torch.sub(values, mean, out=room[: len(part)])
        parts.append((mean.flatten(1), centred.sum(where), centred.square_().sum(where)))
    mean, rest, squares = (torch.cat(sums) for sums in zip(*parts, strict=True))
    return mean, rest, squares


def row_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance) over the positions of every row and channel of (R,C,...), fp32 (R,C); differentiable.

    Autograd would keep two more maps of the input's size for the variance and read them ten times.
    """
    if inputs[0, 0].numel() == 1:
        mean = inputs.flatten(1).float()
        return mean, torch.zeros_like(mean)
    return _RowMoments.apply(inputs)


class _RowMoments(torch.autograd.Function):
    """d mean / dx = 1 / S and d variance / dx = 2 (x - mean) / S: one multiply-add of the input, in its own dtype."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, rest, squares = row_sums(inputs)
        ctx.positions = inputs[0, 0].numel()
        rest = rest / ctx.positions
        mean, variance = mean + rest, (squares / ctx.positions - rest.square()).clamp_(min=0)
        ctx.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, mean_grad: Tensor, variance_grad: Tensor) -> Tensor:
        inputs, mean = ctx.saved_tensors
        slope = 2 * variance_grad / ctx.positions
        offset = mean_grad / ctx.positions - slope * mean
        shape = (*mean.shape, *[1] * (inputs.dim() - 2))
        slope, offset = (value.to(inputs.dtype).view(shape) for value in (slope, offset))
        return torch.addcmul(offset, inputs, slope)
