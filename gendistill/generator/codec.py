"""Codecs: between images and what the diffusion model denoises. The latent scale is defined only here.

Legend: images x (B,C,H,W) float in [-1, 1], C = 1 or 3; latents z (B,c,h,w) in the scaled space of the diffusion
model, h = H / factor. ``data.pixels`` defines the pixel ranges; the three autoencoders of diffusers all take and
return [-1, 1] (AutoencoderTiny converts it to [0, 1] inside).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor

from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.generator.loading import load_model, resolve_model_folder
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import read_json

PIXELS = "pixels"
SUBFOLDERS = ("vae", "vqvae")
FILES = ("config.json", "diffusion_pytorch_model*.json", "diffusion_pytorch_model*.safetensors")
PATTERNS = ("README.md", *(prefix + name for prefix in ("", "vae/", "vqvae/") for name in FILES))


@dataclass(frozen=True)
class Moments:
    """What an image is encoded to, z = mean + std * noise, both (B,c,h,w); std None: one point, mean."""

    mean: Tensor
    std: Tensor | None = None


class Codec(ABC):
    """Images of ``channels`` channels <-> latents of ``latent_channels`` channels, ``factor`` times smaller a side."""

    name: str
    channels: int
    latent_channels: int
    factor: int

    @abstractmethod
    def hash(self) -> str:
        """Equal hashes, equal codes."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move in place; images and latents must be on the same device."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @abstractmethod
    def _encode(self, images: Tensor) -> Moments: ...

    @abstractmethod
    def _decode(self, z: Tensor) -> Tensor: ...

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(c,h,w) of the latents of square images.

        Raises:
            ConfigError: the side does not divide by the down-sampling.
        """
        if image_size < 1 or image_size % self.factor:
            raise ConfigError(
                f"Images of {image_size} px do not fit {self.name}, which makes them {self.factor} times smaller; "
                f"--data.image_size must be a multiple of {self.factor}."
            )
        side = image_size // self.factor
        return self.latent_channels, side, side

    def image_size(self, latent_side: int) -> int:
        """Side of the images that latents of side ``latent_side`` decode to."""
        return latent_side * self.factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Moments:
        """Images (B,C,H,W) in [-1, 1] -> moments of the scaled latents (B,c,h,w).

        Raises:
            ConfigError: a side does not divide by the down-sampling.
            ValueError: another number of channels, or not floats.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected float (B,{self.channels},H,W) in [-1, 1]."
            )
        for side in images.shape[2:]:
            self.latent_shape(int(side))
        return self._encode(images)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B,c,h,w) -> images (B,C,H,W) about [-1, 1], not clipped; ``data.pixels.to_uint8`` clips."""
        return self.decode_with_grad(z)

    def decode_with_grad(self, z: Tensor) -> Tensor:
        """``decode``, with a gradient for ``z`` if it requires one; the codec's weights never get one."""
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(f"latents are {tuple(z.shape)}; expected (B,{self.latent_channels},h,w).")
        return self._decode(z)


class PixelCodec(Codec):
    """The diffusion model denoises the pixels themselves."""

    name = PIXELS
    factor = 1

    def __init__(self, channels: int) -> None:
        self.channels = self.latent_channels = channels

    def hash(self) -> str:
        return PIXELS

    def to(self, device: torch.device | str) -> Self:
        return self

    def _encode(self, images: Tensor) -> Moments:
        return Moments(images)

    def _decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class _Kind:
    """How one class of autoencoder is used: the config field with an entry a resolution, and its output's moments."""

    cls: Any
    levels: str
    moments: Callable[[Any], tuple[Tensor, Tensor | None]]


KINDS = {
    "AutoencoderKL": _Kind(
        AutoencoderKL, "block_out_channels", lambda output: (output.latent_dist.mean, output.latent_dist.std)
    ),
    "AutoencoderTiny": _Kind(AutoencoderTiny, "encoder_block_out_channels", lambda output: (output.latents, None)),
    "AutoencoderDC": _Kind(AutoencoderDC, "encoder_block_out_channels", lambda output: (output.latent, None)),
}


class LatentCodec(Codec):
    """An autoencoder of diffusers, in fp32, without gradients or dropout: z = (its latent - shift) * scale.

    shift is ``shift_factor`` and scale ``scaling_factor`` of its config; where that has ``latents_mean`` and
    ``latents_std`` by channel, shift is the former and scale ``scaling_factor / latents_std``, as in SDXL's pipelines.
    Grey images are repeated to the three channels of an autoencoder for colour, and averaged after decoding.
    """

    def __init__(self, autoencoder: Any, channels: int) -> None:
        """Use ``autoencoder``, which is changed to fp32 and evaluation mode.

        Raises:
            ArtifactError: another class, or a config that its own output contradicts.
            ConfigError: an autoencoder of grey images for data in colour.
        """
        self.name, self.channels = type(autoencoder).__name__, channels
        self._kind = _kind(self.name, "the autoencoder given")
        self.autoencoder = autoencoder.float().eval().requires_grad_(False)
        config = autoencoder.config
        self.factor = 2 ** (len(config[self._kind.levels]) - 1)
        self.latent_channels = int(config["latent_channels"])
        self._inner = int(config["in_channels"])
        self._shift, self._scale = _scaling(self.name, config)
        if self._inner != channels and (self._inner, channels) != (3, 1):
            raise ConfigError(
                f"The {self.name} takes images of {self._inner} channel(s), the data have {channels}. Give data of "
                f"{self._inner}, or an autoencoder for {channels}."
            )
        self._probe()

    def hash(self) -> str:
        """Of the weights and the config, without its path and without diffusers' defaults."""
        defaults = {k: p.default for k, p in inspect.signature(self._kind.cls.__init__).parameters.items()}
        config = self.autoencoder.config.items()  # compared by hash, because config.json turns tuples into lists
        config = {k: v for k, v in config if k in defaults and hash_json(v) != hash_json(defaults[k])}
        return hash_json([self.name, config, hash_tensors(self.autoencoder.state_dict())])

    def to(self, device: torch.device | str) -> Self:
        self.autoencoder.to(device)
        return self

    def with_channels(self, channels: int) -> LatentCodec:
        """This autoencoder for images of so many channels."""
        return self if channels == self.channels else LatentCodec(self.autoencoder, channels)

    @property
    def device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    def _encode(self, images: Tensor) -> Moments:
        output = self.autoencoder.encode(images.float().expand(-1, self._inner, -1, -1))
        mean, std = self._kind.moments(output)
        shift, scale = _by_channel(self._shift, mean), _by_channel(self._scale, mean)
        return Moments((mean - shift) * scale, None if std is None else std * scale)

    def _decode(self, z: Tensor) -> Tensor:
        z = z.float()
        images = self.autoencoder.decode(z / _by_channel(self._scale, z) + _by_channel(self._shift, z)).sample
        return images.mean(1, keepdim=True) if self.channels < self._inner else images

    def _probe(self) -> None:
        """Encode and decode the smallest image, so that shapes that contradict the config are found before training."""
        image = torch.zeros(1, self.channels, 2 * self.factor, 2 * self.factor, device=self.device)
        wanted = (1, *self.latent_shape(2 * self.factor))
        try:
            mean = self.encode(image).mean
            decoded = self.decode(torch.zeros(wanted, device=self.device))
        except Exception as error:
            raise ArtifactError(f"The {self.name} fails on a {tuple(image.shape)} image: {reason(error)}") from error
        if mean.shape != wanted or decoded.shape != image.shape:
            raise ArtifactError(
                f"The {self.name} encodes {tuple(image.shape)} to {tuple(mean.shape)} and decodes {wanted} to "
                f"{tuple(decoded.shape)}; by its config.json expected {wanted} and {tuple(image.shape)}."
            )


def _kind(name: Any, where: object) -> _Kind:
    if name not in KINDS:
        raise ArtifactError(f"{where} is a {name}; expected one of {', '.join(KINDS)}.")
    return KINDS[name]


def _scaling(name: str, config: Any) -> tuple[list[float], list[float]]:
    """(shift, scale), each of one entry or one a latent channel."""
    factor = config.get("scaling_factor")
    if not factor:
        raise ArtifactError(f"The {name}'s config.json has scaling_factor {factor!r}; expected a number other than 0.")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return list(mean), [factor / s for s in std]
    return [config.get("shift_factor") or 0.0], [factor]


def _by_channel(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def load_codec(source: str, channels: int, revision: str | None = None) -> Codec:
    """``pixels``, or the autoencoder in a folder or Hub repository: itself, or a pipeline's ``vae/`` or ``vqvae/``.

    Raises:
        ArtifactError: nothing there, an unknown class, or weights that are missing, pickled or damaged.
        ConfigError: a revision of what has none, or an autoencoder of grey images for data in colour.
    """
    if source == PIXELS:
        if revision is not None:
            raise ConfigError(f"revision is {revision!r}, but the codec is 'pixels', which has no revisions.")
        return PixelCodec(channels)
    folder, name = _find_autoencoder(resolve_model_folder(source, revision, PATTERNS))
    return LatentCodec(load_model(_kind(name, folder).cls, folder), channels)


def _find_autoencoder(folder: Path) -> tuple[Path, Any]:
    """The first of the folder and its subfolders ``vae`` and ``vqvae`` with a config.json of a known class, and that
    class; without one, the first config.json of any."""
    paths = (folder / "config.json", *(folder / sub / "config.json" for sub in SUBFOLDERS))
    fix = "Get or save the folder again."
    configs = {path.parent: read_json(path, kind="an autoencoder", fix=fix) for path in paths if path.is_file()}
    found = [(parent, config.get("_class_name")) for parent, config in configs.items()]
    if not found:
        raise ArtifactError(
            f"{folder} holds no autoencoder: expected a config.json in it, or in its vae/ or vqvae/, as diffusers' "
            "save_pretrained writes."
        )
    return next((pair for pair in found if pair[1] in KINDS), found[0])
