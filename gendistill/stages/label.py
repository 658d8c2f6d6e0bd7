"""Label stage: surrogate set + teacher -> the same images with soft labels."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill import runtime
from gendistill.config import LabelConfig, stage_options
from gendistill.config.commands import LabelCommand
from gendistill.data.crops import Views
from gendistill.environment import command_line, versions
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.map_classes import check_manifest_labels
from gendistill.networks.soft_labelling import ROWS, generate_labels
from gendistill.networks.teacher import Teacher
from gendistill.progress import follow, note
from gendistill.seeding import derive
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings
from gendistill.surrogate.hub import find_surrogate
from gendistill.surrogate.manifest import image_paths, read_manifest
from gendistill.surrogate.set import SurrogateSet, link
from gendistill.surrogate.soft_labels import SoftLabels

LARGE = 1 << 30  # bytes of labels worth a word before they are made


def label_set(
    surrogate: SurrogateSet,
    teacher: Teacher,
    config: LabelConfig | None = None,
    *,
    seed: int = 0,
    folder: StageFolder | None = None,
) -> SurrogateSet:
    """The set with soft labels of its decoded views; those it had are replaced."""
    config, start = config or LabelConfig(), time.perf_counter()
    check_inputs(surrogate, teacher, config)
    images = surrogate.split.images
    recipe = SoftLabels(
        config.mode,
        len(surrogate.classes),
        config.temperature,
        Views(
            seed=derive(seed, "label"),
            batch_size=config.batch_size,
            min_crop=config.min_crop,
            flip=config.flip,
            cutmix=config.cutmix,
        ),
        teacher.facts(),
        config.top_k,
        config.views,
    )
    _announce(recipe, len(images), config.steps)
    loop = generate_labels(recipe, teacher.network.to(runtime.device()), images, config.steps)
    total = {"per_image": -(-len(images) // ROWS), "per_view": config.steps, "online": 0}[config.mode]
    labels = follow(loop, "label", total, log=folder.log if folder else None, stage="label")
    meta: dict[str, Any] = surrogate.meta | {
        "stages": [*surrogate.meta.get("stages", []), "label"],
        "soft_labels": {"mode": config.mode, "temperature": config.temperature, "top_k": config.top_k, "seed": seed},
        "label_teacher_hash": teacher.hash(),
        "seconds": {**surrogate.meta.get("seconds", {}), "label": round(time.perf_counter() - start, 2)},
        "command": command_line(),
        "versions": versions(),
    }
    return replace(surrogate, meta=meta, soft_labels=labels)


def check_inputs(surrogate: SurrogateSet, teacher: Teacher, config: LabelConfig) -> None:
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


def _announce(recipe: SoftLabels, images: int, steps: int) -> None:
    """Say how large the labels will be, where that is large."""
    rows = {"per_image": images, "per_view": steps * min(recipe.views.batch_size, images), "online": 0}[recipe.mode]
    width = 2 * recipe.classes if recipe.top_k is None else 4 * recipe.top_k
    if rows * width > LARGE:
        note(
            f"the labels will take {rows * width / 2**30:.1f} GiB; --top_k makes them smaller, --mode online needs none"
        )


def run_stage(surrogate_dir: Path, teacher_dir: Path, config: LabelConfig, target: Path, *, seed: int) -> Path:
    """Write ``target``, a surrogate folder, unless it is there already, made with the same settings."""
    surrogate, teacher = SurrogateSet.load(surrogate_dir), Teacher.from_pretrained(teacher_dir)
    check_inputs(surrogate, teacher, config)
    settings = stage_settings(config, seed, surrogate=surrogate.content_hash(), teacher=teacher.hash())
    if finished(target, "label", settings):
        return target
    with stage_folder(target, "label", settings) as folder:
        made = label_set(surrogate, teacher, config, seed=seed, folder=folder)
        for path in (p for paths in image_paths(surrogate_dir, read_manifest(surrogate_dir)) for p in paths):
            linked = folder.path / path.relative_to(surrogate_dir)
            linked.parent.mkdir(parents=True, exist_ok=True)
            link(path, linked)
        folder.facts["bytes"] = made.finish(folder.path)["bytes"]
    return target


def summary(folder: Path) -> str:
    """Bytes of the labels beside those of the images, and the teacher's where it is needed to train."""
    manifest = read_manifest(folder)
    sizes, soft = manifest["bytes"], SoftLabels.load(folder, manifest["decoded_images"])
    text = (
        f"{folder}: {sizes['labels']:,} bytes of soft labels beside {sizes['images']:,} bytes of images "
        f"({sizes['labels'] / sizes['images']:.2g} x)"
    )
    if soft is not None and soft.mode == "online":
        text += f"; the teacher of {soft.teacher['bytes']:,} bytes makes them again while training"
    return text


def main(command: LabelCommand) -> None:
    runtime.check_processes(1)
    with output(command, command.surrogate, command.teacher):
        surrogate = find_surrogate(command.surrogate, command.revision)
        config = stage_options(command, LabelConfig)
        run_stage(surrogate, command.teacher, config, command.output_dir, seed=command.seed)
    print(summary(command.output_dir))
