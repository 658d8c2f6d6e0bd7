"""What refinement may change: trust regions in pixels and latents, and the augmentation of every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.data.crops import boxes
from gendistill.generator.codec import Codec
from gendistill.runtime import to_device
from gendistill.seeding import torch_rng
from gendistill.surrogate.straight_through import into_range


@dataclass(frozen=True, kw_only=True)
class TrustRegion(ABC):
    """Where images x0 may go: x = f(delta) with f(0) = x0 and |delta|_inf <= ``bound``.

    Attributes:
        bound: Largest entry of delta, in its own unit.
        blend_every: Every so many steps delta is multiplied by ``blend``, toward the start (FADRM, arXiv 2506.24125),
            but not after the last step.
        blend: That factor, in [0, 1].
    """

    bound: float = 1.0
    blend_every: int = 0
    blend: float = 0.5

    @abstractmethod
    def around(self, x0: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(delta, f) for images ``x0`` (B,C,H,W) in [-1, 1]: the free variable at zero, and the function to images.

        f is differentiable, and an image depends on its own part of delta alone.
        """

    @torch.no_grad()
    def project(self, delta: Tensor, step: int, steps: int) -> None:
        """Project delta into the region after step ``step`` (1, 2, ...) of ``steps``."""
        if self.blend_every and step % self.blend_every == 0 and step < steps:
            delta.mul_(self.blend)
        delta.clamp_(-self.bound, self.bound)


@dataclass(frozen=True, kw_only=True)
class PixelRegion(TrustRegion):
    """x = x0 + delta cut to [-1, 1], delta in units of that range; a bound of 2 is none.

    Attributes:
        size: Side at which delta is optimised, enlarged bilinearly; None for the image's own. Less is low-pass.
    """

    size: int | None = None

    def around(self, x0: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        side = self.size or x0.shape[-1]

        def images(delta: Tensor) -> Tensor:
            return into_range(x0 + (delta if enlarge is None else enlarge @ delta @ enlarge.mT))

        enlarge = None if side == x0.shape[-1] else _enlarging(side, x0.shape[-1]).to(x0.device)
        return torch.zeros(*x0.shape[:2], side, side, device=x0.device, requires_grad=True), images


def _enlarging(small: int, large: int) -> Tensor:
    """(large,small): bilinear enlargement of one side; as matrices it has a gradient of fixed order on a GPU too."""
    return F.interpolate(torch.eye(small)[None], large, mode="linear")[0].T.contiguous()


@dataclass(frozen=True, kw_only=True)
class RefineAugmentation:
    """One random crop, mirror and roll of every image a step, drawn for the whole set: batching does not change them.

    Attributes:
        seed: Of the random stream.
        min_crop: Least share of the area, in (0, 1]; 1 keeps the whole image.
        flip: Mirror half of the images.
        roll: Largest cyclic shift in pixels, both ways.
    """

    seed: int = 0
    min_crop: float = 1.0
    flip: bool = False
    roll: int = 0

    def draw(self, total: int, step: int) -> tuple[Tensor, ...]:
        """Step ``step``'s draws for the ``total`` images of a set, for ``augmented``."""
        rng = torch_rng(self.seed, "crops", step)
        cut = boxes(total, self.min_crop, self.flip, rng) if self.min_crop < 1 or self.flip else ()
        if self.roll:
            return *cut, torch.randint(-self.roll, self.roll + 1, (2, total), generator=rng).T
        return (*cut, torch.zeros(total, 2, dtype=torch.long)) if cut else ()


def augmented(images: Tensor, *drawn: Tensor) -> Tensor:
    """Images (B,C,H,W) after their part of what ``RefineAugmentation.draw`` gave: sides, centres and shifts (B,2)
    each, shifts alone, or nothing."""
    if len(drawn) == 3:
        return resampled(images, *drawn)
    return rolled(images, *drawn[0].T) if drawn else images


def resampled(images: Tensor, sides: Tensor, centres: Tensor, shifts: Tensor) -> Tensor:
    """Bilinear crops of images (B,C,H,W) at ``sides`` and ``centres`` (B,2) as of ``data.crops.boxes``, then rolled by
    ``shifts`` (B,2), (down, right).

    It is separable: two small matrices an image, whose gradient has a fixed order on a GPU too.
    """
    height, width = images.shape[-2:]
    (side_x, side_y), (x, y), (down, right) = (to_device(part, images.device).T for part in (sides, centres, shifts))
    rows, columns = _weights(height, side_y, y, down), _weights(width, side_x, x, right)
    return rows[:, None] @ (images.flatten(1, 2) @ columns.mT).view(images.shape)


def _weights(size: int, sides: Tensor, centres: Tensor, shifts: Tensor) -> Tensor:
    """(B,size,size): weight of every input pixel along one side in every output pixel; borders are repeated."""
    pixels = torch.arange(size, device=sides.device)
    seen = centres[:, None] + sides[:, None] * ((2 * pixels + 1) / size - 1)  # in [-1, 1], the centres of pixels
    place = (((seen + 1) * size - 1) / 2).clamp(0, size - 1).gather(1, (pixels - shifts[:, None]) % size)
    return (1 - (place[:, :, None] - pixels).abs()).clamp(min=0)


def rolled(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image (B,C,H,W) shifted cyclically by its own whole pixels (B,)."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height) - down[:, None]) % height
    columns = (torch.arange(width) - right[:, None]) % width
    batch = torch.arange(len(images))[:, None, None]
    index = [to_device(i, images.device) for i in (batch, rows[:, :, None], columns[:, None, :])]
    return images.movedim(1, -1)[index[0], index[1], index[2]].movedim(-1, 1)


def chunks(labels: Tensor, rows: int) -> Iterator[Tensor]:
    """Positions of images in chunks of whole classes, up to ``rows`` images; a larger class is a chunk of its own."""
    gathered: list[Tensor] = []
    for label in labels.unique().tolist():
        own = torch.nonzero(labels == label).flatten()
        if gathered and sum(map(len, gathered)) + len(own) > rows:
            yield torch.cat(gathered)
            gathered = []
        gathered.append(own)
    if gathered:
        yield torch.cat(gathered)


@dataclass(frozen=True, kw_only=True)
class LatentRegion(TrustRegion):
    """x = x0 + D(z0 + delta) - D(z0), cut to [-1, 1], where z0 is the code of x0 and D the decoder.

    CaO2 (arXiv 2506.22637) moves the latent that was sampled; a stored image has only its code, whose decoding is not
    the image. So only the difference of two decodings is added: delta = 0 is the image itself, to the bit, and the
    codec's error stays out. ``bound`` is in units of the codec's scaled latents, whose std is about 1 (that is what
    they are scaled for): a std measured on the images at hand would make an image's region depend on its chunk.

    Attributes:
        codec: The autoencoder, on the device of the images.
        change: Largest change of a pixel, in units of the range [-1, 1]; 2 is no bound.
    """

    codec: Codec
    change: float = 2.0

    def around(self, x0: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        z0 = self.codec.encode(x0).mean
        drawn = self.codec.decode(z0)

        def images(delta: Tensor) -> Tensor:
            moved = self.codec.decode_with_grad(z0 + delta) - drawn
            return into_range(x0 + into_range(moved, self.change))

        return torch.zeros_like(z0, requires_grad=True), images
