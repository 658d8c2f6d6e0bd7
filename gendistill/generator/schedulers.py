"""Solvers of the reverse process, on the generator's own noise schedule, and their first and single steps.

Legend: B images of a batch, (c,h,w) what the network denoises; T timesteps of training; alpha_bar (T,), the cumulative
product of 1 - beta.
"""

from __future__ import annotations

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

from gendistill.errors import ConfigError
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import Generator
from gendistill.objectives import diffusion
from gendistill.runtime import to_device

SPACING = "trailing"
MEAN_SNR = 0.2


class _DDIM(DDIMScheduler):
    """DDIM without noise (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0) between any two timesteps.

    diffusers' own step goes from t to t - T // steps, which is the next timestep only where steps divides T.
    """

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> DDIMSchedulerOutput:
        later = self.timesteps[self.timesteps < timestep]
        ends = self.alphas_cumprod[timestep], self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod
        now, then = (to_device(alpha_bar, sample.device) for alpha_bar in ends)
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


def make_scheduler(generator: Generator, name: str, num_inference_steps: int) -> SchedulerMixin:
    """A solver on the generator's own noise schedule, with its timesteps set (on the CPU).

    Trailing timesteps end the schedule at its noisiest one, where pure noise belongs (Lin et al. 2024, arXiv
    2305.08891); at 10 steps that halves the distance to the exact solution. Heun spaces its steps after Karras et al.
    2022 (arXiv 2206.00364, eq. 5): its error grows with the ratio of one step's noise to the next.

    Args:
        generator: Its noise schedule, prediction type and codec decide the solver's options.
        name: A key of ``SCHEDULERS``.
        num_inference_steps: From 1 to the number of timesteps in training.

    Raises:
        ConfigError: an unknown name, or too few or too many steps.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"sample.scheduler is {name!r}; expected one of {', '.join(SCHEDULERS)}.")
    given, trained = generator.scheduler, len(generator.alphas_cumprod)
    if not 1 <= num_inference_steps <= trained:
        raise ConfigError(f"sample.num_inference_steps is {num_inference_steps}; expected 1 to {trained}.")
    usable = usable_timesteps(generator, name)
    # Without diffusers' list of options left at their defaults, by which a fresh generator would get the solver's own
    # defaults, but a loaded one the stored values.
    config: dict[str, Any] = {k: v for k, v in given.config.items() if k != "_use_default_values"}
    config |= {
        "trained_betas": given.betas[:usable].tolist(),
        "num_train_timesteps": usable,
        "rescale_betas_zero_snr": False,  # the betas are already
        "timestep_spacing": SPACING,
        "use_karras_sigmas": name == "heun",
        "variance_type": _variance_type(generator, name),
    }
    if not isinstance(generator.codec, PixelCodec):
        config |= {"clip_sample": False, "thresholding": False}
    scheduler = SCHEDULERS[name].from_config(config)
    steps = min(num_inference_steps, usable)
    scheduler.set_timesteps(steps)
    if scheduler.timesteps[-1] < 0:  # T / steps, rounded, made one timestep too many, which would be -1
        scheduler.set_timesteps(steps - 1e-9)
    return scheduler


def usable_timesteps(generator: Generator, name: str) -> int:
    """How many timesteps, from the cleanest, sampling uses; the others are nearly pure noise.

    The error of an epsilon prediction is 1 / sqrt(alpha_bar) times as large in its x0, 20 000 times at the end of a
    cosine schedule, so sampling starts where the signal-to-noise ratio of an image's mean, alpha_bar h w, is 0.2.
    The same holds for Heun, whose first step from such noise would be as wrong. Otherwise alpha_bar only has to be
    positive.
    """
    alpha_bar, (_, height, width) = generator.alphas_cumprod, generator.sample_shape
    amplifies = name == "heun" or generator.prediction_type == "epsilon"
    floor = MEAN_SNR / (height * width) if amplifies else 0.0
    return max(1, int((alpha_bar > floor).sum()))


def _variance_type(generator: Generator, name: str) -> str | None:
    """Of DDPM; the other solvers only get the prediction (DPM-Solver would cut it to three channels by itself)."""
    if name != "ddpm":
        return None
    if generator.learned_sigma:
        return "learned_range"
    kind = str(generator.scheduler.config.variance_type)
    return kind if kind.startswith("fixed") else "fixed_small"


def start_from(steps: SchedulerMixin, eps: Tensor, x0: Tensor | None, strength: float) -> tuple[Tensor, Tensor]:
    """The noisiest x (B,c,h,w), in the solver's own scale, and the timesteps to run from it.

    From prototypes x0 the last strength * steps steps are run on sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (D4M, Su
    et al. 2024, arXiv 2407.15138; SDEdit), at least one; from noise, all of them.
    """
    if x0 is None:
        return eps * steps.init_noise_sigma, steps.timesteps
    total = -(-len(steps.timesteps) // steps.order)  # Heun visits all but the first timestep twice
    first = (total - max(1, round(strength * total))) * steps.order
    if hasattr(steps, "set_begin_index"):
        steps.set_begin_index(first)
    t = steps.timesteps[first]
    return steps.add_noise(x0, eps, t.expand(len(eps))), steps.timesteps[first:]


def scheduler_step(
    steps: SchedulerMixin,
    prediction: Tensor,
    variance: Tensor | None,
    t: Tensor,
    x: Tensor,
    rngs: list[torch.Generator],
) -> Tensor:
    """One solver step; the stochastic one (DDPM) draws from each image's own stream, and nothing in its last step.

    diffusers leaves the noise out only at t = 0, where trailing timesteps do not end.
    """
    if not isinstance(steps, DDPMScheduler):
        return steps.step(prediction, t, x).prev_sample
    output = prediction if variance is None else torch.cat([prediction, variance], 1)
    found = steps.step(output, t, x, generator=rngs)
    return found.pred_original_sample if t == steps.timesteps[-1] else found.prev_sample
