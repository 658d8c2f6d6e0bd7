"""A published classifier as a teacher: its last layer is cut to the rows of our classes, or replaced by a new one.

Legend: B images, C channels, S the side that the network wants, D features, K our classes, N outputs as published.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.config import Pretrained, require
from gendistill.data.class_positions import evenly_spaced_by_class
from gendistill.errors import ArtifactError, ConfigError, reason
from gendistill.generator.class_mapping import ClassMapping, MappingError, label_map_for
from gendistill.networks.factories import HEADS, WithFeatures, check_classifier
from gendistill.networks.published import Preprocessing
from gendistill.networks.published_classifiers import SECTION, Library, Published, open_published, untrained
from gendistill.progress import note
from gendistill.runtime import require_finite_weights

ROWS, ROWS_SIDE = 32, 224  # images in one forward pass without gradients, at this side
HEAD_BYTES = 2**29  # of features that a last layer is fitted on


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
    found = open_published(options)
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
        network = untrained(record["library"], record["architecture"], record["outputs"], record["config"])
        _cut(network, record["head"], classes, None)
        return PretrainedClassifier(network, record)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"The installed {record.get('library')} does not build {record.get('architecture')!r} as teacher.json "
            f"describes it: {reason(error)} Install another version of it, or run `gendistill teacher` again."
        ) from error


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
    except MappingError as error:
        if options.head == "mapped" or options.label_map:
            raise
        note(f"A new last layer is fitted on the features of {options.source}: {error.why}.")
        return None


@torch.no_grad()
def _cut(network: nn.Module, head: str, classes: int, rows: list[int] | None) -> None:
    """Put a linear layer of ``classes`` outputs in place of ``head``: the ``rows`` of it, or zeros."""
    old: Any = network.get_submodule(head)
    new = nn.utils.skip_init(nn.Linear, old.in_features, classes)  # draws nothing from the global generator
    for name, parameter in new.named_parameters():
        stored = getattr(old, name)
        parameter.copy_(torch.zeros_like(parameter) if rows is None or stored is None else stored[rows])
    network.set_submodule(head, new)
