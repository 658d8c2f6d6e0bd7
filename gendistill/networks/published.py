"""Published networks: where their files are, and how they want their images. No pickle is read, and no code is run.

Legend: B images, C channels, H the side of an image.
"""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from gendistill.errors import ArtifactError, ConfigError
from gendistill.hub import PICKLES, fetch, local_folder
from gendistill.io import read_json, read_text

FILES = ("*.json", "*.safetensors", "README.md")
MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # transformers' numbers of Pillow's filters


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Images in [0, 255] as a network wants them: resized, the middle cropped, (x * scale - mean) / std by channel."""

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    mode: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """(B,C,H,H) -> float32 (B,channels of mean,crop,crop), differentiable; one channel is repeated."""
        values = images.float().expand(-1, len(self.mean), -1, -1)
        if values.shape[-1] != self.resize:
            smooth, size = self.mode != "nearest", (self.resize, self.resize)
            align = False if smooth else None  # which nearest does not take
            values = F.interpolate(values, size, mode=self.mode, align_corners=align, antialias=smooth).clamp(0, 255)
        edge = (self.resize - self.crop) // 2
        values = values[..., edge : edge + self.crop, edge : edge + self.crop]
        mean, std = (values.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (values * self.scale - mean) / std


def model_folder(source: str, name: str, revision: str | None = None) -> Path:
    """The folder, or the local copy of the Hub's, with its weights as safetensors.

    Raises:
        ArtifactError: there is none, or its weights are pickled or no files.
    """
    path = local_folder(source, revision, "a model folder") or fetch(source, revision, FILES, "model")
    if odd := [one for one in sorted(path.glob("*.safetensors")) if not one.is_file()]:
        raise ArtifactError(f"{odd[0]} is no file; expected weights as safetensors. Get the folder again.")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(one for one in path.iterdir() if one.suffix in PICKLES)
        fix = f" {conversion(pickled[0], path / 'model.safetensors')}" if pickled else ""
        raise ArtifactError(f"{name} has no safetensors weights in {path}, and pickled ones are not read.{fix}")
    return path.resolve()


def conversion(pickled: Path, target: Path) -> str:
    """The sentence that says how a pickled file of tensors becomes a safetensors file."""
    return (
        'Convert a file of tensors by name: python -c "import torch, safetensors.torch as s; s.save_file({k: v.clone()'
        f" for k, v in torch.load('{pickled}', map_location='cpu', weights_only=True).items()}}, '{target}')\"."
    )


def weights_file(folder: Path) -> Path:
    """The safetensors file of a timm folder: model.safetensors, or the only one.

    Raises:
        ArtifactError: there are several others.
    """
    found = sorted(folder.glob("*.safetensors"))
    usual = folder / "model.safetensors"
    if usual not in found and len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ArtifactError(f"{folder} has the weights {names}; expected model.safetensors, or one file.")
    return usual if usual in found else found[0]


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that its network is loaded from: one, or the parts that an index names.

    Raises:
        ArtifactError: there are several without an index, or the index is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.is_file():
        return [weights_file(folder)]
    fix = "Get the folder again."
    parts = read_json(index, kind="a folder of weights in parts", fix=fix).get("weight_map")
    if not isinstance(parts, dict) or not all((folder / str(part)).is_file() for part in parts.values()):
        raise ArtifactError(f"{index} names no weights, or files that are not there. {fix}")
    return [folder / part for part in sorted(set(parts.values()))]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers without its report of unused weights and its progress bars, which are as before afterwards."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers import logging

    level, bars, hub = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the Hub's as well
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
            if not hub:
                disable_progress_bars()


def timm_source(name: str) -> str:
    """The folder itself, or the Hub id of the weights of one of timm's names, as resnet18 or resnet18.a1_in1k."""
    import timm

    if "/" in name or Path(name).is_dir():
        return name
    architecture, facts = name.partition(".")[0], timm_facts(name)
    if facts is None or not facts.hf_hub_id:
        close = ", ".join(difflib.get_close_matches(architecture, timm.list_models(pretrained=True), 5)) or "none"
        raise ConfigError(f"timm has no weights of {name!r}; names like it: {close}.")
    return f"{facts.hf_hub_id}{architecture}.{facts.tag}" if facts.hf_hub_id.endswith("/") else facts.hf_hub_id


def timm_facts(name: str) -> Any:
    """What timm knows of one of its names, as resnet18 or resnet18.a1_in1k; None where it has no such weights."""
    import timm

    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    except RuntimeError:  # of a tag that it does not know
        return None


def read_processor(folder: Path) -> Preprocessing:
    """What preprocessor_config.json of a transformers folder says.

    Raises:
        ArtifactError: there is none, or it leaves out what is needed.
    """
    path = folder / "preprocessor_config.json"
    try:
        facts = json.loads(read_text(path))
        resize = _side(facts["size"])
        crop = _side(facts["crop_size"]) if facts.get("do_center_crop") else resize
        normal = facts.get("do_normalize", True)
        mean, std = (facts["image_mean"], facts["image_std"]) if normal else ([0.0] * 3, [1.0] * 3)
        mean, std = channel_values("image_mean", mean), channel_values("image_std", std, positive=True)
        if len(mean) != len(std):
            raise ValueError(f"image_mean has {len(mean)} values, image_std {len(std)}")
        scale = facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
        if not _is_number(scale):
            raise ValueError(f"rescale_factor is {scale!r}; expected a number")
        mode = MODES.get(facts.get("resample", 3), "bicubic")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} does not say how images are resized and normalised ({type(error).__name__}: {error}). Save the "
            "model's image processor into the folder: AutoImageProcessor.from_pretrained(ID).save_pretrained(FOLDER)."
        ) from error
    return Preprocessing(resize=max(resize, crop), crop=crop, mean=mean, std=std, scale=scale, mode=mode)


def _side(size: int | dict[str, int]) -> int:
    side = size if isinstance(size, int) else size["shortest_edge"] if "shortest_edge" in size else size["height"]
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"a size is {side!r}; expected a whole number of pixels")
    return side


def channel_values(name: str, values: object, channels: int = 1, *, positive: bool = False) -> tuple[float, ...]:
    """Numbers that a file has for each channel.

    Args:
        name: What they are called there.
        values: As read.
        channels: The fewest that are needed.
        positive: Whether each must be above 0.

    Raises:
        ValueError: they are something else.
    """
    found = tuple(values) if isinstance(values, (list, tuple)) else ()
    right = len(found) >= channels and all(_is_number(one) and (one > 0 or not positive) for one in found)
    if not right:
        what = "positive numbers" if positive else "numbers"
        raise ValueError(f"{name} is {reprlib.repr(values)}; expected a list of {what}, one a channel")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
