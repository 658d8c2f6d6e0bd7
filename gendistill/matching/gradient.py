"""Gradient matching (DC, DSA, IDC, and DREAM over them): synthetic images should train a network as real ones do.

    L_c = dist(d CE(network(real_c), c) / d theta, d CE(network(views_c), c) / d theta)
          + feature_mean || mean f(real_c) - mean f(views_c) ||^2                          (DREAM+)

The gradient of L_c in the views is a derivative of a derivative. torch.compile refuses autograd's double backward, so
both derivatives are torch.func's, one inside the other, and nothing is left for autograd to do.

Legend: R real images of a class, Z views of its synthetic ones, K classes, C,H,W an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gendistill import runtime
from gendistill.config import Distance
from gendistill.errors import ConfigError
from gendistill.matching.functional import (
    FunctionalNetwork,
    Tensors,
    attached,
    class_labels,
    equal_rows,
    laid_out,
    lengths,
    structure,
)
from gendistill.networks.factories import batch_norm_layers
from gendistill.objectives.matching import gradient_distance, mean_feature_distance


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """The objective with its options.

    Dropout and the like are off, and batch norm, whatever the network's mode, takes each batch's own statistics, as IDC
    has it; DC freezes those of a batch of real images instead.

    Attributes:
        distance: Of two gradients: ``cosine``, ``mse`` or ``l1``.
        match_head: Compare all weights of 2 or more dimensions (DC, DSA), not only those before the classifier (IDC).
        feature_mean: Weight of the distance of mean features (DREAM+).
        classes_per_chunk: 1 goes class by class; more are computed together by torch.func.vmap, which a GPU may like
            and a CPU does not; classes of other batch sizes go in their own groups.
        compile: Compile the computation.
        bf16: Autocast of the forward and its derivatives; the gradients compared stay in fp32.
    """

    distance: Distance = "mse"
    match_head: bool = False
    feature_mean: float = 0.0
    classes_per_chunk: int = 1
    compile: bool = False
    bf16: bool = False
    _programs: dict[Any, _Program] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def channels_last(self) -> bool:
        return self.compile or self.bf16

    def prepared(
        self, network: nn.Module, real: Sequence[Tensor], labels: Sequence[int] | Tensor, seed: int = 0
    ) -> Prepared:
        """The real side alone, K batches (R_k,C,H,W) in [-1, 1] of classes ``labels`` (K,), for any number of sets.

        The network is left as it is; nothing is drawn, so ``seed`` is not read.

        Raises:
            ConfigError: the network has an operation without a second derivative.
        """
        first = real[0]
        program = self._program(network, first)
        tensors = program.functional.tensors(network, channels_last=self.channels_last)
        targets = list(class_labels(labels, first.device))
        sides: dict[int, Side] = {}
        with torch.no_grad():
            for places in _chunks(lengths(real), self.classes_per_chunk):
                images = _stacked([real[c].detach() for c in places], self.channels_last)
                own = torch.stack([targets[c] for c in places])
                sides |= zip(places, program.real(tensors, images, own), strict=True)
        return Prepared(self, program, tensors, targets, [sides[c] for c in range(len(real))])

    def _program(self, network: nn.Module, images: Tensor) -> _Program:
        key = structure(network)
        if key not in self._programs:
            functional = FunctionalNetwork(network, own_statistics=True, bf16=self.bf16)
            tensors, names = functional.tensors(network), functional.parameters
            whole = images.device.type != "cpu" or bool(batch_norm_layers(network))
            if not self.match_head:
                names = functional.feature_parameters(tensors, images)
            names = [name for name in names if tensors[name].dim() >= 2]
            _check_second_derivative(functional, names, tensors, images[:2])
            self._programs[key] = _Program(functional, names, self.distance, self.feature_mean, self.compile, whole)
        return self._programs[key]


Side = tuple[list[Tensor], Tensor]  # gradients of the named parameters, and features


@dataclass(frozen=True)
class Prepared:
    """What a step needs of the real images of every class on one network."""

    objective: GradientMatching
    program: _Program
    tensors: Tensors
    labels: list[Tensor]
    real: list[Side]

    def losses(self, views: Sequence[Tensor], accuracy: float | Tensor | None = None) -> Tensor:
        """Each class's loss, (K,), differentiable once in its views, K batches (Z_k,C,H,W); ``accuracy`` is not read.

        Gradients are asked of the views alone, and taken at once, so no more than one chunk's graph is ever held.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        shapes = [(view.shape, self.real[c][1].shape) for c, view in enumerate(views)]
        with torch.no_grad():
            for places in _chunks(shapes, self.objective.classes_per_chunk):
                images = _stacked([views[c].detach() for c in places], self.objective.channels_last)
                sides, labels = [self.real[c] for c in places], torch.stack([self.labels[c] for c in places])
                if len(places) == 1:
                    gradient, value = self.program.matched(images[0], self.tensors, labels[0], *sides[0])
                    found[places[0]] = value, gradient
                    continue
                compared = [torch.stack(same) for same in zip(*(side[0] for side in sides), strict=True)]
                features = torch.stack([side[1] for side in sides])
                gradients, values = self.program.matched_together(images, self.tensors, labels, compared, features)
                found |= zip(places, zip(values, gradients, strict=True), strict=True)
        return torch.stack([attached(found[c][0], view, found[c][1]) for c, view in enumerate(views)])


class _Program:
    """The computation for one structure of networks, on k classes of equal batch shapes at once.

    ``real`` maps images (k,R,C,H,W) to each class's side; ``matched`` views (Z,C,H,W) and a side to the gradient of the
    views and the loss, and ``matched_together`` does for k classes. Unless ``whole``, the real images of one class go
    through in pieces: exact wherever an image's features depend on no other image.
    """

    def __init__(
        self,
        functional: FunctionalNetwork,
        names: list[str],
        distance: Distance,
        feature_mean: float,
        compiled: bool,
        whole: bool = True,
    ) -> None:
        self.functional, self.names, self.distance, self.feature_mean = functional, names, distance, feature_mean
        self.whole = whole
        wrap: Callable[..., Any] = runtime.compiled_anew if compiled else lambda function: function
        matched = torch.func.grad_and_value(self._loss)
        self._real, self.matched = wrap(self._compared), wrap(matched)
        self._reals = wrap(torch.func.vmap(self._compared, in_dims=(None, 0, 0)))
        self.matched_together = wrap(torch.func.vmap(matched, in_dims=(0, None, 0, 0, 0)))

    def real(self, tensors: Tensors, images: Tensor, labels: Tensor) -> list[Side]:
        if len(images) == 1:
            return [self._of_one(tensors, images[0], labels[0])]
        gradients, features = self._reals(tensors, images, labels)
        return [([g[i] for g in gradients], features[i]) for i in range(len(images))]

    def _of_one(self, tensors: Tensors, images: Tensor, label: Tensor) -> Side:
        """The side of one class; the gradient of a mean over images is the mean of those over equal pieces."""
        parts = images.split(len(images) if self.whole else equal_rows(len(images)))
        sides = [self._real(tensors, part, label) for part in parts]
        if len(sides) == 1:
            return sides[0]
        gradients = [torch.stack(same).mean(0) for same in zip(*(side[0] for side in sides), strict=True)]
        return gradients, torch.cat([side[1] for side in sides])

    def _compared(self, tensors: Tensors, images: Tensor, label: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradients of the mean cross-entropy of images (B,C,H,W) in the named parameters, and features (B,D)."""
        named = {name: tensors[name] for name in self.names}
        gradients, features = torch.func.grad(self._cross_entropy, has_aux=True)(named, tensors, images, label)
        return [gradients[name] for name in self.names], features

    def _cross_entropy(self, named: Tensors, tensors: Tensors, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            features, logits = self.functional.forward({**tensors, **named}, images)
        return F.cross_entropy(logits, label.expand(len(images))), features

    def _loss(self, views: Tensor, tensors: Tensors, label: Tensor, wanted: list[Tensor], real: Tensor) -> Tensor:
        found, features = self._compared(tensors, views, label)
        loss = gradient_distance(wanted, found, self.distance)
        return loss + self.feature_mean * mean_feature_distance(real, features) if self.feature_mean else loss


def _check_second_derivative(functional: FunctionalNetwork, names: list[str], tensors: Tensors, images: Tensor) -> None:
    """Raises ConfigError where the network has an operation that can be derived once only."""
    probe, label = _Program(functional, names, "mse", 0.0, compiled=False), torch.zeros(1, dtype=torch.int64)
    try:
        with torch.no_grad():
            views, label = images.detach(), label.to(images.device)[0]
            torch.func.grad(lambda x: sum(g.square().sum() for g in probe._compared(tensors, x, label)[0]))(views)
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise ConfigError(
            f"The network cannot match gradients: {str(error).partition(chr(10))[0]}. Expected a second derivative of "
            "all of it; take --matching.network convnet or resnet10, or --method dm or idm, which need the first alone."
        ) from error


def _chunks(shapes: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Places of classes with equal batch shapes, at most ``size`` together."""
    groups: dict[Any, list[int]] = {}
    for c, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(c)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _stacked(batches: list[Tensor], channels_last: bool) -> Tensor:
    """(k,B,C,H,W), every (B,C,H,W) of it in channels-last memory where asked."""
    joined = torch.cat(batches)
    return (laid_out(joined) if channels_last else joined).unflatten(0, (len(batches), -1))
