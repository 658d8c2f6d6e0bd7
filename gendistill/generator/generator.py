"""Generator: a class-conditional UNet2DModel with its noise schedule and label map, as a diffusers pipeline folder.

The folder holds ``unet/`` (the fine-tuned weights, and beside them the plain-diffusion weights as diffusers' variant
``base``), ``scheduler/``, ``model_index.json`` and ``gendistill.json`` (label map, codec, parents, licence).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from gendistill.config import ModelConfig
from gendistill.errors import ArtifactError, ConfigError
from gendistill.hashing import hash_tensors
from gendistill.seeding import derive

FILE, FORMAT = "gendistill.json", 1
BASE = "base"


@dataclass
class Generator:
    """Network, schedule and label map: ``classes`` in index order, ``label_map`` to each one's condition index."""

    unet: UNet2DModel
    scheduler: DDPMScheduler
    classes: tuple[str, ...]
    label_map: dict[str, int]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def null_class(self) -> int:
        """The condition that stands for "no class"; always the last row of the class embedding."""
        return int(self.unet.config.num_class_embeds) - 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        size = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), size, size

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler.config.prediction_type)

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def condition(self, labels: Tensor) -> Tensor:
        """Class index (B,) -> condition index (B,) by the stored map."""
        return torch.tensor([self.label_map[name] for name in self.classes], device=labels.device)[labels]

    def to(self, device: torch.device | str) -> Generator:
        self.unet.to(device)
        return self

    def hash(self) -> str:
        """Of the weights: equal generators, equal hash."""
        return hash_tensors(self.unet.state_dict())

    def save_pretrained(self, folder: str | Path, base: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder; ``base`` are the plain-diffusion weights to keep as variant ``base``."""
        folder = Path(folder)
        pipeline = DDPMPipeline(unet=self.unet, scheduler=self.scheduler)
        pipeline.save_pretrained(folder)
        if base is not None:
            copy = UNet2DModel.from_config(self.unet.config)
            copy.load_state_dict(dict(base))
            copy.save_pretrained(folder / "unet", variant=BASE)
        record = {
            "format": FORMAT,
            "classes": list(self.classes),
            "label_map": self.label_map,
            "codec": "pixels",
            "variants": [BASE] if base is not None else [],
            **self.meta,
        }
        (folder / FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, variant: str | None = None) -> Generator:
        """Load the fine-tuned weights, or with ``variant="base"`` those of plain diffusion.

        Raises:
            ArtifactError: the folder is no generator, or lacks the variant.
        """
        folder = Path(folder)
        record = read_record(folder)
        if variant is not None and variant not in record["variants"]:
            raise ArtifactError(f"{folder} has no variant {variant!r}; it has {record['variants'] or 'none'}.")
        unet = UNet2DModel.from_pretrained(folder / "unet", variant=variant, use_safetensors=True)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        meta = {k: v for k, v in record.items() if k not in ("format", "classes", "label_map", "codec", "variants")}
        return cls(unet.eval(), scheduler, tuple(record["classes"]), record["label_map"], meta)


def read_record(folder: Path) -> dict[str, Any]:
    """gendistill.json of a generator folder, checked."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{folder} is not a generator folder: it has no {FILE}. Make one with `gendistill finetune`."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{folder / FILE} is damaged: {error}. Run `gendistill finetune` again.") from error
    if record.get("format") != FORMAT or record.get("codec") != "pixels":
        raise ArtifactError(
            f"{folder / FILE} has format {record.get('format')!r} and codec {record.get('codec')!r}; this version "
            f"reads format {FORMAT} with codec 'pixels'."
        )
    if set(record["label_map"]) != set(record["classes"]):
        raise ArtifactError(f"{folder / FILE}: the label map does not name exactly the classes.")
    return record


def build_generator(
    config: ModelConfig, classes: tuple[str, ...], channels: int, image_size: int, seed: int
) -> Generator:
    """A freshly initialised generator; the null class has the index after the last class.

    Raises:
        ConfigError: the image side does not divide by the network's total down-sampling.
    """
    levels = len(config.block_out_channels)
    factor = 2 ** (levels - 1)
    if image_size % factor or image_size // factor < 2:
        raise ConfigError(
            f"Images of {image_size} px do not fit a UNet of {levels} resolutions: the side must be a multiple of "
            f"{factor} and at least {2 * factor}. Change --data.image_size, or give finetune.model.block_out_channels "
            "another number of entries."
        )
    plain = levels - config.attention_levels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "generator"))
        unet = UNet2DModel(
            sample_size=image_size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * config.attention_levels,
            up_block_types=("AttnUpBlock2D",) * config.attention_levels + ("UpBlock2D",) * plain,
            add_attention=config.attention_levels > 0,
            norm_num_groups=config.norm_num_groups,
            num_class_embeds=len(classes) + 1,
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule=config.noise_schedule, prediction_type=config.prediction_type
    )
    return Generator(unet, scheduler, classes, {name: i for i, name in enumerate(classes)})
