"""How hard each image is for a classifier that learns it, and the coreset of the easy or the hard ones.

A network is trained for a few epochs; after each, all images are scored by the network as it is then. T is the number
of epochs, R of trainings, N of images, K of classes. Every score grows with difficulty.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.config.distill import DifficultyConfig, Preference, Score
from gendistill.data.dataset import RealData, Split
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, require_type
from gendistill.io import WorkFolder
from gendistill.networks.factories import build_network
from gendistill.networks.training import TrainingRecord, configured_training, infer, inference_rows
from gendistill.networks.training_checkpoints import CHECKPOINTS, checkpoints_in
from gendistill.progress import follow
from gendistill.seeding import derive

OUTCOMES = "outcomes"  # folder of those that are kept for a resume


def outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """What the scores need of one network's answers, (N,3).

    Args:
        logits: (N,K).
        labels: (N,), from 0 to K - 1.

    Returns:
        The probability p_y of the image's class, the distance |p - onehot(y)| in [0, sqrt(2)], and 1 where y is the
        most probable class, else 0.
    """
    probabilities = logits.float().softmax(1)
    true = probabilities.gather(1, labels[:, None])
    distance = (probabilities - F.one_hot(labels, logits.shape[1])).norm(dim=1, keepdim=True)
    return torch.cat([true, distance, (logits.argmax(1) == labels)[:, None]], 1)


def lack_of_confidence(probability: Tensor) -> Tensor:
    """1 - mean_t p_y (N,), of the probability p_y (T,N): 1 - "confidence" of dataset cartography (arXiv 2009.10795)."""
    return 1 - probability.double().mean(0)


def variability(probability: Tensor) -> Tensor:
    """sqrt(mean_t (p_y - mean p_y)^2) (N,), of the probability p_y (T,N): the same paper's "variability".

    CAD-Prune (arXiv 2604.18811) scores by a spread over a training too. An image that is never learned has a small one.
    """
    return probability.double().std(0, correction=0)


def el2n(distance: Tensor) -> Tensor:
    """mean_t |p - onehot(y)| (N,), of these distances (T,N): arXiv 2107.07075, there early in training."""
    return distance.double().mean(0)


def forgetting_events(correct: Tensor) -> Tensor:
    """The number of t with an image right at t - 1 and wrong at t (N,); T for one that is never right.

    Args:
        correct: (T,N), 1 where the answer is right, else 0.

    The paper (arXiv 1812.05159) counts between two batches that hold the image, with the network of that
    batch, and infinitely many events where it is never right; here one network answers for all images after each epoch.
    """
    right = correct.bool()
    lost = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), lost, len(right)).double()


@dataclass(frozen=True)
class LearningCurves:
    """The answers of networks while they learn.

    Attributes:
        values: (R,T,N,3), as ``outcomes`` has them.
        seconds: Of the trainings.
    """

    values: Tensor
    seconds: float = 0.0

    def score(self, name: Score) -> Tensor:
        """A score of each image (N,) in float64, the mean over the trainings; larger is harder."""
        function, column = SCORES[name]
        return torch.stack([function(one[..., column]) for one in self.values]).mean(0)

    def ranking(self, name: Score) -> Tensor:
        """(N,2): the score, and what decides between equal ones, 1 less the mean probability of the image's class."""
        return torch.stack([self.score(name), self.score("confidence")], 1)


SCORES: dict[str, tuple[Any, int]] = {
    "confidence": (lack_of_confidence, 0),
    "el2n": (el2n, 1),
    "variability": (variability, 0),
    "forgetting": (forgetting_events, 2),
}


def measure_difficulty(
    data: RealData, config: DifficultyConfig | None = None, *, seed: int = 0, folder: WorkFolder | None = None
) -> LearningCurves:
    """Train on ``data.train`` and record, after each epoch, how the network answers for every image of it.

    Args:
        data: The real images; the other splits are not read.
        config: The network, its training, and how many epochs and trainings; the default options where None.
        seed: Of the initial weights and the batches.
        folder: Keeps checkpoints, so that a killed run continues to the same values.

    Raises:
        DivergenceError: a training diverged.
        ArtifactError: what ``folder`` holds is damaged, or belongs to another training.

    Example:
        >>> curves = gd.measure_difficulty(data, gd.DifficultyConfig(epochs=5))
        >>> hardest = curves.score("el2n").topk(10).indices
    """
    require_type("data", data, RealData)
    config, start = require_type("config", config or DifficultyConfig(), DifficultyConfig), time.perf_counter()
    found = []
    for number in range(config.trainings):
        label = f"difficulty {number + 1} of {config.trainings}" if config.trainings > 1 else "difficulty"
        place = folder.path / CHECKPOINTS / f"training-{number}" if folder else None
        found.append(_one_training(data, config, derive(seed, "difficulty", number), label, place))
    earlier = sum(curves.seconds for curves in found)
    return LearningCurves(torch.cat([curves.values for curves in found]), earlier + time.perf_counter() - start)


def _one_training(
    data: RealData, config: DifficultyConfig, seed: int, label: str, place: Path | None
) -> LearningCurves:
    """Of one training; the seconds are those of what an interrupted run had done of it."""
    network = build_network(
        config.network,
        channels=data.channels,
        image_size=data.image_size,
        classes=len(data.classes),
        width=config.width,
        depth=config.depth,
        seed=seed,
    )
    images, size = len(data.train), min(config.batch_size, len(data.train))
    ends = [-(-epoch * images // size) for epoch in range(1, config.epochs + 1)]
    checkpoints = checkpoints_in(place, network, data, config, seed) if place else None
    kept = runtime.Checkpoints(place / OUTCOMES, 1, 1, checkpoints.store.identity) if place and checkpoints else None
    values, done = torch.zeros(config.epochs, images, 3), checkpoints.done if checkpoints else 0
    if kept and done:
        _restore(values, kept, sum(end <= done for end in ends))
    loop = configured_training(network, data.train, config, steps=ends[-1], seed=seed, checkpoints=checkpoints)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout
        follow(_recorded(loop, network, data.train, ends, values, kept), label, ends[-1], start=done)
    return LearningCurves(values[None], checkpoints.seconds if checkpoints else 0.0)


def _recorded(
    loop: Generator[TrainingRecord, None, nn.Module],
    network: nn.Module,
    split: Split,
    ends: Sequence[int],
    values: Tensor,
    kept: runtime.Checkpoints | None,
) -> Generator[TrainingRecord, None, None]:
    """The records of a training, whose network answers for all images after each epoch.

    The answers are kept before the training goes on, so before a checkpoint of the same step.
    """
    for record in loop:
        if record["step"] in ends:
            epoch = ends.index(record["step"])
            values[epoch] = answers(network, split)
            network.train()
            if kept:
                kept.save(record["step"], {OUTCOMES: values[: epoch + 1]})
        yield record


def _restore(values: Tensor, kept: runtime.Checkpoints, epochs: int) -> None:
    """Put the answers of the first ``epochs`` into ``values``."""
    _, state = kept.latest() or (0, {OUTCOMES: values[:0]})
    if len(state[OUTCOMES]) < epochs:
        raise ArtifactError(
            f"{kept.folder} has the answers of {len(state[OUTCOMES])} epochs; expected {epochs}, those of the "
            f"checkpoint beside it. Delete {kept.folder.parent} and resume."
        )
    values[:epochs] = state[OUTCOMES][:epochs]


def answers(network: nn.Module, split: Split) -> Tensor:
    """``outcomes`` (N,3) of all images of a split, in fp32; leaves the network in eval mode."""
    network.eval()
    device = next(network.parameters()).device
    rows = inference_rows(network, 64 if device.type == "cpu" else 512, split.images.shape[1:])

    def batch(images: Tensor, labels: Tensor) -> Tensor:
        return outcomes(network(to_float(runtime.to_device(images, device))), runtime.to_device(labels, device))

    return infer(batch, split.images, split.labels, batch_size=rows)


def baseline_scores(data: RealData, seed: int) -> Tensor:
    """What ``difficulty`` compares as a baseline of an evaluation, where it has the default options."""
    config = DifficultyConfig()
    return measure_difficulty(data, config, seed=seed).ranking(config.score)


def difficulty(features: np.ndarray, count: int, seed: int, prefer: Preference = "easy") -> np.ndarray:
    """The easiest ``count`` images of a class, or its hardest; smaller choices are prefixes of larger ones.

    Args:
        features: (n,d), larger is harder: the first column decides, the next one between equals, then the position.
        count: Images to choose.
        seed: Not read.
        prefer: ``easy`` or ``hard``.
    """
    ranked = np.lexsort(features.T[::-1])
    return (ranked[::-1] if prefer == "hard" else ranked)[:count]
