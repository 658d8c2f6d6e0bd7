"""Sampling: each image is a function of (generator, seed, class, index) and nothing else.

Noise comes from the image's own stream, and on CPU networks see batches of one constant shape, the last one padded,
because kernels round differently for another shape.

Legend: B images of a batch, (c,h,w) what the network denoises, (C,H,W) decoded images; T timesteps of training.
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
from gendistill.data.pixels import to_uint8
from gendistill.errors import ConfigError
from gendistill.generator.codec import Codec, PixelCodec
from gendistill.generator.generator import Generator
from gendistill.generator.guidance import acts_at, classifier_free, mode_guidance
from gendistill.objectives import diffusion
from gendistill.runtime import native_bf16
from gendistill.seeding import torch_rng

SPACING = "trailing"
MEAN_SNR = 0.2
DECODED_AT_ONCE, CPU_ROWS = 8, 16


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


@torch.no_grad()
def sample(
    generator: Generator,
    requests: Sequence[Request],
    config: SampleConfig | None = None,
    *,
    seed: int = 0,
    prototypes: Tensor | None = None,
) -> Iterator[tuple[list[Request], Tensor]]:
    """Yield (requests, images uint8 (b,C,H,W)) in the given order, ``config.batch_size`` at a time.

    Args:
        generator: Moved to its device, on which everything runs but the drawing of noise.
        requests: What to make; labels are positions in ``generator.classes``.
        config: Solver, guidance, start, precision and batch size; the rest of it is not looked at.
        seed: Of the images' streams.
        prototypes: Cluster centres (K,M,c,h,w) for guidance ``mode`` and start ``prototypes``; image i takes i mod M.

    Raises:
        ConfigError: an unknown solver, too many steps, guidance without a null class, or prototypes left out.
    """
    config = config or SampleConfig()
    _check(generator, config, prototypes)
    generator.network.eval()
    if config.compile:
        generator.network.compile()
    for start in range(0, len(requests), config.batch_size):
        batch = list(requests[start : start + config.batch_size])
        full = len(batch) if generator.device.type == "cpu" else min(config.batch_size, _power_of_two(len(batch)))
        x = _denoise(generator, batch + batch[:1] * (full - len(batch)), config, seed, prototypes)
        yield batch, _decode(generator.codec, x[: len(batch)])


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def check_guidance(generator: Generator, config: SampleConfig) -> None:
    """Refuse classifier-free guidance for a network without a null class, or with one that was never trained."""
    if config.guidance_scale == 1:
        return
    if generator.null_class is None:
        raise ConfigError(
            f"sample.guidance_scale is {config.guidance_scale}, but the network has no null class to be guided away "
            "from; expected 1, with guidance none or mode. A network trained here has a null class."
        )
    if generator.meta.get("null_class_trained") is False:
        raise ConfigError(
            f"sample.guidance_scale is {config.guidance_scale}, but the generator was trained with label_dropout 0, so "
            "its null class means nothing; expected 1, or train with finetune.label_dropout 0.1."
        )


def _check(generator: Generator, config: SampleConfig, prototypes: Tensor | None) -> None:
    check_guidance(generator, config)
    if not config.needs_real_images:
        return
    option = "guidance mode" if config.guidance == "mode" else "start prototypes"
    if prototypes is None:
        raise ConfigError(f"sample.{option} needs cluster centres of the real images; give prototypes, or the data.")
    wanted = (len(generator.classes), *generator.sample_shape)
    if (prototypes.shape[0], *prototypes.shape[2:]) != wanted or not prototypes.numel():
        raise ValueError(
            f"prototypes are {tuple(prototypes.shape)}; expected (K,M,c,h,w) with K = {wanted[0]} and (c,h,w) = "
            f"{wanted[1:]}."
        )


def make_scheduler(generator: Generator, name: str, num_inference_steps: int) -> SchedulerMixin:
    """The named solver on the generator's own noise schedule, its timesteps on the CPU, ready to step.

    Trailing timesteps end the schedule at its noisiest one, where pure noise belongs (Lin et al. 2024, arXiv
    2305.08891); at 10 steps that halves the distance to the exact solution. Heun spaces its steps after Karras et al.
    2022 (arXiv 2206.00364, eq. 5): its error grows with the ratio of one step's noise to the next.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"sample.scheduler is {name!r}; expected one of {', '.join(SCHEDULERS)}.")
    given, trained = generator.scheduler, len(generator.alphas_cumprod)
    if not 1 <= num_inference_steps <= trained:
        raise ConfigError(f"sample.num_inference_steps is {num_inference_steps}; expected 1 to {trained}.")
    usable = usable_timesteps(generator, name)
    # Without its note of what was left at a default: diffusers would then take the solver's own defaults for a fresh
    # generator, but the stored values for a loaded one.
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
    """How many timesteps, from the cleanest, sampling uses; the others hold nothing but noise, nearly.

    The error of an epsilon prediction is 1 / sqrt(alpha_bar) times as large in its x0, 20 000 times at the end of a
    cosine schedule, so sampling starts where the signal-to-noise ratio of an image's mean, alpha_bar h w, is 0.2. So it
    does with Heun, whose first step from such noise would be as wrong. Else alpha_bar only has to be positive.
    """
    alpha_bar, (_, height, width) = generator.alphas_cumprod, generator.sample_shape
    amplifies = name == "heun" or generator.prediction_type == "epsilon"
    floor = MEAN_SNR / (height * width) if amplifies else 0.0
    return max(1, int((alpha_bar > floor).sum()))


def _variance_type(generator: Generator, name: str) -> str | None:
    """DDPM's; the other solvers get the prediction alone (DPM-Solver would cut it to three channels by itself)."""
    if name != "ddpm":
        return None
    if generator.learned_sigma:
        return "learned_range"
    kind = str(generator.scheduler.config.variance_type)
    return kind if kind.startswith("fixed") else "fixed_small"


def _denoise(
    generator: Generator, batch: list[Request], config: SampleConfig, seed: int, prototypes: Tensor | None
) -> Tensor:
    """x0 (B,c,h,w) of a whole batch."""
    device = generator.device
    rngs = [torch_rng(seed, "sample", generator.label_map[generator.classes[r.label]], r.index) for r in batch]
    eps = torch.stack([torch.randn(generator.sample_shape, generator=rng) for rng in rngs]).to(device)
    condition = generator.condition(torch.tensor([r.label for r in batch])).to(device)
    modes = None
    if prototypes is not None:
        modes = prototypes[[r.label for r in batch], [r.index % prototypes.shape[1] for r in batch]].to(eps)
    # Solvers keep a history: a fresh one a batch.
    steps = make_scheduler(generator, config.scheduler, config.num_inference_steps)
    x, timesteps = _start(steps, eps, modes if config.start == "prototypes" else None, config.strength)
    for t in timesteps:
        xt = steps.scale_model_input(x, t)
        prediction, variance = predict(generator, xt, t, condition, config, modes)
        x = _step(steps, prediction, variance, t, x, rngs)
    return x


def _start(steps: SchedulerMixin, eps: Tensor, x0: Tensor | None, strength: float) -> tuple[Tensor, Tensor]:
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


def predict(
    generator: Generator,
    xt: Tensor,
    t: Tensor,
    condition: Tensor,
    config: SampleConfig,
    modes: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The guided prediction (B,c,h,w) and the variance values of a learned sigma, at one timestep t ().

    Classifier-free guidance acts within its interval alone, elsewhere the null pass is left out; mode guidance acts on
    its result, until the noise is down to ``mode_stop``. The variance is that of the class.
    """
    level, alpha_bar = float(t) / len(generator.alphas_cumprod), generator.alphas_cumprod[round(float(t))]
    if config.guidance_scale != 1 and acts_at(level, config.guidance_interval):
        without = torch.full_like(condition, generator.null_class or 0)
        output = _run(generator, torch.cat([xt, xt]), t, torch.cat([condition, without]), config.mixed_precision)
        (prediction, variance), (null, _) = (diffusion.split_prediction(o, xt.shape[1]) for o in output.chunk(2))
        prediction = classifier_free(prediction, null, config.guidance_scale)
    else:
        output = _run(generator, xt, t, condition, config.mixed_precision)
        prediction, variance = diffusion.split_prediction(output, xt.shape[1])
    if config.guidance == "mode" and modes is not None and level > config.mode_stop:
        alpha_bar = alpha_bar.to(xt).expand(len(xt))
        prediction = mode_guidance(prediction, xt, modes, alpha_bar, config.mode_scale, generator.prediction_type)
    return prediction, variance


def _run(generator: Generator, x: Tensor, t: Tensor, condition: Tensor, precision: str) -> Tensor:
    """The network's output in fp32; t is a long, or a float where Heun stands between two timesteps.

    On CPU it always sees ``CPU_ROWS`` rows, whatever the batch size, because its kernels round by shape.
    """
    kind = x.device.type
    if precision == "auto":
        precision = "bf16" if native_bf16(x.device) else "no"
    rows = CPU_ROWS if kind == "cpu" else len(x)
    with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
        outputs = [
            generator.denoise(_padded(part, rows), t.to(x.device).expand(rows), _padded(classes, rows))[: len(part)]
            for part, classes in zip(x.split(rows), condition.split(rows), strict=True)
        ]
    return torch.cat(outputs).float()


def _padded(rows: Tensor, count: int) -> Tensor:
    """``count`` rows: these, and the first again in place of those that lack."""
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])])


def _step(
    steps: SchedulerMixin,
    prediction: Tensor,
    variance: Tensor | None,
    t: Tensor,
    x: Tensor,
    rngs: list[torch.Generator],
) -> Tensor:
    """One solver step; the stochastic one (DDPM) draws from each image's own stream, and nothing in its last step.

    diffusers leaves the noise out at t = 0 alone, where trailing timesteps do not end.
    """
    if not isinstance(steps, DDPMScheduler):
        return steps.step(prediction, t, x).prev_sample
    output = prediction if variance is None else torch.cat([prediction, variance], 1)
    found = steps.step(output, t, x, generator=rngs)
    return found.pred_original_sample if t == steps.timesteps[-1] else found.prev_sample


def _decode(codec: Codec, x: Tensor) -> Tensor:
    """uint8 (b,C,H,W) on the CPU, a fixed number at once: memory and rounding are those of that number alone."""
    images = []
    for part in x.split(DECODED_AT_ONCE):
        images.append(to_uint8(codec.decode(_padded(part, DECODED_AT_ONCE))[: len(part)]).cpu())
    return torch.cat(images)
