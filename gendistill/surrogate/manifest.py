"""manifest.json: what a set is and where it came from; CHECKSUMS: whether it is still that, also for ``b2sum -c``."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from typing import Any, Required, TypedDict, cast
from urllib.parse import quote, unquote

from gendistill.data.dataset import DataFacts
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_bytes
from gendistill.io import read_json, write_json, write_text
from gendistill.progress import track
from gendistill.surrogate import soft_labels
from gendistill.surrogate.multi_formation import Factor, views_in
from gendistill.surrogate.soft_labels import LabelRecord

TRAIN = "train"
LONGEST_NAME = 120  # bytes of a folder name that every file system takes, after quoting
# datasets skips a leading __, class-00000 is the stand-in of an unusable name, and Windows keeps the devices' names
RESERVED = re.compile(r"__|class-\d{5}|(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def image_name(index: int) -> str:
    return f"{index:05d}.png"


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
    refused_images: int
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
        shared_seconds: Of training what other sets use too, by part: ``generator``, ``teacher``, ``label_teacher``.
        command: The command line.
        versions: Of the libraries.
        label_map: The generator's condition of each class.
        conditions: How many conditions the generator has.
        sampling: The options of sampling that decide an image.
        iterations: Of a matching method.
        matching: The options of a matching method.
        start: Content hash of the set that a method started from.
        w2: Squared Wasserstein distances to the real images: before, after, packed, matched.
        gate: What the acceptance test of refinement kept.
        mixed_precision: Of refinement.
        bytes: Of ``images`` and of soft ``labels`` on disk; always there in a manifest.
        latent_space: The codec in whose latents the images were refined.
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
    start: str
    w2: dict[str, float]
    gate: GateCounts
    mixed_precision: str
    bytes: dict[str, int]
    latent_space: dict[str, object]
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
) -> Manifest:
    """Write manifest and checksums for the images (C,H,W of ``shape``) and soft labels that stand in ``folder``.

    ``meta`` is the provenance; what can be counted is counted here. Returns the manifest.
    """
    folders = folder_names(classes)
    counts = [sum(1 for _ in (folder / TRAIN / name).glob("*.png")) for name in folders]
    labels = [name for name in LABELS if (folder / name).is_file()]
    images = [f"{TRAIN}/{name}/{image_name(i)}" for name, n in zip(folders, counts, strict=True) for i in range(n)]
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests(folder, [*images, *labels]))
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
    }
    write_json(folder / MANIFEST, manifest)
    return cast(Manifest, manifest)


COUNTED = {
    "format", "classes", "folders", "counts", "ipc", "image_size", "channels", "stored_images", "decoded_images",
    "factor", "bytes", "checksums", "weights",
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


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set, its shape checked.

    Raises:
        ArtifactError: there is none, it is damaged, of another format, or names an unsafe folder.
    """
    path = folder / MANIFEST
    fix = "Expected a folder such as RUN/samples/ipc-10; copy or make the set again."
    manifest = read_json(path, kind="a surrogate set", format=FORMAT, fix=fix)
    wrong = [key for key, holds in _SHAPE.items() if not holds(manifest.get(key))]
    lists = [manifest.get(key) for key in ("classes", "folders", "counts")]
    if not wrong and len({len(found) for found in lists if found is not None}) > 1:
        wrong = ["classes", "folders", "counts"]
    if not wrong and sum(manifest["counts"]) != manifest["stored_images"]:
        wrong = ["counts", "stored_images"]
    weights = manifest.get("weights")
    if not wrong and weights is not None and len(weights) != manifest["stored_images"]:
        wrong = ["weights", "stored_images"]
    if wrong:
        raise ArtifactError(f"{path} is damaged: look at {', '.join(wrong)}. {fix}")
    for name in manifest["folders"]:
        if Path(name).name != name or name in ("", "..") or "\\" in name or "\0" in name:
            raise ArtifactError(f"{path} names the unsafe folder {name!r}; expected a plain name.")
    return cast(Manifest, manifest)


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _count(low: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low


_SHAPE: dict[str, Callable[[Any], bool]] = {
    "classes": _names,
    "folders": lambda v: _names(v) and len(set(v)) == len(v),
    "counts": lambda v: isinstance(v, list) and all(map(_count(0), v)),
    "image_size": _count(1),
    "channels": lambda v: v in (1, 3),
    "stored_images": _count(1),
    "factor": lambda v: all(map(_count(1), v)) and len(v) > 1 if isinstance(v, list) else _count(1)(v),
    "weights": lambda v: v is None or (isinstance(v, list) and all(isinstance(w, float) and 0 < w < inf for w in v)),
}


def image_paths(folder: Path, manifest: Manifest) -> list[list[Path]]:
    """The image files of each class, in order, as the manifest counts them.

    Raises:
        ArtifactError: one is missing, or there is another beside them.
    """
    found, missing, foreign = [], [], []
    for name, count in zip(manifest["folders"], manifest["counts"], strict=True):
        here = folder / TRAIN / name
        wanted = [here / image_name(i) for i in range(count)]
        present = {p.name for p in here.iterdir()} if here.is_dir() else set()
        missing += [p for p in wanted if p.name not in present]
        foreign += [here / p for p in sorted(present - {p.name for p in wanted}) if p.endswith(".png")]
        found.append(wanted)
    if missing or foreign:
        said = [f"{len(paths)} {what} ({_some(paths)})" for what, paths in _named(missing, foreign) if paths]
        raise ArtifactError(
            f"{folder} is not what its manifest says: {', '.join(said)}. Copy the folder again, or make it again with "
            "the manifest's command."
        )
    return found


def _named(missing: list[Path], foreign: list[Path]) -> list[tuple[str, list[Path]]]:
    return [("image(s) missing", missing), ("image(s) too many", foreign)]


def _some(paths: Sequence[Path], most: int = 3) -> str:
    names = [f"{p.parent.name}/{p.name}" for p in paths[:most]]
    return ", ".join(names) + (", ..." if len(paths) > most else "")


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
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} has no readable {CHECKSUMS} ({error}), so nothing can be verified.") from error
    if hash_bytes(lines.encode()) != manifest["checksums"]:
        raise ArtifactError(f"{folder / CHECKSUMS} does not match its manifest.")
    wanted = {name: digest for digest, name in (line.split("  ", 1) for line in lines.splitlines())}
    present = [name for name in wanted if (folder / name).is_file()]
    found = dict(track(digests(folder, present), "verify", len(present)))
    problems = []
    for name, digest in wanted.items():
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != digest:
            problems.append(f"{name} was changed")
    here = [p.relative_to(folder).as_posix() for p in sorted((folder / TRAIN).rglob("*")) if not p.is_dir()]
    present = [*here, *(name for name in LABELS if (folder / name).exists())]
    return problems + [f"{name} does not belong to the set" for name in present if name not in wanted]
