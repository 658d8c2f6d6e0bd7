"""What sets are looked at with: features to measure distances by, and a classifier of the real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gendistill import runtime
from gendistill.config import TeacherConfig
from gendistill.data.pixels import to_float
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError
from gendistill.hashing import hash_json
from gendistill.networks.feature_extractors import load_backbone
from gendistill.networks.registry import build_network
from gendistill.networks.teacher import Teacher
from gendistill.networks.training import train_classifier
from gendistill.progress import follow, track

REFERENCE = "reference.safetensors"  # the network trained here, for a resumed evaluation
BATCH = 256


@dataclass(frozen=True)
class Lens:
    """``embed``: uint8 (B,C,H,W) -> features (B,D); ``classify``: the same -> probabilities (B,K); on the CPU.

    ``space`` names the features, ``classifier`` the network that classifies: its hash where it is a teacher.
    """

    space: str
    embed: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor]
    classifier: str | None = None


def make_lens(features: str, data: RealData, teacher: Teacher | None = None, folder: Path | None = None) -> Lens:
    """``teacher`` or ``trained`` (``auto``: the teacher where there is one), ``timm:NAME`` or ``transformers:NAME``.

    A foreign network classifies nothing: the teacher, or else a network trained here, stands beside it. ``folder``
    keeps that one.

    Raises:
        ConfigError: ``teacher`` without one, or an unknown name.
        ArtifactError: a foreign network cannot be had.
    """
    if features == "teacher" and teacher is None:
        raise ConfigError("evaluate.features is 'teacher', but no teacher is given; give --teacher, or 'trained'.")
    foreign = load_backbone(features, runtime.device()) if ":" in features else None
    own = teacher is not None and features != "trained"
    network = teacher.network.to(runtime.device()).eval() if teacher and own else trained(data, folder)
    embed, classify = features_of(network), _probabilities(network)
    space = f"the teacher ({teacher.spec['name']})" if teacher and own else f"a network trained here ({SPEC['name']})"
    return Lens(features if foreign else space, foreign or embed, classify, teacher.hash() if teacher and own else None)


SPEC = {"name": TeacherConfig().network, "width": TeacherConfig().width, "depth": None}


def trained(data: RealData, folder: Path | None = None) -> nn.Module:
    """A network like a default teacher's, trained on ``data.train`` from a fixed seed, or read from ``folder``."""
    found = kept(data, folder) if folder else None
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
        path = folder / REFERENCE
        partial = path.with_name(path.name + ".partial")
        save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, partial, {"key": key})
        partial.rename(path)
    return network


def kept(data: RealData, folder: Path) -> nn.Module | None:
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
    spec: dict[str, Any] = SPEC | {
        "channels": data.channels,
        "image_size": data.image_size,
        "classes": len(data.classes),
    }
    return build_network(**spec, seed=0), hash_json([spec, vars(TeacherConfig()), data.fingerprint()])


def features_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """uint8 (B,C,H,W) -> features (B,D), on the CPU."""
    look: Any = network.features
    return _batched("features", look)


def _probabilities(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return _batched("classes", lambda images: network(images).softmax(1))


def _batched(label: str, look: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    device = runtime.device()

    @torch.no_grad()
    def seen(images: Tensor) -> Tensor:
        batches = images.split(BATCH)
        return torch.cat([look(to_float(x).to(device)).float().cpu() for x in track(batches, label, len(batches))])

    return seen
