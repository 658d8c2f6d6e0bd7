"""What a card says of a set, from its manifest and its soft labels: Markdown, and only what is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gendistill.surrogate.multi_formation import Factor, factor_of, named
from gendistill.surrogate.readme.layout import Layout
from gendistill.surrogate.readme.licences import UNKNOWN, terms
from gendistill.surrogate.readme.markdown import cell, code, plain

SHOWN = 20  # class names
METHODS = {
    "random": "real training images, drawn at random",
    "kmeans": "real training images, those nearest to the centres of k-means",
    "herding": "real training images, chosen by herding",
    "kcenter": "real training images, chosen by greedy k-centre",
    "generative": "sampled from a diffusion generator",
}
SPLITS = {"train": "training", "validation": "validation", "test": "test"}
REAL = ("random", "kmeans", "herding", "kcenter")
STEPS = {
    "patches": "cut to the crops that a teacher is surest of",
    "select": "chosen from a larger pool",
    "barycenter": "refined by matching a teacher's features",
    "pack": "shrunk, several to a stored image",
    "match": "carried on by distribution matching",
}


def listed(items: Iterable[object]) -> str:
    """1, 5 and 10."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def title(manifests: Sequence[dict[str, Any]]) -> str:
    """The data and the sizes, as text without markup."""
    names = dict.fromkeys(_short(m["data"]["name"]) for m in manifests if (m.get("data") or {}).get("name"))
    sizes = listed(dict.fromkeys(m["ipc"] for m in manifests))
    return f"{listed(names) if names else 'Surrogate set'} at IPC {sizes}"


def _short(name: object) -> str:
    """The last part of a path; ids of the Hub stay."""
    text = str(name)
    return Path(text).name or text if text.startswith(("/", ".", "~")) or text.count("/") > 1 else text


def intro(manifests: Sequence[dict[str, Any]]) -> str:
    """What it is, in two or three sentences."""
    first, several = manifests[0], len(manifests) > 1
    what = f"{len(manifests)} small sets of images" if several else "A small set of images"
    each = listed(dict.fromkeys(m["ipc"] for m in manifests))
    colour = "grey" if first["channels"] == 1 else "RGB"
    made = dict.fromkeys(filter(None, (_made(m) for m in manifests)))
    return (
        f"{what} to train classifiers on{_stands(first.get('data') or {})}: {each} for each of "
        f"{len(first['classes']):,} classes (IPC), {first['image_size']} x {first['image_size']} px, {colour}."
        + "".join(f" The images are {how}." for how in made)
    )


def _stands(data: dict[str, Any]) -> str:
    if not data.get("name"):
        return ""
    real = _total(data, "train")
    return f", in place of the {f'{real:,} ' if real else ''}training images of {code(data['name'])}"


def _made(manifest: dict[str, Any]) -> str:
    method, stages = manifest.get("method"), manifest.get("stages") or []
    if not method:
        return ""
    how = METHODS.get(method) or f"made by {code(method)}"
    if method == "generative" and "finetune" in stages:
        how += " that was fine-tuned on the training images"
    more = [words for step, words in STEPS.items() if step in stages]
    return listed([how, *more])


def sizes(config: str, manifest: dict[str, Any], soft: dict[str, Any]) -> list[str]:
    """Cells: set, stored images, decoded ones, bytes of images, bytes of labels, labels per byte of images."""
    factor, bytes_ = factor_of(manifest), manifest["bytes"]
    labels = 0 if soft.get("mode") == "online" else bytes_["labels"]
    decoded = f"{manifest['decoded_images']:,}" + (f" ({_views(factor)} in each)" if factor != 1 else "")
    ratio = f"{labels / bytes_['images']:.3g}" if bytes_["images"] else "0"
    return [cell(config), f"{manifest['stored_images']:,}", decoded, f"{bytes_['images']:,}", f"{labels:,}", ratio]


def _views(factor: Factor) -> str:
    return named(factor).replace("x", " x ")


def classes(manifest: dict[str, Any], format: str) -> str:
    """The names by index, and that folders differ from them where they do."""
    names, folders = manifest["classes"], manifest["folders"]
    text = ", ".join(f"{label} {code(name)}" for label, name in enumerate(names[:SHOWN]))
    more = f" and {len(names) - SHOWN:,} more, all of them in `manifest.json`" if len(names) > SHOWN else ""
    pairs = [(name, folder) for name, folder in zip(names, folders, strict=True) if name != folder]
    said = f"Classes by index: {text}{more}."
    if pairs and format == "imagefolder":
        name, folder = pairs[0]
        said += f" Folders are named after them where a file system allows it: {code(name)} is in {code(folder)}."
    return said


def loading(manifest: dict[str, Any], format: str) -> str:
    """What the scripts give."""
    if format == "ddranking":
        return "This script runs in the folder of this file; `images.pt` is what DD-Ranking takes as `image_tensor`."
    layout = Layout.of(manifest)
    given = (
        "Each script runs in the folder of this file. It gives images as float32 (C,H,W) in [-1, 1], as our "
        "classifiers see them, with labels that index `classes`."
    )
    if format == "imagefolder" and not (layout.sorted and layout.natural):
        given += " Readers sort the folders, each in its own way and not as the classes are; the scripts see to that."
    if layout.decoded:
        given += f" Every stored image is cut into {_views(layout.factor)} views and these are enlarged."
    return given


def shown_for(names: Sequence[str], groups: int) -> str:
    """Heading and first sentence of what is shown for the first of these sets, where there are others."""
    heading = f"### {listed(map(code, names))}\n\n" if groups > 1 else ""
    others = f"Shown for {code(names[0])}; put the name of another set in its place.\n\n" if len(names) > 1 else ""
    return heading + others


def soft_labels(manifest: dict[str, Any], record: dict[str, Any]) -> str:
    """How the labels came about, what they weigh, and whose they are."""
    mode, temperature, views = record["mode"], f"{record['temperature']:g}", record.get("averaged") or 1
    images, labels = manifest["bytes"]["images"], manifest["bytes"]["labels"]
    teacher = record.get("teacher") or {}
    each = {
        "per_image": "one for each image" + (f", the mean over {views} of its views" if views > 1 else ""),
        "per_view": f"one for every view of {record.get('steps') or 0:,} batches",
        "online": "made by the teacher, while a student trains, for the views of each batch",
    }[mode]
    kept = f"; of each the {record['top_k']} most probable classes are kept" if record.get("top_k") else ""
    weight = (
        f"They take {labels:,} bytes beside {images:,} bytes of images, {labels / max(images, 1):.3g} times as many."
    )
    if mode == "online":
        size = f" of {teacher['bytes']:,} bytes" if teacher.get("bytes") else ""
        weight = f"They take 0 bytes beside {images:,} bytes of images, but need the teacher{size}."
    return (
        f"The softmax of a teacher's logits divided by {temperature}, {each}{kept}. {weight}{_teacher(teacher)} A "
        f"student divides its logits by {temperature} as well."
    )


def _teacher(teacher: dict[str, Any]) -> str:
    name = f" a {code(teacher['network'])}" if teacher.get("network") else " a network"
    digest = f" with hash {code(teacher['hash'])}" if teacher.get("hash") else ""
    right = f", right on {100 * teacher['accuracy']:.1f} % of the validation images" if teacher.get("accuracy") else ""
    return f" The teacher is{name}{digest}{right}." if teacher else ""


def provenance(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table of how a set was made."""
    data, stages = manifest.get("data") or {}, manifest.get("stages") or []
    counts = [f"{_total(data, s):,} {w}" for s, w in SPLITS.items() if _total(data, s)]
    seconds = ", ".join(f"{plain(name)} {value:,.4g} s" for name, value in (manifest.get("seconds") or {}).items())
    versions = ", ".join(f"{plain(name)} {plain(value)}" for name, value in (manifest.get("versions") or {}).items())
    space = f" on {plain(manifest['space'])}" if manifest.get("space") else ""
    rows = {
        "data": cell(data["name"]) if data.get("name") else "",
        "real images": listed(counts) if counts else "",
        "fingerprint of the data": _code_or_nothing(data.get("fingerprint")),
        "method": cell(manifest["method"]) + space if manifest.get("method") else "",
        "stages": " → ".join(plain(stage) for stage in stages),
        "generator": _code_or_nothing(manifest.get("generator_hash")),
        "teacher": _code_or_nothing(manifest.get("teacher_hash")),
        "teacher of the soft labels": _code_or_nothing(manifest.get("label_teacher_hash")),
        "seed": str(manifest["seed"]) if manifest.get("seed") is not None else "",
        "time": seconds,
        "versions": versions,
    }
    return [(name, value) for name, value in rows.items() if value]


def _code_or_nothing(value: object) -> str:
    return cell(value) if value else ""


def _total(data: dict[str, Any], split: str) -> int:
    return sum((data.get("counts") or {}).get(split) or [])


def licence(manifests: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows: the generator and its base model, the data, and the set."""
    found = terms(manifests)

    def said(names: Sequence[str]) -> str:
        return listed("not known" if name == UNKNOWN else cell(name) for name in names)

    effective = said(found.effective) if found.effective else "not known, as it cannot be told from the above"
    if found.effective and UNKNOWN in (*found.generator, *found.data):
        effective += ", and what the unknown one asks besides"
    return [
        ("the generator and its base model", said(found.generator) if found.generator else "none took part"),
        ("the data", said(found.data)),
        ("**so this set**", effective),
    ]
