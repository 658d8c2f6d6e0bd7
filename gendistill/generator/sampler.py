"""Sampling: each image is a function of (generator, seed, class, index) and nothing else.

Noise comes from the image's own stream, and images are denoised and decoded in batches of one constant shape (the last
one padded), because CPU kernels may round differently for another shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from gendistill.config import SampleConfig
from gendistill.data.images import to_uint8
from gendistill.errors import ConfigError
from gendistill.generator.codec import Codec, PixelCodec
from gendistill.generator.generator import Generator
from gendistill.generator.guidance import acts_at, classifier_free, toward_mode
from gendistill.objectives import diffusion
from gendistill.seeding import torch_rng

DECODED_AT_ONCE = 8


class _DDIM(DDIMScheduler):
    """DDIM without noise (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0) between any two timesteps.

    diffusers' own step goes from t to t - T // steps, which is the next timestep only where steps divides T.
    """

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> DDIMSchedulerOutput:
        later = self.timesteps[self.timesteps < timestep]
        now = self.alphas_cumprod[timestep].to(sample)
        then = (self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod).to(sample)
        x0 = diffusion.predicted_x0(model_output, sample, now, self.config.prediction_type)
        eps = (sample - now.sqrt() * x0) / (1 - now).sqrt()
        if self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return DDIMSchedulerOutput(prev_sample=then.sqrt() * x0 + (1 - then).sqrt() * eps)


SCHEDULERS = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "ddim": _DDIM,
    "ddpm": DDPMScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
}


@dataclass(frozen=True)
class Request:
    """One image to make: the ``index``-th of class ``label``."""

    label: int
    index: int


def requests_for(classes: int, ipc: int) -> list[Request]:
    """All images of a set, by index and then by class."""
    return [Request(label, index) for index in range(ipc) for label in range(classes)]
