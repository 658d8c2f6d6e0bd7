"""Sampling: each image is a function of the generator, the options, the seed, its class and its index.

Noise comes from the image's own stream, and on CPU each row has the bits of a batch of one constant shape, because
kernels round differently for another shape.

Legend: B images of a batch, (c,h,w) what the network denoises, (C,H,W) decoded images; T timesteps of training;
alpha_bar (B,), the cumulative product of 1 - beta at each image's timestep; sigma^2 = 1 - alpha_bar; level = t / T, the
noise level, from 0 (clean) to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.config import ModeGuidance, Prototypes, SampleConfig
from gendistill.data.pixels import to_uint8
from gendistill.errors import ConfigError
from gendistill.generator.codec import Codec
from gendistill.generator.few_rows import FewRows, padded
from gendistill.generator.generator import Generator
from gendistill.generator.schedulers import make_scheduler, scheduler_step, start_from
from gendistill.objectives import diffusion
from gendistill.runtime import native_bf16, refuse_divergence, to_device
from gendistill.seeding import torch_rng

DECODED_AT_ONCE, CPU_ROWS = 8, 16
REMEDY = "Sample with --mixed_precision no or a lower --guidance_scale, or fine-tune again with a lower learning rate."


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
    """Sample images in the order of ``requests``.

    Args:
        generator: On the device where everything but the drawing of noise runs.
        requests: What to make; labels are positions in ``generator.classes``.
        config: Solver, guidance, start, precision and batch size; its other options are not used.
        seed: Of the images' streams.
        prototypes: Cluster centres (K,M,c,h,w) for guidance ``mode`` and start ``prototypes``; image i takes i mod M.

    Yields:
        (requests, images uint8 (b,C,H,W)) of at most ``config.batch_size`` images.

    Raises:
        ConfigError: an unknown solver, too many steps, guidance without a null class, or prototypes left out.
        DivergenceError: images that are not finite.
    """
    config = config or SampleConfig()
    _check(generator, config, prototypes)
    generator.network.eval()
    if config.compile:
        generator.network.compile()
    denoiser = Denoiser(generator, config.mixed_precision)
    for start in range(0, len(requests), config.batch_size):
        batch = list(requests[start : start + config.batch_size])
        full = len(batch)
        if generator.device.type != "cpu":
            full = min(config.batch_size, 1 << (full - 1).bit_length())  # few shapes: powers of two
        x = _denoise(denoiser, batch + batch[:1] * (full - len(batch)), config, seed, prototypes)
        yield batch, _decode(generator.codec, x[: len(batch)])


def check_guidance(generator: Generator, config: SampleConfig) -> None:
    """Raises ConfigError for classifier-free guidance without a trained null class, or of too many channels."""
    wanted = config.classifier_free
    if wanted is None:
        return
    channels = generator.sample_shape[0]
    if wanted.channels is not None and wanted.channels > channels:
        raise ConfigError(
            f"sample.guidance_channels is {wanted.channels}, but the network denoises {channels} channel(s); expected "
            f"1 to {channels}, or null for all."
        )
    if generator.null_class is None:
        raise ConfigError(
            f"sample.guidance_scale is {wanted.scale:g}, but the network has no null class to be guided away "
            "from; expected 1, with guidance none or mode. A network trained here has a null class."
        )
    if generator.meta.get("null_class_trained") is False:
        raise ConfigError(
            f"sample.guidance_scale is {wanted.scale:g}, but the generator was trained with label_dropout 0, so "
            "its null class means nothing; expected 1, or train with finetune.label_dropout 0.1."
        )


def _check(generator: Generator, config: SampleConfig, prototypes: Tensor | None) -> None:
    check_guidance(generator, config)
    if config.modes is None:
        return
    option = "guidance mode" if isinstance(config.guidance, ModeGuidance) else "start prototypes"
    if prototypes is None:
        raise ConfigError(f"sample.{option} needs cluster centres of the real images; give prototypes, or the data.")
    wanted = (len(generator.classes), *generator.sample_shape)
    if (prototypes.shape[0], *prototypes.shape[2:]) != wanted or not prototypes.numel():
        raise ValueError(
            f"prototypes are {tuple(prototypes.shape)}; expected (K,M,c,h,w) with K = {wanted[0]} and (c,h,w) = "
            f"{wanted[1:]}."
        )


class Denoiser:
    """A generator's network, whose output for an image does not depend on the images beside it.

    On CPU every row has the bits that a batch of ``CPU_ROWS`` gives it. A compiled network always sees so many, because
    each other number would be compiled anew.
    """

    def __init__(self, generator: Generator, precision: str = "auto") -> None:
        self.generator = generator
        if precision == "auto":
            precision = "bf16" if native_bf16(generator.device) else "no"
        self.bf16 = precision == "bf16"
        self._few_rows = FewRows(generator.network, generator.denoise, CPU_ROWS)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's output in fp32; t () is a long, or a float between two timesteps (Heun)."""
        times = to_device(t, x.device).expand(len(x))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            if x.device.type != "cpu":
                return self.generator.denoise(x, times, condition).float()
            parts = zip(*(rows.split(CPU_ROWS) for rows in (x, times, condition)), strict=True)
            return torch.cat([self._rows(*part) for part in parts]).float()

    def _rows(self, *inputs: Tensor) -> Tensor:
        if self.generator.network._compiled_call_impl is None:
            return self._few_rows(*inputs)
        return self.generator.denoise(*(padded(rows, CPU_ROWS) for rows in inputs))[: len(inputs[0])]


def _denoise(
    denoiser: Denoiser, batch: list[Request], config: SampleConfig, seed: int, prototypes: Tensor | None
) -> Tensor:
    """x0 (B,c,h,w) of a whole batch."""
    generator, device = denoiser.generator, denoiser.generator.device
    rngs = [torch_rng(seed, "sample", generator.label_map[generator.classes[r.label]], r.index) for r in batch]
    eps = to_device(torch.stack([torch.randn(generator.sample_shape, generator=rng) for rng in rngs]), device)
    condition = to_device(generator.mapping.condition(torch.tensor([r.label for r in batch])), device)
    modes = None
    if prototypes is not None:
        modes = prototypes[[r.label for r in batch], [r.index % prototypes.shape[1] for r in batch]]
        modes = to_device(modes, device).to(eps.dtype)
    # Solvers keep a history, so each batch gets a new one.
    steps = make_scheduler(generator, config.scheduler, config.num_inference_steps)
    if isinstance(config.start, Prototypes):
        x, timesteps = start_from(steps, eps, modes, config.start.strength)
    else:
        x, timesteps = start_from(steps, eps, None, 1.0)
    for t in timesteps:
        xt = steps.scale_model_input(x, t)
        prediction, variance = predict(denoiser, xt, t, condition, config, modes)
        x = scheduler_step(steps, prediction, variance, t, x, rngs)
    return x


def predict(
    denoiser: Denoiser,
    xt: Tensor,
    t: Tensor,
    condition: Tensor,
    config: SampleConfig,
    modes: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The guided prediction (B,c,h,w) and the variance values of a learned sigma, at one timestep t ().

    Classifier-free guidance acts only within its interval; outside, the pass of the null class is left out. Mode
    guidance acts on the result, down to the noise level ``mode_stop``. The variance is that of the class.
    """
    generator = denoiser.generator
    level, alpha_bar = float(t) / len(generator.alphas_cumprod), generator.alphas_cumprod[round(float(t))]
    free = config.classifier_free
    if free and acts_at(level, free.interval):
        without = torch.full_like(condition, generator.null_class or 0)
        output = denoiser(torch.cat([xt, xt]), t, torch.cat([condition, without]))
        (prediction, variance), (null, _) = (diffusion.split_prediction(o, xt.shape[1]) for o in output.chunk(2))
        prediction = classifier_free(prediction, null, free.scale, free.channels)
    else:
        output = denoiser(xt, t, condition)
        prediction, variance = diffusion.split_prediction(output, xt.shape[1])
    mode = config.guidance
    if isinstance(mode, ModeGuidance) and modes is not None and level > mode.stop:
        alpha_bar = to_device(alpha_bar, xt.device).expand(len(xt))
        prediction = mode_guidance(prediction, xt, modes, alpha_bar, mode.scale, generator.prediction_type)
    return prediction, variance


def acts_at(level: float, interval: tuple[float, float]) -> bool:
    """Whether low <= level <= high, the noise levels where guidance pays (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Where we differ: the paper gives the interval as the standard deviation of the noise; t / T grows with it and has
    one range for all schedules.

    Args:
        level: t / T, in [0, 1].
        interval: (low, high), in [0, 1].
    """
    low, high = interval
    return low <= level <= high


def classifier_free(with_class: Tensor, without: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Classifier-free guidance: null + scale * (class - null) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6).

    ``scale`` is the paper's 1 + w. The formula is linear, so it serves epsilon and v alike. By default all channels are
    guided, as in diffusers' DiTPipeline; the released DiT and Minimax codes guide the first three latent channels.

    Args:
        with_class: The prediction for the class, (B,c,h,w), without a learned variance.
        without: The prediction for the null class, (B,c,h,w).
        scale: At least 1; 1 is no guidance.
        channels: Only the first so many are guided, from 1 to c; the others are those for the class.

    Returns:
        The guided prediction, (B,c,h,w).
    """
    guided = without + scale * (with_class - without)
    return guided if channels is None else torch.cat([guided[:, :channels], with_class[:, channels:]], 1)


def mode_weight(alpha_bar: Tensor, scale: float) -> Tensor:
    """The share w of the way from x0 to its mode: min(1, scale * sigma^2 / sqrt(alpha_bar)).

    Args:
        alpha_bar: (B,), in [0, 1].
        scale: lambda, at least 0.

    Returns:
        (B,), in [0, 1].
    """
    signal = alpha_bar.sqrt().clamp(min=torch.finfo(alpha_bar.dtype).tiny)
    return (scale * (1 - alpha_bar) / signal).clamp(max=1)


def mode_guidance(
    output: Tensor, xt: Tensor, mode: Tensor, alpha_bar: Tensor, scale: float, prediction_type: str
) -> Tensor:
    """Mode guidance of MGD3 (Chan-Santiago et al. 2025, arXiv 2505.18963): moves the predicted x0 toward a mode.

    eps' = eps - scale * sigma * g with g = mode - x0(eps), which is x0' = x0 + w g with w = scale * sigma^2 /
    sqrt(alpha_bar), and v' = v - (w / sigma) g. A scale of 0 changes nothing; a large one puts the mode in x0's place.

    Where we differ: the released code adds scale * std * g to each step of ancestral sampling, so that its strength
    depends on the number of steps and other solvers have none; shifting the prediction serves every solver. And w is
    at most 1: at the noisiest timesteps 1 / sqrt(alpha_bar) reaches hundreds to thousands and would throw x0 far
    beyond the mode.

    Args:
        output: The prediction, epsilon or v, (B,c,h,w), without a learned variance.
        xt: The network's input, (B,c,h,w).
        mode: A cluster centre of each image's class, (B,c,h,w), in the space of xt.
        alpha_bar: (B,), in [0, 1).
        scale: lambda, at least 0; 0.1 in the paper.
        prediction_type: ``epsilon`` or ``v_prediction``.

    Returns:
        The guided prediction, (B,c,h,w), of the same type as ``output``.

    Raises:
        ValueError: the shapes differ.
    """
    if not output.shape == xt.shape == mode.shape:
        raise ValueError(f"output {tuple(output.shape)}, xt {tuple(xt.shape)} and mode {tuple(mode.shape)} must agree.")
    columns = (-1,) + (1,) * (xt.dim() - 1)
    noise = (1 - alpha_bar).sqrt().view(columns)
    x0 = diffusion.predicted_x0(output, xt, alpha_bar, prediction_type)
    shift = mode_weight(alpha_bar, scale).view(columns) * (mode - x0)
    if prediction_type == "v_prediction":
        return output - shift / noise
    return output - shift * alpha_bar.sqrt().view(columns) / noise


def _decode(codec: Codec, x: Tensor) -> Tensor:
    """uint8 (b,C,H,W) on the CPU, always as many at once: memory and rounding do not depend on the batch."""
    images = []
    for part in x.split(DECODED_AT_ONCE):
        decoded = codec.decode(padded(part, DECODED_AT_ONCE))[: len(part)]
        refuse_divergence("The generator makes images that are", [decoded], REMEDY)
        images.append(to_uint8(decoded).cpu())
    return torch.cat(images)
