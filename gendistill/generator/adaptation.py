"""Which parameters of a class-conditional network train: all, those of DiffFit, or LoRA matrices.

Adapting changes the network in place and does not change its function. The adapted network can sample at any time;
``Adapted.merged`` makes a plain diffusers network of it, and the adapter file keeps only the trained tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, TypedDict, cast

import torch
from diffusers.models.embeddings import GaussianFourierProjection
from torch import Tensor, nn

from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.loading import GeneratorMeta
from gendistill.generator.networks import KINDS, Network, drop_no_labels, kind_of
from gendistill.hashing import hash_tensors
from gendistill.hub import ADAPTER
from gendistill.io import read_json, read_tensors, write_json, write_tensors
from gendistill.runtime import full_tensor
from gendistill.seeding import torch_rng

WEIGHTS, RECORD, FORMAT = "adapter.safetensors", "adapter.json", 1
GAMMA, DOWN, UP = ".gamma", ".lora_A.weight", ".lora_B.weight"
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
Adaptation = Literal["full", "difffit", "lora"]
TABLES = ("class_embedding.weight", "class_embedder.embedding_table.weight")


class AdapterOrigin(TypedDict, total=False):
    """What a generator needs besides the adapter's tensors: its pretrained model, classes and provenance."""

    pretrained: str | None
    classes: list[str]
    label_map: dict[str, int]
    channels: NotRequired[int]  # of its images; versions before did not say
    meta: GeneratorMeta


class AdapterRecord(AdapterOrigin):
    """adapter.json of an adapter folder."""

    format: int
    method: Adaptation
    rank: int
    base_hash: str
    adapter_hash: str


class Places(NamedTuple):
    """Suffixes of the names of the layers that get a scale, and of those that get LoRA matrices."""

    scaled: tuple[str, ...]
    lora: tuple[str, ...]


PLACES = {
    "unet": Places(("conv2", "to_out.0"), ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")),
    "dit": Places(("attn1.to_out.0", "ff.net.2"), ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")),
}


@dataclass(frozen=True)
class Adapted:
    """A network, adapted in place; ``network`` is the module to call in training and in sampling."""

    network: Network
    method: Adaptation
    rank: int
    base_hash: str

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train by plain name, in the network's order; a shared one once, by its first name."""
        return {plain_name(n): p for n, p in self.network.named_parameters() if p.requires_grad}

    def merged(self) -> Network:
        """A new plain diffusers network with the same function, in eval mode; the adapted one stays as it is."""
        with torch.random.fork_rng(devices=[]):
            network = KINDS[kind_of(self.network)][1].from_config(self.network.config)  # type: ignore[attr-defined]
        network.to(self.network.device)
        network.load_state_dict(fold({plain_name(k): full_tensor(v) for k, v in self.network.state_dict().items()}))
        return drop_no_labels(network.eval())


class Scaled(nn.Module):
    """gamma * layer(x), with one gamma for every output channel, 1 at first (DiffFit)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.scaled = layer
        self.gamma = nn.Parameter(layer.weight.new_ones(len(layer.weight)))
        self.trailing = (1,) * (layer.weight.ndim - 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x) * self.gamma.view(-1, *self.trailing)  # fp32 under autocast: in bf16 1.001 y is y again


def adapt(
    network: Network, method: Adaptation, *, rank: int = 16, seed: int = 0, base_hash: str | None = None
) -> Adapted:
    """Choose what trains, in place; every other parameter gets ``requires_grad`` False.

    ``full``: every parameter. ``difffit`` (Xie et al. 2023, arXiv 2304.06648): biases, affine norms, the class table
    and a scale per output channel on the last layer of each attention and feed-forward (UNet: of each attention and
    residual block). The code released with Minimax Diffusion scales the first 14 of 28 blocks, there also queries, keys
    and values; here every block has its two scales. ``lora`` (Hu et al. 2021, arXiv 2106.09685): W + B A of ``rank`` on
    attention and feed-forward (UNet: attention and residual convolutions), alpha = rank, and the class table.

    Where all blocks of a DiT hold equal copies of a conditioning parameter (the class table, as in the converted
    facebook/DiT-XL-2-256), the copies train as one, as in the original; copies that differ train separately.

    Args:
        network: Untouched diffusers network; its label dropout is turned off.
        rank: Of the LoRA matrices.
        seed: Of their initial values, which depend only on it and the layer's name.
        base_hash: ``hash_tensors(network.state_dict())``, if it is known already.

    Raises:
        ConfigError: ``lora`` without peft, or an unknown method.
    """
    base_hash = hash_tensors(network.state_dict()) if base_hash is None else base_hash
    _tie(network)
    places = PLACES[kind_of(network)]
    if method == "difffit":
        for name in _layers(network, places.scaled):
            network.set_submodule(name, Scaled(network.get_submodule(name)))
    elif method == "lora":
        _inject_lora(network, _layers(network, places.lora), rank, seed)
    elif method != "full":
        raise ConfigError(f"finetune.adaptation is {method!r}; expected full, difffit or lora.")
    for owner, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(_trains(module, plain_name(f"{owner}.{leaf}"), method))
    return Adapted(drop_no_labels(network), method, rank, base_hash)


def _trains(module: nn.Module, name: str, method: Adaptation) -> bool:
    if method == "full":
        return not isinstance(module, GaussianFourierProjection)  # fixed random frequencies
    if name.endswith((GAMMA, DOWN, UP, *TABLES)):
        return True
    return method == "difffit" and (name.endswith(".bias") or isinstance(module, NORMS))


def plain_name(name: str) -> str:
    """Of a parameter of an adapted network: its name in the plain one, or ``LAYER.gamma``, ``LAYER.lora_A.weight``."""
    return name.replace(".scaled.", ".").replace(".base_layer.", ".").replace(".default.", ".")


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain state of an adapted one (plain names): gamma * W, gamma * b and W + B A.

    Raises:
        KeyError, RuntimeError: a layer is missing, or shapes do not go together.
    """
    folded = {k: v for k, v in state.items() if not k.endswith((GAMMA, DOWN, UP))}
    for name, value in state.items():
        if name.endswith(GAMMA):
            layer = name.removesuffix(GAMMA)
            weight = folded[f"{layer}.weight"]
            folded[f"{layer}.weight"] = weight * value.view(len(weight), *[1] * (weight.ndim - 1))
            if f"{layer}.bias" in folded:
                folded[f"{layer}.bias"] = folded[f"{layer}.bias"] * value
        elif name.endswith(DOWN):
            key, up = name.removesuffix(DOWN) + ".weight", state[name.removesuffix(DOWN) + UP]
            folded[key] = folded[key] + (up.flatten(1) @ value.flatten(1)).view(folded[key].shape)
    return folded


def copies(network: Network) -> dict[str, list[str]]:
    """Conditioning parameters with equal values in all blocks of a DiT: the first block's name -> the others'.

    diffusers gives every block its own class table and timestep MLP; the original DiT has one of each.
    """
    if kind_of(network) != "dit":
        return {}
    named = dict(network.named_parameters(remove_duplicate=False))
    heads = [f"transformer_blocks.{i}.norm1.emb." for i in range(len(network.transformer_blocks))]
    found = {}
    for first in [name for name in named if name.startswith(heads[0])]:
        others = [head + first.removeprefix(heads[0]) for head in heads[1:]]
        if all(named[name] is named[first] or torch.equal(named[name], named[first]) for name in others):
            found[first] = others
    return found


def _tie(network: Network) -> None:
    for first, others in copies(network).items():
        shared = network.get_parameter(first)
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, shared)


def _layers(network: Network, ends: tuple[str, ...]) -> list[str]:
    return [name for name, _ in network.named_modules() if name.endswith(tuple(f".{end}" for end in ends))]


def require_peft() -> None:
    """Raises ConfigError where it is not installed."""
    if find_spec("peft") is None:
        raise ConfigError(
            "finetune.adaptation is 'lora', which needs peft: install with pip install 'gendistill[lora]'."
        )


def _inject_lora(network: Network, layers: list[str], rank: int, seed: int) -> None:
    """peft's LoRA layers in place; A uniform within 1 / sqrt(fan in) as in the official code, B zero."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)
    for name, parameter in network.named_parameters():
        if plain_name(name).endswith(DOWN):
            draw = torch.rand(parameter.shape, generator=torch_rng(seed, "lora", plain_name(name)))
            parameter.data.copy_((2 * draw - 1) * parameter[0].numel() ** -0.5)


def save_adapter(
    folder: str | Path, adapted: Adapted, origin: AdapterOrigin | None = None, *, main_process: bool = True
) -> None:
    """Write adapter.safetensors (what trains, by plain name) and adapter.json (what it belongs to, and ``origin``).

    Every process calls it, so that sharded parameters can be gathered; the main one writes.
    """
    tensors = {k: full_tensor(v.detach()).cpu().contiguous() for k, v in adapted.trainable().items()}
    if not main_process:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors)
    own: AdapterRecord = {
        "format": FORMAT,
        "method": adapted.method,
        "rank": adapted.rank,
        "base_hash": adapted.base_hash,
        "adapter_hash": hash_tensors(tensors),
    }
    write_json(folder / RECORD, {**own, **(origin or {}), **own})  # what was measured goes before what was passed


def load_adapter(network: Network, folder: str | Path) -> Network:
    """Fold the adapter in ``folder`` into the plain ``network`` it was made from, in place; needs no peft.

    Raises:
        ArtifactError: the adapter is missing, damaged, of another format, or made from another network.
    """
    folder = Path(folder)
    record = read_adapter_record(folder)
    state = network.state_dict()
    if hash_tensors(state) != record["base_hash"]:
        raise ArtifactError(
            f"The adapter in {folder} was made from other weights (base_hash {record['base_hash']}); load the "
            f"generator it was fine-tuned from: {record.get('pretrained') or 'see its adapter.json'}."
        )
    tensors = _read_tensors(folder, record["adapter_hash"])
    for first, others in copies(network).items():
        tensors |= {name: tensors[first] for name in others if first in tensors}
    tensors = {k: v.to(network.device) for k, v in tensors.items()}
    try:
        folded = fold({**state, **tensors})
        same = {k: v.shape for k, v in folded.items()} == {k: v.shape for k, v in state.items()}
        reason = "" if same else "it has tensors that the network lacks, or of another shape"
    except (KeyError, RuntimeError) as error:
        reason = f"its shapes or names differ: {error}"
    if reason:
        raise ArtifactError(f"The adapter in {folder} does not fit the network: {reason}. Fine-tune again.")
    network.load_state_dict(folded)
    return network


def read_adapter_record(folder: Path) -> AdapterRecord:
    """adapter.json of a folder, checked.

    Raises:
        ArtifactError: it is missing, damaged, or of another format.
    """
    record = read_json(
        folder / RECORD,
        kind="an adapter",
        format=FORMAT,
        schema=AdapterRecord,
        fix=ADAPTER,
    )
    return cast("AdapterRecord", record)


def _read_tensors(folder: Path, wanted: str) -> dict[str, Tensor]:
    tensors, _ = read_tensors(folder / WEIGHTS, fix="Copy the adapter again.")
    if hash_tensors(tensors) != wanted:
        raise ArtifactError(f"{folder / WEIGHTS} does not match its hash in {RECORD}. Copy the adapter again.")
    return tensors
