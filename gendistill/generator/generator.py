"""Generator: a class-conditional network with its codec, noise schedule and label map, as a diffusers pipeline folder.

The folder holds ``unet/`` or ``transformer/`` (the fine-tuned weights, and beside them those before the minimax phase
as diffusers' variant ``base``), the autoencoder if there is one, ``scheduler/``, ``model_index.json`` and
``gendistill.json`` (classes, label map, codec, parents, licence). A folder that diffusers wrote, such as
facebook/DiT-XL-2-256, is read as well: its conditions are then the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTPipeline, LDMPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from gendistill.config import ModelConfig
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError, reason
from gendistill.generator import loading
from gendistill.generator.adaptation import load_adapter, read_adapter_record
from gendistill.generator.class_mapping import ClassMapping, Names, check_label_map
from gendistill.generator.codec import PIXELS, SUBFOLDERS, Codec, LatentCodec, PixelCodec, load_codec
from gendistill.generator.loading import FILE, INDEX, CodecRecord, GeneratorMeta, GeneratorRecord
from gendistill.generator.networks import (
    Network,
    build_network,
    class_rows,
    folder_of,
    kind_of,
    load_network,
    load_scheduler,
)
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import share_files, write_json

BASE = "base"


@dataclass(repr=False)
class Generator:
    """A class-conditional diffusion model of images.

    Attributes:
        network: Predicts epsilon or v for noisy pixels or latents, and a learned variance if it has one.
        scheduler: The noise schedule of training.
        codec: Converts between images and what the network denoises.
        mapping: The classes and the conditions of the network.
        meta: Where the generator comes from.

    Example:
        >>> generator = Generator.from_pretrained("facebook/DiT-XL-2-256")
        >>> dogs = generator.map_classes(("beagle", "dingo"))
        >>> dogs.label_map
        {'beagle': 162, 'dingo': 273}
    """

    network: Network
    scheduler: DDPMScheduler
    codec: Codec
    mapping: ClassMapping
    meta: GeneratorMeta = field(default_factory=GeneratorMeta)

    def __repr__(self) -> str:
        size, millions = "x".join(map(str, self.image_shape)), sum(p.numel() for p in self.network.parameters()) / 1e6
        kind = kind_of(self.network)
        return f"Generator({kind}, {millions:.2f} M parameters, {len(self.classes)} classes, images of {size})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.mapping.classes

    @property
    def label_map(self) -> dict[str, int]:
        """The condition index of each class."""
        return self.mapping.label_map

    @property
    def conditions(self) -> int:
        """The number of conditions of the network, without the null class."""
        return self.mapping.conditions

    @property
    def null_class(self) -> int | None:
        """The condition that stands for "no class", the row after the last condition; None if the network has none."""
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

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's raw output (B,c,h,w), with learned sigma (B,2c,h,w), for x (B,c,h,w), t and condition (B,)."""
        return self.network(x, t, class_labels=condition).sample

    def to(self, device: torch.device | str) -> Generator:
        self.network.to(device)
        self.codec.to(device)
        return self

    def hash(self) -> str:
        """Hash of everything that decides a sample."""
        parts = [hash_tensors(self.network.state_dict()), self.codec.hash(), self.classes, self.label_map]
        return hash_json([*parts, self.prediction_type, hash_tensors({"alphas": self.alphas_cumprod})])

    def for_classes(self, classes: tuple[str, ...], label_map: Mapping[str, int]) -> Generator:
        """The same model for a subset of its conditions, which keep their indices."""
        return replace(self, mapping=self.mapping.select(classes, label_map))

    def map_classes(self, classes: tuple[str, ...], given: Mapping[str, int] | None = None) -> Generator:
        """The same model for these classes, each with the index in ``given`` or the condition of its name.

        Raises:
            ArtifactError: a class that the model lacks, or a name that several conditions have.
            ConfigError: ``given`` names unknown classes or conditions.
        """
        return replace(self, mapping=self.mapping.map_classes(classes, given, self.meta.get("given_labels") or ()))

    def with_adapter(self, folder: str | Path) -> Generator:
        """This model with the adapter that ``gendistill finetune`` wrote into ``folder``, for the adapter's classes.

        The adapter's weights are merged into the network, which this generator and the new one share.

        Raises:
            ArtifactError: the adapter is missing, damaged, or was made from another model.
        """
        record = read_adapter_record(Path(folder))
        network = load_adapter(self.network, folder)
        missing = [key for key in ("classes", "label_map", "meta") if key not in record]
        if missing:
            raise ArtifactError(
                f"{folder} does not contain {', '.join(missing)}. Use one that `gendistill finetune` wrote."
            )
        classes, meta = tuple(record["classes"]), record["meta"]
        check_label_map(classes, record["label_map"], self.conditions)
        mapping = self.mapping.select(classes, record["label_map"])
        licence = self.meta.get("licence", meta.get("licence", "unknown"))
        codec = self.codec
        if isinstance(codec, LatentCodec):  # which decodes to grey images or to colour
            codec = codec.with_channels(record.get("channels", codec.channels))
        return replace(self, network=network, codec=codec, mapping=mapping, meta={**meta, "licence": licence})

    def save_pretrained(self, folder: str | Path, base: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder; ``base`` are the plain-diffusion weights to keep as variant ``base``."""
        folder = Path(folder)
        with _without_warnings():  # that a DiT of pixels has no autoencoder
            _pipeline(self).save_pretrained(folder)
        if base is not None:
            copy = type(self.network).from_config(self.network.config)
            copy.load_state_dict(dict(base))
            copy.save_pretrained(folder / folder_of(self.network), variant=BASE)
        names = {str(i): ", ".join(names) for i, names in enumerate(self.mapping.names)}
        write_json(folder / INDEX, {**loading.read_generator_json(folder / INDEX), "id2label": names})
        record: GeneratorRecord = {
            "format": loading.FORMAT,
            "classes": list(self.classes),
            "label_map": self.label_map,
            "conditions": self.conditions,
            "codec": {"name": self.codec.name, "channels": self.codec.channels, "hash": self.codec.hash()},
            **self.meta,
            "variants": [BASE] if base is not None else [],
        }
        write_json(folder / FILE, {**record, "files": loading.file_hashes(folder)}, hashed=True)
        share_files(folder)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, variant: str | None = None, *, revision: str | None = None, channels: int = 3
    ) -> Generator:
        """Load a generator from a folder or the Hugging Face Hub.

        A folder that diffusers wrote, such as facebook/DiT-XL-2-256, is read as well: its conditions are then the
        classes, each by its first name.

        Args:
            source: A folder that ``save_pretrained`` or a diffusers pipeline wrote, the name of a generator that comes
                with gendistill, or a Hub id.
            variant: None for the fine-tuned weights, ``base`` for those of plain diffusion training.
            revision: Branch, tag or commit of a Hub id.
            channels: Of the images, 1 or 3; only needed for grey images and a folder that diffusers wrote.

        Returns:
            The generator in fp32 on the CPU, in evaluation mode.

        Raises:
            ArtifactError: it is no generator, is damaged, or lacks the variant.
            ConfigError: a revision of a folder, or an autoencoder for grey images where they are in colour.
        """
        folder = loading.resolve_model_folder(str(source), revision)
        names = loading.read_condition_names(folder)
        record = loading.read_record(folder) if (folder / FILE).is_file() else None
        known = record["variants"] if record else []
        if variant is not None and variant not in known:
            raise ArtifactError(f"{folder} has no variant {variant!r}; it has {known or 'none'}.")
        if record is not None:
            loading.check_files(folder, record, variant)
        network = load_network(folder, variant)
        scheduler = load_scheduler(folder, network)
        if record is None:
            codec = _codec(folder, channels)
            mapping = _mapping(network, names)
            meta: GeneratorMeta = {"licence": loading.licence_of(folder), "parent": str(folder.name), "variants": []}
        else:
            codec = _codec(folder, record["codec"]["channels"])
            _check_codec(folder, codec, record["codec"])
            classes, labels = tuple(record["classes"]), record["label_map"]
            mapping = ClassMapping(classes, labels, record["conditions"], tuple(names.values()))
            meta = cast("GeneratorMeta", {k: v for k, v in record.items() if k not in _STORED})
        generator = cls(network, scheduler, codec, mapping, meta)
        if record is None or "files" not in record:
            _try(folder, generator)
        _check_parts(folder, generator)
        return generator

    def has_variant(self, variant: str) -> bool:
        return variant in self.meta.get("variants", [])


_STORED = ("format", "classes", "label_map", "conditions", "codec", "files")


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
    names = tuple((name,) for name in classes)
    return Generator(network, scheduler, codec, ClassMapping(classes, label_map, len(classes), names))


def load_generator_codec(folder: Path, channels: int) -> Codec:
    """The codec of a generator folder for images of ``channels``, without loading the network.

    Raises:
        ArtifactError: it is no generator, is damaged, or its autoencoder is not the one it was trained with.
        ConfigError: an autoencoder of grey images for images in colour.
    """
    loading.read_generator_json(folder / INDEX)
    codec = load_codec(str(folder) if _has_autoencoder(folder) else PIXELS, channels)
    if (folder / FILE).is_file():
        _check_codec(folder, codec, loading.read_record(folder)["codec"])
    return codec


def _check_parts(folder: Path, generator: Generator) -> None:
    """Raises ArtifactError where network, codec and number of conditions do not go together."""
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


@torch.no_grad()
def _try(folder: Path, generator: Generator) -> None:
    """Denoise one image with a network that diffusers, or an older version, wrote: its settings can be anything.

    Raises:
        ArtifactError: the network cannot.
    """
    try:
        zero = torch.zeros(1, dtype=torch.int64)
        shape = tuple(generator.denoise(torch.zeros(1, *generator.sample_shape), zero, zero).shape)
        _, *side = generator.sample_shape
    except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"The network in {folder} cannot run with its config.json: {reason(error)}") from error
    if shape != (1, int(generator.network.config.out_channels), *side):
        raise ArtifactError(f"The network in {folder} makes {shape} of {generator.sample_shape}; expected that side.")


def _mapping(network: Network, names: Mapping[int, tuple[str, ...]]) -> ClassMapping:
    """Without gendistill.json: every condition is a class, by its first name in ``id2label``."""
    rows = class_rows(network)
    conditions = rows - 1 if kind_of(network) == "dit" else len(names) or rows
    all_names: Names = tuple(names.get(i) or (str(i),) for i in range(conditions))
    shared = {name for name, count in Counter(n[0] for n in all_names).items() if count > 1}
    classes = tuple(f"{n[0]} ({i})" if n[0] in shared else n[0] for i, n in enumerate(all_names))
    return ClassMapping(classes, {name: i for i, name in enumerate(classes)}, conditions, all_names)


def _has_autoencoder(folder: Path) -> bool:
    return any((folder / name / "config.json").is_file() for name in SUBFOLDERS)


def _check_codec(folder: Path, codec: Codec, record: CodecRecord) -> None:
    if codec.hash() != record["hash"]:
        raise ArtifactError(
            f"The autoencoder in {folder} is not the {record['name']} the generator was trained with; "
            "copy the folder again."
        )


def check_shape(generator: Generator, data: RealData) -> None:
    """Raises ArtifactError where the generator's images have another shape than the data's."""
    wanted, made = (data.channels, data.image_size, data.image_size), generator.image_shape
    if made != wanted:
        colour = made[0] != data.channels
        remedy = f"data {'in colour' if made[0] > 1 else 'in grey'}" if colour else f"--data.image_size {made[-1]}"
        raise ArtifactError(
            f"The generator makes {made} images (C,H,W) with codec {generator.codec.name}; the data have {wanted}. "
            f"Give {remedy}, or another generator."
        )


def _codec(folder: Path, channels: int) -> Codec:
    if _has_autoencoder(folder):
        return load_codec(str(folder), channels)
    network = loading.read_generator_json(
        next(p for p in (folder / "unet", folder / "transformer") if p.is_dir()) / "config.json"
    )
    return PixelCodec(int(network["in_channels"]))


@contextmanager
def _without_warnings() -> Iterator[None]:
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def _pipeline(generator: Generator) -> Any:
    autoencoder = generator.codec.autoencoder if isinstance(generator.codec, LatentCodec) else None
    if kind_of(generator.network) == "dit":
        return DiTPipeline(generator.network, autoencoder, generator.scheduler)
    if autoencoder is not None:
        return LDMPipeline(autoencoder, generator.network, generator.scheduler)
    return DDPMPipeline(unet=generator.network, scheduler=generator.scheduler)
