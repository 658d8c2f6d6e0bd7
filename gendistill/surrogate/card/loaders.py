"""Code that reads a set with other libraries: labels index ``classes``, images are as our classifiers see them.

Each script runs on its own in the folder of the card and ends with ``train`` and ``classes``; what the case does not
need is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gendistill.surrogate.manifest import Manifest, coding_of
from gendistill.surrogate.multi_formation import Factor, factor_of, views_in
from gendistill.surrogate.soft_labels import LabelRecord


@dataclass(frozen=True)
class Layout:
    """The folders of one set as readers see them; equal layouts are read by the same code.

    Attributes:
        grey: One channel.
        suffix: Ending of the image files.
        factor: Views along each side of a stored image, or several such numbers.
        renamed: Folders differ from class names.
        sorted: Lexicographic order of the folders is the classes' (datasets, torchvision).
        natural: So is the order that puts "2" before "10" (timm).
        single: There is one class, which datasets would not take for a label.
        distinct: No two classes have one name, which datasets refuses in a ClassLabel.
    """

    grey: bool
    suffix: str
    factor: Factor
    renamed: bool
    sorted: bool
    natural: bool
    single: bool
    distinct: bool

    @property
    def decoded(self) -> bool:
        """Images are not trained on as they are stored."""
        return self.factor != 1

    @property
    def opened_as_rgb(self) -> bool:
        """The images are grey, but Pillow makes RGB of their files."""
        return self.grey and self.suffix in (".webp", ".avif")

    @classmethod
    def of(cls, manifest: Manifest) -> Layout:
        classes, folders = manifest["classes"], manifest["folders"]
        return cls(
            grey=manifest["channels"] == 1,
            suffix=coding_of(manifest).suffix,
            factor=factor_of(manifest),
            renamed=classes != folders,
            sorted=_ascending(folders),
            natural=_ascending([_natural(name) for name in folders]),
            single=len(classes) == 1,
            distinct=len(set(classes)) == len(classes),
        )


def features(folders: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of an image folder as ``configs`` of a card tell them to datasets: labels in this order."""
    names = {str(label): name for label, name in enumerate(folders)}
    return [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": {"class_label": {"names": names}}}]


def _ascending(keys: Sequence[Any]) -> bool:
    return all(a < b for a, b in pairwise(keys))


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


SCALE = "# [0, 255] to [-1, 1]: x / 127.5 - 1"
DECODE = "from gendistill.surrogate.multi_formation import Decoded"


def script(standard: list[str], others: list[str], ours: list[str], *body: list[str]) -> str:
    """Imports in their three groups, then the lines of the body."""
    imports = "\n\n".join("\n".join(group) for group in (standard, others, ours) if group)
    return imports + "\n\n" + "\n".join(line for part in body for line in part)


def only(condition: object, *lines: str) -> list[str]:
    """The lines where they are needed."""
    return list(lines) if condition else []


def transforms(*, grey: bool = False) -> str:
    """The import for ``scaling``; ``grey`` where a reader makes RGB of all images."""
    return f"from torchvision.transforms import Compose, {'Grayscale, ' if grey else ''}Normalize, ToTensor"


def scaling(*, grey: bool = False) -> str:
    return f"transform = Compose([{'Grayscale(), ' if grey else ''}ToTensor(), Normalize(0.5, 0.5)])  {SCALE}"


def manifest(folder: str) -> str:
    return f'json.loads(Path({path(folder, "manifest.json")}).read_text(encoding="utf-8"))'


def path(folder: str, name: str = "") -> str:
    """A path below the card's folder, as a Python string."""
    return text("/".join(part for part in (folder, name) if part) or ".")


def text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


JSON = ("import json", "from pathlib import Path")


AVIF = ".avif"  # which datasets finds in no folder, torchvision and timm only where they are asked to


def readers(format: str, layout: Layout, folder: str, config: str | None, default: bool) -> Iterator[tuple[str, str]]:
    """(library, script) of every reader of the format.

    ``config`` is the set's name where there are several, ``default`` whether it is the one read where none is named.
    """
    if format == "ddranking":
        yield "torch", with_torch(layout)
        return
    if format == "parquet" or layout.suffix != AVIF:
        yield "datasets", with_datasets(format, layout, folder, config)
    if format == "imagefolder":
        yield "torchvision", with_torchvision(layout, folder)
        yield "timm", with_timm(layout, folder)
    elif format == "parquet" and default:
        yield "timm", with_timm_parquet(layout)


def loaded(format: str, layout: Layout, config: str | None) -> list[str]:
    """``train`` as datasets reads it, with the columns image and label."""
    name = f"{text(config)}, " if config else ""
    columns = f'{{"{layout.suffix[1:]}": "image", "cls": "label"}}'
    renamed = f".rename_columns({columns})" if format == "webdataset" else ""
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
        [f"from datasets import {'ClassLabel, ' if cast else ''}load_dataset", transforms(grey=layout.opened_as_rgb)],
        only(layout.decoded, DECODE),
        [scaling(grey=layout.opened_as_rgb), *loaded(format, layout, config), *names, f"train = {made}"],
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
    if layout.suffix == AVIF:
        transform += ', is_valid_file=lambda file: file.endswith(".avif")'
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
    unknown = layout.suffix in (".webp", AVIF)
    return script(
        only(mapped, *JSON),
        [
            "from timm.data import create_dataset",
            *only(unknown, "from timm.data.readers.img_extensions import add_img_extensions"),
            transforms(),
        ],
        only(layout.decoded, DECODE),
        [
            *only(unknown, f'add_img_extensions("{layout.suffix}")'),
            scaling(),
            *only(mapped, f"manifest = {manifest(folder)}", 'classes = manifest["classes"]'),
        ],
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


SET = "from gendistill.surrogate.set import SurrogateSet"
COLUMN = {"parquet": "soft_label", "webdataset": "npy"}


def soft_script(format: str, layout: Layout, folder: str, config: str | None, record: LabelRecord) -> str:
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


def _per_image(layout: Layout, folder: str, record: LabelRecord) -> str:
    """From the files: labels are in the order of the manifest, image by image."""
    top = record.get("top_k")
    probabilities = [
        f"labels = load_file({path(folder, 'soft_labels.safetensors')})",
        *only(
            not top, 'probabilities = labels["values"].float()', "probabilities /= probabilities.sum(1, keepdim=True)"
        ),
        *only(top, f'probabilities = unpacked(labels["values"], labels["indices"], {record["classes"]})'),
    ]
    paths = (
        f'[path for name in folders for path in sorted(Path({path(folder, "train")}, name).glob("*{layout.suffix}"))]'
    )
    return script(
        list(JSON),
        [
            "import torch",
            "from PIL import Image",
            "from safetensors.torch import load_file",
            transforms(grey=layout.opened_as_rgb),
        ],
        [
            *only(layout.decoded, DECODE),
            *only(top, "from gendistill.surrogate.soft_labels import unpacked"),
        ],
        [
            scaling(grey=layout.opened_as_rgb),
            f'folders = {manifest(folder)}["folders"]',
            f"paths = {paths}",
        ],
        _views("Image.open(path)", "path in paths", layout),
        [*probabilities, _loss(record)],
    )


def _column(format: str, layout: Layout, config: str | None, record: LabelRecord) -> str:
    """From the column that holds them, where the views of one image share a row."""
    flat = ".flatten(0, 1)" if layout.decoded else ""
    return script(
        ["from pathlib import Path"],
        ["import torch", "from datasets import load_dataset", transforms(grey=layout.opened_as_rgb)],
        only(layout.decoded, DECODE),
        [
            scaling(grey=layout.opened_as_rgb),
            *loaded(format, layout, config),
            *_views('row["image"]', "row in train", layout),
        ],
        [f'probabilities = torch.tensor(train["{COLUMN[format]}"][:]){flat}', _loss(record)],
    )


def _batches(format: str, layout: Layout, folder: str, config: str | None, record: LabelRecord) -> str:
    """From the stream of views that the labels belong to; online ones are made by their teacher."""
    online, columns = record["mode"] == "online", format != "imagefolder"
    read = [f"surrogate = SurrogateSet.load({path(folder)})"]
    if columns:
        pixels = 'image.convert("L")' if layout.opened_as_rgb else "image"
        count = f"len(images){f' * {views_in(layout.factor)}' if layout.decoded else ''}"
        read = [
            *loaded(format, layout, config),
            f'images = torch.stack([pil_to_tensor({pixels}) for image in train["image"]])',
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


def _loss(record: LabelRecord) -> str:
    return f"# loss = cross_entropy(network(images) / {record['temperature']:g}, probabilities)"
