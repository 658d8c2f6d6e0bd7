"""Model folders: from a path, a name or a Hub id to a folder, and what the files of a folder hold.

Models are read in fp32 and from safetensors only, because pickled weights can run code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import yaml

from gendistill.data.dataset import DataFacts
from gendistill.errors import ArtifactError, reason
from gendistill.generator.class_mapping import check_label_map
from gendistill.hub import GENERATOR, MODEL_ID, NO_MODEL, fetch, local_folder, shipped_generator, shipped_names
from gendistill.io import DIGEST, inside, read_json
from gendistill.runtime import require_finite_weights
from gendistill.surrogate.manifest import digests

FILE, FORMAT = "gendistill.json", 2
INDEX = "model_index.json"

PATTERNS = ("*.json", "*.safetensors", "README.md")
BUFFERS = ("pos_embed.pos_embed", "position_ids")  # computed, and left out or kept by different versions


def resolve_model_folder(source: str, revision: str | None = None, patterns: Sequence[str] = PATTERNS) -> Path:
    """The folder itself, that of a generator that comes with the package, or the local copy of a Hub repository.

    A repository is downloaded where needed; HF_HUB_OFFLINE is honoured.

    Args:
        source: A folder, a name such as ``fashion-mnist``, or a Hub id such as ``facebook/DiT-XL-2-256``. An existing
            path goes first, then the generators of the package.
        revision: Branch, tag or commit of a Hub id.
        patterns: Which files of a Hub repository to fetch.

    Raises:
        ArtifactError: no such folder, or the Hub does not give it.
        ConfigError: a revision of a folder or of a generator of the package.
    """
    path = local_folder(source, revision, "a model folder") or shipped_generator(source, revision)
    if path is not None:
        return path
    if not MODEL_ID.fullmatch(source):
        raise ArtifactError(NO_MODEL.format(source) + shipped_names(source))
    return fetch(source, revision, patterns, "model", shipped_names(source))


def load_model(kind: Any, folder: Path, variant: str | None = None) -> Any:
    """``kind.from_pretrained(folder)`` in fp32, every weight from the file: diffusers only warns of missing ones.

    Raises:
        ArtifactError: the weights are missing, pickled, damaged or incomplete.
    """
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{folder} has no safetensors weights, and pickled ones (.bin) are not read. Convert them once with "
            f"diffusers: {kind.__name__}.from_pretrained(ID).save_pretrained(FOLDER), and give that folder."
        )
    try:
        model, info = kind.from_pretrained(
            folder, variant=variant, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:
        raise ArtifactError(f"The weights in {folder} cannot be loaded as {kind.__name__}: {reason(error)}") from error
    surplus = [k for k in info["unexpected_keys"] if not k.endswith(BUFFERS)]
    if surplus:
        raise ArtifactError(
            f"The weights in {folder} have {len(surplus)} tensor(s) that its config.json has no place for, such as "
            f"{surplus[0]!r}. Get or save the folder again."
        )
    if info["missing_keys"]:
        first, count = info["missing_keys"][0], len(info["missing_keys"])
        raise ArtifactError(
            f"The weights in {folder} lack {count} tensor(s) of its config.json, such as {first!r}. Get or save the "
            "folder again."
        )
    require_finite_weights(str(folder), model.state_dict())
    model.register_to_config(_name_or_path="")  # diffusers keeps the folder, which config.json would then name
    return model.float().eval()


class CodecRecord(TypedDict):
    """The codec that a generator was trained with."""

    name: str
    channels: int
    hash: str


class Stopped(TypedDict):
    """Where a training that its time ended stopped."""

    phase: str
    step: int


class UsedOptimizer(TypedDict):
    """What trained a phase: ``muon`` or ``adamw``, and its peak learning rate."""

    name: str
    learning_rate: float


class GeneratorMeta(TypedDict, total=False):
    """Where a generator comes from; stored in gendistill.json and carried along in memory.

    Attributes:
        adaptation: What the minimax phase trained: full, difffit or lora.
        licence: Of the pretrained model or the codec, else ours.
        given_labels: Condition indices that the user gave for some classes.
        data: What the generator was trained on, as ``RealData.describe`` says it.
        steps: Optimiser steps of each phase.
        optimizers: What trained each phase.
        stopped: The phase and the step at which the time of the training was over.
        null_class_trained: Whether some labels were dropped in training, which classifier-free guidance needs.
        base_hash: Hash of the weights before the minimax phase.
        parents: The pretrained model, its hash, and the codec.
        parent: Folder name of a model that is not ours.
        variants: Further weights in the folder, such as ``base``.
        training_seconds: Of each phase, and of the ``pretrained`` generator where it is known.
        recipe: The options of ``finetune``, flat, in an exported folder.
    """

    adaptation: str
    licence: str
    given_labels: dict[str, int] | None
    data: DataFacts
    steps: dict[str, int]
    optimizers: dict[str, UsedOptimizer]
    stopped: Stopped
    null_class_trained: bool
    training_seconds: dict[str, float]
    recipe: dict[str, Any]
    base_hash: str
    parents: dict[str, str | None]
    parent: str
    variants: list[str]


class GeneratorRecord(GeneratorMeta):
    """gendistill.json of a generator folder; ``files`` are the BLAKE2b-128 of the others, missing in older versions."""

    files: NotRequired[dict[str, str]]
    format: int
    classes: list[str]
    label_map: dict[str, int]
    conditions: int
    codec: CodecRecord


REQUIRED = ("format", "classes", "label_map", "conditions", "codec", "variants")


def read_record(folder: Path) -> GeneratorRecord:
    """gendistill.json of a generator folder, checked.

    Raises:
        ArtifactError: it is missing, damaged, or of another format.
    """
    fix = "Run `gendistill finetune` again."
    record = read_json(
        folder / FILE, kind="a generator folder", required=REQUIRED, format=FORMAT, schema=GeneratorRecord, fix=fix
    )
    check_label_map(tuple(record["classes"]), record["label_map"], record["conditions"])
    return cast("GeneratorRecord", record)


def file_hashes(folder: Path) -> dict[str, str]:
    """BLAKE2b-128 of a pipeline's files of weights and settings, by name."""
    models = [
        path.parent for pattern in ("config.json", "scheduler_config.json") for path in folder.glob(f"*/{pattern}")
    ]
    paths = sorted(path for model in models for path in model.iterdir() if path.suffix in (".json", ".safetensors"))
    return dict(digests(folder, [INDEX, *(path.relative_to(folder).as_posix() for path in paths)]))


def check_files(folder: Path, record: GeneratorRecord, variant: str | None) -> None:
    """Compare the files of a generator folder, those of other variants aside, with the hashes in its record.

    Raises:
        ArtifactError: one is missing or was changed.
    """
    others = {f".{name}" for name in record["variants"] if name != variant}
    if variant is not None:  # weights of no variant are NAME.safetensors or NAME-00001-of-00002.safetensors
        others.add("")
    wanted = {n: h for n, h in record.get("files", {}).items() if n.endswith(".json") or _variant(n) not in others}
    missing = [name for name in wanted if not inside(folder, name).is_file()]
    changed = missing or [name for name, found in digests(folder, wanted) if found != wanted[name]]
    if changed:
        raise ArtifactError(
            f"{folder / changed[0]} {'is missing' if missing else 'was changed after it was written'}. Copy the folder "
            f"again. If you changed it on purpose, delete the keys files and {DIGEST} of {FILE}."
        )


def _variant(name: str) -> str:
    """``.base`` of network/model.base.safetensors, nothing of network/model.safetensors."""
    stem = Path(name).name.removesuffix(".safetensors")
    return Path(re.sub(r"-\d+-of-\d+$", "", stem)).suffix


def read_condition_names(folder: Path) -> dict[int, tuple[str, ...]]:
    """The names of each condition index: ``id2label`` of a pipeline's model_index.json, split at commas.

    Raises:
        ArtifactError: the folder is no pipeline, or the table is damaged.
    """
    try:
        table = read_generator_json(folder / INDEX).get("id2label") or {}
        lists = {int(i): [name.strip() for name in str(text).split(",")] for i, text in table.items()}
        return {i: tuple(name for name in names if name) for i, names in lists.items()}
    except (AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder / INDEX} has an id2label that is no table of names by index: {error}.") from error


def licence_of(folder: Path) -> str:
    """The licence in the front matter of a model folder's README.md, ``unknown`` without one."""
    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2) if card.is_file() else []
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        front = {}
    return str(front.get("license", "unknown")) if isinstance(front, dict) else "unknown"


def read_generator_json(path: Path) -> Mapping[str, Any]:
    """A JSON file of a generator folder."""
    return read_json(path, kind="a generator folder", fix=GENERATOR)
