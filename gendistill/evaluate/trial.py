"""One run: a fresh network trained on one draw by the protocol's settings, and its one look at the test split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.data.augmentation import Augmentation
from gendistill.data.dataset import Split
from gendistill.evaluate.calibration import calibration_error
from gendistill.evaluation.protocols import Settings
from gendistill.networks.registry import build_network
from gendistill.networks.training import (
    Batches,
    accuracy,
    augmented_batches,
    predicted,
    require_batch_of_two,
    train_classifier,
)
from gendistill.seeding import derive

if TYPE_CHECKING:
    from gendistill.evaluation.evaluator import Targets

LEGACY_TESTS = 20  # of a training without epochs


@dataclass(frozen=True)
class Trial:
    """What all runs share. ``normal`` is the mean and the standard deviation of the real images, in [-1, 1]."""

    settings: Settings
    test: Split
    classes: int
    device: torch.device | str = "cpu"
    normal: tuple[float, float] = (0.0, 0.5)

    def run(
        self, name: str, train: Split, targets: Targets | None, number: int, *, augment: bool = True, full: bool = False
    ) -> dict[str, Any]:
        """{accuracy, correct (images by class), ece, and legacy_best where it is asked for} of run ``number``."""
        s, seed = self.settings, derive(number, "judge")  # apart from a teacher's of the same number
        steps, per_epoch = s.length(len(train), self.classes, full=full)
        network = self.network(name, seed)
        loop = train_classifier(
            network,
            train,
            steps=steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            optimizer=s.optimizer,
            momentum=s.momentum,
            rate=s.rate(steps, per_epoch),
            device=self.device,
            batches=self.batches(train, targets, seed, augment),
            temperature=targets.temperature if targets else 1.0,
            **self._fast,
        )
        every = per_epoch if s.steps is None else max(1, steps // LEGACY_TESTS)
        best = 0.0
        for record in loop:
            if s.legacy_best and record["step"] % every == 0:
                best = max(best, accuracy(network.eval(), self.test, **self._fast))
                network.train()
        found = self._tested(network.eval())
        return found | ({"legacy_best": max(best, found["accuracy"])} if s.legacy_best else {})

    def network(self, name: str, seed: int = 0) -> nn.Module:
        """A fresh one for the test images.

        Raises:
            ConfigError: it does not fit them.
        """
        return build_network(
            name,
            channels=int(self.test.images.shape[1]),
            image_size=int(self.test.images.shape[-1]),
            classes=self.classes,
            width=self.settings.width,
            depth=self.settings.depth,
            seed=seed,
        )

    def check(self, name: str, images: set[int]) -> None:
        """Refuse a network that does not fit the images, or batch norm for batches of one of so many ``images``.

        Raises:
            ConfigError: for either.
        """
        network, size = self.network(name), self.settings.batch_size
        for count in images:
            last = count % size if self.settings.steps is None and count > size else 0
            require_batch_of_two(network, size, last or count)

    def batches(self, train: Split, targets: Targets | None, seed: int, augment: bool) -> Batches:
        """What run trains on: the targets' own views, or the protocol's of ``train``, with hard or soft labels."""
        if targets and targets.batches:
            return targets.batches
        augmentation = self.settings.augmentation(*self.normal) if augment else Augmentation()
        table = targets.table if targets else None
        if table is None and augmentation.cutmix:
            table = F.one_hot(train.labels, self.classes).float()
        return augmented_batches(
            Split(train.images.to(self.device), train.labels.to(self.device)),
            augmentation,
            batch_size=self.settings.batch_size,
            seed=seed,
            targets=table,
            whole_epochs=self.settings.steps is None,
        )

    @property
    def _fast(self) -> dict[str, bool]:
        s = self.settings
        return runtime.fast(s.mixed_precision, s.compile, torch.device(self.device))._asdict()

    def _tested(self, network: nn.Module) -> dict[str, Any]:
        """The test split, read once."""
        guesses, confidence = predicted(network, self.test, **self._fast)
        right = guesses == self.test.labels
        correct = torch.bincount(self.test.labels[right], minlength=self.classes).tolist()
        return {
            "accuracy": sum(correct) / len(self.test),
            "correct": correct,
            "ece": calibration_error(confidence, right),
        }
