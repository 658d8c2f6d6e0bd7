"""The sets that an evaluation is given: read, told apart by all but their synthesis seed, and counted."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gendistill.data.dataset import RealData
from gendistill.hashing import hash_json
from gendistill.progress import report_problems
from gendistill.surrogate.hub import find_surrogate
from gendistill.surrogate.image_files import png_sizes
from gendistill.surrogate.image_folder import read_plain
from gendistill.surrogate.manifest import MANIFEST, read_manifest
from gendistill.surrogate.set import SurrogateSet

Pool = list[SurrogateSet]  # sets that differ in their synthesis seed alone
Counts = tuple[int, ...]  # images of each class
# what a manifest says that follows from the seed, or from when and where the set was made
BY_SEED = {"seed", "seconds", "command", "versions", "w2", "gate", "bytes"}
LABELS = {"soft_labels", "label_teacher_hash"}
PLACES = {
    "seed", "output_dir", "resume_from_checkpoint", "overwrite", "surrogate", "teacher", "generator", "held_out",
    "statistics_cache", "latent_cache", "finetune.latent_cache",
}  # fmt: skip


def read_given(source: str | Path, data: RealData, revision: str | None = None) -> SurrogateSet:
    """A set of ours, by folder or Hub id, or a plain folder of class folders; ``meta`` has the ``bytes`` it takes.

    Raises:
        ArtifactError: it is neither, or cannot be read.
    """
    folder = find_surrogate(source, revision)
    if (folder / MANIFEST).is_file():
        made = SurrogateSet.load(folder)
        return replace(made, meta={**made.meta, "bytes": read_manifest(folder)["bytes"]})
    made = read_plain(folder, data.classes, data.channels, data.image_size)
    report_problems(made.meta["problems"], f"going on with {len(made.labels)} images of {folder}")
    return made


def findings(sets: Iterable[SurrogateSet], data: RealData) -> list[dict[str, Any]]:
    """What is wrong with plain folders as far as reading them showed it, and sets that the real images cannot match."""
    found = []
    for made in sets:
        found += _larger(made, data)
        name, missing = made.meta.get("name"), made.meta.get("missing_classes")
        skipped = [text for text in made.meta.get("problems", ()) if text.startswith("skipped")]
        if missing:
            text = f"{name} has no image of {len(missing)} of {len(made.classes)} classes: {', '.join(missing)}."
            found.append(_finding(made, "missing classes", text, "error"))
        if skipped:
            text = f"{len(skipped)} images of {name} could not be read; the first: {skipped[0]}."
            found.append(_finding(made, "unreadable images", text, "warning"))
    return found


def _larger(made: SurrogateSet, data: RealData) -> list[dict[str, Any]]:
    """That a set has more images of a class than the training split, if so."""
    real = data.train.counts(len(data.classes))
    fewer = [f"{c} has {n} of {m}" for c, n, m in zip(data.classes, real, made.counts, strict=True) if n < m]
    if not fewer:
        return []
    shown = "; ".join(fewer[:5]) + (f"; and {len(fewer) - 5} more" if len(fewer) > 5 else "")
    text = (
        f"{name_of(made)} has more images than there are real ones of {len(fewer)} classes ({shown}); random images "
        "and coresets beside it have all that there are of these."
    )
    return [_finding(made, "fewer real images", text, "warning")]


def _finding(made: SurrogateSet, kind: str, text: str, severity: str) -> dict[str, Any]:
    return {"set": made.content_hash(), "kind": kind, "text": text, "severity": severity}


def size_of(made: SurrogateSet) -> int:
    """Images per class, rounded up."""
    return -(-len(made.labels) // len(made.classes))


def name_of(made: SurrogateSet) -> str:
    return str(made.meta.get("name") or made.meta.get("method", "unknown"))


def uneven(made: SurrogateSet) -> Counts | None:
    """Its stored images by class where these are not equally many."""
    return None if set(made.counts) == {size_of(made)} else tuple(made.counts)


def by_counts(sets: Iterable[SurrogateSet]) -> dict[Counts, str]:
    """The numbers of stored images by class that sets have, equal ones first, then the most; each with a set's name."""
    found: dict[Counts, str] = {}
    for made in sets:
        found.setdefault(tuple(made.counts), name_of(made))
    return dict(sorted(found.items(), key=lambda item: (len(set(item[0])) > 1, -sum(item[0]))))


def pools(sets: Sequence[SurrogateSet], *, labels: bool) -> list[Pool]:
    """Sets together that are alike in all but their synthesis seed, each seed once; without ``labels`` those that
    differ in their soft labels alone are one."""
    different: dict[str, SurrogateSet] = {}
    for made in sets:
        content = made if labels else replace(made, soft_labels=None)
        different.setdefault(f"{content.content_hash()} {made.meta.get('stage')}", made)
    found: list[tuple[str, Pool]] = []
    for made in different.values():
        identity, seed = _identity(made, labels), made.meta.get("seed")
        fits = (pool for other, pool in found if other == identity and seed not in [m.meta["seed"] for m in pool])
        pool = next(fits, None) if seed is not None else None
        if pool is None:
            found.append((identity if seed is not None else "", [made]))
        else:
            pool.append(made)
    return [pool for _, pool in found]


def _identity(made: SurrogateSet, labels: bool) -> str:
    """Of all that decides the set, but the seed. A whole run's generator and teacher follow from its seed too."""
    meta = {k: v for k, v in made.meta.items() if k not in BY_SEED | (set() if labels else LABELS)}
    verb, options = _options(str(made.meta.get("command", "")))
    if verb == "run":
        meta = {k: v for k, v in meta.items() if k not in ("generator_hash", "teacher_hash", "label_teacher_hash")}
    meta["stages"] = [stage for stage in meta.get("stages", []) if labels or stage != "label"]
    if labels and made.soft_labels:
        meta["soft_labels"] = made.soft_labels.recipe
    shape = [list(made.images.shape[1:]), made.counts, made.factor, made.weights is not None, made.classes]
    return hash_json([meta, verb, options, shape])


def _options(command: str) -> tuple[str, dict[str, str]]:
    """The verb of a command and its options that are neither the seed nor places of files."""
    verb, options, name = "", {}, ""
    for position, word in enumerate(_words(command)):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name] = value
        elif name:
            options[name] = f"{options[name]} {word}".strip()
        elif position == 1:
            verb = word
    return verb, {name: value for name, value in options.items() if name not in PLACES}


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # somebody else's manifest
        return [command]


def facts(pool: Pool, *, labels: bool) -> dict[str, Any]:
    """What the row of a pool says of images, bytes and seconds, the mean over its sets; see docs/evaluation.md."""
    first = pool[0]
    bytes_ = [_bytes(made, labels) for made in pool]
    seconds = [_seconds(made, labels) for made in pool]
    told = {key: first.meta[key] for key in ("name", "missing_classes") if first.meta.get(key)}
    known = [s for s in seconds if s is not None]
    return {
        "stored_images": len(first.labels),
        "decoded_images": len(first.labels) * first.views,
        "bytes": {key: round(sum(b[key] for b in bytes_) / len(pool)) for key in ("images", "labels")},
        "synthesis_seconds": round(sum(known) / len(pool), 2) if len(known) == len(pool) else None,
        **told,
    }


def total_bytes(pool: Pool, *, labels: bool) -> int:
    """Of the largest of its sets."""
    return max(sum(_bytes(made, labels).values()) for made in pool)


def _bytes(made: SurrogateSet, labels: bool) -> dict[str, int]:
    """As stored; of a set that is in memory alone, as it would be, but for the header of its labels."""
    told = made.meta.get("bytes")
    if told is None:
        soft = made.soft_labels.tensors.values() if made.soft_labels else ()
        told = {"images": sum(png_sizes(made.images)), "labels": sum(tensor.nbytes for tensor in soft)}
    return {"images": told["images"], "labels": told["labels"] if labels else 0}


def _seconds(made: SurrogateSet, labels: bool) -> float | None:
    """Of the stages that made the set, where its manifest has them."""
    told = made.meta.get("seconds")
    if not isinstance(told, dict):
        return None
    stages = dict.fromkeys(("distill", *made.meta.get("stages", []), *(["label"] if labels else [])))
    counted = [told[stage] for stage in stages if stage in told and (labels or stage != "label")]
    return float(sum(counted)) if counted else None
