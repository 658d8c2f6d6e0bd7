"""Code that puts a set's images and its soft labels together, each script on its own in the folder of the card."""

from __future__ import annotations

from typing import Any

from gendistill.surrogate.multi_formation import views_in
from gendistill.surrogate.readme.layout import Layout
from gendistill.surrogate.card.loaders import JSON, loaded
from gendistill.surrogate.readme.scripts import DECODE, manifest, only, path, scaling, script, transforms

SET = "from gendistill.surrogate.set import SurrogateSet"
COLUMN = {"parquet": "soft_label", "webdataset": "npy"}


def soft_script(format: str, layout: Layout, folder: str, config: str | None, record: dict[str, Any]) -> str:
    """It ends with ``images`` and ``probabilities`` of all views (per_image) or of one batch after another.

    ``record`` is soft_labels.json. Empty for ddranking, whose labels.pt is all that its readers take.
    """
    if format == "ddranking":
        return ""
    if record["mode"] != "per_image":
        return _batches(format, layout, folder, config, record)
    if format == "imagefolder":
        return _per_image(layout, folder, record)
    return _column(format, layout, config, record)


def _per_image(layout: Layout, folder: str, record: dict[str, Any]) -> str:
    """From the files: labels are in the order of the manifest, image by image."""
    top = record.get("top_k")
    probabilities = [
        f"labels = load_file({path(folder, 'soft_labels.safetensors')})",
        *only(
            not top, 'probabilities = labels["values"].float()', "probabilities /= probabilities.sum(1, keepdim=True)"
        ),
        *only(top, f'probabilities = unpacked(labels["values"], labels["indices"], {record["classes"]})'),
    ]
    paths = f'[path for name in folders for path in sorted(Path({path(folder, "train")}, name).glob("*.png"))]'
    return script(
        list(JSON),
        ["import torch", "from PIL import Image", "from safetensors.torch import load_file", transforms()],
        [
            *only(layout.decoded, DECODE),
            *only(top, "from gendistill.surrogate.soft_labels import unpacked"),
        ],
        [scaling(), f'folders = {manifest(folder)}["folders"]', f"paths = {paths}"],
        _views("Image.open(path)", "path in paths", layout),
        [*probabilities, _loss(record)],
    )


def _column(format: str, layout: Layout, config: str | None, record: dict[str, Any]) -> str:
    """From the column that holds them, where the views of one image share a row."""
    flat = ".flatten(0, 1)" if layout.decoded else ""
    return script(
        ["from pathlib import Path"],
        ["import torch", "from datasets import load_dataset", transforms()],
        only(layout.decoded, DECODE),
        [scaling(), *loaded(format, config), *_views('row["image"]', "row in train", layout)],
        [f'probabilities = torch.tensor(train["{COLUMN[format]}"][:]){flat}', _loss(record)],
    )


def _batches(format: str, layout: Layout, folder: str, config: str | None, record: dict[str, Any]) -> str:
    """From the stream of views that the labels belong to; online ones are made by their teacher."""
    online, columns = record["mode"] == "online", format != "imagefolder"
    read = [f"surrogate = SurrogateSet.load({path(folder)})"]
    if columns:
        count = f"len(images){f' * {views_in(layout.factor)}' if layout.decoded else ''}"
        read = [
            *loaded(format, config),
            'images = torch.stack([pil_to_tensor(image) for image in train["image"]])',
            f'classes = tuple({manifest(folder)}["classes"])',
            f"soft_labels = SoftLabels.load(Path({path(folder)}), {count})",
            'labels = torch.tensor(train["label"][:])',
            f"surrogate = SurrogateSet(images, labels, classes, {{}}, {layout.factor}, soft_labels)",
        ]
    return script(
        only(columns, *JSON),
        [
            *only(columns, "import torch", "from datasets import load_dataset"),
            *only(columns, "from torchvision.transforms.functional import pil_to_tensor"),
        ],
        [
            "from gendistill.networks.soft_labelling import soft_batches",
            *only(online, "from gendistill.networks.teacher import Teacher"),
            *only(columns, "from gendistill.surrogate.soft_labels import SoftLabels"),
            SET,
        ],
        [
            *read,
            *only(online, 'teacher = Teacher.from_pretrained("teacher").network  # its folder, put here'),
            f"batches = soft_batches(surrogate{', teacher' if online else ''})",
            f"for step in range({record.get('steps') or 100}):",
            "    images, probabilities = batches(step)  # (B,C,H,W) in [-1, 1] and (B,K)",
            f"    {_loss(record)}",
        ],
    )


def _views(image: str, each: str, layout: Layout) -> list[str]:
    if not layout.decoded:
        return [f"images = torch.stack([transform({image}) for {each}])"]
    return [
        f"views = Decoded([({image}, 0) for {each}], {layout.factor}, transform)",
        "images = torch.stack([view for view, _ in views])",
    ]


def _loss(record: dict[str, Any]) -> str:
    return f"# loss = cross_entropy(network(images) / {record['temperature']:g}, probabilities)"
