"""Near copies of test images in a set: closer by far to a test image than to any training image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.data.dataset import RealData
from gendistill.evaluation.copies import QUANTILE, Copies, Reference, nearest
from gendistill.evaluate.spread import spread

MOST = 500  # images of a set whose distances are measured; all are compared by hash
SIDE = 32  # pixels: larger images are compared reduced to this
RATIO = 0.5


def small_pixels(images: Tensor) -> Tensor:
    """uint8 (N,C,H,W) -> uint8 (N,D), of images reduced to ``SIDE`` where they are larger."""
    if images.shape[-1] <= SIDE:
        return images.flatten(1)
    return torch.cat(
        [F.interpolate(x.float(), (SIDE, SIDE), mode="area").round().byte() for x in images.split(256)]
    ).flatten(1)


def space(data: RealData) -> str:
    return "pixels" if data.image_size <= SIDE else f"pixels at {SIDE}x{SIDE}"


@dataclass(frozen=True)
class Leaks:
    """The test images, prepared once for any number of sets.

    Attributes:
        reference: The copy check, by pixels.
        test: Test images (T,D) in the same space.
        usual: Share of held-out real images that seem near copies of test images.
    """

    reference: Reference
    test: Tensor
    usual: float

    @classmethod
    def of(cls, data: RealData) -> Leaks:
        reference = Reference.of(data, features=small_pixels, most=MOST)
        test = small_pixels(data.test.images)
        held = small_pixels(data.validation.images[spread(len(data.validation), MOST)])
        threshold = float(reference.held_out.quantile(QUANTILE))
        close = _much_closer(nearest(held, test)[0], reference.held_out, threshold)
        return cls(reference, test, float((close.sum() + 1) / (len(held) + 1)))

    def near(self, made: Tensor, copies: Copies) -> Tensor:
        """Positions of the measured images of ``made`` (N,C,H,W) that are near copies of test images, and no exact
        ones."""
        to_test, _ = nearest(small_pixels(made[copies.measured]), self.test)
        close = _much_closer(to_test, copies.distances, copies.threshold)
        return copies.measured[close & (copies.exact["test"][copies.measured] < 0)]


def _much_closer(to_test: Tensor, to_train: Tensor, threshold: float) -> Tensor:
    return (to_test < RATIO * to_train) & (to_test <= threshold)
