"""Real x0 (pixels, or encoded latents), and class-balanced batches of them without state.

Every draw of step s comes from the stream (seed, phase, s). So a resumed run continues exactly, any number of processes
sees slices of the same global batch, and the state of no random generator has to be saved.

Legend: N images, c x h x w a latent; in a shard of encoded images n images and o orientations (the image, and its
mirror image where flip is asked for).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gendistill.config import Timesteps
from gendistill.data.class_positions import positions_by_class
from gendistill.data.dataset import Split
from gendistill.data.pixels import to_float
from gendistill.errors import ConfigError
from gendistill.generator.generator import Generator
from gendistill.objectives import diffusion
from gendistill.runtime import to_device
from gendistill.seeding import torch_rng


class RealLatents(Protocol):
    """Where training draws from: ``labels`` int64 (N,), ``shape`` (c,h,w) of one x0."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def needs_noise(self) -> bool:
        """Whether x0 is a draw, of the noise given, from a distribution by image."""

    def x0(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        """float32 (b,c,h,w) on the CPU of the images ``index`` int64 (b,), mirrored where ``flipped`` bool (b,).

        ``noise`` (b,c,h,w) is standard normal; without it, or where none is needed, x0 is the mean.
        """


@dataclass(frozen=True)
class PixelLatents:
    """The images themselves, in [-1, 1], turned to floats when drawn."""

    split: Split
    needs_noise: ClassVar[bool] = False

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.split.images.shape[1:])

    def x0(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        images = self.split.images[index]
        return to_float(torch.where(flipped[:, None, None, None], images.flip(-1), images))


@dataclass(frozen=True)
class CachedLatents:
    """x0 = mean + std * noise, from shards of one size but the last; means and stds each (n,o,c,h,w) a shard.

    Shards read from a folder are mapped into memory: they take room only while the system has it to spare.
    """

    labels: Tensor
    means: tuple[Tensor, ...]
    stds: tuple[Tensor, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means[0].shape[2:])

    @property
    def needs_noise(self) -> bool:
        return self.stds is not None

    def x0(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.means[0].shape[1] == 1 and bool(flipped.any()):
            raise ValueError("a mirrored image is asked for, but the latents were encoded without flip.")
        mean = _gather(self.means, index, flipped)
        if self.stds is None or noise is None:
            return mean
        if noise.shape != mean.shape:
            raise ValueError(f"noise is {tuple(noise.shape)}; expected {tuple(mean.shape)}.")
        return mean + _gather(self.stds, index, flipped) * noise


def _gather(shards: tuple[Tensor, ...], index: Tensor, flipped: Tensor) -> Tensor:
    """Rows (b,c,h,w) of shards (n,o,c,h,w)."""
    size = len(shards[0])
    shard, row, side = index // size, index % size, flipped.long()
    rows = torch.empty(len(index), *shards[0].shape[2:])
    for number in shard.unique().tolist():
        at = shard == number
        rows[at] = shards[number][row[at], side[at]]
    return rows


@dataclass(frozen=True)
class BatchDraw:
    """One process's share of a step's batch: x0 and eps (b,c,h,w), t, labels, condition and ``dropped`` (b,)."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    labels: Tensor
    condition: Tensor
    dropped: Tensor

    def to(self, device: torch.device) -> BatchDraw:
        values = (self.x0, self.eps, self.t, self.labels, self.condition, self.dropped)
        return BatchDraw(*(to_device(value, device) for value in values))


class BatchSource:
    """Batches as a function of (seed, phase, step), sliced by process and micro-batch.

    Raises:
        ConfigError: label dropout is on, but the network has no null class.
    """

    def __init__(
        self,
        generator: Generator,
        latents: RealLatents,
        label_dropout: float,
        seed: int,
        phase: str,
        flip: bool = False,
        timesteps: Timesteps = "uniform",
    ) -> None:
        check_label_dropout(generator, label_dropout)
        self.generator, self.latents, self.label_dropout, self.flip = generator, latents, label_dropout, flip
        self.seed, self.phase = seed, phase
        self.positions = positions_by_class(latents.labels, len(generator.classes))
        alphas, self.distribution = generator.alphas_cumprod, None
        if timesteps != "uniform":
            self.distribution = diffusion.timestep_probabilities(alphas, timesteps.mean, timesteps.std).cumsum(0)

    def draw(self, step: int, batch_size: int, part: slice) -> BatchDraw:
        """The images ``part`` of global batch ``step``; every class has batch_size / K images, rounded up or down."""
        rng = torch_rng(self.seed, self.phase, "batch", step)
        classes = len(self.positions)
        labels = (torch.arange(batch_size) + int(torch.randint(classes, (), generator=rng))) % classes
        labels = labels[torch.randperm(batch_size, generator=rng)]
        chance, dropping = torch.rand(2, batch_size, generator=rng, dtype=torch.float64)
        t = self._timesteps(batch_size, rng)
        flipped = torch.rand(batch_size, generator=torch_rng(self.seed, self.phase, "flip", step)) < 0.5 * self.flip
        labels, chance, dropped, t = labels[part], chance[part], dropping[part] < self.label_dropout, t[part]
        index = torch.stack(
            [self.positions[c][int(u * len(self.positions[c]))] for c, u in zip(labels.tolist(), chance, strict=True)]
        )
        slots = range(batch_size)[part]
        noise = self._noise("posterior", step, slots) if self.latents.needs_noise else None
        x0 = self.latents.x0(index, flipped[part], noise)
        condition = self.generator.mapping.condition(labels)
        if self.generator.null_class is not None:
            condition = condition.where(~dropped, self.generator.null_class)
        return BatchDraw(x0, self._noise("eps", step, slots), t, labels, condition, dropped)

    def _timesteps(self, batch_size: int, rng: torch.Generator) -> Tensor:
        count = len(self.generator.alphas_cumprod)
        if self.distribution is None:
            return torch.randint(count, (batch_size,), generator=rng)
        chance = torch.rand(batch_size, generator=rng, dtype=torch.float64)
        return torch.searchsorted(self.distribution, chance, right=True).clamp(max=count - 1)

    def _noise(self, purpose: str, step: int, slots: range) -> Tensor:
        shape = self.generator.sample_shape
        streams = (torch_rng(self.seed, self.phase, purpose, step, j) for j in slots)
        return torch.stack([torch.randn(shape, generator=rng) for rng in streams])


def check_label_dropout(generator: Generator, label_dropout: float) -> None:
    """Raises ConfigError if label dropout is on and the network has no null class."""
    if label_dropout and generator.null_class is None:
        raise ConfigError(
            f"finetune.label_dropout is {label_dropout}, but the network has no null class to drop labels to; expected "
            "0."
        )


def slices(batch_size: int, processes: int, micro_batches: int) -> list[list[slice]]:
    """Which positions of the global batch each process takes in each micro-batch: contiguous, in gathering order."""
    size, rest = divmod(batch_size, processes * micro_batches)
    if rest or not size:
        raise ConfigError(
            f"finetune.batch_size is {batch_size}; expected a multiple of {processes} process(es) x "
            f"{micro_batches} gradient_accumulation_steps."
        )
    starts = [[(m * processes + p) * size for m in range(micro_batches)] for p in range(processes)]
    return [[slice(start, start + size) for start in row] for row in starts]


def prefetch(make: Callable[[int], BatchDraw], count: range, device: torch.device) -> Iterator[BatchDraw]:
    """make(i) for every i, moved to ``device``; on an accelerator the next one is made while this one is used."""
    if device.type == "cpu":
        yield from (make(i).to(device) for i in count)
        return
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(make, i) for i in count[:1]]
        for i in count:
            draw = pending.pop().result().to(device)
            if i + 1 in count:
                pending.append(pool.submit(make, i + 1))
            yield draw
