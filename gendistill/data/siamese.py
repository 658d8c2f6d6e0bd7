"""Siamese augmentation: one draw of differentiable operations, shared by the real and the synthetic images of a match
(DSA, arXiv 2102.08259; IDC, arXiv 2205.14959).

Legend: B images, C channels, H = W the side in pixels; n = 1 for parameters that all images share, B for each its own.

Plain tensor formulas: libraries' colour operations clamp to [0, 1], where the gradient is lost, and their translation
interpolates at ten times the cost of moving whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.config import require
from gendistill.runtime import to_device

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
Compose = Literal["one", "all"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


@dataclass(frozen=True, kw_only=True)
class Siamese:
    """What may be done to images, and how strongly: as DSA's released code does it, which IDC took over.

    The released code augments images normalised by the data's mean and standard deviation; ``mean`` and ``std`` say
    what those are, so that the strengths mean the same on images in [-1, 1]. As there, nothing is clamped: colour may
    leave [-1, 1], where a clamp would lose the gradient. At strength 0 (``scale``: 1) an operation changes nothing.

    Attributes:
        operations: In the order of application. IDC matches with color, crop, cutout and trains networks with color,
            crop. Mirrored digits are other signs: leave flip out for them.
        compose: ``one`` of the operations, drawn at random (DSA), or ``all`` in order (IDC).
        brightness: Largest shift up or down in ``std``; released as the width 1.0 of the interval.
        saturation: Distances from a pixel's grey are multiplied by 1 - this to 1 + this; released as the upper end 2.0.
            Without effect on grey images.
        contrast: Distances from the image's mean are multiplied by 1 - this to 1 + this; released as the lower end 0.5.
        crop: Largest translation, vertical and horizontal, as a share of the side; at least a pixel.
        cutout: Side of the square put to ``mean``, as a share of the image's; its part outside the image is lost.
        flip: Probability of a mirror image.
        scale: The sides are divided by 1 / this to this, each by its own draw.
        rotate: Largest angle in degrees, both ways.
        mean: Of the data, in [-1, 1]: what fills cut-out and uncovered pixels.
        std: Of the data, in units of [-1, 1]; 0.5 is that of CIFAR-10.

    Raises:
        ConfigError: an operation is unknown or named twice, or a strength is out of its range.
    """

    operations: tuple[Operation, ...] = OPERATIONS
    compose: Compose = "one"
    brightness: float = 0.5
    saturation: float = 1.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    mean: float = 0.0
    std: float = 0.5

    def __post_init__(self) -> None:
        known = {*self.operations} <= {*OPERATIONS} and len({*self.operations}) == len(self.operations) > 0
        require(known, "operations", self.operations, f"some of {', '.join(OPERATIONS)}, each once")
        require(self.compose in get_args(Compose), "compose", self.compose, "'one' or 'all'")
        require(-1 <= self.mean <= 1, "mean", self.mean, "a number from -1 to 1")
        for name in ("crop", "cutout", "flip"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        for name, least in {"brightness": 0, "saturation": 0, "contrast": 0, "scale": 1, "rotate": 0, "std": 0}.items():
            require(getattr(self, name) >= least, name, getattr(self, name), f"a number of at least {least}")

    def draw(self, rng: torch.Generator, count: int, image_size: int) -> AugmentationDraw:
        """Parameters for images of side ``image_size``, all from the CPU generator ``rng``.

        ``count`` 1 draws one set for every image that ``Draw.apply`` is given; B one for each image of a batch of B.
        With ``one`` the operation is that of the whole batch in either case.
        """
        names = self.operations
        if self.compose == "one":
            names = (names[int(torch.randint(len(names), (), generator=rng))],)
        steps = tuple((name, self._parameters(name, rng, count, image_size)) for name in names)
        return AugmentationDraw(steps, image_size, self.mean)

    def _parameters(self, name: Operation, rng: torch.Generator, count: int, size: int) -> Tensor:
        """What the function of that name takes, (count,...)."""
        match name:
            case "color":
                reach = torch.tensor([self.brightness * self.std, self.saturation, self.contrast])
                return torch.tensor([0.0, 1.0, 1.0]) + reach * _symmetric(count, 3, rng)
            case "crop":
                most = max(1, _pixels(self.crop, size)) if self.crop else 0
                return torch.randint(-most, most + 1, (count, 2), generator=rng)
            case "cutout":
                side = _pixels(self.cutout, size)
                centre = torch.randint(0, size + 1 - side % 2, (count, 2), generator=rng)
                return torch.stack([centre - side // 2, centre - side // 2 + side], 2)
            case "flip":
                return torch.rand(count, generator=rng) < self.flip
            case "scale":
                least = 1 / self.scale
                return 1 / (least + (self.scale - least) * torch.rand(count, 2, generator=rng))
            case "rotate":
                return self.rotate * _symmetric(count, 1, rng)[:, 0]


@dataclass(frozen=True, eq=False)
class AugmentationDraw:
    """Operations with their parameters (n,...), to be applied in order to images of one size."""

    steps: tuple[tuple[Operation, Tensor], ...]
    image_size: int
    mean: float = 0.0

    def to(self, device: torch.device) -> AugmentationDraw:
        """The same draw there; ``apply`` does it too, so this only spares copies when it is applied many times."""
        return replace(self, steps=tuple((name, to_device(value, device)) for name, value in self.steps))

    def apply(self, images: Tensor) -> Tensor:
        """Augmented images (B,C,H,W) of those in [-1, 1], differentiable in them.

        Raises:
            ValueError: the images have another size, or are not as many as the draw is for.
        """
        self._check(images.shape)
        images = images - self.mean  # so that uncovered pixels are 0
        for name, value in self.to(images.device).steps:
            images = APPLIED[name](images, value)
        return images + self.mean

    def _check(self, shape: torch.Size) -> None:
        size = self.image_size
        if len(shape) != 4 or shape[2:] != (size, size):
            raise ValueError(f"images are {tuple(shape)}; expected (B,C,{size},{size}), as drawn.")
        for name, value in self.steps:
            if len(value) not in (1, shape[0]):
                raise ValueError(f"{name} is drawn for {len(value)} images, not for the {shape[0]} given.")


def _symmetric(count: int, columns: int, rng: torch.Generator) -> Tensor:
    """Uniform in [-1, 1), (count,columns)."""
    return 2 * torch.rand(count, columns, generator=rng) - 1


def _pixels(share: float, size: int) -> int:
    """That share of the side, halves rounded up."""
    return int(share * size + 0.5)


def _recoloured(images: Tensor, value: Tensor) -> Tensor:
    """Shift, saturation and contrast (n,3): b, s, c of c (s (x - grey) + grey - mean) + mean + b."""
    shift, saturation, contrast = value.to(images.dtype)[:, :, None, None, None].unbind(1)
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return contrast * (saturation * (images - grey) + grey - mean) + mean + shift


def _moved(images: Tensor, value: Tensor) -> Tensor:
    """Pixel (y, x) from (y + down, x + right), ``value`` (n,2) being whole pixels."""
    count, channels, size, _ = images.shape
    places = torch.arange(size, device=images.device) + value[:, :, None]  # (n,2,H)
    rows, columns = places.clamp(0, size - 1).unbind(1)
    index = (rows[:, :, None] * size + columns[:, None]).flatten(1)[:, None]  # (n,1,HW)
    moved = images.flatten(2).gather(2, index.expand(count, channels, -1)).unflatten(2, (size, size))
    return moved.masked_fill(~_inside(places >= 0, places < size), 0)


def _cut_out(images: Tensor, value: Tensor) -> Tensor:
    """0 where start <= (y, x) < end, ``value`` (n,2,2) being [[start y, end y], [start x, end x]]."""
    places = torch.arange(images.shape[-1], device=images.device)
    return images.masked_fill(_inside(value[:, :, :1] <= places, places < value[:, :, 1:]), 0)


def _inside(above: Tensor, below: Tensor) -> Tensor:
    """Pixels (n,1,H,W) whose row and column both pass both tests (n,2,H)."""
    rows, columns = (above & below).unbind(1)
    return (rows[:, :, None] & columns[:, None])[:, None]


def _mirrored(images: Tensor, value: Tensor) -> Tensor:
    """Left and right exchanged where ``value`` (n,) is true."""
    return torch.where(value[:, None, None, None], images.flip(-1), images)


def _scaled(images: Tensor, value: Tensor) -> Tensor:
    """Enlarged about the centre by factors ``value`` (n,2) in x and y."""
    return _resampled(images, torch.diag_embed(1 / value))


def _rotated(images: Tensor, value: Tensor) -> Tensor:
    """Turned anticlockwise about the centre by ``value`` (n,) degrees."""
    angle = value.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return _resampled(images, torch.stack([cos, -sin, sin, cos], 1).unflatten(1, (2, 2)))


def _resampled(images: Tensor, matrix: Tensor) -> Tensor:
    """Pixel p from ``matrix`` (n,2,2) p, (x, y) about the centre, bilinearly and in at least float32."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    theta = F.pad(matrix.to(dtype), (0, 1))  # (n,2,3), without translation
    grid = F.affine_grid(theta, [len(theta), *images.shape[1:]], align_corners=False).expand(len(images), -1, -1, -1)
    return F.grid_sample(images.to(dtype), grid, align_corners=False).to(images.dtype)  # uncovered pixels are 0


APPLIED: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _recoloured,
    "crop": _moved,
    "cutout": _cut_out,
    "flip": _mirrored,
    "scale": _scaled,
    "rotate": _rotated,
}
