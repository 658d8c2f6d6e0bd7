"""The sets to evaluate: read, checked with their soft labels, pooled where only the synthesis seed differs, counted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gendistill.config import DataConfig
from gendistill.data.dataset import RealData, check_origin, data_config_of
from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.protocols import Settings
from gendistill.evaluation.summary import FindingEntry, SetFacts, Severity
from gendistill.generator.class_mapping import check_manifest_labels
from gendistill.hashing import hash_json
from gendistill.networks.teacher import Teacher
from gendistill.progress import report_problems
from gendistill.surrogate.hub_datasets import find_surrogate
from gendistill.surrogate.image_folder import read_plain
from gendistill.surrogate.image_formats import PNG
from gendistill.surrogate.manifest import MANIFEST, TRAIN, own_seconds, read_manifest
from gendistill.surrogate.multi_formation import factor_name, factor_of
from gendistill.surrogate.set import SurrogateSet
from gendistill.surrogate.soft_labels import SoftLabels

Pool = list[SurrogateSet]  # sets that differ in their synthesis seed alone
Counts = tuple[int, ...]  # images of each class
# entries of a manifest that follow from the seed, or from when and where the set was made
BY_SEED = {"seed", "seconds", "shared_seconds", "command", "versions", "w2", "gate", "validation", "bytes"}
LABELS = {"soft_labels", "label_teacher_hash"}
PLACES = {
    "seed", "output_dir", "resume_from_checkpoint", "overwrite", "surrogate", "teacher", "generator", "held_out",
    "statistics_cache", "latent_cache", "finetune.latent_cache",
}  # fmt: skip


def read_set(source: str | Path, data: RealData, revision: str | None = None) -> SurrogateSet:
    """Read a surrogate set by folder or Hub id, or a plain folder of class folders; ``meta`` has the set's ``bytes``.

    Raises:
        ArtifactError: it is neither, unreadable, or the image folder of a packed set.
    """
    folder = find_surrogate(source, revision)
    if os.path.lexists(folder / MANIFEST):  # a manifest that is no file is a damaged set, not a plain folder
        made = SurrogateSet.load(folder)
        return replace(made, meta={**made.meta, "bytes": read_manifest(folder)["bytes"]})
    parent = folder.resolve().parent
    if folder.resolve().name == TRAIN and (parent / MANIFEST).is_file():
        factor = factor_of(read_manifest(parent))
        if factor != 1:
            raise ArtifactError(
                f"{folder} holds the files of a packed set, {factor_name(factor)} images in each, which a plain folder "
                f"does not say; give the set: {parent}."
            )
    made = read_plain(folder, data.classes, data.channels, data.image_size)
    report_problems(made.meta["problems"], f"going on with {len(made.labels)} images of {folder}")
    return made


def recorded_data(sources: Iterable[str | Path]) -> DataConfig | None:
    """How to read the images that the first of these folders with a manifest was made from; None where none says it."""
    folders = [Path(source) for source in sources if os.path.lexists(Path(source) / MANIFEST)]
    return data_config_of(read_manifest(folders[0]).get("data", {})) if folders else None


def check_origins(sets: Iterable[SurrogateSet], data: RealData) -> None:
    """Check that the sets were made from these real images, with a generator that knows their classes.

    Raises:
        ArtifactError: a set was not.
    """
    for made in sets:
        what = f"the surrogate set at IPC {made.ipc}"
        check_origin(what, made.classes, made.meta, data)
        check_manifest_labels(what, made.classes, made.meta)


def input_findings(sets: Iterable[SurrogateSet], data: RealData) -> list[FindingEntry]:
    """Faults of plain folders that reading them showed, and sets with more images than there are real ones."""
    found: list[FindingEntry] = []
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


def _larger(made: SurrogateSet, data: RealData) -> list[FindingEntry]:
    """Whether a set has more images of a class than the training split."""
    real = data.train.counts(len(data.classes))
    fewer = [f"{c} has {n} of {m}" for c, n, m in zip(data.classes, real, made.counts, strict=True) if n < m]
    if not fewer:
        return []
    shown = "; ".join(fewer[:5]) + (f"; and {len(fewer) - 5} more" if len(fewer) > 5 else "")
    text = (
        f"{name_of(made)} has more images than there are real ones of {len(fewer)} classes ({shown}); the random "
        "images and coresets it is compared with have all real images of these classes."
    )
    return [_finding(made, "fewer real images", text, "warning")]


def _finding(made: SurrogateSet, kind: str, text: str, severity: Severity) -> FindingEntry:
    return {"set": made.content_hash(), "kind": kind, "text": text, "severity": severity}


def size_of(made: SurrogateSet) -> int:
    """Images per class, rounded up."""
    return -(-len(made.labels) // len(made.classes))


def name_of(made: SurrogateSet) -> str:
    return str(made.meta.get("name") or made.meta.get("method", "unknown"))


def uneven(made: SurrogateSet) -> Counts | None:
    """The stored images by class, or None where every class has as many."""
    return None if set(made.counts) == {size_of(made)} else tuple(made.counts)


def by_counts(sets: Iterable[SurrogateSet]) -> dict[Counts, str]:
    """The different counts of stored images by class, even ones first, then the largest; each with a set's name."""
    found: dict[Counts, str] = {}
    for made in sets:
        found.setdefault(tuple(made.counts), name_of(made))
    return dict(sorted(found.items(), key=lambda item: (len(set(item[0])) > 1, -sum(item[0]))))


def pools(sets: Sequence[SurrogateSet], *, labels: bool) -> list[Pool]:
    """Sets that differ in their synthesis seed alone, together, each seed once.

    Without ``labels`` sets that differ in their soft labels alone count as one.
    """
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
    """A hash of everything that decides the set but the seed; in a `run` generator and teacher follow from it too."""
    left_out = BY_SEED | (set() if labels else LABELS)
    verb, options = _options(str(made.meta.get("command", "")))
    if verb == "run":
        left_out |= {"generator_hash", "teacher_hash", "label_teacher_hash"}
    meta: dict[str, object] = {k: v for k, v in made.meta.items() if k not in left_out}
    meta["stages"] = [stage for stage in made.meta.get("stages", []) if labels or stage != "label"]
    if labels and made.soft_labels:
        meta["soft_labels"] = made.soft_labels.recipe
    coding = [] if made.coding == PNG else [str(made.coding)]
    shape = [list(made.images.shape[1:]), made.counts, made.factor, made.weights is not None, made.classes, *coding]
    return hash_json([meta, verb, options, shape])


def _options(command: str) -> tuple[str, dict[str, str]]:
    """The verb of a command, and its options without the seed and the places of files."""
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


def facts(pool: Pool, *, labels: bool) -> SetFacts:
    """What the row of a pool says of its images; ``labels`` says whether soft labels count."""
    first = pool[0]
    sizes = [_bytes(made, labels) for made in pool]
    own = [s for made in pool if (s := own_seconds(made.meta, labels=labels)) is not None]
    shared = [_shared(made, labels) for made in pool]
    total = sum(own) + sum(sum(parts.values()) - parts.get("pool", 0) for parts in shared)  # own has the pool
    found: SetFacts = {
        "stored_images": len(first.labels),
        "decoded_images": len(first.labels) * first.views,
        "bytes": {key: round(sum(size[key] for size in sizes) / len(pool)) for key in ("images", "labels")},
        "synthesis_seconds": round(total / len(pool), 2) if len(own) == len(pool) else None,
        "shared_seconds": {
            part: round(sum(parts.get(part, 0) for parts in shared) / len(pool), 2)
            for part in dict.fromkeys(part for parts in shared for part in parts)
        },
    }
    if first.meta.get("name"):
        found["name"] = first.meta["name"]
    if first.coding != PNG:
        found["image_format"] = str(first.coding)
    if first.meta.get("missing_classes"):
        found["missing_classes"] = first.meta["missing_classes"]
    return found


def total_bytes(pool: Pool, *, labels: bool) -> int:
    """Bytes of the largest set of a pool."""
    return max(sum(_bytes(made, labels).values()) for made in pool)


def _bytes(made: SurrogateSet, labels: bool) -> dict[str, int]:
    """Bytes of a stored set; of one in memory, what it would take on disk without the header of its labels."""
    sizes = made.meta.get("bytes")
    if sizes is None:
        soft = made.soft_labels.tensors.values() if made.soft_labels else ()
        sizes = {"images": made.image_bytes, "labels": sum(tensor.nbytes for tensor in soft)}
    return {"images": sizes["images"], "labels": sizes["labels"] if labels else 0}


def _shared(made: SurrogateSet, labels: bool) -> dict[str, float]:
    """Seconds of what other sets use too: training of generator and teachers, the set to start from, the pool."""
    meta, found = made.meta, dict(made.meta.get("shared_seconds") or {})
    again = found.pop("label_teacher", None)
    if labels and again is not None and meta.get("label_teacher_hash") != meta.get("teacher_hash"):
        found["label_teacher"] = again
    if "select" in meta.get("stages", ()) and "sample" in (meta.get("seconds") or {}):
        found["pool"] = meta["seconds"]["sample"]
    return found


def check_soft_labels(surrogates: Sequence[SurrogateSet], settings: Settings, teacher: Teacher | None) -> None:
    """Check that soft rows have labels, by this teacher, with the protocol's recipe, for enough steps.

    Raises:
        ConfigError: no set is labelled, there is no teacher, or the labels of views would have no augmented row.
        ArtifactError: labels of another teacher or another recipe, or for fewer steps.
    """
    if settings.labels == "hard":
        return
    labelled = [s for s in surrogates if s.soft_labels]
    if not labelled:
        raise ConfigError(
            f"evaluate.labels is 'soft'{_by(settings)}, but no set has soft labels; make some with "
            f"`{label_command(settings, surrogates[0])}`."
        )
    if teacher is None:
        raise ConfigError(
            f"evaluate.labels is 'soft'{_by(settings)}, which needs the teacher for the baselines. Give --teacher."
        )
    for surrogate in labelled:
        soft = surrogate.soft_labels
        assert soft is not None
        if soft.teacher.get("hash") != teacher.hash():
            raise ArtifactError(
                f"The soft labels come from teacher {soft.teacher.get('hash')}, --teacher is {teacher.hash()}; "
                "expected the same."
            )
        if soft.mode != "per_image" and True not in settings.augment:
            raise ConfigError(
                f"evaluate.augment is false, but a set has {soft.mode} soft labels, which belong to augmented views. "
                "Give --augment true, --labels hard, or a set that `gendistill label --mode per_image` made."
            )
        _check_recipe(surrogate, soft, settings)
        _check_batches(surrogate, soft, settings)
        _check_steps(surrogate, soft, settings)


def label_command(settings: Settings, surrogate: SurrogateSet) -> str:
    """The command that makes the labels that the settings need."""
    if settings.temperature is None:
        return "gendistill label"
    wanted, steps = _wanted(settings), _steps(surrogate, settings)
    values = {name: str(value).lower() if isinstance(value, bool) else f"{value:g}" for name, value in wanted.items()}
    options = " ".join(f"--{name} {value}" for name, value in values.items())
    return f"gendistill label --mode per_view {options} --steps {steps}"


def _by(settings: Settings) -> str:
    return f" by protocol {settings.protocol}" if settings.temperature is not None else ""


def _wanted(settings: Settings) -> Mapping[str, float | None]:
    """The options of `gendistill label` for a protocol with a temperature; CutMix has alpha 1 in all of them."""
    return {
        "temperature": settings.temperature,
        "min_crop": settings.min_crop,
        "flip": settings.flip,
        "cutmix": settings.cutmix,
        "batch_size": settings.batch_size,
    }


def _check_recipe(surrogate: SurrogateSet, soft: SoftLabels, settings: Settings) -> None:
    if settings.temperature is None:
        return
    views = soft.views
    found = {"temperature": soft.temperature, "min_crop": views.min_crop, "flip": views.flip, "cutmix": views.cutmix}
    found["batch_size"] = views.batch_size
    others = [f"{name} {found[name]} for {value}" for name, value in _wanted(settings).items() if found[name] != value]
    if soft.mode == "per_image":
        others.insert(0, "mode per_image for per_view or online")
    if others:
        raise ArtifactError(
            f"Protocol {settings.protocol} needs other soft labels than the set at IPC {surrogate.ipc} has: it has "
            f"{', '.join(others)}. Make them with `{label_command(settings, surrogate)}`."
        )


def _check_batches(surrogate: SurrogateSet, soft: SoftLabels, settings: Settings) -> None:
    """Labels of views belong to whole batches: in epochs of other ones a row would train longer or shorter."""
    made, wanted = soft.views.batch_size, settings.batch_size
    if settings.steps is None and soft.mode != "per_image" and made != wanted:
        steps = "" if soft.steps is None else f" --steps {_steps(surrogate, settings)}"
        raise ArtifactError(
            f"evaluate.batch_size is {wanted}, but a set has {soft.mode} soft labels for batches of {made} images, "
            f"whose epochs have other steps; label it with --batch_size {wanted}{steps}, or evaluate it with "
            f"--batch_size {made} or with --steps."
        )


def _check_steps(surrogate: SurrogateSet, soft: SoftLabels, settings: Settings) -> None:
    steps = _steps(surrogate, settings)
    if soft.steps is None or soft.steps >= steps:
        return
    length = "steps" if settings.steps is not None else "epochs"
    shorter = f"evaluate with --steps {soft.steps}" if settings.steps is not None else "evaluate it for fewer --epochs"
    raise ArtifactError(
        f"evaluate.{length} is {steps if length == 'steps' else f'{settings.epochs}, which are {steps} steps'}, but a "
        f"set has soft labels for {soft.steps} steps; label it with --steps {steps} or {shorter}."
    )


def _steps(surrogate: SurrogateSet, settings: Settings) -> int:
    return settings.length(len(surrogate.split), len(surrogate.classes))[0]
