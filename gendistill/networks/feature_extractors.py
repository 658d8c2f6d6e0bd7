"""Networks of others as features: timm and transformers models with the preprocessing that they were trained with.

Legend: B images, C channels, D features.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.errors import ArtifactError, ConfigError
from gendistill.hub import fetch, local_folder, reason
from gendistill.progress import track

FILES = ("*.json", "*.safetensors")
ROWS = 64  # images that a large network sees at once
MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # transformers' numbers of Pillow's filters


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """uint8 images as a network wants them: resized, the middle cropped, (x * scale - mean) / std by channel."""

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    mode: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B,C,H,H) -> float32 (B,channels of mean,crop,crop); one channel is repeated."""
        values = images.float().expand(-1, len(self.mean), -1, -1)
        if values.shape[-1] != self.resize:
            smooth: dict[str, Any] = {} if self.mode == "nearest" else {"antialias": True, "align_corners": False}
            values = F.interpolate(values, (self.resize, self.resize), mode=self.mode, **smooth).clamp(0, 255)
        edge = (self.resize - self.crop) // 2
        values = values[..., edge : edge + self.crop, edge : edge + self.crop]
        mean, std = (values.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (values * self.scale - mean) / std


@dataclass(frozen=True)
class Backbone:
    """``network`` maps preprocessed images to features (B,D)."""

    name: str
    network: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (B,C,H,H) -> float32 (B,D), on the CPU."""
        batches = images.split(ROWS)
        shown = track(batches, "features", len(batches))
        return torch.cat([self.network(self.preprocessing(x.to(self.device))).float().cpu() for x in shown])


def load_backbone(name: str, device: torch.device | str = "cpu") -> Backbone:
    """``timm:NAME`` or ``transformers:NAME``, NAME being a folder or a Hub id, or one of timm's own names.

    Raises:
        ConfigError: another kind of name, or a network that gives no features.
        ArtifactError: the files cannot be had (offline), are pickled, or do not fit.
    """
    kind, _, source = name.partition(":")
    if kind not in LOADERS or not source:
        raise ConfigError(f"features is {name!r}; expected timm:NAME or transformers:NAME, a folder or a Hub id.")
    device = torch.device(device)
    network, preprocessing = LOADERS[kind](source, device)
    backbone = Backbone(name, network, preprocessing, device)
    try:
        found = backbone(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} takes no images of {preprocessing.crop} px: {reason(error)}") from error
    if found.ndim != 2:
        raise ConfigError(f"{name} gives {tuple(found.shape)} for two images; expected one row of features each.")
    return backbone


def _timm(source: str, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Preprocessing]:
    import timm

    folder = _folder(source if "/" in source else _timm_id(source), source)
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    except Exception as error:
        raise ArtifactError(f"{folder} cannot be loaded by timm: {reason(error)}") from error
    facts = timm.data.resolve_model_data_config(net)
    side = facts["input_size"][-1]
    return net.to(device).eval(), Preprocessing(
        resize=round(side / facts["crop_pct"]),
        crop=side,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        mode=facts["interpolation"] if facts["interpolation"] in MODES.values() else "bicubic",
    )


def _timm_id(name: str) -> str:
    """The Hub id of the weights of one of timm's names, such as resnet18 or resnet18.a1_in1k."""
    import timm

    if Path(name).is_dir():
        return name
    architecture = name.partition(".")[0]
    facts = timm.get_pretrained_cfg(name) if timm.is_model(architecture) else None
    if facts is None or not facts.hf_hub_id:
        close = ", ".join(difflib.get_close_matches(architecture, timm.list_models(pretrained=True), 5)) or "none"
        raise ConfigError(f"timm has no weights of {name!r}; names like it: {close}.")
    return f"{facts.hf_hub_id}{architecture}.{facts.tag}" if facts.hf_hub_id.endswith("/") else facts.hf_hub_id


def _transformers(source: str, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Preprocessing]:
    from transformers import AutoModel, logging

    folder = _folder(source, source)
    logging.set_verbosity_error()  # its report of unused weights is no news: a head is left out on purpose
    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        raise ArtifactError(f"{folder} cannot be loaded by transformers: {reason(error)}") from error
    tower = getattr(model, "vision_model", model)  # of CLIP and its kin
    missing = [key for key in info["missing_keys"] if "pooler" not in key and "text_model" not in key]
    if missing:
        raise ArtifactError(f"{folder} lacks {len(missing)} weight(s) of its model, such as {missing[0]!r}.")
    pooled = not any("pooler" in key for key in info["missing_keys"])  # else the pooler would be a random one
    tower = tower.to(device).eval()
    return lambda images: _pooled(tower(pixel_values=images), pooled), _processor(folder)


def _pooled(outputs: Any, pooled: bool) -> Tensor:
    """(B,D): the pooled output; else the class token (B,T,D), or the mean over a map (B,D,h,w)."""
    found = getattr(outputs, "pooler_output", None) if pooled else None
    if found is not None:
        return found.flatten(1)
    hidden = outputs.last_hidden_state
    return hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))


def _processor(folder: Path) -> Preprocessing:
    """What preprocessor_config.json says.

    Raises:
        ArtifactError: there is none, or it leaves out what is needed.
    """
    path = folder / "preprocessor_config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        resize = _side(facts["size"])
        crop = _side(facts["crop_size"]) if facts.get("do_center_crop") else resize
        normal = facts.get("do_normalize", True)
        mean, std = (facts["image_mean"], facts["image_std"]) if normal else ([0.0] * 3, [1.0] * 3)
        scale = facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
        mode = MODES.get(facts.get("resample", 3), "bicubic")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} does not say how images are resized and normalised ({type(error).__name__}: {error}). Save the "
            "model's image processor into the folder: AutoImageProcessor.from_pretrained(ID).save_pretrained(FOLDER)."
        ) from error
    return Preprocessing(resize=max(resize, crop), crop=crop, mean=tuple(mean), std=tuple(std), scale=scale, mode=mode)


def _side(size: int | dict[str, int]) -> int:
    return size if isinstance(size, int) else size["shortest_edge"] if "shortest_edge" in size else size["height"]


def _folder(source: str, given: str) -> Path:
    """The folder, or the local copy of the Hub's, with its weights as safetensors."""
    path = local_folder(source, None, "a model folder") or fetch(source, None, FILES, "model")
    if not any(path.glob("*.safetensors")):
        raise ArtifactError(f"{given} has no safetensors weights in {path}, and pickled ones are not read.")
    return path.resolve()


LOADERS = {"timm": _timm, "transformers": _transformers}
