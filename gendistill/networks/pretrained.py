"""A published classifier as a teacher: opened from timm, torchvision or transformers, with its last layer cut to the
rows of our classes, or with a new one.

Weights are read in fp32 from safetensors, every tensor from the file. No pickle is read, and no code of others is run.

Legend: B images, C channels, S the side that the network wants, D features, K our classes, N outputs as published.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from gendistill.config import Pretrained, require
from gendistill.data.dataset import evenly_spaced_by_class
from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.generator.class_mapping import ClassMapping, Names, label_map_for
from gendistill.generator.loading import licence_of
from gendistill.hashing import hash_bytes, hash_json
from gendistill.io import read_json, read_tensors
from gendistill.networks.factories import HEADS, WithFeatures, check_classifier
from gendistill.networks.published import (
    PICKLES,
    Preprocessing,
    conversion,
    model_folder,
    read_processor,
    timm_source,
    weights_file,
)
from gendistill.progress import note
from gendistill.runtime import require_finite_weights

Library = Literal["timm", "torchvision", "transformers"]
SECTION = "teacher.pretrained"
ROWS, ROWS_SIDE = 32, 224  # images in one forward pass without gradients, at this side
KEPT = ("input_size", "fixed_input_size", "pool_size")  # of timm's facts on a checkpoint: what decides its shapes
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls classes without a name
FP32: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}  # how transformers builds every network
HEAD_BYTES = 2**29  # of features that a last layer is fitted on
FIX = "Get the file again, or give another --pretrained."


class PretrainedRecord(TypedDict):
    """What teacher.json says of a published network; with it the folder is opened without its source.

    Attributes:
        source: As the user named it.
        licence: Of the weights; ``unknown`` where the source does not say.
        library: Whose network it is.
        architecture: Its name there.
        config: What else the library needs to build it.
        outputs: Of the last layer as published.
        head: Module name of the last layer.
        rows: Row of each class in the published last layer; null where a new one was fitted.
        tuned: What was trained here: none, head or all.
        preprocessing: ``Preprocessing`` of its images, with the side as ``resize`` and ``crop``.
    """

    source: str
    licence: str
    library: Library
    architecture: str
    config: dict[str, Any]
    outputs: int
    head: str
    rows: dict[str, int] | None
    tuned: str
    preprocessing: dict[str, Any]


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


class PretrainedClassifier(WithFeatures):
    """Images (B,C,H,H) in [-1, 1] -> resized to (S,S) and normalised as the network wants -> its logits (B,K).

    Everything is differentiable in the images. ``features`` is the input of the last layer. Nothing is cropped, so
    every pixel of a small image has a gradient. Only what is tuned here trains; other layers stay in eval mode.
    """

    def __init__(self, network: nn.Module, record: PretrainedRecord) -> None:
        super().__init__(network, record["head"])
        stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["preprocessing"].items()}
        self.record, self.preprocessing = record, Preprocessing(**stored)
        self.requires_grad_(record["tuned"] == "all")
        self.head.requires_grad_(record["tuned"] != "none")

    @property
    def head(self) -> nn.Linear:
        found = self.network.get_submodule(self._head)
        assert isinstance(found, nn.Linear)
        return found

    @property
    def inference_rows(self) -> int:
        """Images that one forward pass without gradients takes."""
        return max(1, ROWS * ROWS_SIDE**2 // self.preprocessing.resize**2)

    def prepared(self, images: Tensor) -> Tensor:
        """Images (B,C,H,H) in [-1, 1] -> (B,channels,S,S), normalised."""
        return self.preprocessing((images + 1) * 127.5)

    def features(self, images: Tensor) -> Tensor:
        return super().features(self.prepared(images))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.prepared(images))

    def train(self, mode: bool = True) -> PretrainedClassifier:
        return super().train(mode and self.record["tuned"] == "all")

    @torch.no_grad()
    def fit_head(self, features: Tensor, labels: Tensor) -> None:
        """Set the last layer to the logistic regression of ``labels`` (n,) on ``features`` (n,D).

        Features are standardised for it; the penalty is ||w||^2 / 2 beside the summed cross-entropy. Of more than
        ``HEAD_BYTES`` of features it sees as many rows as that is, evenly spaced within each class.
        """
        from sklearn.linear_model import LogisticRegression

        if features.nbytes > HEAD_BYTES:
            seen = evenly_spaced_by_class(labels, int(labels.max()) + 1, HEAD_BYTES // features[0].nbytes)
            features, labels = features[seen], labels[seen]
        mean, scale = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        with warnings.catch_warnings(action="ignore"):  # after 1000 iterations it is good enough
            found = LogisticRegression(max_iter=1000).fit(((features - mean) / scale).numpy(), labels.numpy())
        weight, bias = (torch.from_numpy(np.asarray(part)).float() for part in (found.coef_, found.intercept_))
        if len(weight) == 1:  # two classes: the logit of the second
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        self.head.weight.copy_(weight / scale)
        self.head.bias.copy_(bias - (weight / scale) @ mean)


class _Logits(nn.Module):
    """A transformers classifier that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def open_pretrained(
    options: Pretrained, *, classes: tuple[str, ...], channels: int, image_size: int
) -> PretrainedClassifier:
    """The network that ``options`` name, for K ``classes`` and images (B,channels,image_size,image_size) in [-1, 1].

    Its last layer has the published rows of our classes where ``options.head`` says so; else ``record["rows"]`` is
    null and the last layer is to be fitted.

    Raises:
        ConfigError: an unknown name, or a network that does not take such images or ends with no linear layer.
        ArtifactError: the files are missing (offline), pickled, damaged or of another architecture, or
            ``head="mapped"`` and a class has no row.
    """
    found = _published(options)
    require_finite_weights(options.source, found.network.state_dict())
    taken, side = len(found.preprocessing.mean), options.input_size or found.preprocessing.crop
    if channels not in (1, taken):
        raise ConfigError(
            f"{options.source} takes images of {taken} channel(s), the data have {channels}; expected 1 or {taken}. "
            "Give another --pretrained."
        )
    head = _last_layer(found, options.source)
    rows = None if found.headless else _rows(found, options, classes)
    if rows is None:
        require(options.head != "mapped", f"{SECTION}.head", options.head, "new: the file has no last layer")
    _cut(found.network, head, len(classes), None if rows is None else [rows[name] for name in classes])
    record: PretrainedRecord = {
        "source": options.source,
        "licence": found.licence,
        "library": found.library,
        "architecture": found.architecture,
        "config": found.config,
        "outputs": found.outputs,
        "head": head,
        "rows": rows,
        "tuned": options.tune,
        "preprocessing": asdict(replace(found.preprocessing, resize=side, crop=side)),
    }
    network = PretrainedClassifier(found.network, record)
    check_classifier(network, options.source, torch.zeros(2, channels, image_size, image_size), len(classes))
    return network


def rebuild_pretrained(record: PretrainedRecord, classes: int) -> PretrainedClassifier:
    """The network of a teacher folder, whose weights are still to be loaded."""
    try:
        network = _untrained(record["library"], record["architecture"], record["outputs"], record["config"])
        _cut(network, record["head"], classes, None)
        return PretrainedClassifier(network, record)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"The installed {record.get('library')} does not build {record.get('architecture')!r} as teacher.json "
            f"describes it: {reason(error)} Install another version of it, or run `gendistill teacher` again."
        ) from error


def hash_source(options: Pretrained) -> str:
    """Hash of the files of weights that ``options`` name."""
    folder, file = _place(options)
    files = [file] if file else sorted(folder.glob("*.safetensors"))
    return hash_json([hash_bytes(path.read_bytes()) for path in files])


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
            raise ArtifactError(f"There is no file {source}.")
        return path.resolve().parent, path.resolve()
    return model_folder(timm_source(source) if kind == "timm" else source, source, options.revision), None


def _published(options: Pretrained) -> Published:
    """Open the network by the library that its config.json, or ``options.network``, names."""
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


def _timm_folder(folder: Path, file: Path, config: Mapping[str, Any]) -> Published:
    facts = {"source": "", "file": str(file)}  # the one file by name: timm's own choice in a folder may be a pickle
    net = _loaded_by_timm(f"local-dir:{folder}", file, {}, facts)
    licence = net.pretrained_cfg.get("license") or licence_of(folder)
    return _of_timm(net, config["architecture"], dict(config.get("model_args") or {}), licence)


def _timm_file(name: str, file: Path) -> Published:
    """A file of timm's own weights, as many outputs as it has rows."""
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ConfigError(f"{SECTION}.network is 'timm:{name}'; timm has no such network.")
    usual = timm.get_pretrained_cfg(name)
    outputs = _outputs_in(file, usual.classifier if usual else None)
    facts = {"source": "", "file": str(file), "num_classes": outputs}
    net = _loaded_by_timm(name, file, {"num_classes": outputs}, facts)
    return _of_timm(net, architecture, {}, (usual and usual.license) or "unknown")


def _loaded_by_timm(name: str, file: Path, options: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(facts), **options).float()
    except Exception as error:
        raise ArtifactError(f"{file} cannot be loaded by timm: {reason(error)} {FIX}") from error


def _of_timm(net: Any, architecture: str, arguments: dict[str, Any], licence: str) -> Published:
    import timm

    facts, known = timm.data.resolve_model_data_config(net), net.pretrained_cfg
    size, channels = facts["input_size"][-1], facts["input_size"][0]
    preprocessing = Preprocessing(
        resize=size,
        crop=size,
        mean=tuple(facts["mean"])[:channels],
        std=tuple(facts["std"])[:channels],
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

    try:
        usual = torchvision.models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise ConfigError(f"{SECTION}.network is 'torchvision:{name}'; torchvision has no such network.") from error
    net = torchvision.models.get_model(name, weights=None)
    heads = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    outputs = _outputs_in(file, heads[-1] if heads else None)
    net = _untrained("torchvision", name, outputs, {})
    tensors, _ = read_tensors(file, fix=FIX)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(f"{file} is not of torchvision's {name}: {reason(error)} {FIX}") from error
    facts, categories = usual.transforms(), usual.meta["categories"]
    mode = facts.interpolation.value if facts.interpolation.value in ("nearest", "bilinear") else "bicubic"
    side = facts.crop_size[0]
    preprocessing = Preprocessing(resize=side, crop=side, mean=tuple(facts.mean), std=tuple(facts.std), mode=mode)
    names = [(one,) for one in categories] if len(categories) == outputs else ()
    return Published(net.float(), "torchvision", name, preprocessing, names, outputs, {}, "unknown")


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
        from transformers import AutoModelForImageClassification, logging
    except ImportError as error:
        raise ConfigError(
            f"{folder} needs the package transformers ({error}); run `pip install 'gendistill[transformers]'`, or take "
            "a timm network."
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings: dict[str, Any] = {"use_safetensors": True, **FP32}
    try:
        with _alone(folder, file) as place:
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


def _untrained(library: Library, architecture: str, outputs: int, config: Mapping[str, Any]) -> nn.Module:
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

            network = torchvision.models.get_model(architecture, weights=None, num_classes=outputs)
        else:
            from transformers import AutoConfig, AutoModelForImageClassification

            own = AutoConfig.for_model(**{**config, "model_type": architecture, "num_labels": outputs})
            network = _Logits(AutoModelForImageClassification.from_config(own, **FP32))
    return network


def _last_layer(found: Published, source: str) -> str:
    """Module name of the linear layer that gives the N logits."""
    linear = [
        path
        for path, module in found.network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == found.outputs and set(path.split(".")) & set(HEADS)
    ]
    if not linear:
        raise ConfigError(
            f"{source} ({found.architecture}) does not end with one linear layer of {found.outputs} outputs, named one "
            f"of {', '.join(HEADS)}; expected that. Give another --pretrained."
        )
    return linear[-1]


def _rows(found: Published, options: Pretrained, classes: tuple[str, ...]) -> dict[str, int] | None:
    """Row of each class in the published last layer; None where a new one is to be fitted."""
    if options.head == "new":
        return None
    names = ClassMapping((), {}, found.outputs, found.names).condition_names()
    try:
        return label_map_for(classes, names, options.label_map, SECTION)
    except ArtifactError as error:
        if options.head == "mapped" or options.label_map:
            raise
        why = str(error).partition(". Give the index in")[0]
        note(f"A new last layer is fitted on the features of {options.source}: {why[0].lower()}{why[1:]}.")
        return None


@torch.no_grad()
def _cut(network: nn.Module, head: str, classes: int, rows: list[int] | None) -> None:
    """Put a linear layer of ``classes`` outputs in place of ``head``: the ``rows`` of it, or zeros."""
    old: Any = network.get_submodule(head)
    new = nn.Linear(old.in_features, classes)
    for name, parameter in new.named_parameters():
        stored = getattr(old, name)
        parameter.copy_(torch.zeros_like(parameter) if rows is None or stored is None else stored[rows])
    network.set_submodule(head, new)
