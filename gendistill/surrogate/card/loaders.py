"""Code that reads a set with other libraries: labels index ``classes``, images are as our classifiers see them.

Each script runs on its own in the folder of the card and ends with ``train`` and ``classes``; what the case does not
need is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from gendistill.surrogate.readme.layout import Layout
from gendistill.surrogate.readme.scripts import DECODE, manifest, only, path, scaling, script, text, transforms

JSON = ("import json", "from pathlib import Path")


def readers(format: str, layout: Layout, folder: str, config: str | None, default: bool) -> Iterator[tuple[str, str]]:
    """(library, script) of every reader of the format.

    ``config`` is the set's name where there are several, ``default`` whether it is the one read where none is named.
    """
    if format == "ddranking":
        yield "torch", with_torch(layout)
        return
    yield "datasets", with_datasets(format, layout, folder, config)
    if format == "imagefolder":
        yield "torchvision", with_torchvision(layout, folder)
        yield "timm", with_timm(layout, folder)
    elif format == "parquet" and default:
        yield "timm", with_timm_parquet(layout)


def loaded(format: str, config: str | None) -> list[str]:
    """``train`` as datasets reads it, with the columns image and label."""
    name = f"{text(config)}, " if config else ""
    renamed = '.rename_columns({"png": "image", "cls": "label"})' if format == "webdataset" else ""
    return [f'train = load_dataset(str(Path.cwd()), {name}split="train"){renamed}']


def with_datasets(format: str, layout: Layout, folder: str, config: str | None) -> str:
    from_manifest = format == "webdataset" or (format == "imagefolder" and layout.renamed)
    cast = from_manifest and layout.distinct
    if from_manifest:
        names = [f'classes = {manifest(folder)}["classes"]']
        names += only(cast, 'train = train.cast_column("label", ClassLabel(names=classes))')
    else:
        names = ['classes = train.features["label"].names']
    if layout.decoded:
        made = f'Decoded([(row["image"], row["label"]) for row in train], {layout.factor}, transform)'
    else:
        made = 'train.with_transform(lambda rows: {**rows, "image": [transform(image) for image in rows["image"]]})'
    return script(
        [*only(from_manifest, "import json"), "from pathlib import Path"],
        [f"from datasets import {'ClassLabel, ' if cast else ''}load_dataset", transforms()],
        only(layout.decoded, DECODE),
        [scaling(), *loaded(format, config), *names, f"train = {made}"],
    )


def with_torchvision(layout: Layout, folder: str) -> str:
    mapped = layout.renamed or not layout.sorted
    reader = [
        f"manifest = {manifest(folder)}",
        "",
        "",
        "class Surrogate(ImageFolder):",
        "    def find_classes(self, directory):",
        '        return manifest["classes"], {name: label for label, name in enumerate(manifest["folders"])}',
        "",
        "",
    ]
    name, transform = ("Surrogate" if mapped else "ImageFolder"), (", transform" if not layout.decoded else "")
    return script(
        only(mapped, *JSON),
        ["from torchvision.datasets import ImageFolder", transforms(grey=layout.grey)],
        only(layout.decoded, DECODE),
        [scaling(grey=layout.grey), *only(mapped, *reader)],
        [f"train = {name}({path(folder, 'train')}{transform})", "classes = train.classes"],
        _decoded(layout),
    )


def with_timm(layout: Layout, folder: str) -> str:
    mapped = layout.renamed or not layout.natural
    options = [f"root={path(folder)}", 'split="train"', *only(not layout.natural, "class_map=labels")]
    return script(
        only(mapped, *JSON),
        ["from timm.data import create_dataset", transforms()],
        only(layout.decoded, DECODE),
        [scaling(), *only(mapped, f"manifest = {manifest(folder)}", 'classes = manifest["classes"]')],
        only(not layout.natural, 'labels = {name: label for label, name in enumerate(manifest["folders"])}'),
        _created('""', options, layout),
        only(not mapped, "classes = list(train.reader.class_to_idx)"),
        _decoded(layout),
    )


def with_timm_parquet(layout: Layout) -> str:
    return script(
        ["from pathlib import Path"],
        ["from timm.data import create_dataset", transforms()],
        only(layout.decoded, DECODE),
        [scaling(), *_created('f"hfds/{Path.cwd()}"', ['split="train"'], layout)],
        ["classes = list(train.reader.class_to_idx)", *_decoded(layout)],
    )


def with_torch(layout: Layout) -> str:
    """DD-Ranking's tensors: views, three channels, its own normalisation."""
    return script(
        list(JSON),
        ["import torch"],
        [],
        ['images = torch.load("images.pt", weights_only=True)  # float32 (N,3,H,W), normalised as DD-Ranking does'],
        ['labels = torch.load("labels.pt", weights_only=True)  # int64 (N,), or logits (N,K) of soft labels'],
        [f'classes = {manifest("")}["classes"]'],
    )


def _created(name: str, options: list[str], layout: Layout) -> list[str]:
    options = [*options, *only(layout.grey, 'input_img_mode="L"'), *only(not layout.decoded, "transform=transform")]
    return [f"train = create_dataset({', '.join([name, *options])})"]


def _decoded(layout: Layout) -> list[str]:
    return only(layout.decoded, f"train = Decoded(train, {layout.factor}, transform)")
