"""Sampling: each image is a function of (generator, seed, class, index) and nothing else.

Starting noise comes from the image's own stream, and images are denoised in batches of one constant shape (the last
one padded), because CPU kernels may round differently for another shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from gendistill.data.images import to_uint8
from gendistill.errors import ConfigError
from gendistill.generator.generator import Generator
from gendistill.seeding import torch_rng

SCHEDULERS = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "ddim": DDIMScheduler,
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


def make_scheduler(generator: Generator, name: str, num_inference_steps: int) -> SchedulerMixin:
    """The named solver with the generator's own noise schedule, ready to step."""
    if name not in SCHEDULERS:
        raise ConfigError(f"scheduler is {name!r}; expected one of {', '.join(SCHEDULERS)}.")
    # Without its note of what was left at a default: diffusers would then take the solver's own defaults (of timestep
    # spacing, say) for a fresh generator, but the stored values for a loaded one.
    config = {k: v for k, v in generator.scheduler.config.items() if k != "_use_default_values"}
    scheduler = SCHEDULERS[name].from_config(config)
    trained = int(generator.scheduler.config.num_train_timesteps)
    if not 1 <= num_inference_steps <= trained:
        raise ConfigError(f"num_inference_steps is {num_inference_steps}; expected 1 to {trained}.")
    scheduler.set_timesteps(num_inference_steps, device=generator.device)
    return scheduler


@torch.no_grad()
def sample(
    generator: Generator,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    num_inference_steps: int = 10,
    scheduler: str = "dpmsolver++",
    guidance_scale: float = 1.0,
    batch_size: int = 128,
) -> Iterator[tuple[list[Request], Tensor]]:
    """Yield (requests, images uint8 (b,C,H,W)) in the given order, ``batch_size`` at a time.

    Guidance is classifier-free: null + scale * (class - null) (Ho & Salimans 2022, eq. 6 with scale = 1 + w); at
    scale 1 the null pass is left out.
    """
    generator.unet.eval()
    for start in range(0, len(requests), batch_size):
        batch = list(requests[start : start + batch_size])
        padded = batch + batch[:1] * (batch_size - len(batch))
        steps = make_scheduler(generator, scheduler, num_inference_steps)  # solvers keep a history: a fresh one a batch
        rngs = [torch_rng(seed, "sample", r.label, r.index) for r in padded]
        labels = generator.condition(torch.tensor([r.label for r in padded], device=generator.device))
        x = torch.stack([torch.randn(generator.image_shape, generator=g) for g in rngs]).to(generator.device)
        x = x * steps.init_noise_sigma
        for t in steps.timesteps:
            model_input = steps.scale_model_input(x, t)
            output = predict(generator, model_input, t, labels, guidance_scale)
            x = _step(steps, output, t, x, rngs)
        yield batch, to_uint8(x[: len(batch)]).cpu()


def predict(generator: Generator, x: Tensor, t: Tensor, labels: Tensor, guidance_scale: float) -> Tensor:
    """The network's (guided) output for x (B,C,H,W) at one timestep."""
    if guidance_scale == 1.0:
        return generator.unet(x, t, class_labels=labels).sample
    both = torch.cat([labels, torch.full_like(labels, generator.null_class)])
    with_class, without = generator.unet(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
    return without + guidance_scale * (with_class - without)


def _step(steps: SchedulerMixin, output: Tensor, t: Tensor, x: Tensor, rngs: list[torch.Generator]) -> Tensor:
    """One solver step; the stochastic one (DDPM) draws from each image's own stream."""
    if isinstance(steps, DDPMScheduler):
        return steps.step(output, t, x, generator=rngs).prev_sample
    return steps.step(output, t, x).prev_sample
