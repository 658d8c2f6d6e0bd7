"""Published classifiers: networks of timm, torchvision and transformers, with the weights of a file or folder.

Weights are read in fp32 from safetensors, every tensor from the file. No pickle is read, and no code of others is run.

Legend: B images, C channels, S the side that the network wants, N outputs as published.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from gendistill.config import Pretrained, require
from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.generator.class_mapping import Names
from gendistill.generator.loading import licence_of
from gendistill.hashing import hash_file, hash_json
from gendistill.hub import NO_FILE, PICKLES
from gendistill.io import read_json, read_tensors
from gendistill.networks.factories import HEADS
from gendistill.networks.published import (
    Preprocessing,
    channel_values,
    conversion,
    model_folder,
    quiet_transformers,
    read_processor,
    timm_facts,
    timm_source,
    weights_file,
    weights_files,
)

Library = Literal["timm", "torchvision", "transformers"]
SECTION = Pretrained.section
KEPT = ("input_size", "fixed_input_size", "pool_size")  # of timm's facts on a checkpoint: what decides its shapes
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls classes without a name
FP32: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}  # how transformers builds every network
FIX = "Get the file again, or give another --pretrained."
# Classifiers beside the last layer, which only torchvision's own training uses. It builds these networks otherwise for
# its weights than by default: they take images in [-1, 1], and convert those that are normalised as ImageNet's.
BRANCHES = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
AS_PUBLISHED: dict[str, Any] = {"transform_input": True, "aux_logits": False, "init_weights": False}


@dataclass(frozen=True)
class Published:
    """A network as published: preprocessed images (B,C,S,S) -> logits (B,N).

    Attributes:
        network: With the weights of the file.
        library: Whose it is.
        architecture: Its name there.
        preprocessing: Of its images.
        names: Names of each output; empty where it does not say.
        outputs: N.
        config: What else the library needs to build it.
        licence: Of the weights.
        headless: Whether the file has no weights of the last layer.
    """

    network: nn.Module
    library: Library
    architecture: str
    preprocessing: Preprocessing
    names: Names
    outputs: int
    config: dict[str, Any]
    licence: str
    headless: bool = False


class _Logits(nn.Module):
    """A transformers classifier that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def open_published(options: Pretrained) -> Published:
    """Open the network by the library that its config.json, or ``options.network``, names.

    Raises:
        ConfigError: an unknown name.
        ArtifactError: the files are missing (offline), pickled, damaged or of another architecture.
    """
    with torch.random.fork_rng(devices=[]):  # libraries draw weights before they read the file's
        return _opened(options)


def _opened(options: Pretrained) -> Published:
    folder, file = _place(options)
    require(
        options.network is None or file is not None,
        f"{SECTION}.network",
        options.network,
        "null unless --pretrained is a safetensors file: a folder has a config.json",
    )
    if options.network is not None and file is not None:
        library, _, name = options.network.partition(":")
        return _timm_file(name, file) if library == "timm" else _torchvision_file(name, file)
    fix = "Give the folder of a timm or transformers classifier, or --pretrained.network for a file of weights."
    config = read_json(folder / "config.json", kind="the folder of a timm or transformers classifier", fix=fix)
    if "architecture" in config:
        return _timm_folder(folder, file or weights_file(folder), config)
    if "model_type" in config:
        return _transformers_folder(folder, file, config)
    raise ArtifactError(f"{folder / 'config.json'} names neither a timm architecture nor a model_type. {fix}")


def hash_source(options: Pretrained) -> str:
    """Hash of the files of weights that the network is loaded from.

    Raises:
        ArtifactError: they are missing, or several without an index.
    """
    folder, file = _place(options)
    return hash_json([hash_file(path) for path in ([file] if file else weights_files(folder))])


def _place(options: Pretrained) -> tuple[Path, Path | None]:
    """The folder of the network, and the file of its weights where the user names one.

    Raises:
        ArtifactError: there is no such folder or file, or it is pickled.
    """
    kind, _, named = options.source.partition(":")
    if kind == "torchvision":
        raise ConfigError(
            f"{SECTION} is {options.source!r}: torchvision's weights are pickled. Save them once: python -c \"import "
            "torchvision, safetensors.torch as s; s.save_file(torchvision.models.get_model"
            f"('{named}', weights='DEFAULT').state_dict(), '{named}.safetensors')\", and give --pretrained "
            f"{named}.safetensors --pretrained.network torchvision:{named}."
        )
    source = named if kind in ("timm", "transformers") else options.source
    path = Path(source).expanduser()
    if path.suffix in PICKLES and not path.is_dir():
        raise ArtifactError(f"{source} is pickled, and not read. {conversion(path, path.with_suffix('.safetensors'))}")
    if path.suffix == ".safetensors" and not path.is_dir():
        if not path.is_file():
            raise ArtifactError(NO_FILE.format(source))
        require(options.revision is None, f"{SECTION}.revision", options.revision, "null: a file has no revisions")
        return path.resolve().parent, path.resolve()
    return model_folder(timm_source(source) if kind == "timm" else source, source, options.revision), None


def _timm_folder(folder: Path, file: Path, config: Mapping[str, Any]) -> Published:
    facts = {"source": "", "file": str(file)}  # the one file by name: timm's own choice in a folder may be a pickle
    net = _loaded_by_timm(f"local-dir:{folder}", file, {}, facts)
    licence = net.pretrained_cfg.get("license") or licence_of(folder)
    if not isinstance(licence, str):
        raise ArtifactError(f"{folder / 'config.json'} has the license {licence!r}; expected text. {FIX}")
    return _of_timm(net, config["architecture"], dict(config.get("model_args") or {}), licence)


def _timm_file(name: str, file: Path) -> Published:
    """A file of timm's own weights, as many outputs as it has rows."""
    import timm

    architecture = name.partition(".")[0]
    usual = timm_facts(name)
    if usual is None:
        raise _unknown("timm", name, timm.list_models(pretrained=True))
    outputs = _outputs_in(file, usual.classifier)
    facts = {"source": "", "file": str(file), "num_classes": outputs}
    net = _loaded_by_timm(name, file, {"num_classes": outputs}, facts)
    return _of_timm(net, architecture, {}, usual.license or "unknown")


def _loaded_by_timm(name: str, file: Path, options: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(facts), **options).float()
    except Exception as error:
        raise ArtifactError(f"{file} cannot be loaded by timm: {reason(error)} {FIX}") from error


def _of_timm(net: Any, architecture: str, arguments: dict[str, Any], licence: str) -> Published:
    import timm

    known = net.pretrained_cfg
    try:
        facts = timm.data.resolve_model_data_config(net)
        size, channels = facts["input_size"][-1], facts["input_size"][0]
        mean = channel_values("mean", facts["mean"], channels)[:channels]
        std = channel_values("std", facts["std"], channels, positive=True)[:channels]
    except (TypeError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise ArtifactError(f"The preprocessing of {architecture} cannot be used: {reason(error)} {FIX}") from error
    preprocessing = Preprocessing(
        resize=size,
        crop=size,
        mean=mean,
        std=std,
        mode=facts["interpolation"] if facts["interpolation"] in ("nearest", "bilinear") else "bicubic",
    )
    outputs, headless = net.num_classes, not net.num_classes
    if headless:
        outputs = 1
        net.reset_classifier(outputs)
    config = {"arguments": arguments, "facts": {name: known[name] for name in KEPT if known.get(name) is not None}}
    names = () if headless else _timm_names(known, outputs)
    return Published(net, "timm", architecture, preprocessing, names, outputs, config, licence, headless)


def _timm_names(facts: Mapping[str, Any], outputs: int) -> Names:
    """Names of timm's outputs: those of the checkpoint, or of the subset of ImageNet that has as many classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    own, texts = facts.get("label_names") or (), facts.get("label_descriptions") or {}
    if len(own) == outputs:
        return [(name, *_split(texts.get(name, ""))) for name in own]
    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None or (outputs == 1000 and not facts.get("tag")):
        return ()  # 1000 unnamed ones are taken for ImageNet's, with a warning
    table = ImageNetInfo(subset)
    return [(name, *_split(table.label_name_to_description(name))) for name in table.label_names()]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _torchvision_file(name: str, file: Path) -> Published:
    import torchvision

    name, usual = torchvision_weights(name)
    config = torchvision_build(name, usual)
    net = torchvision.models.get_model(name, weights=None, **config)
    heads = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    outputs = _outputs_in(file, heads[-1] if heads else None)
    net = untrained("torchvision", name, outputs, config)
    stored, _ = read_tensors(file, fix=FIX)
    tensors = {path: tensor for path, tensor in stored.items() if not path.startswith(BRANCHES.get(name, ()))}
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(f"{file} is not of torchvision's {name}: {reason(error)} {FIX}") from error
    facts, categories = usual.transforms(), usual.meta["categories"]
    mode = facts.interpolation.value if facts.interpolation.value in ("nearest", "bilinear") else "bicubic"
    side = facts.crop_size[0]
    preprocessing = Preprocessing(resize=side, crop=side, mean=tuple(facts.mean), std=tuple(facts.std), mode=mode)
    names = [(one,) for one in categories] if len(categories) == outputs else ()
    return Published(net.float(), "torchvision", name, preprocessing, names, outputs, config, "unknown")


def torchvision_build(name: str, weights: Any) -> dict[str, Any]:
    """What torchvision builds the network with for these weights; a vision transformer takes images of one side."""
    if name in BRANCHES:
        return dict(AS_PUBLISHED)
    return {"image_size": weights.meta["min_size"][0]} if name.startswith("vit_") else {}


def torchvision_weights(name: str) -> tuple[str, Any]:
    """The network and the weights of ``NAME``, torchvision's default ones, or of ``NAME.WEIGHTS``.

    Raises:
        ConfigError: torchvision has no such network or weights.
    """
    import torchvision

    name, _, tag = name.partition(".")
    if (name := name.lower()) not in (known := torchvision.models.list_models(module=torchvision.models)):
        raise _unknown("torchvision", name, known)
    published = torchvision.models.get_model_weights(name)
    if tag and tag not in published.__members__:
        tags = ", ".join(published.__members__)
        raise ConfigError(f"{SECTION}.network is 'torchvision:{name}.{tag}'; expected no weights, or one of {tags}.")
    return name, published[tag or "DEFAULT"]


def _unknown(library: Library, name: str, known: Iterable[str]) -> ConfigError:
    close = ", ".join(difflib.get_close_matches(name.partition(".")[0], list(known), 5)) or "none"
    return ConfigError(
        f"{SECTION}.network is '{library}:{name}'; {library} has no such network. Names like it: {close}."
    )


def _outputs_in(file: Path, head: Any) -> int:
    """Rows of the layer ``head`` in a file of weights.

    Raises:
        ArtifactError: it has no such layer.
    """
    read_tensors(file, fix=FIX)
    with safe_open(file, framework="pt") as stored:
        if not isinstance(head, str) or f"{head}.weight" not in stored.keys():  # noqa: SIM118
            raise ArtifactError(f"{file} has no tensor {head}.weight, the network's last layer. {FIX}")
        return int(stored.get_slice(f"{head}.weight").get_shape()[0])


def _transformers_folder(folder: Path, file: Path | None, config: Mapping[str, Any]) -> Published:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ConfigError(
            f"{folder} needs the package transformers ({error}); run `pip install 'gendistill[transformers]'`, or take "
            "a timm network."
        ) from error
    settings: dict[str, Any] = {"use_safetensors": True, **FP32}
    try:
        with quiet_transformers(), _alone(folder, file) as place:
            model, info = AutoModelForImageClassification.from_pretrained(place, output_loading_info=True, **settings)
    except Exception as error:
        raise ArtifactError(f"{file or folder} cannot be loaded by transformers: {reason(error)} {FIX}") from error
    missing = sorted(info["missing_keys"])
    headless = bool(missing) and all(key.partition(".")[0] in HEADS for key in missing)
    if missing and not headless:
        raise ArtifactError(f"{file or folder} lacks {len(missing)} weight(s), such as {missing[0]!r}. {FIX}")
    texts = [str(model.config.id2label.get(i, "")) for i in range(model.config.num_labels)]
    names = () if headless or all(map(UNNAMED.fullmatch, texts)) else [tuple(_split(text)) for text in texts]
    kept = {k: v for k, v in config.items() if k not in ("auto_map", "dtype", "torch_dtype", "id2label", "label2id")}
    outputs, kind = model.config.num_labels, str(config["model_type"])
    licence = licence_of(folder)
    return Published(
        _Logits(model), "transformers", kind, read_processor(folder), names, outputs, kept, licence, headless
    )


@contextmanager
def _alone(folder: Path, file: Path | None) -> Iterator[Path]:
    """A folder in which ``file`` has the name that transformers reads: ``folder`` itself where none is named."""
    if file is None or file.name == "model.safetensors":
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        for name, target in (("config.json", folder / "config.json"), ("model.safetensors", file)):
            (Path(place) / name).symlink_to(target.resolve())
        yield Path(place)


def untrained(library: Library, architecture: str, outputs: int, config: Mapping[str, Any]) -> nn.Module:
    """The network that a library builds, with random weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        if library == "timm":
            import timm

            reserved = {"checkpoint_path", "cache_dir"} & config["arguments"].keys()  # of files that timm would read
            if not timm.is_model(architecture) or reserved:
                raise ValueError(f"{', '.join(reserved) or architecture} is not allowed")
            facts = timm.models.PretrainedCfg(**config["facts"], num_classes=outputs)
            options = {"num_classes": outputs, **config["arguments"]}
            network: nn.Module = timm.create_model(architecture, pretrained=False, pretrained_cfg=facts, **options)
        elif library == "torchvision":
            import torchvision

            if architecture.lower() not in torchvision.models.list_models(
                module=torchvision.models
            ):  # others fetch a pickle
                raise ValueError(f"{architecture} is not allowed")
            network = torchvision.models.get_model(architecture, weights=None, num_classes=outputs, **config)
        else:
            from transformers import AutoConfig, AutoModelForImageClassification

            own = AutoConfig.for_model(**{**config, "model_type": architecture, "num_labels": outputs})
            network = _Logits(AutoModelForImageClassification.from_config(own, **FP32))
    return network
