"""A quick look at a set when it is made: does a network of another norm than the teacher's learn from it?

What a set was optimised for falls whatever the images look like to other networks. So a ConvNet with instance norm is
trained on the set, another one on as many random real images, and one on the images before the optimisation, and all
judge the validation images. It is one short training each: differences below ``NOISE`` mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gendistill import runtime
from gendistill.config import EvaluateConfig
from gendistill.coreset.coresets import coreset_set
from gendistill.data.dataset import RealData, mean_and_std
from gendistill.errors import ConfigError
from gendistill.evaluation.evaluator import TrainingRun
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.surrogate.set import SurrogateSet

STEPS, WIDTH = 100, 32
MOST = 2000  # validation images
NOISE = 0.02  # of the accuracy after one training


def validation_accuracies(data: RealData, sets: Mapping[str, SurrogateSet], *, seed: int = 0) -> dict[str, float]:
    """Validation accuracy in [0, 1] of a ConvNet with instance norm after 100 steps on each set, by its name.

    Args:
        data: The real images, of which at most 2000 of ``validation`` are judged. The test images are not read.
        sets: What to train on, at least one, with hard labels; packed images are decoded.
        seed: Of the random images; the weights and batches are the same for all.

    Returns:
        The accuracies of the sets and of ``random`` real images, as many whole ones as the first set stores; empty
        without validation images. Several processes call this alike, and the main one trains.

    Raises:
        ConfigError: no set is given.

    Example:
        >>> gd.validation_accuracies(data, {"set": made})
        {'set': 0.949, 'random': 0.926}
    """
    if not sets:
        raise ConfigError("sets is empty; expected at least one set by its name.")
    if not len(data.validation):
        return {}
    splits = {name: made.split for name, made in sets.items()}
    count = len(next(iter(sets.values())).labels) // len(data.classes)
    most = min(data.train.counts(len(data.classes)))
    splits["random"] = coreset_set(data, "random", max(1, min(count, most)), seed=seed).split
    held = torch.linspace(0, len(data.validation) - 1, min(MOST, len(data.validation))).long()
    settings = resolve_protocol(EvaluateConfig(network="convnet", width=WIDTH, steps=STEPS, mixed_precision="no"))
    judged, normal = data.validation.take(held), mean_and_std(data.train)
    training = TrainingRun(settings, judged, len(data.classes), runtime.device(), normal)

    def outcome() -> dict[str, float]:
        return {name: training.run("convnet", split, None, 0)["accuracy"] for name, split in splits.items()}

    return runtime.of_main_process(outcome)
