"""Class statistics of a teacher: features, and exact moments of every batch-norm input by class, in one pass; and
a cache of them: one safetensors file for every network and set of images.

Legend: N images, B of a batch, K classes, G of them present, R rows and C channels of a layer's input, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gendistill.data.class_positions import ClassIndex
from gendistill.data.dataset import Split
from gendistill.data.mapped import float_table, load_batches, memory_for
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError, DataError, StorageError
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import atomic, read_tensors, write_tensors
from gendistill.networks.factories import batch_norm_layers
from gendistill.networks.training import inference_rows
from gendistill.objectives.refinement import row_sums
from gendistill.progress import note, track
from gendistill.runtime import processes, to_device

RECORD, FORMAT = "made_from", 2  # increased when the meaning of the statistics changes
ADVICE = "Choose another folder for class statistics, or none."
VALUES = 2**24  # that are looked at in one piece


@dataclass(frozen=True)
class Members:
    """The ``classes`` (G,) of a batch, each image's place among them ``group`` (B,), and their ``images`` (G,1)."""

    classes: Tensor
    group: Tensor
    images: Tensor

    @classmethod
    def of(cls, labels: Tensor, device: torch.device) -> Members:
        classes, group, images = labels.cpu().unique(return_inverse=True, return_counts=True)
        return cls(*(to_device(part, device) for part in (classes, group, images[:, None])))


def _exact_rows(inputs: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, M2) over the positions of every row and channel of (R,C,...), float64 (R,C) on ``device``.

    Sums of deviations from the fp32 mean are taken in fp32 on the input's own device and corrected for the rounding of
    that mean (the corrected two-pass algorithm), so a mean that is large beside the deviations costs no digits.
    """
    inputs, positions = inputs.detach(), inputs[0, 0].numel()
    if positions == 1:
        mean = inputs.flatten(1).to(device).double()
        return mean, torch.zeros_like(mean)
    mean, rest, squares = (sums.to(device).double() for sums in row_sums(inputs))
    rest /= positions
    return mean + rest, (squares - positions * rest.square()).clamp_(min=0)


class ClassMoments:
    """Running ``count`` (K,1), ``mean`` (K,C) and ``m2`` (K,C) in float64; zeros for a class not seen."""

    def __init__(self, classes: int, channels: int, device: torch.device) -> None:
        self.count = torch.zeros(classes, 1, dtype=torch.float64, device=device)
        self.mean = torch.zeros(classes, channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def add(self, inputs: Tensor, members: Members) -> None:
        """Add one batch's inputs (R,C,...), R a multiple of its B images."""
        mean, m2 = _exact_rows(inputs, self.mean.device)
        rows, positions = len(inputs) // len(members.group), inputs[0, 0].numel()
        group = members.group.repeat_interleave(rows) if rows > 1 else members.group
        count = members.images.double() * rows
        empty = mean.new_zeros(len(members.classes), mean.shape[1])
        centre = empty.index_add(0, group, mean) / count
        between = (mean - centre[group]).square_().mul_(positions)
        self.merge(members.classes, count * positions, centre, empty.index_add_(0, group, m2.add_(between)))

    def merge(self, classes: Tensor, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Add (count (G,1), mean (G,C), M2 (G,C)) of some classes, each once, count above 0 (Chan et al. 1983)."""
        before = self.count[classes]
        total = before + count
        delta = mean - self.mean[classes]
        self.count[classes] = total
        self.mean[classes] += delta * (count / total)
        self.m2[classes] += m2 + delta.square_() * (before * count / total)

    def merge_processes(self) -> None:
        """Give every process the moments of all: ``merge`` of many parts at once, with an exact mean."""
        count, mean = self.count.clone(), self.mean * self.count
        dist.all_reduce(count)
        dist.all_reduce(mean)
        mean /= count.clamp(min=1)
        m2 = self.m2 + self.count * (self.mean - mean).square()
        dist.all_reduce(m2)
        self.count, self.mean, self.m2 = count, mean, m2

    def variance(self) -> Tensor:
        return self.m2 / self.count.clamp(min=1)


@dataclass(frozen=True)
class ClassStatistics:
    """What a teacher knows of each class of its training images, in fp32.

        mean_c = E[h],  variance_c = E[(h - mean_c)^2]  over the images and positions of class c,

    h being the input of a batch-norm layer. WMDD (arXiv 2311.18531, eq. 10) matches them; its code estimates them from
    running averages of batches of one class, here they are exact.

    Attributes:
        features: (N,D), the input of the last layer.
        labels: (N,), in [0, K).
        means: (K,C) by the name of the batch-norm layer; zeros for a class without images.
        variances: (K,C) likewise.
    """

    features: Tensor
    labels: Tensor
    means: dict[str, Tensor]
    variances: dict[str, Tensor]

    def of_class(self, label: int) -> Tensor:
        """Features (n,D) of one class."""
        return self.features[self._by_class.of(label)]

    @cached_property
    def _by_class(self) -> ClassIndex:
        return ClassIndex(self.labels)

    def feature_variance(self) -> Tensor:
        """Total feature variance of each class, (K,): the mean squared distance to the class mean."""
        classes = int(self.labels.max()) + 1
        return torch.stack([self.of_class(c).var(0, unbiased=False).sum() for c in range(classes)])

    def tensors(self) -> dict[str, Tensor]:
        """By the names they have in a file."""
        layers = {f"mean/{k}": v for k, v in self.means.items()} | {f"var/{k}": v for k, v in self.variances.items()}
        return {"features": self.features, "labels": self.labels, **layers}

    def save(self, path: Path, metadata: Mapping[str, str] | None = None, *, hashed: bool = False) -> None:
        write_tensors(path, self.tensors(), metadata, hashed=hashed)

    @classmethod
    def load(cls, path: Path) -> ClassStatistics:
        stored, _ = read_tensors(path, fix="Make class statistics with `gendistill teacher`.")
        if not {"features", "labels"} <= stored.keys():
            raise ArtifactError(f"{path} does not hold class statistics. Run `gendistill teacher`.")
        means = {k[5:]: v for k, v in stored.items() if k.startswith("mean/")}
        variances = {k[4:]: v for k, v in stored.items() if k.startswith("var/")}
        bad = [name for name, tensor in stored.items() if not _is_finite(tensor)]
        if bad or means.keys() != variances.keys():
            found = f"{', '.join(bad)} that are not finite" if bad else "layers with only a mean or only a variance"
            raise ArtifactError(f"{path} has {found}; expected moments of every layer. Run `gendistill teacher` again.")
        other = [name for name, tensor in stored.items() if name != "labels" and tensor.dtype != torch.float32]
        if other:
            raise ArtifactError(f"{path} has {', '.join(other)} that are no fp32. Run `gendistill teacher` again.")
        return cls(stored["features"], stored["labels"], means, variances)


def _is_finite(tensor: Tensor) -> bool:
    return all(bool(part.isfinite().all()) for part in tensor.flatten().split(VALUES))


@contextmanager
def _batch_norm_hooks(network: nn.Module, take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Every forward pass inside the block passes the inputs of the batch-norm layers to ``take``, by layer name."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: take(name, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in batch_norm_layers(network).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def batch_norm_inputs(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward pass inside the block fills with the inputs of the batch-norm layers."""
    seen: dict[str, Tensor] = {}
    with _batch_norm_hooks(network, seen.__setitem__):
        yield seen


class _Collector:
    """Adds a layer's input to its moments while the network computes, so that no feature map is kept."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.moments: dict[str, ClassMoments] = {}
        self._classes = classes
        self._device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._called: set[str] = set()

    def begin(self, labels: Tensor) -> None:
        """The next forward pass is of images of these classes (B,)."""
        self._members = Members.of(labels, self._device)
        self._called.clear()

    def take(self, name: str, inputs: Tensor) -> None:
        images = len(self._members.group)
        if name in self._called or len(inputs) % images:
            found = "runs twice in a forward pass" if name in self._called else f"gets {len(inputs)} rows a batch"
            raise ConfigError(
                f"The batch-norm layer {name} {found} of {images} images; class moments need one call with as many "
                "rows, or a multiple. Use another network."
            )
        self._called.add(name)
        if name not in self.moments:
            self.moments[name] = ClassMoments(self._classes, inputs.shape[1], self._device)
        self.moments[name].add(inputs, self._members)


@torch.no_grad()
def collect_statistics(
    network: nn.Module, split: Split, classes: int, batch_size: int = 512, *, shared: bool = False
) -> ClassStatistics:
    """``ClassStatistics`` of ``split`` in one pass, in eval mode and fp32.

    Args:
        network: With ``features``; without batch norm there are no moments.
        split: N images with labels below ``classes``.
        classes: K.
        batch_size: Images in one forward pass, or fewer where the network asks for it or, on a CPU, images are large.
        shared: Every process calls this with the same arguments: each takes every n-th batch, and all get the
            statistics of the full split. Fewer batches than processes are not shared.

    Raises:
        ConfigError: a batch-norm layer gives no moments by image: it runs twice in a forward pass, or mixes images.
        DataError: the split is empty, or its labels are not below ``classes``.
    """
    if not len(split) or int(split.labels.max()) >= classes:
        found = f"labels up to {int(split.labels.max())}" if len(split) else "no image"
        raise DataError(f"Class statistics of {found}; expected images with labels below {classes}.")
    device = next(network.parameters()).device
    network.eval()
    batch_size = inference_rows(network, batch_size, split.images.shape[1:])
    spans = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    rank, world = (processes().process_index, processes().num_processes) if shared else (0, 1)
    if len(spans) < world:
        rank, world = 0, 1
    collector, features = _Collector(classes, device), torch.empty(0)
    ours = spans[rank::world]
    batches = load_batches(split.images, ours, device)
    with _batch_norm_hooks(network, collector.take):
        for span, images in zip(ours if rank else track(ours, "class statistics"), batches, strict=True):
            collector.begin(split.labels[span])
            found = network.features(_network_input(images))  # type: ignore[operator]
            if not len(features):
                features = float_table(len(split), found.shape[1:], memory_for(split.images))
            features[span] = found
    if world > 1:
        _exchange(features, spans, world, device)
        for moments in collector.moments.values():
            moments.merge_processes()
    return ClassStatistics(
        features,
        split.labels.clone(),
        {name: moments.mean.float().cpu() for name, moments in collector.moments.items()},
        {name: moments.variance().float().cpu() for name, moments in collector.moments.items()},
    )


def _network_input(images: Tensor) -> Tensor:
    """uint8 (B,C,H,W) -> [-1, 1]; channels last on a CPU, where every network measured is 3-27 % faster."""
    layout = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
    return to_float(images).contiguous(memory_format=layout)


def _exchange(features: Tensor, spans: list[slice], world: int, device: torch.device) -> None:
    """Fill in the rows of the other processes' batches exactly as they computed them."""
    for number, span in enumerate(spans):
        rows = features[span].to(device)
        dist.broadcast(rows, src=number % world)
        features[span] = rows


def cached_statistics(
    network_hash: str,
    network: nn.Module,
    split: Split,
    classes: int,
    *,
    cache: Path | None,
    batch_size: int = 512,
    shared: bool = False,
) -> ClassStatistics:
    """The statistics in the folder ``cache``, or collected now and kept there; without a folder only collected.

    With ``shared`` every process calls this, as ``collect_statistics`` says.

    Raises:
        ArtifactError: ``cache`` is a file.
        StorageError: the folder cannot be written.
    """
    if cache is None:
        return collect_statistics(network, split, classes, batch_size, shared=shared)
    key = cache_key(network_hash, split, classes)
    path = cache / f"statistics-{hash_json(key)}.safetensors"
    _make_folder(cache)
    found, free = _read(path, key)
    everywhere = _read_everywhere(found is not None) if shared else True
    if found is not None and everywhere:
        _note(f"class statistics read from {path}")
        return found
    statistics = collect_statistics(network, split, classes, batch_size, shared=shared)
    if free and (not shared or processes().is_main_process):
        _write(path, statistics, key)
    return statistics


def cache_key(network_hash: str, split: Split, classes: int) -> dict[str, str | int]:
    """Everything that determines the statistics: the network, the images and their labels, not the other splits."""
    rows = {"images": torch.from_numpy(split.hashes.copy()), "labels": split.labels}
    return {
        "format": FORMAT,
        "network": network_hash,
        "split": hash_json([hash_tensors(rows), *split.images.shape]),
        "classes": classes,
    }


def _read(path: Path, key: Mapping[str, Any]) -> tuple[ClassStatistics | None, bool]:
    """(the statistics of this key, or None; whether the file's name is free to be written)."""
    if not path.exists():
        return None, True
    try:
        with safe_open(path, framework="pt") as file:
            made_from = json.loads((file.metadata() or {}).get(RECORD, "{}"))
        statistics = ClassStatistics.load(path)
    except (OSError, ValueError, SafetensorError, ArtifactError) as error:
        _note(f"{path} cannot be read ({error}); the class statistics are collected again.")
        return None, True
    if made_from.get("key") != key:
        _note(f"{path} holds something else and is not overwritten; the class statistics are collected.")
        return None, False
    if made_from.get("content") != hash_tensors(statistics.tensors()):
        _note(f"{path} is damaged; the class statistics are collected again.")
        return None, True
    return statistics, False


def _read_everywhere(found: bool) -> bool:
    """Whether every process read the file; every process has to call this."""
    state = processes()
    if state.num_processes == 1:
        return found
    least = torch.tensor(int(found), device=state.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return bool(least)


def _note(text: str) -> None:
    if processes().is_main_process:
        note(text)


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; expected a folder for class statistics. {ADVICE}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot hold class statistics ({error}). {ADVICE}") from error


def _write(path: Path, statistics: ClassStatistics, key: Mapping[str, Any]) -> None:
    """Atomically, also when several processes write the same file."""
    record = {"key": key, "content": hash_tensors(statistics.tensors())}
    try:
        with atomic(path, shared=True) as partial:
            statistics.save(partial, {RECORD: json.dumps(record, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({error}). {ADVICE}") from error
