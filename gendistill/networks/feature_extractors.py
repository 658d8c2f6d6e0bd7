"""Feature extractors: a teacher, a network trained here, or timm's and transformers' pretrained models.

Legend: B images, C channels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from gendistill import runtime
from gendistill.config import TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.data.mapped import Images
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.hashing import hash_json
from gendistill.io import write_tensors
from gendistill.networks.factories import build_network
from gendistill.networks.published import (
    MODES,
    Preprocessing,
    model_folder,
    quiet_transformers,
    read_processor,
    timm_source,
    weights_file,
)
from gendistill.networks.teacher import NetworkSpec, Teacher
from gendistill.networks.training import infer, inference_rows, train_classifier
from gendistill.progress import follow

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")  # names that transformers gives the parameter
ROWS = 64  # images that a large network sees at once


@dataclass(frozen=True)
class Backbone:
    """``network`` maps preprocessed images to features (B,D)."""

    name: str
    network: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    device: torch.device

    def __call__(self, images: Images) -> Tensor:
        """uint8 images (B,C,H,H) -> float32 (B,D), on the CPU."""

        def batch(x: Tensor) -> Tensor:
            return self.network(self.preprocessing(runtime.to_device(x, self.device))).float().cpu()

        return infer(batch, images, batch_size=ROWS, label="features")


def load_backbone(name: str, device: torch.device | str = "cpu") -> Backbone:
    """``timm:NAME`` or ``transformers:NAME``, NAME being a folder or a Hub id, or one of timm's own names.

    Networks are in fp32, whatever their checkpoint is in. No code of a folder is run, and no pickle is read.

    Raises:
        ConfigError: another kind of name, or a network that gives no features, or others for the same images.
        ArtifactError: the files are missing (offline), pickled, or do not fit.
    """
    kind, _, source = name.partition(":")
    if kind not in LOADERS or not source:
        raise ConfigError(f"features is {name!r}; expected timm:NAME or transformers:NAME, a folder or a Hub id.")
    device = torch.device(device)
    network, preprocessing = LOADERS[kind](source, device)
    backbone = Backbone(name, network, preprocessing, device)
    probes = (torch.arange(2 * 3 * 8 * 8) * 37 % 256).byte().view(2, 3, 8, 8)
    try:
        found, again = backbone(probes), backbone(probes)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} takes no images of {preprocessing.crop} px: {reason(error)}") from error
    if found.ndim != 2:
        raise ConfigError(f"{name} gives {tuple(found.shape)} for two images; expected one row of features each.")
    if not torch.allclose(found, again, rtol=1e-4, atol=1e-5):
        raise ConfigError(
            f"{name} gives other features for the same images, or NaN; expected a network that draws nothing at random."
        )
    return backbone


def _timm(source: str, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Preprocessing]:
    import timm

    folder = model_folder(timm_source(source), source)
    try:  # the one file by name: timm's own choice in a folder may be a pickle
        chosen = {"source": "", "file": str(weights_file(folder))}
        net = timm.create_model(
            f"local-dir:{folder}", pretrained=True, num_classes=0, pretrained_cfg_overlay=chosen
        ).float()
    except ArtifactError:
        raise
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


def _transformers(source: str, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Preprocessing]:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ConfigError(
            f"transformers:{source} needs the package transformers ({error}); run "
            "`pip install 'gendistill[transformers]'`, or take timm:NAME."
        ) from error
    folder = model_folder(source, source)
    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
    try:
        with quiet_transformers():  # it reports unused weights: the head is left out on purpose
            model, info = AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:
        raise ArtifactError(f"{folder} cannot be loaded by transformers: {reason(error)}") from error
    tower = getattr(model, "vision_model", model)  # of CLIP and similar models
    missing = [key for key in info["missing_keys"] if "pooler" not in key and "text_model" not in key]
    if missing:
        raise ArtifactError(f"{folder} lacks {len(missing)} weight(s) of its model, such as {missing[0]!r}.")
    pooled = not any("pooler" in key for key in info["missing_keys"])  # else the pooler would be a random one
    tower = tower.to(device).eval()
    token = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in tower.named_parameters())
    masked = getattr(tower.config, "mask_ratio", None) is not None  # ViTMAE drops 75 % of the patches, in eval too
    if masked:
        tower.config.mask_ratio = 0.0

    def features(images: Tensor) -> Tensor:
        own = {"noise": _order(tower, images)} if masked else {}
        return _pooled(tower(pixel_values=images, **own), pooled, token)

    return features, read_processor(folder)


def _order(tower: Any, images: Tensor) -> Tensor:
    """(B,T): what keeps ViTMAE's patches in their order, which it would draw."""
    count = tower.embeddings.patch_embeddings.num_patches
    return torch.arange(count, dtype=torch.float32, device=images.device).expand(len(images), -1)


def _pooled(outputs: Any, pooled: bool, token: bool) -> Tensor:
    """(B,D): the pooled output; else the class token of (B,T,D), or where there is none the mean over the tokens, as
    over a map (B,D,h,w)."""
    found = getattr(outputs, "pooler_output", None) if pooled else None
    if found is not None:
        return found.flatten(1)
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    return hidden[:, 0] if token else hidden.mean(1)


LOADERS = {"timm": _timm, "transformers": _transformers}


REFERENCE = "reference.safetensors"  # the network trained here, for a resumed evaluation
BATCH = 256


@dataclass(frozen=True)
class FeatureExtractor:
    """``embed``: uint8 (B,C,H,W) -> features (B,D); ``classify``: the same -> probabilities (B,K); on the CPU.

    ``space`` names the features, ``classifier`` the network that classifies: its hash where it is a teacher.
    """

    space: str
    embed: Callable[[Images], Tensor]
    classify: Callable[[Images], Tensor]
    classifier: str | None = None


def make_feature_extractor(
    features: str, data: RealData, teacher: Teacher | None = None, folder: Path | None = None
) -> FeatureExtractor:
    """The network that measures images, by name.

    Args:
        features: ``teacher``, ``trained`` (a network trained here), ``auto`` (the teacher where there is one, else
            ``trained``), ``timm:NAME`` or ``transformers:NAME``. The last two give features alone; the teacher, or
            else a network trained here, classifies.
        data: The real images.
        teacher: Trained on them.
        folder: Keeps the network that is trained here.

    Raises:
        ConfigError: ``teacher`` without one, an unknown name, or transformers is not installed.
        ArtifactError: the files of a network are missing or damaged.
    """
    if features == "teacher" and teacher is None:
        raise ConfigError("evaluate.features is 'teacher', without a teacher; add --teacher, or choose 'trained'.")
    foreign = load_backbone(features, runtime.device()) if ":" in features else None
    own = teacher is not None and features != "trained"
    network = teacher.network.to(runtime.device()).eval() if teacher and own else reference_network(data, folder)
    embed, classify = features_of(network), _probabilities(network)
    space = f"the teacher ({teacher.spec['name']})" if teacher and own else f"a network trained here ({SPEC['name']})"
    return FeatureExtractor(
        features if foreign else space, foreign or embed, classify, teacher.hash() if teacher and own else None
    )


SPEC: NetworkSpec = {"name": TeacherConfig().network, "width": TeacherConfig().width, "depth": None}


def reference_network(data: RealData, folder: Path | None = None) -> nn.Module:
    """A network like a default teacher's, trained on ``data.train`` from a fixed seed, or read from ``folder``."""
    found = saved_reference_network(data, folder) if folder else None
    if found is not None:
        return found
    options, (network, key) = TeacherConfig(), _untrained(data)
    loop = train_classifier(
        network,
        data.train,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        device=runtime.device(),
    )
    network = follow(loop, "reference network", options.steps)
    if folder:
        write_tensors(folder / REFERENCE, network.state_dict(), {"key": key})
    return network


def saved_reference_network(data: RealData, folder: Path) -> nn.Module | None:
    """The network that an evaluation of ``data`` left in ``folder``, if there is one."""
    path = folder / REFERENCE
    if not path.is_file():
        return None
    network, key = _untrained(data)
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
    network.load_state_dict(load_file(path))
    return network.to(runtime.device()).eval()


def _untrained(data: RealData) -> tuple[nn.Module, str]:
    """(the network, the hash of all that decides its training)."""
    shape: NetworkSpec = {"channels": data.channels, "image_size": data.image_size, "classes": len(data.classes)}
    spec: NetworkSpec = {**SPEC, **shape}
    network = build_network(**spec, seed=0)
    padded = ["padded"] if getattr(network, "padding", 1) > 1 else []  # grey images of 28 px were not before
    options = {name: value for name, value in vars(TeacherConfig()).items() if name != "pretrained"}
    return network, hash_json([spec, options, data.fingerprint(), *padded])


def features_of(network: nn.Module) -> Callable[[Images], Tensor]:
    """uint8 (B,C,H,W) -> features (B,D), on the CPU."""
    features: Any = network.features
    return _batched("features", network, features)


def _probabilities(network: nn.Module) -> Callable[[Images], Tensor]:
    return _batched("classes", network, lambda images: network(images).softmax(1))


def _batched(label: str, network: nn.Module, function: Callable[[Tensor], Tensor]) -> Callable[[Images], Tensor]:
    device = runtime.device()

    def batched(images: Images) -> Tensor:
        rows = inference_rows(network, BATCH, images.shape[1:])
        return infer(
            lambda x: function(to_float(runtime.to_device(x, device))).float(), images, batch_size=rows, label=label
        )

    return batched
