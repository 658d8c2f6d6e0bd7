"""Sampling: each image is a function of the generator, the options, the seed, its class and its index.

Noise comes from the image's own stream, and on CPU each row has the bits of a batch of one constant shape, because
kernels round differently for another shape. Where guidance couples the images of a group, whole groups are denoised
whichever of their images are asked for, and their guidance is computed group by group.

Legend: B images of a batch, G images of a group, (c,h,w) what the network denoises, (C,H,W) decoded images; K classes,
M clusters of a class; T timesteps of training; level = t / T, the noise level, from 0 (clean) to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.config import (
    ClassifierFree,
    CoupledGuidance,
    Guidance,
    ModeGuidance,
    Prototypes,
    RepulsionGuidance,
    SampleConfig,
    TransportGuidance,
)
from gendistill.data.pixels import to_uint8
from gendistill.errors import ConfigError
from gendistill.generator.codec import Codec
from gendistill.generator.few_rows import FewRows, padded
from gendistill.generator.generator import Generator
from gendistill.generator.guidance import (
    acts_at,
    classifier_free,
    move_x0_toward,
    repulsion,
    scale_of_third,
    transport_targets,
)
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


def in_groups(requests: Sequence[Request], group: int) -> list[list[Request]]:
    """The requests by group, groups in the order of their first ones; image i of a class is in group i // ``group``."""
    found: dict[tuple[int, int], list[Request]] = {}
    for request in requests:
        found.setdefault((request.label, request.index // group), []).append(request)
    return list(found.values())


def denoised_images(requests: Sequence[Request], group: int) -> int:
    """How many images are denoised for the requests: whole groups."""
    return group * len(in_groups(requests, group))


@dataclass(frozen=True)
class Clusters:
    """k-means clusters of each class's real images, by population.

    Attributes:
        centres: (K,M,c,h,w), in the space that the network denoises.
        masses: Their shares of the class's images, (K,M).
    """

    centres: Tensor
    masses: Tensor


@torch.no_grad()
def sample(
    generator: Generator,
    requests: Sequence[Request],
    config: SampleConfig | None = None,
    *,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> Iterator[tuple[list[Request], Tensor]]:
    """Sample images in the order of ``requests``, or group by group where guidance couples the images of a group.

    Args:
        generator: On the device where everything but the drawing of noise runs.
        requests: What to make; labels are positions in ``generator.classes``.
        config: Solver, guidance, start, precision and batch size; its other options are not used.
        seed: Of the images' streams.
        clusters: For guidance ``mode`` and start ``prototypes``, whose image i takes centre i mod M, and for guidance
            ``transport``, which uses all.

    Yields:
        (requests, images uint8 (b,C,H,W)) of at most ``config.batch_size`` images, or of one group if that is larger.

    Raises:
        ConfigError: an unknown solver, too many steps, guidance without a null class, or clusters left out.
        DivergenceError: images that are not finite.
    """
    config = config or SampleConfig()
    _check(generator, config, clusters)
    generator.network.eval()
    if config.compile:
        generator.network.compile()
    denoiser = Denoiser(generator, config.mixed_precision)
    size, groups = config.group, in_groups(requests, config.group)
    at_once = max(1, config.batch_size // size)
    for start in range(0, len(groups), at_once):
        asked = groups[start : start + at_once]
        batch = [request for group in asked for request in _whole_group(group[0], size)]
        full = len(batch)
        if generator.device.type != "cpu":
            full = max(full, min(config.batch_size, 1 << (full - 1).bit_length()))  # few shapes: powers of two
        x = _denoise(denoiser, batch + batch[:1] * (full - len(batch)), config, seed, clusters)
        rows = [number * size + request.index % size for number, group in enumerate(asked) for request in group]
        yield [request for group in asked for request in group], _decode(generator.codec, x[rows])


def _whole_group(one: Request, size: int) -> list[Request]:
    """All requests of the group to which one of them belongs."""
    first = one.index // size * size
    return [Request(one.label, index) for index in range(first, first + size)]


def check_guidance(generator: Generator, config: SampleConfig) -> None:
    """Raises ConfigError for classifier-free guidance without a trained null class, or of too many channels."""
    wanted = config.classifier_free
    if wanted is None:
        return
    channels = generator.sample_shape[0]
    scale = f"sample.guidance_scale is {wanted.scale:g}"
    if wanted.windows is not None:
        scale = f"sample.guidance_windows is {list(wanted.windows)}"
    expected = "1" if wanted.windows is None else "null"
    if wanted.channels is not None and wanted.channels > channels:
        raise ConfigError(
            f"sample.guidance_channels is {wanted.channels}, but the network denoises {channels} channel(s); expected "
            f"1 to {channels}, or null for all."
        )
    if generator.null_class is None:
        raise ConfigError(
            f"{scale}, but the network has no null class to be guided away from; expected {expected}, with guidance "
            "none, mode, transport or repulsion. A network trained here has a null class."
        )
    if generator.meta.get("null_class_trained") is False:
        raise ConfigError(
            f"{scale}, but the generator was trained with label_dropout 0, so its null class means nothing; expected "
            f"{expected}, or train with finetune.label_dropout 0.1."
        )


def _check(generator: Generator, config: SampleConfig, clusters: Clusters | None) -> None:
    check_guidance(generator, config)
    if config.needs_data is None:
        return
    if clusters is None:
        raise ConfigError(f"sample.{config.needs_data} needs clusters of the real images; give clusters, or the data.")
    wanted, centres = (len(generator.classes), *generator.sample_shape), clusters.centres
    if (centres.shape[0], *centres.shape[2:]) != wanted or not centres.numel():
        raise ValueError(
            f"centres are {tuple(centres.shape)}; expected (K,M,c,h,w) with K = {wanted[0]} and (c,h,w) = {wanted[1:]}."
        )
    if clusters.masses.shape != centres.shape[:2]:
        raise ValueError(f"masses are {tuple(clusters.masses.shape)}; expected (K,M) = {tuple(centres.shape[:2])}.")


class Denoiser:
    """A generator's network, whose output for an image does not depend on the images beside it.

    On CPU every row has the bits that a batch of ``CPU_ROWS`` gives it. A compiled network always sees so many, because
    each other number would be compiled anew, and so does one in bf16, whose rounding hides in most rows which layers
    depend on the number.
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
        if self.generator.network._compiled_call_impl is None and not self.bf16:
            return self._few_rows(*inputs)
        return self.generator.denoise(*(padded(rows, CPU_ROWS) for rows in inputs))[: len(inputs[0])]


def _denoise(
    denoiser: Denoiser, batch: list[Request], config: SampleConfig, seed: int, clusters: Clusters | None
) -> Tensor:
    """x0 (B,c,h,w) of a whole batch."""
    generator, device = denoiser.generator, denoiser.generator.device
    rngs = [torch_rng(seed, "sample", generator.label_map[generator.classes[r.label]], r.index) for r in batch]
    eps = to_device(torch.stack([torch.randn(generator.sample_shape, generator=rng) for rng in rngs]), device)
    condition = to_device(generator.mapping.condition(torch.tensor([r.label for r in batch])), device)
    modes = None
    if clusters is not None:
        modes = clusters.centres[[r.label for r in batch], [r.index % clusters.centres.shape[1] for r in batch]]
        modes = to_device(modes, device).to(eps.dtype)
    target = _target(config.guidance, batch, modes, clusters)
    # Solvers keep a history, so each batch gets a new one.
    steps = make_scheduler(generator, config.scheduler, config.num_inference_steps)
    if isinstance(config.start, Prototypes):
        x, timesteps = start_from(steps, eps, modes, config.start.strength)
    else:
        x, timesteps = start_from(steps, eps, None, 1.0)
    for t in timesteps:
        xt = steps.scale_model_input(x, t)
        prediction, variance = predict(denoiser, xt, t, condition, config, target)
        x = scheduler_step(steps, prediction, variance, t, x, rngs)
    return x


Target = Callable[[Tensor], Tensor]  # predicted x0 (B,c,h,w) -> where guidance moves it, (B,c,h,w)


def _target(guidance: Guidance, batch: list[Request], modes: Tensor | None, clusters: Clusters | None) -> Target | None:
    """What guidance moves the predicted x0 of a batch toward; None where it moves none."""
    labels = [request.label for request in batch]
    if isinstance(guidance, ModeGuidance) and modes is not None:
        return lambda _: modes
    if isinstance(guidance, TransportGuidance) and clusters is not None:
        atoms, masses, strength = clusters.centres.flatten(2), clusters.masses, guidance.regularisation
        return lambda x0: by_group(
            x0, labels, guidance.group, lambda own, k: transport_targets(own, atoms[k], masses[k], strength)
        )
    if isinstance(guidance, RepulsionGuidance):
        return lambda x0: by_group(x0, labels, guidance.group, lambda own, _: own + repulsion(own))
    return None


def by_group(x0: Tensor, labels: Sequence[int], group: int, target: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Targets (B,c,h,w) of the predicted x0 of whole groups, each computed alone on the CPU from (G,D) and its class.

    So no bit of a group depends on the groups beside it in a batch.

    Raises:
        DivergenceError: an x0 that is not finite.
    """
    found = []
    for start, own in zip(range(0, len(x0), group), x0.flatten(1).float().cpu().split(group), strict=True):
        refuse_divergence("The generator predicts images that are", [own], REMEDY)
        found.append(target(own, labels[start]))
    return torch.cat(found).view_as(x0).to(x0)


def predict(
    denoiser: Denoiser,
    xt: Tensor,
    t: Tensor,
    condition: Tensor,
    config: SampleConfig,
    target: Target | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The guided prediction (B,c,h,w) and the variance values of a learned sigma, at one timestep t ().

    Where the scale of classifier-free guidance is 1, the pass of the null class is left out. The other guidance moves
    the x0 of the result toward its ``target``, at its own noise levels. The variance is that of the class.
    """
    generator, guidance = denoiser.generator, config.guidance
    level, alpha_bar = float(t) / len(generator.alphas_cumprod), generator.alphas_cumprod[round(float(t))]
    free = config.classifier_free
    scale = _free_scale(free, level)
    if free and scale != 1:
        without = torch.full_like(condition, generator.null_class or 0)
        output = denoiser(torch.cat([xt, xt]), t, torch.cat([condition, without]))
        (prediction, variance), (null, _) = (diffusion.split_prediction(o, xt.shape[1]) for o in output.chunk(2))
        prediction = classifier_free(prediction, null, scale, free.channels)
    else:
        output = denoiser(xt, t, condition)
        prediction, variance = diffusion.split_prediction(output, xt.shape[1])
    if target is not None and isinstance(guidance, MOVING) and _moves_at(guidance, level):
        alpha_bar = to_device(alpha_bar, xt.device).expand(len(xt))
        goal = target(diffusion.predicted_x0(prediction, xt, alpha_bar, generator.prediction_type))
        prediction = move_x0_toward(prediction, xt, goal, alpha_bar, guidance.scale, generator.prediction_type)
    return prediction, variance


MOVING = (ModeGuidance, TransportGuidance, RepulsionGuidance)


def _moves_at(guidance: ModeGuidance | CoupledGuidance, level: float) -> bool:
    """Whether guidance moves x0 at a noise level: down to ``mode_stop``, or within ``coupling_interval``."""
    if isinstance(guidance, CoupledGuidance):
        return acts_at(level, guidance.coupling_interval)
    return level > guidance.stop


def _free_scale(free: ClassifierFree | None, level: float) -> float:
    """The scale of classifier-free guidance at a noise level; 1 where it does not act."""
    if free is None:
        return 1.0
    if free.windows is not None:
        return scale_of_third(level, free.windows)
    return free.scale if acts_at(level, free.interval) else 1.0


def _decode(codec: Codec, x: Tensor) -> Tensor:
    """uint8 (b,C,H,W) on the CPU, always as many at once: memory and rounding do not depend on the batch."""
    images = []
    for part in x.split(DECODED_AT_ONCE):
        decoded = codec.decode(padded(part, DECODED_AT_ONCE))[: len(part)]
        refuse_divergence("The generator makes images that are", [decoded], REMEDY)
        images.append(to_uint8(decoded).cpu())
    return torch.cat(images)
