"""A teacher's soft labels, softmax(logits / temperature): of images, of the views of every batch, or made online.

Legend: N decoded images, K classes, B images a batch, C,H,W an image.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from gendistill import parallel, runtime
from gendistill.config import LabelConfig, PerImage, PerView, kind_of, to_dict
from gendistill.data.crops import Views
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError, require_type
from gendistill.generator.class_mapping import check_manifest_labels
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import WorkFolder
from gendistill.networks.label_blocks import LABELS, Batch, LabelBlocks
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


def generate_labels(
    recipe: SoftLabels,
    teacher: nn.Module,
    images: Tensor,
    steps: int,
    *,
    shared: bool = False,
    blocks: LabelBlocks | None = None,
) -> Generator[LabelRecord, None, SoftLabels]:
    """The labels that ``recipe`` (without values) describes for decoded uint8 ``images``; yields a record a batch.

    With ``shared`` every process calls this alike: each labels every n-th batch, and all get the labels of all. Batches
    that ``blocks`` has are not labelled again.
    """
    if recipe.mode == "online":
        return recipe

    def batch(number: int) -> Batch:
        if recipe.mode == "per_image":
            return {"values": _image_batch(recipe, teacher, images, number)}
        return _view_batch(recipe, teacher, images, number)

    own: dict[int, Batch] = {}
    kept = blocks.kept if blocks else {}
    for number in _missing(batch_count(recipe, len(images), steps), kept, shared):
        own[number] = batch(number)
        if blocks:
            blocks.add(number, own[number])
        done = number + 1
        yield {"step": done} if recipe.mode == "per_view" else {"images": min(done * ROWS, len(images))}
    found = {**kept, **(parallel.gathered(own) if shared else own)}
    values = [found[i]["values"] for i in sorted(found)]
    if recipe.mode == "per_image":
        means, indices = packed(torch.cat(values), recipe.top_k)
        return replace(recipe, values=means, indices=indices)
    where = torch.stack([found[i]["indices"] for i in sorted(found)]) if recipe.top_k is not None else None
    return replace(recipe, values=torch.stack(values), indices=where)


def batch_count(recipe: SoftLabels, images: int, steps: int) -> int:
    """How many batches are labelled."""
    return {"per_image": -(-images // ROWS), "per_view": steps, "online": 0}[recipe.mode]


def _missing(count: int, kept: Collection[int], shared: bool) -> list[int]:
    """The batches that this process labels."""
    left = [number for number in range(count) if number not in kept]
    return [left[i] for i in parallel.share(len(left))] if shared else left


def _image_batch(recipe: SoftLabels, teacher: nn.Module, images: Tensor, number: int) -> Tensor:
    """Mean probabilities (B,K) over the views of a batch of images; the first view is the image itself, and view v of
    batch b is step ``v * batches + b`` of the views."""
    device, batches = next(teacher.parameters()).device, -(-len(images) // ROWS)
    batch = to_float(runtime.to_device(images[number * ROWS : (number + 1) * ROWS], device))
    total = probabilities(teacher, batch, recipe.temperature)
    for v in range(1, recipe.averaged):
        total += probabilities(teacher, recipe.views.of(batch, v * batches + number), recipe.temperature)
    return (total / recipe.averaged).cpu()


def _view_batch(recipe: SoftLabels, teacher: nn.Module, images: Tensor, step: int) -> Batch:
    """Values (B,K or k) fp16 of the batch of views at a step, and their indices where some classes are kept."""
    batch, _ = recipe.views.batch(images, step)
    batch = runtime.to_device(batch, next(teacher.parameters()).device)
    kept, where = packed(probabilities(teacher, batch, recipe.temperature), recipe.top_k)
    return {"values": kept.cpu()} | ({} if where is None else {"indices": where.cpu()})


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
        folder: Where the log and finished batches go; a labelling that was interrupted there makes only the others.

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
    blocks = _blocks(folder, surrogate, teacher, config, seed)
    loop = generate_labels(recipe, teacher.network.to(runtime.device()), images, steps, shared=True, blocks=blocks)
    count, kept = batch_count(recipe, len(images), steps), len(blocks.kept) if blocks else 0
    log, total = folder.log if folder and runtime.processes().is_main_process else None, len(parallel.share(count))
    if log and kept:
        log({"stage": "label", "resumed_at": kept})
    labels = follow(loop, "label", total, start=total - len(parallel.share(count - kept)), log=log, stage="label")
    spent = {f"label_{name}": value for name, value in teacher.meta.get("training_seconds", {}).items()}
    what, remedy = "The soft labels of this teacher are", "Train the teacher again with a lower learning rate."
    runtime.refuse_divergence(what, labels.tensors.values(), remedy)
    labels.check_values("The soft labels of this teacher")
    meta = add_step(
        surrogate.meta,
        "label",
        time.perf_counter() - start + (blocks.seconds if blocks else 0.0),
        soft_labels={"mode": recipe.mode, "temperature": config.temperature, "top_k": config.top_k, "seed": seed},
        label_teacher_hash=teacher.hash(),
        shared_seconds={**surrogate.meta.get("shared_seconds", {}), **spent},
    )
    return replace(surrogate, meta=meta, soft_labels=labels)


def _blocks(
    folder: WorkFolder | None, surrogate: SurrogateSet, teacher: Teacher, config: LabelConfig, seed: int
) -> LabelBlocks | None:
    """In a folder that is named by a hash of all that decides the labels."""
    if folder is None:
        return None
    decisive = [hash_tensors({"images": surrogate.images}), surrogate.factor, teacher.hash(), to_dict(config), seed]
    return LabelBlocks(folder.path / LABELS / hash_json(decisive))


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
