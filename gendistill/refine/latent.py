"""Refinement in the latents of a generator's autoencoder, where a change looks like what the autoencoder draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.generator.codec import Codec
from gendistill.refine.constraints import Region, into_range


@dataclass(frozen=True, kw_only=True)
class LatentRegion(Region):
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
