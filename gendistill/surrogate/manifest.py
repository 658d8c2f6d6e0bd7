"""manifest.json: what a set is and where it came from; CHECKSUMS: whether it is still that, also for ``b2sum -c``."""

from __future__ import annotations

import hashlib
import math
import os
import re
import reprlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, Required, TypedDict, cast
from urllib.parse import quote, unquote

from gendistill.data.dataset import DataFacts
from gendistill.data.files import leads_to
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_bytes
from gendistill.io import inside, is_relative, leading_outside, read_json, read_text, write_json, write_text
from gendistill.progress import track
from gendistill.surrogate import soft_labels
from gendistill.surrogate.image_formats import PNG, SUFFIXES, Coding, CodingRecord, check_record
from gendistill.surrogate.multi_formation import Factor, factor_of, sides, views_in
from gendistill.surrogate.soft_labels import LabelRecord

TRAIN = "train"
LONGEST_NAME = 120  # bytes of a folder name that every file system takes, after quoting
# datasets skips a leading __, class-00000 is the stand-in of an unusable name, and Windows keeps the devices' names
RESERVED = re.compile(r"__|class-\d{5}|(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def image_name(index: int, suffix: str = PNG.suffix) -> str:
    return f"{index:05d}{suffix}"


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """One safe folder name a class; no two differ only in case, which some file systems ignore.

    Names are percent-encoded where needed; the index stands in for what is too long, empty or taken.
    """
    taken: set[str] = set()
    found = []
    for label, name in enumerate(classes):
        safe = _quoted(name)
        if not safe or len(safe) > LONGEST_NAME or unquote(safe) != name or safe.casefold() in taken:
            safe = f"class-{label:05d}"
        taken.add(safe.casefold())
        found.append(safe)
    return tuple(found)


def _quoted(name: str) -> str:
    safe = quote(name, safe=" !#$&'()+,-;=@[]^_`{}~.", errors="replace").strip()
    if safe.startswith(".") or RESERVED.match(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    return safe[:-1] + "%2E" if safe.endswith(".") else safe  # which Windows cuts off


AS_DATA = "as the data"  # the licence of images that were made without a generator


class GateCounts(TypedDict):
    """Of the images of a refinement: all, those that kept it, and those refused one by one; and the classes refused."""

    images: int
    kept: int
    refused_images: NotRequired[int]
    refused_classes: int


class Provenance(TypedDict, total=False):
    """How a set was made: what a manifest holds besides what can be counted. Every key can be missing.

    Attributes:
        method: The name of the distiller.
        stages: The steps in order, such as finetune, sample, select, barycenter, pack, match, label.
        stage: Which of a method's sets it is: base, samples, select, refined; None where a method has one.
        space: What the method compared images by, such as pixels or teacher features.
        seed: Of all random draws.
        data: ``RealData.describe()`` of the real images.
        licence: Of the generator, or ``as the data``.
        generator_hash: Of the generator.
        teacher_hash: Of the teacher, or of each of several.
        teacher_data: What teachers were trained on, where it was not ``data``.
        label_teacher_hash: Of the teacher of the soft labels.
        soft_labels: Mode, temperature, top_k and seed of the soft labels.
        seconds: By step.
        shared_seconds: Of what other sets use too, by part: training of the ``generator``, the ``teacher`` and the
            ``label_teacher``, the ``difficulty`` of the images, and making the ``start_set`` of a matching method.
        command: The command line.
        versions: Of the libraries.
        label_map: The generator's condition of each class.
        conditions: How many conditions the generator has.
        sampling: The options of sampling that decide an image.
        iterations: Of a matching method.
        matching: The options of a matching method.
        difficulty: The options of method difficulty.
        options: By step, the other options that decide the images: of ``patches``, ``select``, ``refine``, ``wmdd`` and
            of methods that a plug-in adds.
        start: Content hash of the set that a method started from.
        selection: ``easy`` or ``hard``, where a selection was by the error of the teachers.
        w2: Squared Wasserstein distances to the real images: before, after, packed, matched, and once stored by a lossy
            format.
        gate: What the acceptance test of refinement kept.
        validation: Accuracies on validation images after a short training on the ``set``, its images before the
            optimisation (``start``) and as many ``random`` real ones.
        mixed_precision: Of refinement.
        bytes: Of ``images`` and of soft ``labels`` on disk; always there in a manifest.
        latent_space: The codec in whose latents the images were refined.
        compression_aware: The coding as which the steps of the last optimisation saw the images.
        recoded_from: How the images were coded before an export in another format.
        name: Of a plain folder of images, which has no manifest.
        missing_classes: Of such a folder.
        problems: What was skipped or altered while such a folder was read.
    """

    method: str
    stages: list[str]
    stage: str | None
    space: str | None
    seed: int
    data: DataFacts
    licence: str
    generator_hash: str
    teacher_hash: str | list[str]
    teacher_data: list[DataFacts]
    label_teacher_hash: str
    soft_labels: LabelRecord
    seconds: dict[str, float]
    shared_seconds: dict[str, float]
    command: str
    versions: dict[str, str]
    label_map: dict[str, int]
    conditions: int
    sampling: dict[str, object]
    iterations: int
    matching: dict[str, object]
    difficulty: dict[str, object]
    options: dict[str, dict[str, object]]
    start: str
    selection: str
    w2: dict[str, float]
    gate: GateCounts
    validation: dict[str, float]
    mixed_precision: str
    bytes: dict[str, int]
    latent_space: dict[str, object]
    compression_aware: CodingRecord
    recoded_from: str
    name: str
    missing_classes: list[str]
    problems: list[str]


class Manifest(Provenance, total=False):
    """manifest.json: the provenance of a set and what was counted when it was written, which is always there.

    Attributes:
        format: Version of the file.
        classes: Names in index order.
        folders: Folder name of each class below ``train``.
        counts: Stored images of each class.
        ipc: Stored images per class, rounded down where classes differ.
        image_size: Side in pixels.
        channels: 1 or 3.
        stored_images: Their number.
        decoded_images: Training images in them.
        factor: Views along each side of a stored image, or several such numbers.
        checksums: BLAKE2b-128 of CHECKSUMS.
        weights: Of every stored image in training; missing where all are 1.
        image_format: How the images are coded; missing where they are PNG.
    """

    format: Required[int]
    classes: Required[list[str]]
    folders: Required[list[str]]
    counts: Required[list[int]]
    ipc: Required[int]
    image_size: Required[int]
    channels: Required[int]
    stored_images: Required[int]
    decoded_images: Required[int]
    factor: Required[int | list[int]]
    checksums: Required[str]
    weights: list[float]
    image_format: CodingRecord


LIBRARIES = ("gendistill", "torch", "diffusers", "accelerate", "POT", "scikit-learn", "numpy")


def command_line() -> str:
    """The command of this process, to be repeated by a reader of a manifest."""
    program = Path(sys.argv[0]).name
    return shlex.join(["gendistill" if program in ("gendistill", "__main__.py") else program, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """The installed versions of the libraries that decide a result."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def provenance(
    method: str,
    *,
    seed: int,
    data: Mapping[str, Any],
    seconds: Mapping[str, float],
    licence: str = AS_DATA,
    stages: Sequence[str] = (),
    stage: str | None = None,
    **more: Any,
) -> Provenance:
    """The provenance of a new set: the arguments (``more`` are further keys), this command and the versions."""
    found = {
        "method": method,
        "stages": list(stages),
        "stage": stage,
        "seed": seed,
        **more,
        "data": dict(data),
        "licence": licence,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "command": command_line(),
        "versions": versions(),
    }
    return cast(Provenance, found)


def add_step(meta: Provenance, name: str | None, seconds: float = 0.0, **more: Any) -> Provenance:
    """The provenance ``meta`` after one more step of ``seconds``; without a ``name`` no step is listed."""
    step = {name: round(seconds, 2)} if name else {}
    found = {
        **meta,
        "stages": [*meta.get("stages", []), *step],
        **more,
        "seconds": {**meta.get("seconds", {}), **step},
        "command": command_line(),
        "versions": versions(),
    }
    return cast(Provenance, found)


def with_options(meta: Provenance, step: str, options: Mapping[str, object]) -> Provenance:
    """The provenance with the options of ``step`` that decide the images."""
    return cast(Provenance, {**meta, "options": {**meta.get("options", {}), step: dict(options)}})


def with_step_coding(meta: Provenance, coding: Coding | None) -> Provenance:
    """The provenance of images that were optimised as ``coding`` stores them, or with None as they were."""
    found = {name: value for name, value in meta.items() if name != "compression_aware"}
    return cast(Provenance, found if coding is None else {**found, "compression_aware": coding.record()})


def own_seconds(meta: Provenance, *, labels: bool) -> float | None:
    """Seconds of the stages that made a set, with or without its soft labels; None where its manifest lacks them."""
    seconds = meta.get("seconds")
    if not isinstance(seconds, dict):
        return None
    stages = dict.fromkeys(("distill", *meta.get("stages", []), *(["label"] if labels else [])))
    counted = [seconds[stage] for stage in stages if stage in seconds and (labels or stage != "label")]
    return float(sum(counted)) if counted else None


MANIFEST, CHECKSUMS, FORMAT = "manifest.json", "CHECKSUMS", 2
LABELS = (soft_labels.TENSORS, soft_labels.RECORD)


def write_manifest(
    folder: Path,
    classes: Sequence[str],
    shape: Sequence[int],
    meta: Provenance,
    *,
    factor: Factor = 1,
    weights: Sequence[float] | None = None,
    coding: Coding = PNG,
) -> Manifest:
    """Write manifest and checksums for the images (C,H,W of ``shape``) and soft labels that stand in ``folder``.

    ``meta`` is the provenance; what can be counted is counted here. ``coding`` is that of the image files. Returns the
    manifest.
    """
    folders, suffix = folder_names(classes), coding.suffix
    counts = [sum(1 for _ in (folder / TRAIN / name).glob(f"*{suffix}")) for name in folders]
    labels = [name for name in LABELS if (folder / name).is_file()]
    images = [
        f"{TRAIN}/{name}/{image_name(i, suffix)}" for name, n in zip(folders, counts, strict=True) for i in range(n)
    ]
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests(folder, [*images, *labels]))
    os.sync()  # at once, because waiting for each image takes milliseconds
    write_text(folder / CHECKSUMS, lines)
    manifest = {
        "format": FORMAT,
        "classes": list(classes),
        "folders": list(folders),
        "counts": counts,
        "ipc": sum(counts) // len(counts),
        "image_size": int(shape[-1]),
        "channels": int(shape[0]),
        "stored_images": sum(counts),
        "decoded_images": sum(counts) * views_in(factor),
        "factor": factor,
        "bytes": {
            "images": sum((folder / name).stat().st_size for name in images),
            "labels": sum((folder / name).stat().st_size for name in labels),
        },
        "checksums": hash_bytes(lines.encode()),
        **meta,
        **({} if weights is None else {"weights": list(weights)}),
        **({} if coding == PNG else {"image_format": coding.record()}),
    }
    write_json(folder / MANIFEST, manifest, hashed=True)
    return cast(Manifest, manifest)


COUNTED = {
    "format", "classes", "folders", "counts", "ipc", "image_size", "channels", "stored_images", "decoded_images",
    "factor", "bytes", "checksums", "weights", "image_format",
}  # fmt: skip


def provenance_of(manifest: Manifest) -> Provenance:
    """What a manifest says besides what can be counted."""
    return cast(Provenance, {key: value for key, value in manifest.items() if key not in COUNTED})


def digests(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, BLAKE2b-128 in hex) of files below ``folder``, in this order.

    One after another: threads take seven times as long, for small files are read and hashed sooner than handed over.
    """
    for name in names:
        digest = hashlib.blake2b(digest_size=16)
        with open(folder / name, "rb", buffering=0) as file:
            while block := file.read(2**18):
                digest.update(block)
        yield name, digest.hexdigest()


FIX = "Expected a folder such as RUN/samples/ipc-10; copy or make the set again."


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set, every key checked.

    Raises:
        ArtifactError: there is none, it is damaged, of another format, or names an unsafe folder.
    """
    path = inside(folder, MANIFEST)
    manifest = cast(Manifest, read_json(path, kind="a surrogate set", format=FORMAT, schema=Manifest, fix=FIX))
    for name in manifest["folders"]:
        if "/" in name or not is_relative(name):
            raise ArtifactError(f"{path} names the unsafe folder {name!r}; expected a plain name. {FIX}")
    for field, right, expected in _rules(manifest):
        if not right:
            found = reprlib.repr(manifest.get(field))
            raise ArtifactError(f"{path} is damaged: {field} is {found}; expected {expected}. {FIX}")
    return manifest


def _rules(manifest: Manifest) -> Iterator[tuple[str, bool, str]]:
    """(field, whether it agrees with the others, what was expected), in an order in which each can be computed."""
    classes, folders, counts = manifest["classes"], manifest["folders"], manifest["counts"]
    side, stored, factor = manifest["image_size"], manifest["stored_images"], factor_of(manifest)
    weights = manifest.get("weights")
    yield "classes", bool(classes), "one name or more"
    yield "folders", len(set(folders)) == len(folders) == len(classes), f"{len(classes)} different names"
    yield "counts", len(counts) == len(classes) and min(counts) >= 0, f"{len(classes)} numbers of at least 0"
    yield "image_size", side >= 1, "a number of at least 1"
    yield "channels", manifest["channels"] in (1, 3), "1 or 3"
    yield "stored_images", stored == sum(counts) >= 1, f"the sum of counts, {sum(counts)}, and at least 1"
    yield "ipc", manifest["ipc"] == stored // len(classes), f"{stored // len(classes)}"
    right = all(1 <= one <= side for one in sides(factor)) and (isinstance(factor, int) or len(factor) > 1)
    yield "factor", right, f"a number from 1 to {side}, or several of them"
    views = stored * views_in(factor)
    yield "decoded_images", manifest["decoded_images"] == views, f"{views}"
    positive = weights is None or (len(weights) == stored and all(0 < w < math.inf for w in weights))
    yield "weights", positive, f"{stored} numbers above 0"
    wrong = check_record(manifest["image_format"]) if "image_format" in manifest else None
    yield "image_format", wrong is None, wrong or ""


def coding_of(manifest: Manifest) -> Coding:
    """How the images are coded."""
    return Coding.from_record(manifest.get("image_format"))


def image_paths(folder: Path, manifest: Manifest) -> list[list[Path]]:
    """The image files of each class, in order, as the manifest counts them.

    Raises:
        ArtifactError: one is missing, is a link that leads out of the set, or there is another beside them.
    """
    found: list[list[Path]] = []
    missing, foreign, lacking = [], [], 0
    suffix = coding_of(manifest).suffix
    for name, count in zip(manifest["folders"], manifest["counts"], strict=True):
        here = inside(folder, f"{TRAIN}/{name}")
        present = (
            {p.name for p in os.scandir(here) if leads_to(p, folder=False)} if here.is_dir() else set()
        )  # a pipe is no image
        ours = {p for p in present if _index(p, suffix) < count}
        foreign += [here / p for p in sorted(present - ours) if p.endswith(SUFFIXES)]
        if len(ours) < count:  # which can be any number, so only the first are listed
            first = (image_name(i, suffix) for i in range(min(count, len(ours) + SHOWN + 1)))
            missing += [here / p for p in first if p not in ours][: SHOWN + 1]
            lacking += count - len(ours)
        else:
            found.append([here / image_name(i, suffix) for i in range(count)])
    if missing or foreign:
        named = [(lacking, "image(s) missing", missing), (len(foreign), "image(s) too many", foreign)]
        said = [f"{number} {what} ({_some(paths)})" for number, what, paths in named if paths]
        raise ArtifactError(
            f"{folder} is not what its manifest says: {', '.join(said)}. Copy the folder again, or make it again with "
            "the manifest's command."
        )
    for path in leading_outside(folder, (f"{TRAIN}/{p.parent.name}/{p.name}" for paths in found for p in paths)):
        raise ArtifactError(f"{folder} is not a set by itself: {path} is a link that leads out of it. {FIX}")
    return found


def _index(name: str, suffix: str) -> float:
    """The position of an image in its class by its name; no position of another file."""
    stem = name.removesuffix(suffix)
    known = len(stem) < 12 and stem.isascii() and stem.isdigit() and image_name(int(stem), suffix) == name
    return int(stem) if known else math.inf


def check_sizes(folder: Path) -> None:
    """Compare what lies in a set's folder with its manifest, without reading it.

    Raises:
        ArtifactError: an image or the soft labels are missing, or have another size.
    """
    manifest = read_manifest(folder)
    images = [path for paths in image_paths(folder, manifest) for path in paths]
    labels = [path for name in LABELS if (path := folder / name).is_file()]
    for what, files in (("images", images), ("labels", labels)):
        found, expected = sum(path.stat().st_size for path in files), manifest.get("bytes", {}).get(what)
        if expected is not None and found != expected:
            raise ArtifactError(f"{folder} has {found:,} bytes of {what}; its manifest says {expected:,}. {FIX}")


SHOWN = 3  # files that a message names


def _some(paths: Sequence[Path]) -> str:
    names = [f"{p.parent.name}/{p.name}" for p in paths[:SHOWN]]
    return ", ".join(names) + (", ..." if len(paths) > SHOWN else "")


def verify(folder: str | Path) -> list[str]:
    """Compare the files of a set with the checksums that were written with it.

    manifest.json holds the checksum of CHECKSUMS, which holds those of every image and of the soft labels. The card and
    other files in the folder are not checked.

    Args:
        folder: A saved set.

    Returns:
        What is wrong, one line a file; empty if the set is complete and unchanged.

    Raises:
        ArtifactError: there is no manifest or no CHECKSUMS, or they disagree.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    wanted = read_checksums(folder, manifest)
    outside = set(leading_outside(folder, wanted))
    present = [name for name in wanted if (folder / name).is_file() and name not in outside]
    found = dict(track(digests(folder, present), "verify", len(present)))
    problems = []
    for name, digest in wanted.items():
        if name in outside:
            problems.append(f"{name} is a link that leads out of the set")
        elif name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != digest:
            problems.append(f"{name} was changed")
    here = [p.relative_to(folder).as_posix() for p in sorted((folder / TRAIN).rglob("*")) if not p.is_dir()]
    present = [*here, *(name for name in LABELS if (folder / name).exists())]
    return problems + [f"{name} does not belong to the set" for name in present if name not in wanted]


def read_checksums(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The digests of a set's images and soft labels, by name.

    Raises:
        ArtifactError: there is no CHECKSUMS, it does not match the manifest, or lists other files.
    """
    path = inside(folder, CHECKSUMS)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} has no readable {CHECKSUMS} ({error}), so nothing can be verified.") from error
    if hash_bytes(text.encode()) != manifest["checksums"]:
        raise ArtifactError(f"{path} does not match its manifest.")
    folders = dict(zip(manifest["folders"], manifest["counts"], strict=True))
    found: dict[str, str] = {}
    suffix = coding_of(manifest).suffix
    for number, line in enumerate(text.splitlines(), 1):
        digest, _, name = line.partition("  ")
        parts = name.split("/")
        image = len(parts) == 3 and parts[0] == TRAIN and _index(parts[2], suffix) < folders.get(parts[1], 0)
        if not DIGEST.fullmatch(digest) or not (image or name in LABELS):
            raise ArtifactError(
                f"{path} is damaged: line {number} is {reprlib.repr(line)}; expected a checksum and an image or soft "
                f"labels of the set. {FIX}"
            )
        found[name] = digest
    if sum(name not in LABELS for name in found) != manifest["stored_images"]:
        raise ArtifactError(
            f"{path} is damaged: it lists {len(found)} files; expected {manifest['stored_images']} images. {FIX}"
        )
    return found


DIGEST = re.compile("[0-9a-f]{32}")


def check_labels(folder: Path, manifest: Manifest) -> None:
    """Compare the soft labels with their checksums; images have their own.

    Raises:
        ArtifactError: they are missing or were changed.
    """
    if not manifest.get("bytes", {}).get("labels"):
        return
    wanted = {name: digest for name, digest in read_checksums(folder, manifest).items() if name in LABELS}
    missing = [name for name in wanted if not inside(folder, name).is_file()]
    changed = [name for name, digest in digests(folder, wanted) if digest != wanted[name]] if not missing else []
    if missing or changed:
        what = f"{missing[0]} is missing" if missing else f"{changed[0]} was changed"
        raise ArtifactError(f"{folder} is not as it was made: {what}. {soft_labels.AGAIN}")
