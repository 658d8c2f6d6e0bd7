"""What a training batch is shown as: the augmentations of the evaluation protocols, replayed from a seed and the step.

Legend: B images, C channels, H = W the side in pixels, K classes. Images are float in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.data.crops import boxes, cropped, cutmix
from gendistill.data.siamese import Siamese
from gendistill.runtime import to_device
from gendistill.seeding import torch_rng

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)
COLOURS = (  # principal directions of ImageNet's colours in [0, 1], as columns, times their eigenvalues
    (-0.5675 * 0.2175, 0.7192 * 0.0188, 0.4009 * 0.0045),
    (-0.5808 * 0.2175, -0.0045 * 0.0188, -0.8140 * 0.0045),
    (-0.5836 * 0.2175, -0.6948 * 0.0188, 0.4203 * 0.0045),
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Operations in the order of application; the defaults change nothing.

    Attributes:
        shift: Largest translation in pixels, edges repeating.
        flip: Mirror every second image, at random.
        min_crop: Least area of a random crop that is enlarged to the whole side; 1 keeps the whole image.
        jitter: Strength of brightness, contrast and saturation, in an order of each image's own.
        lighting: Deviation of AlexNet's colour shift (Krizhevsky et al. 2012, section 4.1); none on grey images.
        siamese: DSA's operations: the operation is drawn for the batch, its parameters for each image.
        cutmix: Probability that a batch is mixed by CutMix with Beta(1, 1).
    """

    shift: int = 0
    flip: bool = False
    min_crop: float = 1.0
    jitter: float = 0.0
    lighting: float = 0.0
    siamese: tuple[Siamese, ...] = ()
    cutmix: float = 0.0

    def batch(self, images: Tensor, targets: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B,C,H,W) and their targets (B,) or (B,K), as they are at ``step`` of ``seed``.

        Raises:
            ValueError: CutMix with labels (B,), which cannot be mixed.
        """
        images = augment(images, torch_rng(seed, "augment", step), self.shift, self.flip)
        rng = torch_rng(seed, "augment further", step)
        if self.min_crop < 1:
            images = cropped(images, *boxes(len(images), self.min_crop, False, rng))
        if self.jitter:
            images = color_jitter(images, self.jitter, rng)
        if self.lighting:
            images = pca_lighting(images, self.lighting, rng)
        for siamese in self.siamese:
            images = siamese.draw(rng, len(images), images.shape[-1]).apply(images)
        if self.cutmix and float(torch.rand((), generator=rng)) < self.cutmix:
            if targets.dim() != 2:
                raise ValueError(f"targets are {tuple(targets.shape)}; CutMix expects probabilities (B,K).")
            images, share = cutmix(images, 1.0, rng)
            targets = (1 - share) * targets + share * targets.flip(0)
        return images, targets


def augment(images: Tensor, rng: torch.Generator, shift: int, flip: bool) -> Tensor:
    """Per-image random translation by up to ``shift`` pixels (edges repeat) and mirroring. Float (B,C,H,W)."""
    if flip:
        mirrored = to_device(torch.rand(len(images), generator=rng) < 0.5, images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        height, width = images.shape[-2:]
        offset = to_device(torch.randint(0, 2 * shift + 1, (2, len(images)), generator=rng), images.device) - shift
        rows = (offset[0][:, None] + torch.arange(height, device=images.device)).clamp(0, height - 1)
        columns = (offset[1][:, None] + torch.arange(width, device=images.device)).clamp(0, width - 1)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        images = images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
    return images


def color_jitter(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """x + a (goal - x), a uniform in [-strength, strength], for the goals black, mean grey and own grey in turn.

    These are brightness, contrast and saturation; each image has its own order and its own three a. Nothing is clamped.
    """
    count, device = len(images), images.device
    order = to_device(torch.rand(count, 3, generator=rng).argsort(1), device)
    share = to_device(strength * (2 * torch.rand(count, 3, generator=rng) - 1), device)
    row = torch.arange(count, device=device)
    for place in range(3):
        grey = _grey(images)
        mean = grey.mean((2, 3), keepdim=True).expand_as(grey)
        which = order[:, place]
        goal = torch.stack([torch.full_like(grey, -1.0), mean, grey])[which, row]
        images = images + share[row, which][:, None, None, None] * (goal - images)
    return images


def pca_lighting(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Each image with a colour of its own added: normal along the principal colours; grey images as they are."""
    amount = strength * torch.randn(len(images), 3, generator=rng)
    if images.shape[1] != 3:
        return images
    colour = 2 * amount @ torch.tensor(COLOURS).T  # 2: from [0, 1] to [-1, 1]
    return images + to_device(colour, images.device)[:, :, None, None]


def _grey(images: Tensor) -> Tensor:
    """(B,1,H,W)."""
    if images.shape[1] == 1:
        return images
    return (images * to_device(torch.tensor(LUMA), images.device)[:, None, None]).sum(1, keepdim=True)
