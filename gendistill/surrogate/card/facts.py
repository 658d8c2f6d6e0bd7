"""What a card says of a set, from its manifest and its soft labels: Markdown, and only what is known."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gendistill.data.dataset import DataFacts, data_arguments
from gendistill.surrogate.card.entry import CopyEvidence, EvaluationRow, Evidence
from gendistill.surrogate.card.loaders import Layout
from gendistill.surrogate.image_formats import PNG
from gendistill.surrogate.manifest import AS_DATA, Manifest, coding_of
from gendistill.surrogate.multi_formation import Factor, factor_name, factor_of
from gendistill.surrogate.soft_labels import LabelRecord, TeacherFacts

UNKNOWN, OTHER = "unknown", "other"
# may be put under further terms, so they add nothing to others, nor lift what is unknown
_PERMISSIVE = """
    apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 etalab-2.0 isc ncsa
    odc-by pddl postgresql unlicense zlib
"""
_OTHERS = """
    openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m openrail++ cc
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 epl-1.0 epl-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c ms-pl mpl-2.0 odbl osl-3.0 ofl-1.1 deepfloyd-if-license llama2
    gemma
"""
PERMISSIVE = frozenset(_PERMISSIVE.split())
HUB = PERMISSIVE | frozenset(_OTHERS.split())  # https://huggingface.co/docs/hub/repositories-licenses


@dataclass(frozen=True)
class Terms:
    """What is known: of generators (none for real images), of the data, and of the images that came from both."""

    generator: tuple[str, ...]
    data: tuple[str, ...]
    effective: tuple[str, ...]  # all of them apply; empty where that is unknown

    @property
    def front_matter(self) -> dict[str, str | list[str]]:
        """``license`` for the Hub, with a ``license_name`` where it knows no such licence."""
        if not self.effective:
            return {"license": UNKNOWN}
        if set(self.effective) <= HUB:
            return {"license": self.effective[0] if len(self.effective) == 1 else list(self.effective)}
        return {"license": OTHER, "license_name": _slug("-and-".join(self.effective))}


def terms(manifests: Sequence[Manifest]) -> Terms:
    """Of sets. A restricting licence holds although another one is unknown; permissive ones then do not."""
    licences = [manifest.get("licence") for manifest in manifests]
    generator = _distinct(_known(name) for name in licences if name != AS_DATA)
    data = _distinct(_known((manifest.get("data") or {}).get("licence")) for manifest in manifests)
    found = _distinct((*generator, *data))
    known = tuple(name for name in found if name != UNKNOWN)
    certain = UNKNOWN not in found or any(name not in PERMISSIVE for name in known)
    return Terms(generator, data, known if certain else ())


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _known(name: Any) -> str:
    text = str(name or "").strip()
    return text.lower() if text.lower() in HUB else text or UNKNOWN


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:96] or UNKNOWN


SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~&$!]|(?<!\w)_|_(?!\w))")
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, bidirectional marks, halves of a pair, line ends


def line(text: object) -> str:
    """One visible line: runs of space, line ends and what has no glyph become one space."""
    shown = (" " if _hidden(letter) else letter for letter in str(text))
    return " ".join("".join(shown).split())


def plain(text: object) -> str:
    """As it is written, without markup."""
    return SPECIAL.sub(r"\\\1", line(text))


def code(text: object) -> str:
    """An inline span of code, for running text."""
    shown = line(text)
    if not shown:
        return "(empty)"
    ticks = "`" * (_longest(shown, "`") + 1)
    pad = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def cell(text: object) -> str:
    """The same for a table, where a bar would end the cell."""
    return code(text).replace("|", "\\|")


def block(text: object, language: str = "") -> str:
    """A fenced block of code, line for line."""
    kept = "".join(letter for letter in str(text).replace("\r", "") if letter in "\n\t" or not _hidden(letter))
    fence = "`" * max(3, _longest(kept, "`") + 1)
    return f"{fence}{language}\n{kept}\n{fence}"


def _hidden(letter: str) -> bool:
    return unicodedata.category(letter) in HIDDEN


def _longest(text: str, letter: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(letter)}+", text)), default=0)


SHOWN = 20  # class names
METHODS = {
    "random": "real training images, drawn at random",
    "kmeans": "real training images, those nearest to the centres of k-means",
    "herding": "real training images, chosen by herding",
    "kcenter": "real training images, chosen by greedy k-centre",
    "difficulty": "real training images, the easy or the hard ones of a classifier's training",
    "generative": "sampled from a diffusion generator",
}
SPLITS = {"train": "training", "validation": "validation", "test": "test"}
REAL = ("random", "kmeans", "herding", "kcenter", "difficulty")
STEPS = {
    "patches": "replaced by the crops that a teacher is most confident about",
    "select": "chosen from a larger pool",
    "barycenter": "refined by matching a teacher's features",
    "pack": "shrunk, several to a stored image",
    "match": "continued by distribution matching",
}


def listed(items: Iterable[object]) -> str:
    """1, 5 and 10."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def title(manifests: Sequence[Manifest]) -> str:
    """The data and the sizes, as text without markup."""
    names = dict.fromkeys(_short(m["data"]["name"]) for m in manifests if (m.get("data") or {}).get("name"))
    sizes = listed(dict.fromkeys(m["ipc"] for m in manifests))
    return f"{listed(names) if names else 'Surrogate set'} at IPC {sizes}"


def _short(name: object) -> str:
    """The last part of a path; ids of the Hub stay."""
    text = str(name)
    return Path(text).name or text if text.startswith(("/", ".", "~")) or text.count("/") > 1 else text


def intro(manifests: Sequence[Manifest]) -> str:
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


def _stands(data: DataFacts) -> str:
    if not data.get("name"):
        return ""
    real = _total(data, "train")
    return f", in place of the {f'{real:,} ' if real else ''}training images of {code(data['name'])}"


def _made(manifest: Manifest) -> str:
    method, stages = manifest.get("method"), manifest.get("stages") or []
    if not method:
        return ""
    how = METHODS.get(method) or f"made by {code(method)}"
    if method == "generative" and "finetune" in stages:
        how += " that was fine-tuned on the training images"
    more = [words for step, words in STEPS.items() if step in stages]
    return listed([how, *more])


def sizes(config: str, manifest: Manifest, soft: LabelRecord) -> list[str]:
    """Cells: set, stored images, decoded ones, bytes of images, bytes of labels, labels per byte of images."""
    factor, bytes_ = factor_of(manifest), manifest["bytes"]
    labels = 0 if soft.get("mode") == "online" else bytes_["labels"]
    decoded = f"{manifest['decoded_images']:,}" + (f" ({_views(factor)} in each)" if factor != 1 else "")
    ratio = f"{labels / bytes_['images']:.3g}" if bytes_["images"] else "0"
    return [cell(config), f"{manifest['stored_images']:,}", decoded, f"{bytes_['images']:,}", f"{labels:,}", ratio]


def _views(factor: Factor) -> str:
    return factor_name(factor).replace("x", " x ")


def classes(manifest: Manifest, format: str) -> str:
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


def loading(manifest: Manifest, format: str) -> str:
    """What the scripts give."""
    if format == "ddranking":
        return "This script runs in the folder of this file; `images.pt` is what DD-Ranking takes as `image_tensor`."
    layout = Layout.of(manifest)
    text = (
        "Each script runs in the folder of this file. It gives images as float32 (C,H,W) in [-1, 1], as our "
        "classifiers see them, with labels that index `classes`."
    )
    if format == "imagefolder" and not (layout.sorted and layout.natural):
        text += " Readers sort the folders in other orders than that of the classes; the scripts correct this."
    if layout.decoded:
        text += f" Every stored image is cut into {_views(layout.factor)} views and these are enlarged, by code of the"
        text += " package gendistill, which must be installed."
    return text


def shown_for(names: Sequence[str], groups: int) -> str:
    """Heading and first sentence of what is shown for the first of these sets, where there are others."""
    heading = f"### {listed(map(code, names))}\n\n" if groups > 1 else ""
    others = f"Shown for {code(names[0])}; put the name of another set in its place.\n\n" if len(names) > 1 else ""
    return heading + others


def soft_labels(manifest: Manifest, record: LabelRecord) -> str:
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


def _teacher(teacher: TeacherFacts) -> str:
    name = f" a {code(teacher['network'])}" if teacher.get("network") else " a network"
    digest = f" with hash {code(teacher['hash'])}" if teacher.get("hash") else ""
    accuracy = teacher.get("accuracy")
    right = f", right on {100 * accuracy:.1f} % of the validation images" if accuracy else ""
    return f" The teacher is{name}{digest}{right}." if teacher else ""


def provenance(manifest: Manifest) -> list[tuple[str, str]]:
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
        "image format": _coding(manifest),
        "seed": str(manifest["seed"]) if manifest.get("seed") is not None else "",
        "time": seconds,
        "versions": versions,
    }
    return [(name, value) for name, value in rows.items() if value]


def _coding(manifest: Manifest) -> str:
    """How the images are coded, and what wrote them; nothing for PNG."""
    coding = coding_of(manifest)
    if coding == PNG:
        return ""
    lossy = "" if coding.format.lossless else "; pixels are those that the files decode to"
    return f"{coding}, by {listed(f'{plain(name)} {plain(value)}' for name, value in coding.coder.items())}{lossy}"


def _code_or_nothing(value: object) -> str:
    return cell(value) if value else ""


def _total(data: DataFacts, split: str) -> int:
    return sum((data.get("counts") or {}).get(split) or [])


def licence(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    """Rows: the generator and its base model, the data, and the set."""
    found = terms(manifests)

    def said(names: Sequence[str]) -> str:
        return listed("not known" if name == UNKNOWN else cell(name) for name in names)

    effective = said(found.effective) if found.effective else "not known, because the licences above do not decide it"
    if found.effective and UNKNOWN in (*found.generator, *found.data):
        effective += ", and the terms of the unknown licence"
    return [
        ("the generator and its base model", said(found.generator) if found.generator else "no generator was used"),
        ("the data", said(found.data)),
        ("**so this set**", effective),
    ]


STAGES = {"base": "before minimax", "samples": "sampled", "select": "selected", "refined": "refined"}


def evaluation_command(manifest: Manifest, folder: str, format: str) -> str:
    """What would evaluate a set that was not."""
    set_, target = _place(folder, format), f"{_beside(format)}evaluation"
    return f"gendistill evaluate --surrogate {set_}{_data(manifest)} --output_dir {target}"


def copies_command(manifest: Manifest, folder: str, format: str) -> str:
    """What would look for copies."""
    return f"gendistill show {_place(folder, format)}{_data(manifest)} --output_dir {_beside(format)}looks"


def verification(folders: Sequence[str]) -> str:
    """Commands that compare every file with what was written; those of b2sum need nothing of ours."""
    b2sum = [f"(cd {shlex.quote(name)} && b2sum -c CHECKSUMS)" if name else "b2sum -c CHECKSUMS" for name in folders]
    return "\n".join([f"gendistill verify {shlex.join(name or '.' for name in folders)}", *b2sum])


def privacy(manifests: Sequence[Manifest]) -> str:
    """What a copy check does not say."""
    real = any(manifest.get("method") in REAL for manifest in manifests)
    expected = "The images are real training images, so copies are what to expect. " if real else ""
    return expected + "The check finds copied images; it is no claim of privacy."


def _place(folder: str, format: str) -> str:
    """Where the set is; commands do not read it in formats of other tools."""
    return shlex.quote(folder or ".") if format == "imagefolder" else "SET"


def _beside(format: str) -> str:
    """Not into the set's own folder."""
    return "../" if format == "imagefolder" else ""


def _data(manifest: Manifest) -> str:
    return f" {arguments}" if (arguments := data_arguments(manifest.get("data") or {})) else ""


class EvaluationTable(NamedTuple):
    """A table of the card: a sentence above it, its cells, and the command that evaluated."""

    words: str
    rows: list[list[str]]
    command: str


def evaluations(found: Sequence[Evidence]) -> list[EvaluationTable]:
    """Tables of rows, one for each protocol and command; a row of several sets' evidence comes once."""
    tables: dict[tuple[str, str, str], list[EvaluationRow]] = {}
    for part in filter(None, (evidence.get("evaluation") for evidence in found)):
        protocol, data, command = (str(part.get(name) or "") for name in ("protocol", "data", "command"))
        rows = tables.setdefault((protocol, data, command), [])
        rows += [row for row in part["rows"] if row not in rows]
    return [
        EvaluationTable(_protocol(protocol, data, rows), [_row(row) for row in sorted(rows, key=_place_of)], command)
        for (protocol, data, command), rows in tables.items()
    ]


def _place_of(row: EvaluationRow) -> tuple[Any, ...]:
    """By size, and what has the same labels together; the full data last."""
    return row["ipc"] is None, row["ipc"] or 0, row.get("recipe") or ""


def _protocol(protocol: str, data: str, rows: Sequence[EvaluationRow]) -> str:
    networks = dict.fromkeys(str(row["network"]) for row in rows if row.get("network"))
    runs = sorted({len(row["accuracy"]) for row in rows if row.get("accuracy")})
    return (
        "Accuracy"
        + (f" of {listed(map(code, networks))}" if networks else "")
        + " on the test images"
        + (f" of {code(data)}" if data else "")
        + (f", by the protocol {code(protocol)}" if protocol else "")
        + ": mean ± standard deviation"
        + (f" of {listed(runs)} trainings" if runs else "")
        + ", and the 95 % interval of the difference to as many random real images. Sets of this repository are bold."
    )


def _row(row: EvaluationRow) -> list[str]:
    method = {"full": "all real images", "random": "random real images"}.get(row["method"]) or cell(row["method"])
    space = row.get("space") and (row["space"] if row["method"] == "random" else f"on {row['space']}")
    details = [STAGES.get(row.get("stage") or "", row.get("stage")), space]
    name = ", ".join([method, *(plain(detail) for detail in details if detail)])
    low_high = row.get("ci95_vs_random")
    return [
        f"**{name}**" if row.get("set") else name,
        plain(row.get("recipe") or row.get("labels") or "hard"),
        "all" if row["ipc"] is None else f"{row['ipc']:,}",
        _accuracy(row),
        f"{100 * low_high[0]:+.1f} to {100 * low_high[1]:+.1f}".replace("-", "−") if low_high else "",
        plain(row.get("verdict") or ""),
    ]


def _accuracy(row: EvaluationRow) -> str:
    mean, std = row.get("mean"), row.get("std")
    if mean is None:
        return ""
    return f"{100 * mean:.1f}" + ("" if std is None or math.isnan(std) else f" ± {100 * std:.1f}")


def copies(config: str, found: CopyEvidence) -> str:
    """What the copy check found of one set."""
    exact, images = found.get("exact") or {}, found["images"]
    counts = listed(f"{exact[split]:,} of {words} images" for split, words in SPLITS.items() if split in exact)
    near, measured = found["near"], found.get("measured") or images
    unit = " grey levels" if found.get("space") == "pixels" else ""
    return (
        f"Of the {images:,} images of {code(config)}, exact copies are: {counts}. By distance between "
        f"{plain(found['space'])}, {near:,} of {measured:,} ({100 * near / measured:.0f} %) are closer to a training "
        "image than 99 % of held-out real images are. The median distance to the closest training image is "
        f"{found['median']:.3g}{unit}, that of held-out real images {found['held_out_median']:.3g}{unit}."
    )
