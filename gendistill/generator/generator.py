"""Generator: a class-conditional network with its codec, noise schedule and label map, as a diffusers pipeline folder.

The folder holds ``unet/`` or ``transformer/`` (the fine-tuned weights, and beside them the plain-diffusion weights as
diffusers' variant ``base``), the autoencoder where there is one, ``scheduler/``, ``model_index.json`` and
``gendistill.json`` (classes, label map, codec, parents, licence). A folder of diffusers alone, such as
facebook/DiT-XL-2-256, is read as well: its conditions are then the classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline, LDMPipeline
from torch import Tensor

from gendistill.config import ModelConfig
from gendistill.errors import ArtifactError
from gendistill.generator.class_mapping import check_label_map
from gendistill.generator.codec import PIXELS, SUBFOLDERS, Codec, LatentCodec, PixelCodec, load_codec
from gendistill.generator.loading import resolve_model_folder
from gendistill.generator.networks import Network, build_network, class_rows, folder_of, kind_of, load_network
from gendistill.hashing import hash_json, hash_tensors

FILE, FORMAT = "gendistill.json", 2
BASE = "base"
Names = tuple[tuple[str, ...], ...]


@dataclass
class Generator:
    """``classes`` in index order, ``label_map`` to each one's condition index below ``conditions``.

    ``names`` are what the network's conditions are called, by condition index; several names each, or none.
    """

    network: Network
    scheduler: DDPMScheduler
    codec: Codec
    classes: tuple[str, ...]
    label_map: dict[str, int]
    conditions: int
    names: Names = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def null_class(self) -> int | None:
        """The condition that stands for "no class", the row after the last condition; None where there is none."""
        return self.conditions if class_rows(self.network) > self.conditions else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(c,h,w) of what is denoised: pixels or latents."""
        size = int(self.network.config.sample_size)
        return int(self.network.config.in_channels), size, size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W) of the decoded images."""
        size = self.codec.image_size(self.sample_shape[-1])
        return self.codec.channels, size, size

    @property
    def learned_sigma(self) -> bool:
        """Whether the network's output has the variance after the prediction, (B,2c,h,w)."""
        return int(self.network.config.out_channels) == 2 * self.sample_shape[0]

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler.config.prediction_type)

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def condition(self, labels: Tensor) -> Tensor:
        """Class index (B,) -> condition index (B,) by the stored map."""
        return torch.tensor([self.label_map[name] for name in self.classes], device=labels.device)[labels]

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's raw output (B,c,h,w), with learned sigma (B,2c,h,w), for x (B,c,h,w), t and condition (B,)."""
        return self.network(x, t, class_labels=condition).sample

    def to(self, device: torch.device | str) -> Generator:
        self.network.to(device)
        self.codec.to(device)
        return self

    def hash(self) -> str:
        """Of all that decides a sample: equal generators, equal hash."""
        parts = [hash_tensors(self.network.state_dict()), self.codec.hash(), self.classes, self.label_map]
        return hash_json([*parts, self.prediction_type, hash_tensors({"alphas": self.alphas_cumprod})])

    def for_classes(self, classes: tuple[str, ...], label_map: Mapping[str, int]) -> Generator:
        """The same model for a subset of its conditions, which keep their indices."""
        return replace(self, classes=classes, label_map={name: int(label_map[name]) for name in classes})

    def save_pretrained(self, folder: str | Path, base: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder; ``base`` are the plain-diffusion weights to keep as variant ``base``."""
        folder = Path(folder)
        _pipeline(self).save_pretrained(folder)
        if base is not None:
            copy = type(self.network).from_config(self.network.config)
            copy.load_state_dict(dict(base))
            copy.save_pretrained(folder / folder_of(self.network), variant=BASE)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index["id2label"] = {str(i): ", ".join(names) for i, names in enumerate(self.names)}
        _write_json(folder / "model_index.json", index)
        record = {
            "format": FORMAT,
            "classes": list(self.classes),
            "label_map": self.label_map,
            "conditions": self.conditions,
            "codec": {"name": self.codec.name, "channels": self.codec.channels, "hash": self.codec.hash()},
            **self.meta,
            "variants": [BASE] if base is not None else [],
        }
        _write_json(folder / FILE, record)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, variant: str | None = None, *, revision: str | None = None, channels: int = 3
    ) -> Generator:
        """Load a folder or Hub id: the fine-tuned weights, or with ``variant="base"`` those of plain diffusion.

        ``channels`` of the images matters where a folder of diffusers alone has an autoencoder and images are grey.

        Raises:
            ArtifactError: it is no generator, is damaged, or lacks the variant.
        """
        folder = resolve_model_folder(str(source), revision)
        index = _read_json(folder / "model_index.json")
        record = read_record(folder) if (folder / FILE).is_file() else None
        known = record["variants"] if record else []
        if variant is not None and variant not in known:
            raise ArtifactError(f"{folder} has no variant {variant!r}; it has {known or 'none'}.")
        network = load_network(folder, variant)
        scheduler = _scheduler(folder, network)
        if record is None:
            return _fitting(folder, _foreign(folder, index, network, scheduler, channels))
        codec = _codec(folder, record["codec"]["channels"])
        _check_codec(folder, codec, record)
        names = tuple(_aliases(text) for text in _id2label(folder, index).values())
        meta = {k: v for k, v in record.items() if k not in _STORED}
        classes, label_map = tuple(record["classes"]), record["label_map"]
        found = cls(network, scheduler, codec, classes, label_map, record["conditions"], names, meta)
        return _fitting(folder, found)

    def has_variant(self, variant: str) -> bool:
        return variant in self.meta.get("variants", [])


_STORED = ("format", "classes", "label_map", "conditions", "codec")


def build_generator(
    config: ModelConfig, classes: tuple[str, ...], image_size: int, seed: int, *, codec: Codec
) -> Generator:
    """A freshly initialised generator of ``image_size`` images; the null class has the index after the last class.

    Raises:
        ConfigError: the side does not fit the codec or the network.
    """
    shape = codec.latent_shape(image_size)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=config.noise_schedule,
        prediction_type=config.prediction_type,
        clip_sample=False,  # clipping x0 at every step made samples of few steps worse, on pixels too
    )
    network = build_network(config, len(classes), shape, seed)
    label_map = {name: i for i, name in enumerate(classes)}
    return Generator(network, scheduler, codec, classes, label_map, len(classes), tuple((name,) for name in classes))


def load_generator_codec(folder: Path, channels: int) -> Codec:
    """The codec of a generator folder for images of ``channels``, without loading the network.

    Raises:
        ArtifactError: it is no generator, is damaged, or its autoencoder is not the one it was trained with.
        ConfigError: an autoencoder of grey images for images in colour.
    """
    _read_json(folder / "model_index.json")
    codec = load_codec(str(folder) if _has_autoencoder(folder) else PIXELS, channels)
    if (folder / FILE).is_file():
        _check_codec(folder, codec, read_record(folder))
    return codec


def read_record(folder: Path) -> dict[str, Any]:
    """gendistill.json of a generator folder, checked."""
    record = _read_json(folder / FILE)
    if record.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder / FILE} has format {record.get('format')!r}; this version reads {FORMAT}. Run `gendistill "
            "finetune` again."
        )
    missing = [key for key in (*_STORED, "variants") if key not in record]
    if missing:
        raise ArtifactError(f"{folder / FILE} lacks {', '.join(missing)}. Run `gendistill finetune` again.")
    shapes = {
        "classes": isinstance(record["classes"], list) and all(isinstance(c, str) for c in record["classes"]),
        "label_map": isinstance(record["label_map"], dict),
        "conditions": isinstance(record["conditions"], int),
        "codec": isinstance(record["codec"], dict) and {"channels", "hash", "name"} <= record["codec"].keys(),
        "variants": isinstance(record["variants"], list),
    }
    wrong = [name for name, right in shapes.items() if not right]
    if wrong:
        raise ArtifactError(f"{folder / FILE} is damaged: look at {', '.join(wrong)}. Run `gendistill finetune` again.")
    check_label_map(tuple(record["classes"]), record["label_map"], record["conditions"])
    return record


def _fitting(folder: Path, generator: Generator) -> Generator:
    """The generator, if its parts go together."""
    rows, conditions, channels = class_rows(generator.network), generator.conditions, generator.sample_shape[0]
    if rows not in (conditions, conditions + 1):
        raise ArtifactError(
            f"{folder} names {conditions} conditions, but its network has a class table of {rows} rows; expected as "
            "many, or one more for the null class."
        )
    if channels != generator.codec.latent_channels:
        raise ArtifactError(
            f"The network in {folder} denoises {channels} channels, but its codec {generator.codec.name} makes "
            f"{generator.codec.latent_channels}; they do not belong together."
        )
    return generator


def _foreign(folder: Path, index: dict, network: Network, scheduler: DDPMScheduler, channels: int) -> Generator:
    """A diffusers folder without gendistill.json: every condition is a class, by its first name in ``id2label``."""
    rows, id2label = class_rows(network), _id2label(folder, index)
    conditions = rows - 1 if kind_of(network) == "dit" else len(id2label) or rows
    names = tuple(_aliases(id2label.get(i, str(i))) or (str(i),) for i in range(conditions))
    shared = {name for name, count in Counter(n[0] for n in names).items() if count > 1}
    classes = tuple(f"{n[0]} ({i})" if n[0] in shared else n[0] for i, n in enumerate(names))
    label_map = {name: i for i, name in enumerate(classes)}
    codec = _codec(folder, channels)
    meta = {"licence": licence_of(folder), "parent": str(folder.name), "variants": []}
    return Generator(network, scheduler, codec, classes, label_map, conditions, names, meta)


def _id2label(folder: Path, index: dict) -> dict[int, str]:
    try:
        return {int(i): str(text) for i, text in (index.get("id2label") or {}).items()}
    except (AttributeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / 'model_index.json'} has an id2label that is no table of names by index: {error}."
        ) from error


def _has_autoencoder(folder: Path) -> bool:
    return any((folder / name / "config.json").is_file() for name in SUBFOLDERS)


def _check_codec(folder: Path, codec: Codec, record: dict[str, Any]) -> None:
    if codec.hash() != record["codec"]["hash"]:
        raise ArtifactError(
            f"The autoencoder in {folder} is not the {record['codec']['name']} the generator was trained with; "
            "copy the folder again."
        )


def _codec(folder: Path, channels: int) -> Codec:
    if _has_autoencoder(folder):
        return load_codec(str(folder), channels)
    network = _read_json(next(p for p in (folder / "unet", folder / "transformer") if p.is_dir()) / "config.json")
    return PixelCodec(int(network["in_channels"]))


def _scheduler(folder: Path, network: Network) -> DDPMScheduler:
    try:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except Exception as error:
        raise ArtifactError(f"{folder / 'scheduler'} cannot be read: {error}") from error
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ArtifactError(
            f"{folder / 'scheduler'} predicts {scheduler.config.prediction_type!r}; expected epsilon or v_prediction."
        )
    if scheduler.config.prediction_type != "epsilon" and network.config.out_channels == 2 * network.config.in_channels:
        raise ArtifactError(f"The network in {folder} learns sigma but predicts v; expected epsilon with it.")
    return scheduler


def _pipeline(generator: Generator) -> Any:
    autoencoder = generator.codec.autoencoder if isinstance(generator.codec, LatentCodec) else None
    if kind_of(generator.network) == "dit":
        return DiTPipeline(generator.network, autoencoder, generator.scheduler)
    if autoencoder is not None:
        return LDMPipeline(autoencoder, generator.network, generator.scheduler)
    return DDPMPipeline(unet=generator.network, scheduler=generator.scheduler)


def _aliases(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def licence_of(folder: Path) -> str:
    """From the front matter of a model folder's card, ``unknown`` without one."""
    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8").split("---", 2) if card.is_file() else []
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except yaml.YAMLError:
        front = {}
    return str((front or {}).get("license", "unknown"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{path.parent} is not a generator folder: it has no {path.name}. Make one with `gendistill finetune`, or "
            "give a diffusers pipeline folder."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}. Copy it, or run `gendistill finetune` again.") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is damaged: it holds {type(value).__name__}, expected an object.")
    return value
