"""A network as a pure function of its tensors: what is compiled for it serves every fresh network of its structure.

Legend: B images of a batch, C,H,W an image, D features, K classes of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gendistill import runtime

CPU_ROWS = 16  # images of one pass: activations that stay in the caches, half the time of 256 and of 128 in fp32
Tensors = dict[str, Tensor]


def equal_rows(count: int) -> int:
    """Rows of equal pieces of ``count`` images, ``CPU_ROWS`` to twice as many; all where nothing divides them: every
    other size would be compiled anew."""
    return next((rows for rows in range(CPU_ROWS, 2 * CPU_ROWS + 1) if count % rows == 0), count)


class StackedBatches(Sequence[Tensor]):
    """Batches (R_k,C,H,W) of known lengths, made when they are asked for; only the last one is kept."""

    def __init__(self, counts: Sequence[int], make: Callable[[int], Tensor]) -> None:
        self.counts, self.make = counts, make
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[c] for c in range(len(self))[place]]
        if self._last is None or self._last[0] != place:
            self._last = place, self.make(place)
        return self._last[1]


def lengths(batches: Sequence[Tensor]) -> Sequence[int]:
    """R_k of each batch, none of which is made for it."""
    return batches.counts if isinstance(batches, StackedBatches) else [len(batch) for batch in batches]


class FunctionalNetwork:
    """The structure of ``network`` (our ``features`` and ``classify``) without its values.

    It runs in evaluation mode, so dropout, drop path and the like are off: two batches must be compared by one
    function. With ``own_statistics`` batch norm normalises every batch by its own mean and variance and leaves the
    running ones alone; else it takes the running ones of the network whose tensors are given.
    """

    def __init__(self, network: nn.Module, *, own_statistics: bool, bf16: bool = False) -> None:
        bare = deepcopy(network).eval().requires_grad_(False)
        if own_statistics:
            torch.func.replace_all_batch_norm_modules_(bare)
        if bf16:
            _derivable_in_bf16(bare)
        self.module = _Look(bare).to("meta")  # no memory, and a value that is not given cannot go unnoticed
        self.parameters = [name for name, _ in bare.named_parameters()]
        self.buffers = [name for name, _ in bare.named_buffers()]
        self.bf16 = bf16

    def tensors(self, network: nn.Module, *, channels_last: bool = False) -> Tensors:
        """The values that ``network`` has now, detached."""
        live = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        found = {name: live[name].detach() for name in (*self.parameters, *self.buffers)}
        return {name: laid_out(value) for name, value in found.items()} if channels_last else found

    def forward(self, tensors: Tensors, images: Tensor) -> tuple[Tensor, Tensor]:
        """features (B,D) and logits (B,K) of images (B,C,H,W), in fp32 or better; with ``bf16`` computed in that."""
        inside = {f"network.{name}": value for name, value in tensors.items()}
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            features, logits = torch.func.functional_call(self.module, inside, (images,))
        return _at_least_fp32(features), _at_least_fp32(logits)

    def feature_parameters(self, tensors: Tensors, images: Tensor) -> list[str]:
        """Names of the parameters that features depend on: all but the classifier's."""
        with torch.enable_grad():
            asked = {name: tensors[name].clone().requires_grad_() for name in self.parameters}
            features, _ = self.forward({**tensors, **asked}, images[:2])
            found = torch.autograd.grad(features.sum(), list(asked.values()), allow_unused=True)
        return [name for name, gradient in zip(asked, found, strict=True) if gradient is not None]


def _derivable_in_bf16(network: nn.Module) -> None:
    """Batch norm in fp32, attention without fused kernels: under autocast and torch.func both have no derivative."""
    module: Any
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _, given: (given[0].float(),))
            module.register_forward_hook(lambda _, given, found: found.bfloat16())
        if hasattr(module, "fused_attn"):  # timm's
            module.fused_attn = False


class _Look(nn.Module):
    """Features and logits of one forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images)
        return features, self.network.classify(features)


def _at_least_fp32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def structure(network: nn.Module) -> tuple[Any, ...]:
    """What decides a network's computation beside its values and mode; equal ones share a FunctionalNetwork."""
    modules = tuple((name, type(m), m.extra_repr(), _plain(m)) for name, m in network.named_modules())
    state = [*network.named_parameters(), *network.named_buffers()]
    return modules, tuple((name, value.shape, value.dtype, value.device) for name, value in state)


def _plain(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Settings that a module's own text may leave out: numbers, names and functions among its attributes."""
    kept = [(k, v) for k, v in vars(module).items() if k != "training" and not k.startswith("_")]
    simple = (bool, int, float, str, tuple, type(None))
    return tuple((k, repr(v) if isinstance(v, simple) else getattr(v, "__qualname__", "")) for k, v in kept)


def laid_out(images: Tensor) -> Tensor:
    """4-D tensors in channels-last memory, others as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def attached(value: Tensor, view: Tensor, gradient: Tensor) -> Tensor:
    """``value`` as a function of ``view`` with that first derivative: the second term is 0.

    A loss whose gradient is taken at once needs no graph that lives on, so memory holds that of one chunk of classes.
    """
    return value + ((view - view.detach()) * gradient).sum()


def class_labels(labels: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """int64 (K,) on the device."""
    return runtime.to_device(torch.as_tensor(labels, dtype=torch.int64), device)
