"""A teacher's soft labels, softmax(logits / temperature): of images, of the views of every batch, or made online.

Legend: N decoded images, K classes, B images a batch, C,H,W an image.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from gendistill import parallel, runtime
from gendistill.config import LabelConfig, PerImage, PerView, kind_of
from gendistill.data.crops import Views
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError, require_type
from gendistill.generator.class_mapping import check_manifest_labels
from gendistill.io import WorkFolder
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import Batches, inference_rows
from gendistill.progress import follow, note
from gendistill.seeding import derive
from gendistill.surrogate.manifest import add_step
from gendistill.surrogate.multi_formation import decode
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels, packed, unpacked

ROWS = 256  # images in one forward pass for per_image labels
LARGE = 1 << 30  # bytes of labels that are announced before they are made


class LabelRecord(TypedDict, total=False):
    """How many images, or how many steps, have their labels."""

    images: int
    step: int


@torch.no_grad()
def probabilities(teacher: nn.Module, images: Tensor, temperature: float) -> Tensor:
    """float32 (B,K) for float images (B,C,H,W) in [-1, 1]."""
    parts = images.split(inference_rows(teacher, max(1, len(images))))
    return torch.cat([(teacher(part).float() / temperature).softmax(1) for part in parts])


def label_per_image(
    teacher: nn.Module, images: Tensor, views: Views, temperature: float, count: int, *, shared: bool = False
) -> Generator[LabelRecord, None, Tensor]:
    """Mean probabilities (N,K) over ``count`` views of uint8 ``images``; the first view is the image itself.

    Yields a record a batch; view v of batch b is step ``v * batches + b`` of ``views``.
    """
    device = next(teacher.parameters()).device
    starts = range(0, len(images), ROWS)
    parts: dict[int, Tensor] = {}
    for b in _own(len(starts), shared):
        start = starts[b]
        batch = to_float(runtime.to_device(images[start : start + ROWS], device))
        total = probabilities(teacher, batch, temperature)
        for v in range(1, count):
            total += probabilities(teacher, views.of(batch, v * len(starts) + b), temperature)
        parts[b] = total / count
        yield {"images": start + len(batch)}
    return torch.cat(_in_order(parts, shared)).cpu()


def label_per_view(
    teacher: nn.Module,
    images: Tensor,
    views: Views,
    temperature: float,
    steps: int,
    top_k: int | None = None,
    *,
    shared: bool = False,
) -> Generator[LabelRecord, None, tuple[Tensor, Tensor | None]]:
    """(values (steps,B,K or k) fp16, indices or None) for the batches that ``views`` makes of uint8 ``images``."""
    device = next(teacher.parameters()).device
    values: dict[int, Tensor] = {}
    indices: dict[int, Tensor] = {}
    for step in _own(steps, shared):
        batch, _ = views.batch(images, step)
        kept, where = packed(probabilities(teacher, runtime.to_device(batch, device), temperature), top_k)
        values[step] = kept.cpu()
        if where is not None:
            indices[step] = where.cpu()
        yield {"step": step + 1}
    found = torch.stack(_in_order(values, shared))
    return found, torch.stack(_in_order(indices, shared)) if top_k is not None else None


def _own(number: int, shared: bool) -> range:
    """Which of so many batches this process labels."""
    return parallel.share(number) if shared else range(number)


def _in_order(parts: Mapping[int, Tensor], shared: bool) -> list[Tensor]:
    """The parts of all processes by their number."""
    found = parallel.gathered({i: part.cpu() for i, part in parts.items()}) if shared else parts
    return [found[i] for i in sorted(found)]


def generate_labels(
    recipe: SoftLabels, teacher: nn.Module, images: Tensor, steps: int, *, shared: bool = False
) -> Generator[LabelRecord, None, SoftLabels]:
    """The labels that ``recipe`` (without values) describes for decoded uint8 ``images``; yields records as it goes.

    With ``shared`` every process calls this alike: each labels every n-th batch, and all get the labels of all.
    """
    if recipe.mode == "online":
        return recipe
    common = teacher, images, recipe.views, recipe.temperature
    if recipe.mode == "per_view":
        values, indices = yield from label_per_view(*common, steps, recipe.top_k, shared=shared)
    else:
        means = yield from label_per_image(*common, recipe.averaged, shared=shared)
        values, indices = packed(means, recipe.top_k)
    return replace(recipe, values=values, indices=indices)


def label_set(
    surrogate: SurrogateSet,
    teacher: Teacher,
    config: LabelConfig | None = None,
    *,
    seed: int = 0,
    folder: WorkFolder | None = None,
) -> SurrogateSet:
    """The set with a teacher's soft labels, softmax(logits / temperature), of its decoded views.

    Several processes that call this alike share the batches; each returns the same.

    Args:
        surrogate: The set; soft labels that it has are replaced.
        teacher: Of the same classes in the same order, channels and image size.
        config: Mode (``per_image``, ``per_view``, ``online``), temperature, crops and so on; the defaults where None.
        seed: Of the random views.
        folder: Where the log goes.

    Returns:
        The same images and hard labels with ``soft_labels``. ``online`` stores only how they are made.

    Raises:
        ArtifactError: the teacher has other classes, channels or image size.
        ConfigError: ``top_k`` is larger than the number of classes.
        DivergenceError: the teacher's probabilities are not finite.

    Example:
        >>> from gendistill.config import PerImage
        >>> labelled = gd.label_set(surrogate, teacher, gd.LabelConfig(mode=gd.PerImage(views=8), min_crop=0.5))
        >>> labelled.save("labelled")
    """
    require_type("surrogate", surrogate, SurrogateSet)
    require_type("teacher", teacher, Teacher)
    config, start = require_type("config", config or LabelConfig(), LabelConfig), time.perf_counter()
    check_teacher_fits(surrogate, teacher, config)
    images = decode(surrogate.images, surrogate.factor)
    mode = config.mode
    steps = mode.steps if isinstance(mode, PerView) else 0
    batches = PerView() if isinstance(mode, PerImage) else mode
    views = Views(
        seed=derive(seed, "label"),
        batch_size=batches.batch_size,
        min_crop=config.min_crop,
        flip=config.flip,
        cutmix=batches.cutmix,
    )
    recipe = SoftLabels(
        kind_of(mode),
        len(surrogate.classes),
        config.temperature,
        views,
        teacher.facts(),
        config.top_k,
        mode.views if isinstance(mode, PerImage) else 1,
    )
    _note_size(recipe, len(images), steps)
    loop = generate_labels(recipe, teacher.network.to(runtime.device()), images, steps, shared=True)
    total = len(parallel.share(-(-len(images) // ROWS) if isinstance(mode, PerImage) else steps))
    log = folder.log if folder and runtime.processes().is_main_process else None
    labels = follow(loop, "label", total, log=log, stage="label")
    spent = {f"label_{name}": value for name, value in teacher.meta.get("training_seconds", {}).items()}
    what, remedy = "The soft labels of this teacher are", "Train the teacher again with a lower learning rate."
    runtime.refuse_divergence(what, labels.tensors.values(), remedy)
    labels.check_values("The soft labels of this teacher")
    meta = add_step(
        surrogate.meta,
        "label",
        time.perf_counter() - start,
        soft_labels={"mode": recipe.mode, "temperature": config.temperature, "top_k": config.top_k, "seed": seed},
        label_teacher_hash=teacher.hash(),
        shared_seconds={**surrogate.meta.get("shared_seconds", {}), **spent},
    )
    return replace(surrogate, meta=meta, soft_labels=labels)


def check_teacher_fits(surrogate: SurrogateSet, teacher: Teacher, config: LabelConfig) -> None:
    """Refuse a teacher of other classes or images, and a top_k beyond the classes."""
    if surrogate.classes != teacher.classes:
        raise ArtifactError(
            f"The surrogate set has classes {', '.join(surrogate.classes)}, the teacher {', '.join(teacher.classes)}; "
            "expected the same in the same order."
        )
    check_manifest_labels("the surrogate set", surrogate.classes, surrogate.meta)
    channels, side = surrogate.images.shape[1], surrogate.images.shape[-1]
    if (teacher.spec["channels"], teacher.spec["image_size"]) != (channels, side):
        raise ArtifactError(
            f"The surrogate images are {side} px with {channels} channel(s), the teacher's "
            f"{teacher.spec['image_size']} px with {teacher.spec['channels']}; expected the same."
        )
    if config.top_k is not None and config.top_k > len(surrogate.classes):
        raise ConfigError(f"label.top_k is {config.top_k}; expected at most the {len(surrogate.classes)} classes.")


def _note_size(recipe: SoftLabels, images: int, steps: int) -> None:
    """Tell the user how large the labels will be, where that is much."""
    rows = {"per_image": images, "per_view": steps * min(recipe.views.batch_size, images), "online": 0}[recipe.mode]
    width = 2 * recipe.classes if recipe.top_k is None else 4 * recipe.top_k
    if rows * width > LARGE:
        note(
            f"the labels will take {rows * width / 2**30:.1f} GiB; --top_k makes them smaller, --mode online needs none"
        )


def soft_batches(surrogate: SurrogateSet, teacher: nn.Module | None = None) -> Batches:
    """step -> (views (B,C,H,W) in [-1, 1], probabilities (B,K)), as the set's soft labels say.

    The same seed gives the same views and, up to the teacher's rounding, the same targets, whether they were stored
    (per_view) or are made now (online, which needs ``teacher``). per_image labels come with the images without
    augmentation, in the order of the same random stream.

    Args:
        surrogate: A set with soft labels.
        teacher: The network of the teacher, images (B,C,H,W) in [-1, 1] -> logits (B,K); for online labels alone.

    Raises:
        ArtifactError: no soft labels, no teacher for online ones, or a step beyond those that are stored.
    """
    soft = surrogate.soft_labels
    if soft is None:
        raise ArtifactError("The surrogate set has no soft labels; make some with `gendistill label`.")
    if soft.mode == "online" and teacher is None:
        raise ArtifactError("The set's soft labels are made online; pass the teacher.")
    images = decode(surrogate.images, surrogate.factor)
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
    batch = runtime.to_device(batch, next(teacher.parameters()).device)
    made = probabilities(teacher, batch, soft.temperature)
    return batch, unpacked(*packed(made, soft.top_k), soft.classes)
