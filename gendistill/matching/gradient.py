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

from gendistill.errors import ConfigError
from gendistill.matching.functional import (
    Skeleton,
    Tensors,
    attached,
    check_batches,
    class_labels,
    laid_out,
    structure,
)
from gendistill.objectives.matching import DISTANCES, Distance, gradient_distance, mean_feature_distance


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """The objective with its options; ``losses`` is what an engine calls.

    ``parameters``: whose gradients are compared: ``all`` weights of 2 or more dimensions (DC, DSA), ``no_head``, the
    same without the classifier's (IDC), or names as in ``network.named_parameters()``. ``feature_mean`` is the weight
    of the distance of mean features (DREAM+). ``classes_per_chunk`` 1 goes class by class; more are computed together
    by torch.func.vmap, which a GPU may like and a CPU does not; classes of other batch sizes go in their own groups.
    ``bf16`` is autocast of the forward and its derivatives; the gradients compared stay in fp32.

    Dropout and the like are off, and batch norm, whatever the network's mode, takes each batch's own statistics, as IDC
    has it; DC freezes those of a batch of real images instead.

    Raises:
        ConfigError: an option has no meaning.
    """

    distance: Distance = "mse"
    parameters: str | Sequence[str] = "no_head"
    feature_mean: float = 0.0
    classes_per_chunk: int = 1
    compile: bool = False
    bf16: bool = False
    channels_last: bool = False
    _programs: dict[Any, _Program] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ConfigError(f"distance is {self.distance!r}; expected one of {', '.join(DISTANCES)}.")
        if isinstance(self.parameters, str) and self.parameters not in ("all", "no_head"):
            raise ConfigError(f"parameters is {self.parameters!r}; expected 'all', 'no_head' or a list of names.")
        if self.classes_per_chunk < 1:
            raise ConfigError(f"classes_per_chunk is {self.classes_per_chunk}; expected 1 or more.")

    def losses(
        self, network: nn.Module, real: Sequence[Tensor], views: Sequence[Tensor], labels: Sequence[int] | Tensor
    ) -> Tensor:
        """Each class's loss, (K,), differentiable once in its views.

        ``real`` has K batches (R_k,C,H,W) and ``views`` K batches (Z_k,C,H,W), in [-1, 1]; ``labels`` (K,) are their
        classes. The network is left as it is. Gradients are asked of the views alone, and taken at once, so no more
        than one chunk's graph is ever held.

        Raises:
            ValueError: the batches do not fit one another.
            ConfigError: the parameters named cannot be compared.
        """
        check_batches(real, views, labels)
        program = self._program(network, views[0])
        tensors = program.skeleton.tensors(network, channels_last=self.channels_last)
        targets = class_labels(labels, views[0].device)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for places in _chunks(real, views, self.classes_per_chunk):
                own_real, own_views = ([batches[c].detach() for c in places] for batches in (real, views))
                gradients, values = self._chunk(program, tensors, own_real, own_views, targets[places])
                found |= zip(places, zip(values, gradients, strict=True), strict=True)
        return torch.stack([attached(found[c][0], view, found[c][1]) for c, view in enumerate(views)])

    def _chunk(
        self, program: _Program, tensors: Tensors, real: list[Tensor], views: list[Tensor], labels: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of the views and losses of classes whose batches have equal shapes."""
        if len(labels) == 1:
            own_real, own_views = (laid_out(x[0]) if self.channels_last else x[0] for x in (real, views))
            gradient, value = program.one(tensors, own_real, own_views, labels[0])
            return [gradient], [value]
        all_real, all_views = (_stacked(x, self.channels_last) for x in (real, views))
        gradients, values = program.several(tensors, all_real, all_views, labels)
        return list(gradients), list(values)

    def _program(self, network: nn.Module, images: Tensor) -> _Program:
        key = structure(network)
        if key not in self._programs:
            skeleton = Skeleton(network, own_statistics=True, bf16=self.bf16)
            names = self._names(skeleton, skeleton.tensors(network), images)
            self._programs[key] = _Program(skeleton, names, self.distance, self.feature_mean, self.compile)
        return self._programs[key]

    def _names(self, skeleton: Skeleton, tensors: Tensors, images: Tensor) -> list[str]:
        """The parameters compared."""
        if not isinstance(self.parameters, str):
            names = list(self.parameters)
            unknown = [name for name in names if name not in skeleton.parameters]
            flat = [name for name in names if name not in unknown and tensors[name].dim() < 2]
            if unknown or not names:
                raise ConfigError(f"parameters names {unknown or 'none'}; expected some of {skeleton.parameters}.")
            if flat and self.distance == "cosine":
                raise ConfigError(f"parameters names {flat}, which have no output rows for distance 'cosine'.")
            return names
        names = skeleton.parameters
        if self.parameters == "no_head":
            names = skeleton.feature_parameters(tensors, images)
        return [name for name in names if tensors[name].dim() >= 2]


class _Program:
    """The computation for one structure of networks: ``one`` class at a time, or ``several`` of equal batch shapes.

    Both map (tensors, real, views, label) to (gradient of the views, loss); ``several`` has a first dimension more.
    """

    def __init__(
        self, skeleton: Skeleton, names: list[str], distance: Distance, feature_mean: float, compiled: bool
    ) -> None:
        self.skeleton, self.names, self.distance, self.feature_mean = skeleton, names, distance, feature_mean
        wrap: Callable[..., Any] = torch.compile if compiled else lambda function: function
        self.one, self.several = wrap(self._one), wrap(self._several)

    def _one(self, tensors: Tensors, real: Tensor, views: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        wanted, features = self._compared(tensors, real, label)
        return torch.func.grad_and_value(self._loss)(views, tensors, label, wanted, features)

    def _several(self, tensors: Tensors, real: Tensor, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.vmap(self._one, in_dims=(None, 0, 0, 0))(tensors, real, views, labels)

    def _compared(self, tensors: Tensors, images: Tensor, label: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradients of the mean cross-entropy of images (B,C,H,W) in the named parameters, and features (B,D)."""
        named = {name: tensors[name] for name in self.names}
        gradients, features = torch.func.grad(self._cross_entropy, has_aux=True)(named, tensors, images, label)
        return [gradients[name] for name in self.names], features

    def _cross_entropy(self, named: Tensors, tensors: Tensors, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.skeleton.look({**tensors, **named}, images)
        return F.cross_entropy(logits, label.expand(len(images))), features

    def _loss(self, views: Tensor, tensors: Tensors, label: Tensor, wanted: list[Tensor], real: Tensor) -> Tensor:
        found, features = self._compared(tensors, views, label)
        loss = gradient_distance(wanted, found, self.distance)
        return loss + self.feature_mean * mean_feature_distance(real, features) if self.feature_mean else loss


def _chunks(real: Sequence[Tensor], views: Sequence[Tensor], size: int) -> Iterator[list[int]]:
    """Places of classes with equal batch shapes, at most ``size`` together."""
    groups: dict[Any, list[int]] = {}
    for c, (r, v) in enumerate(zip(real, views, strict=True)):
        groups.setdefault((r.shape, v.shape), []).append(c)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _stacked(batches: list[Tensor], channels_last: bool) -> Tensor:
    """(k,B,C,H,W), every (B,C,H,W) of it in channels-last memory where asked."""
    joined = torch.cat(batches)
    return (laid_out(joined) if channels_last else joined).unflatten(0, (len(batches), -1))
