"""A teacher's soft labels: softmax(logits / temperature) of images, of the views of each batch, or again at any time.

Legend: N decoded images, K classes, B images a batch, C,H,W an image.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.data.crops import Views
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError
from gendistill.networks.training import Batches
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels, packed, unpacked

ROWS = 256  # images the teacher sees at once for per_image labels


@torch.no_grad()
def probabilities(teacher: nn.Module, images: Tensor, temperature: float) -> Tensor:
    """float32 (B,K) for float images (B,C,H,W) in [-1, 1]."""
    return (teacher(images).float() / temperature).softmax(1)


def label_per_image(
    teacher: nn.Module, images: Tensor, views: Views, temperature: float, count: int
) -> Generator[dict[str, Any], None, Tensor]:
    """Mean probabilities (N,K) over ``count`` views of uint8 ``images``; the first view is the image itself.

    Yields a record a batch; view v of batch b is step ``v * batches + b`` of ``views``.
    """
    device = next(teacher.parameters()).device
    starts = range(0, len(images), ROWS)
    parts = []
    for b, start in enumerate(starts):
        batch = to_float(images[start : start + ROWS]).to(device)
        total = probabilities(teacher, batch, temperature)
        for v in range(1, count):
            total += probabilities(teacher, views.of(batch, v * len(starts) + b), temperature)
        parts.append((total / count).cpu())
        yield {"images": start + len(batch)}
    return torch.cat(parts)


def label_per_view(
    teacher: nn.Module, images: Tensor, views: Views, temperature: float, steps: int, top_k: int | None = None
) -> Generator[dict[str, Any], None, tuple[Tensor, Tensor | None]]:
    """(values (steps,B,K or k) fp16, indices or None) for the batches that ``views`` makes of uint8 ``images``."""
    device = next(teacher.parameters()).device
    values, indices = [], []
    for step in range(steps):
        batch, _ = views.batch(images, step)
        kept, where = packed(probabilities(teacher, batch.to(device), temperature).cpu(), top_k)
        values.append(kept)
        indices += [] if where is None else [where]
        yield {"step": step + 1}
    return torch.stack(values), torch.stack(indices) if indices else None


def generate_labels(
    recipe: SoftLabels, teacher: nn.Module, images: Tensor, steps: int
) -> Generator[dict[str, Any], None, SoftLabels]:
    """The labels that ``recipe`` (without values) describes for decoded uint8 ``images``; yields records as it goes."""
    if recipe.mode == "online":
        return recipe
    if recipe.mode == "per_view":
        loop = label_per_view(teacher, images, recipe.views, recipe.temperature, steps, recipe.top_k)
        values, indices = yield from loop
    else:
        means = yield from label_per_image(teacher, images, recipe.views, recipe.temperature, recipe.averaged)
        values, indices = packed(means, recipe.top_k)
    return replace(recipe, values=values, indices=indices)


def soft_batches(surrogate: SurrogateSet, teacher: nn.Module | None = None) -> Batches:
    """step -> (views (B,C,H,W) in [-1, 1], probabilities (B,K)), as the set's soft labels say.

    The same seed gives the same views and, but for the teacher's own rounding, the same targets whether they were
    stored (per_view) or are made now (online, which needs ``teacher``). per_image labels come with the images as they
    are, walked in the order of the same stream.

    Raises:
        ArtifactError: no soft labels, no teacher for online ones, or a step beyond those that are stored.
    """
    soft = surrogate.soft_labels
    if soft is None:
        raise ArtifactError("The surrogate set has no soft labels; make some with `gendistill label`.")
    if soft.mode == "online" and teacher is None:
        raise ArtifactError("The set's soft labels are made online; give the teacher.")
    images = surrogate.split.images
    return lambda step: _soft_batch(images, soft, teacher, step)


def _soft_batch(images: Tensor, soft: SoftLabels, teacher: nn.Module | None, step: int) -> tuple[Tensor, Tensor]:
    if soft.mode == "per_image":
        plain = Views(seed=soft.views.seed, batch_size=soft.views.batch_size)
        batch, index = plain.batch(images, step)
        return batch, soft.probabilities(index)
    if soft.steps is not None and step >= soft.steps:
        raise ArtifactError(f"Step {step} is beyond the {soft.steps} that have soft labels; label with more --steps.")
    batch, _ = soft.views.batch(images, step)
    if soft.mode == "per_view":
        return batch, soft.probabilities(step)
    assert teacher is not None
    device = next(teacher.parameters()).device
    made = probabilities(teacher, batch.to(device), soft.temperature).cpu()
    return batch, unpacked(*packed(made, soft.top_k), soft.classes)
