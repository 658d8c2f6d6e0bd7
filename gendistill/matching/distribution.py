"""Distribution matching (DM, IDM, NCFM): synthetic images should have the features of real ones, on average.

    L_c = || mean f(real_c) - mean f(views_c) ||^2  +  ce_weight * accuracy * CE(network(views_c), c)

f is the network's flattened convolutional stack; the second term is IDM's (arXiv 2307.09742), 0 in DM (2110.04181).
NCFM (2502.20653) has other means, and another distance of theirs: characteristic functions.

Legend: R real images of a class, Z views of its synthetic ones, B images of a batch, D features, S values of an image
whose means are matched, K classes, k of them in a chunk, C,H,W an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.matching.functional import (
    CPU_ROWS,
    FunctionalNetwork,
    Tensors,
    attached,
    class_labels,
    laid_out,
    lengths,
    structure,
)
from gendistill.networks.factories import batch_norm_layers
from gendistill.objectives.matching import (
    characteristic_distance,
    class_aware_cross_entropy,
    mean_feature_distance,
    waves,
)
from gendistill.seeding import torch_rng

ROWS = 512  # images in one pass; IDM's 5000 real ones of a class, or the views of 1000 classes, would fill the memory
VALUES = 2**28  # of real images at once, 1 GiB in fp32

FeatureView = Callable[[Tensors, Tensor], tuple[Tensor, Tensor]]
Embedding = Callable[[Tensor], Tensor]  # features (B,D) -> values (B,S)


@dataclass(frozen=True, kw_only=True)
class FeatureMatching:
    """The objective with its options.

    Batch norm in training mode takes each class's own statistics, one class a pass, without touching the running ones
    (DM's released code mixes the classes there); in evaluation mode, as IDM has it, the running ones. Dropout and the
    like are off in both.

    Attributes:
        ce_weight: Of IDM's cross-entropy.
        classes_per_chunk: Classes whose views go through the network together, by default as many as fit a pass: exact
            wherever an image's features depend on no other image.
        compile: Compile the computation.
        bf16: Autocast of the forward and its derivative.
    """

    ce_weight: float = 0.0
    classes_per_chunk: int | None = None
    compile: bool = False
    bf16: bool = False
    _programs: dict[Any, tuple[FunctionalNetwork, FeatureView]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def channels_last(self) -> bool:
        return self.compile or self.bf16

    def embedding(self, seed: int) -> Embedding:
        """What is averaged over the images of a class: the features themselves."""
        return lambda features: features

    def distance(self, real: Tensor, values: Tensor) -> Tensor:
        """Of the real mean (S,) and the mean of ``values`` (Z,S), a scalar."""
        return mean_feature_distance(real[None], values)

    def prepared(
        self, network: nn.Module, real: Sequence[Tensor], labels: Sequence[int] | Tensor, seed: int = 0
    ) -> Prepared:
        """The real side alone, K batches (R_k,C,H,W) in [-1, 1] of classes ``labels`` (K,), for any number of sets.

        The network is left as it is; ``seed`` is of what the embedding draws.
        """
        alone = network.training and bool(batch_norm_layers(network))
        functional, forward = self._program(network, alone)
        tensors = functional.tensors(network, channels_last=self.channels_last)
        with torch.no_grad():
            first, counts = real[0], lengths(real)
            most = 1 if alone else max(1, VALUES // (max(counts) * first[0].numel()))
            parts = [real[start : start + most] for start in range(0, len(counts), most)]
            rows = max(counts) if alone else _rows(first)
            embed = self.embedding(seed)
            wanted = torch.cat([self._real_means(forward, tensors, embed, part, rows) for part in parts])
        return Prepared(self, forward, tensors, embed, class_labels(labels, first.device), wanted, alone)

    def _program(self, network: nn.Module, own_statistics: bool) -> tuple[FunctionalNetwork, FeatureView]:
        key = own_statistics, structure(network)
        if key not in self._programs:
            functional = FunctionalNetwork(network, own_statistics=own_statistics, bf16=self.bf16)
            self._programs[key] = (
                functional,
                runtime.compiled_anew(functional.forward) if self.compile else functional.forward,
            )
        return self._programs[key]

    def _real_means(
        self, forward: FeatureView, tensors: Tensors, embed: Embedding, real: Sequence[Tensor], rows: int
    ) -> Tensor:
        """Mean values (K,S) of K batches, so many rows at a time."""
        images = torch.cat(list(real))
        counts = runtime.to_device(torch.tensor([len(batch) for batch in real]), images.device)
        owners = torch.arange(len(real), device=images.device).repeat_interleave(counts, output_size=len(images))
        total = images.new_zeros(())
        for some, own in zip(images.split(rows), owners.split(rows), strict=True):
            values = embed(forward(tensors, self._laid_out(some))[0])
            total = total + F.one_hot(own, len(real)).T.to(values.dtype) @ values
        return total / counts[:, None]

    def _laid_out(self, images: Tensor) -> Tensor:
        return laid_out(images) if self.channels_last else images


@dataclass(frozen=True, kw_only=True)
class CharacteristicMatching(FeatureMatching):
    """The same for characteristic functions of the features (NCFM, arXiv 2502.20653).

    Attributes:
        frequencies: M, drawn from a standard normal distribution once a step, for all classes (the released code: once
            a class).
        amplitude_weight: Of amplitudes; phases have the rest of 1.
    """

    frequencies: int
    amplitude_weight: float

    def embedding(self, seed: int) -> Embedding:
        drawn: list[Tensor] = []

        def embed(features: Tensor) -> Tensor:
            if not drawn:
                t = torch.randn(self.frequencies, features.shape[1], generator=torch_rng(seed, "frequencies"))
                drawn.append(runtime.to_device(t, features.device).to(features.dtype))
            return waves(features, drawn[0])

        return embed

    def distance(self, real: Tensor, values: Tensor) -> Tensor:
        return characteristic_distance(real, values.mean(0), self.amplitude_weight)


def _rows(images: Tensor) -> int:
    """Images of one pass."""
    return CPU_ROWS if images.device.type == "cpu" else ROWS


def _chunks(views: Sequence[Tensor], most: int | None) -> Iterator[slice]:
    """Classes of one pass each: at most so many, or as many as fit its rows; all alike but for one class."""
    most = most or max(1, _rows(views[0]) // max(map(len, views)))
    passes = math.ceil(len(views) / most)
    edges = [len(views) * place // passes for place in range(passes + 1)]
    yield from (slice(start, end) for start, end in pairwise(edges))


@dataclass(frozen=True)
class Prepared:
    """What a step needs of the real images on one network: mean values (K,S), and whether classes go ``alone``."""

    objective: FeatureMatching
    forward: FeatureView
    tensors: Tensors
    embed: Embedding
    labels: Tensor
    wanted: Tensor
    alone: bool

    def losses(self, views: Sequence[Tensor], accuracy: float | Tensor | None = None) -> Tensor:
        """Each class's loss, (K,), differentiable once in its views, K batches (Z_k,C,H,W).

        ``accuracy`` is the network's on real training images, a fraction, needed with a ``ce_weight``. Gradients are
        taken at once, so no more than one chunk's graph is ever held.
        """
        if self.objective.ce_weight and accuracy is None:
            raise ValueError("ce_weight is set, so losses needs the network's accuracy on its training data.")
        weight, known = self.objective.ce_weight, 0.0 if accuracy is None else accuracy
        found: list[Tensor] = []
        with torch.enable_grad():
            for part in _chunks(views, 1 if self.alone else self.objective.classes_per_chunk):
                counts = [len(batch) for batch in views[part]]
                images = self.objective._laid_out(torch.cat(list(views[part])).detach()).requires_grad_()
                features, logits = self.forward(self.tensors, images)
                values = []
                embedded = self.embed(features)
                sides = (self.wanted[part], embedded.split(counts), logits.split(counts), self.labels[part])
                for mean, own, scores, label in zip(*sides, strict=True):
                    value = self.objective.distance(mean, own)
                    if weight:
                        value = value + class_aware_cross_entropy(scores, label.expand(len(own)), known, weight)
                    values.append(value)
                (gradient,) = torch.autograd.grad(torch.stack(values).sum(), images)
                gradients = gradient.split(counts)
                found += [attached(v.detach(), *one) for v, *one in zip(values, views[part], gradients, strict=True)]
            return torch.stack(found)
