"""Which real images a matching step sees: random ones, or those that stand for their class (DREAM).

DREAM (arXiv 2302.14416, section 3) is a way to select, not an objective: every few inner steps k-means on the features
of the current matching network parts each class, and the images nearest to the centres are what is matched.

A batch gives all its images one weight, whatever the size of their clusters. Where clusters are small that favours
outliers: 128 picks of 512 candidates can lie farther from their class than random ones. Hence ``fixed`` weights beside
DREAM's ``free`` ones: the centres are atoms of the class's barycenter, whose clusters hold equal mass.

Legend: K classes; n images of one class (or candidates among them), features (n,d); picks are positions into the
Split, int64 on the CPU, a tensor a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gendistill import runtime
from gendistill.config import BarycenterWeights
from gendistill.data.dataset import Split
from gendistill.data.mapped import load_batches
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError
from gendistill.parallel import shared_map
from gendistill.seeding import derive, torch_rng
from gendistill.transport.barycenter import assign, solve_barycenter
from gendistill.transport.kmeans import kmeans_centres
from gendistill.transport.plans import one_thread

CPU_BATCH = 32  # activations that still fit in the caches: a ConvNet-3 embeds in 0.6 of the time of batches of 128
BATCH = 256
TOLERANCE = 1e-2  # variances: the sum of the atoms' squared moves; further descent gains nothing for a batch


class Selection(Protocol):
    """The rule, and the picks it last made, which a checkpoint must keep."""

    def picks(self, network: nn.Module, iteration: int, inner: int) -> list[Tensor]:
        """The images to match by class, at inner step ``inner`` of outer iteration ``iteration`` on ``network``."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class RandomSelection:
    """``batch_size`` images of every class, drawn anew each inner step without replacement; all of a smaller class."""

    def __init__(self, split: Split, classes: int, batch_size: int, seed: int) -> None:
        self.members = _members(split, classes)
        self.batch_size, self.seed = batch_size, seed

    def picks(self, network: nn.Module, iteration: int, inner: int) -> list[Tensor]:
        return [
            sample_without_replacement(
                index, self.batch_size, torch_rng(self.seed, "random selection", iteration, inner, label)
            )
            for label, index in enumerate(self.members)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore: every step has its own stream."""


class RepresentativeSelection:
    """``batch_size`` images of every class that stand for it on the current network, chosen every ``interval`` steps.

    ``per_cluster`` images of each of batch_size / per_cluster clusters of ``free`` or ``fixed`` weights. Only
    ``candidates`` of a class are embedded, drawn anew each time, and their features projected to ``dimensions``; None
    takes all of either. The rule of the paper is one image of each free cluster of all images.

    Picks are a function of (seed, iteration, inner // interval) and of the weights when they are first asked for.
    Several processes share the classes.
    k-means is never started from the last picks: that would tie picks to their past, and candidates drawn anew do not
    hold them.
    """

    def __init__(
        self,
        split: Split,
        classes: int,
        batch_size: int,
        seed: int,
        *,
        interval: int = 10,
        per_cluster: int = 1,
        weights: BarycenterWeights = "free",
        candidates: int | None = None,
        dimensions: int | None = None,
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        self.split, self.members = split, _members(split, classes)
        self.batch_size, self.seed, self.interval = batch_size, seed, interval
        self.per_cluster, self.weights = per_cluster, weights
        self.candidates, self.dimensions = candidates, dimensions
        self.bf16, self.compile = bf16, compile
        self._moment: tuple[int, int] | None = None
        self._picks: list[Tensor] = []

    def picks(self, network: nn.Module, iteration: int, inner: int) -> list[Tensor]:
        moment = (iteration, inner // self.interval)
        if moment != self._moment:
            seed = derive(self.seed, "representative selection", *moment)
            with unchanged_buffers(network):
                self._picks = shared_map(lambda c: self._of_class(network, c, derive(seed, c)), len(self.members))
            self._moment = moment
        return self._picks

    def _of_class(self, network: nn.Module, label: int, seed: int) -> Tensor:
        index = self.members[label]
        if len(index) <= self.batch_size:
            return index
        if self.candidates is not None:
            index = sample_without_replacement(index, self.candidates, torch_rng(seed, "candidates"))
        fast: dict[str, bool] = {"bf16": self.bf16, "compile": self.compile}
        features = embed(network, self.split, index, **fast, dimensions=self.dimensions, seed=seed)
        return index[representatives(features, self.batch_size, seed, self.per_cluster, self.weights)]

    def state_dict(self) -> dict[str, Tensor]:
        """The picks in use, none before the first."""
        if self._moment is None:
            return {}
        counts = torch.tensor([len(index) for index in self._picks])
        return {"moment": torch.tensor(self._moment), "counts": counts, "picks": torch.cat(self._picks)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with saved picks.

        Raises:
            ArtifactError: they are not of these classes.
        """
        self._moment, self._picks = None, []
        if not state:
            return
        found = list(state["picks"].split(state["counts"].tolist()))
        same = len(found) == len(self.members)
        if not same or not all(torch.isin(f, m).all() for f, m in zip(found, self.members, strict=True)):
            raise ArtifactError(
                f"The checkpoint holds selected images of {len(found)} classes that are not among those of the "
                f"{len(self.members)} classes; resume with the data and the classes it was made with."
            )
        iteration, refresh = state["moment"].tolist()
        self._moment, self._picks = (iteration, refresh), found


def sample_without_replacement(index: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """``count`` of ``index`` (n,) without replacement; all, as they stand, where there are no more."""
    if len(index) <= count:
        return index
    return index[torch.randperm(len(index), generator=rng)[:count]]


@torch.no_grad()
def embed(
    network: nn.Module,
    split: Split,
    index: Tensor,
    *,
    bf16: bool = False,
    compile: bool = False,
    dimensions: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Features float32 (n,d) on the CPU of the images at ``index`` (n,), on the network's device and in its mode.

    ``dimensions`` below d: projected by a Gaussian matrix of variance 1/dimensions, which keeps squared distances in
    the mean (Johnson & Lindenstrauss), with ``seed``.
    """
    device = next(network.parameters()).device
    rows = CPU_BATCH if device.type == "cpu" else BATCH
    found, projection, parts = [], None, list(index.split(rows))
    if len(parts) > 1 and len(parts[-1]) == 1:  # of which batch norm could take no statistics
        parts[-2:] = [torch.cat(parts[-2:])]
    for part, batch in zip(parts, load_batches(split.images, parts, device), strict=True):
        images = to_float(batch)
        if bf16 or compile:
            images = images.contiguous(memory_format=torch.channels_last)
        whole = compile and len(part) == rows  # every other size would be compiled anew
        features = (runtime.compiled(_features) if whole else _features)(network, images, bf16)
        if dimensions is not None and dimensions < features.shape[1]:
            if projection is None:
                shape = features.shape[1], dimensions
                projection = runtime.to_device(torch.randn(shape, generator=torch_rng(seed, "projection")), device)
                projection = projection / dimensions**0.5
            features = features @ projection
        found.append(features)
    return torch.cat(found).cpu()  # one wait a class


def _features(network: Any, images: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        features: Tensor = network.features(images)
    return features.float()


@contextmanager
def unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Batch norm in training mode counts whatever it sees; looking at images must not teach it."""
    kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def representatives(
    features: Tensor, count: int, seed: int, per_cluster: int = 1, weights: BarycenterWeights = "free"
) -> Tensor:
    """Positions (count,), all different, of the images nearest to the centres of clusters of ``features`` (n,d).

    The ``per_cluster`` nearest of each of count / per_cluster centres, by one-to-one assignment: where centres share
    their nearest image, at the least total squared distance. All n where ``count`` is not below n. DREAM
    (arXiv 2302.14416, section 3) takes one image of each ``free`` cluster.

    Args:
        features: float32 (n,d) of the images of one class, on the CPU.
        count: How many to choose, a multiple of ``per_cluster``.
        seed: Of k-means.
        per_cluster: Images taken of each cluster.
        weights: ``free`` clusters of k-means, or ``fixed`` ones of equal mass.

    Raises:
        DivergenceError: features that are not finite.
    """
    if count >= len(features):
        return torch.arange(len(features))
    what = "The matching network gives features that are"
    runtime.refuse_divergence(what, [features], "Lower its learning rate, or turn bf16 off.")
    points = features.numpy()
    with one_thread():
        centres = kmeans_centres(points, count // per_cluster, seed, starts=1)
        if weights == "fixed":
            centres = solve_barycenter(points, centres, tolerance=TOLERANCE).atoms
        return torch.from_numpy(assign(np.repeat(centres, per_cluster, 0), points))


def _members(split: Split, classes: int) -> list[Tensor]:
    """Positions of every class, in storage order."""
    return [split.of_class(label).cpu() for label in range(classes)]
