"""Class statistics of a teacher: features and exact per-class moments of every batch-norm input, in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gendistill.data.images import to_float
from gendistill.data.real import Split
from gendistill.errors import ArtifactError
from gendistill.networks.registry import batch_norm_layers
from gendistill.progress import track


@dataclass(frozen=True)
class ClassStatistics:
    """features (N,D) and labels (N,) of the training images; by BN layer the class means and variances (K,C), fp32."""

    features: Tensor
    labels: Tensor
    means: dict[str, Tensor]
    variances: dict[str, Tensor]

    def of_class(self, label: int) -> Tensor:
        """Features (n,D) of one class."""
        return self.features[self.labels == label]

    def feature_variance(self) -> Tensor:
        """Total feature variance of each class, (K,): the mean squared distance to the class mean."""
        classes = int(self.labels.max()) + 1
        return torch.stack([self.of_class(c).var(0, unbiased=False).sum() for c in range(classes)])

    def save(self, path: Path) -> None:
        layers = {f"mean/{k}": v for k, v in self.means.items()} | {f"var/{k}": v for k, v in self.variances.items()}
        save_file({"features": self.features, "labels": self.labels, **layers}, path)

    @classmethod
    def load(cls, path: Path) -> ClassStatistics:
        try:
            stored = load_file(path)
        except Exception as error:
            raise ArtifactError(
                f"Cannot read the class statistics {path}: {error}. Run `gendistill teacher`."
            ) from error
        if not {"features", "labels"} <= stored.keys():
            raise ArtifactError(f"{path} holds no class statistics. Run `gendistill teacher`.")
        means = {k[5:]: v for k, v in stored.items() if k.startswith("mean/")}
        variances = {k[4:]: v for k, v in stored.items() if k.startswith("var/")}
        return cls(stored["features"], stored["labels"], means, variances)


@contextmanager
def batch_norm_inputs(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward pass inside the block fills with the inputs of the batch-norm layers."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, inputs: seen.__setitem__(name, inputs[0])

    handles = [m.register_forward_pre_hook(keep(n)) for n, m in batch_norm_layers(network).items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Moments:
    """Running count, mean and sum of squared deviations by class, merged exactly (Chan et al. 1979), in float64."""

    def __init__(self, classes: int, channels: int) -> None:
        self.count = torch.zeros(classes, 1, dtype=torch.float64)
        self.mean = torch.zeros(classes, channels, dtype=torch.float64)
        self.m2 = torch.zeros(classes, channels, dtype=torch.float64)

    def add(self, inputs: Tensor, labels: Tensor) -> None:
        """Take up one batch (B,C,H,W) or (B,C); keeping the between-batch term that averaging variances would lose."""
        flat = (inputs.flatten(2) if inputs.dim() > 2 else inputs[..., None]).cpu().double()
        onehot = torch.nn.functional.one_hot(labels.cpu(), len(self.count)).double()
        count = onehot.sum(0)[:, None] * flat.shape[2]
        mean = (onehot.T @ flat.sum(2)) / count.clamp(min=1)
        m2 = onehot.T @ (flat - mean[labels.cpu()][:, :, None]).square().sum(2)
        total = self.count + count
        delta = mean - self.mean
        self.mean += delta * count / total.clamp(min=1)
        self.m2 += m2 + delta.square() * self.count * count / total.clamp(min=1)
        self.count = total

    def variance(self) -> Tensor:
        return self.m2 / self.count.clamp(min=1)


@torch.no_grad()
def collect_statistics(network: nn.Module, split: Split, classes: int, batch_size: int = 512) -> ClassStatistics:
    """One pass over ``split`` in eval mode. A network without batch norm gives features alone."""
    device = next(network.parameters()).device
    network.eval()
    features: list[Tensor] = []
    moments: dict[str, _Moments] = {}
    with batch_norm_inputs(network) as seen:
        for start in track(range(0, len(split), batch_size), "class statistics"):
            images = to_float(split.images[start : start + batch_size]).to(device)
            labels = split.labels[start : start + batch_size]
            features.append(network.features(images).float().cpu())  # type: ignore[operator]
            for name, value in seen.items():
                moments.setdefault(name, _Moments(classes, value.shape[1])).add(value, labels)
    return ClassStatistics(
        torch.cat(features),
        split.labels.clone(),
        {n: m.mean.float() for n, m in moments.items()},
        {n: m.variance().float() for n, m in moments.items()},
    )
