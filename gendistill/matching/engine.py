"""One loop for the whole matching family: parameterisation x objective x selection x network supply.

    every iteration:   a network from the supply
      every inner step:  real images from the selection, views of the stored ones, one augmentation for both,
                         their distance by the objective, a step of the stored images down its gradient,
                         then the network learns as the supply says

Sets of several sizes can share one real side: networks, picks, draws and the real part of the objective do not depend
on what is stored, unless networks learn from it, and each set comes out as it would alone.

Several processes share the classes: a class's loss depends on its own images and the network alone, and every process
has the same network, which it trains itself. Each step adds up the gradients, of which the others' classes are 0.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gendistill import parallel, runtime
from gendistill.config import ImageOptimizer
from gendistill.data.dataset import Split
from gendistill.data.mapped import read_steps
from gendistill.data.pixels import to_float
from gendistill.data.siamese import AugmentationDraw, Siamese
from gendistill.errors import ArtifactError
from gendistill.matching.functional import StackedBatches
from gendistill.matching.network_pool import Supply
from gendistill.matching.selection import Selection
from gendistill.matching.synthetic import SyntheticImages
from gendistill.seeding import derive, torch_rng


class Clock:
    """Seconds of the parts. On CUDA they are the stream's own, by events: the host runs ahead of it and is not stopped.

    A part that works on the host while the stream waits counts in full, as its end is recorded after that work.
    """

    def __init__(self, parts: Sequence[str], device: torch.device) -> None:
        self.device = device
        self._seconds = dict.fromkeys(parts, 0.0)
        self._open: deque[tuple[str, torch.Event, torch.Event]] = deque()

    def add(self, found: Mapping[str, float]) -> None:
        """Seconds that were counted elsewhere."""
        for name, seconds in found.items():
            self._seconds[name] += seconds

    def seconds(self) -> dict[str, float]:
        """Of every part so far; waits for a GPU to finish them."""
        self._close(wait=True)
        return dict(self._seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The seconds of a block, of a part."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begun
            return
        start, end = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._open.append((name, start, end))
        self._close(wait=False)  # what is over need not be kept

    def _close(self, *, wait: bool) -> None:
        while self._open and (wait or self._open[0][2].query()):
            name, start, end = self._open.popleft()
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000


def joint_rule(momentum: float, learning_rate: float, classes: int) -> tuple[float, float]:
    """(mu', lr') of the joint SGD step that equals ``classes`` steps in turn, momentum being in [0, 1)."""
    # (1 - mu^C) / (1 - mu), without its loss of digits near 1
    return momentum**classes, learning_rate * sum(momentum**power for power in range(classes))


PARTS = ("start", "select", "match", "train")  # of the time that a run takes


class MatchingObjective(Protocol):
    """A distance between real images and views, class by class, on one network."""

    def prepared(
        self, network: nn.Module, real: Sequence[Tensor], labels: Sequence[int] | Tensor, seed: int = 0
    ) -> Prepared:
        """The real side, images (R_k,C,H,W) of each class; no graph. ``seed`` is of what the objective draws."""
        ...


class Prepared(Protocol):
    def losses(self, views: Sequence[Tensor], accuracy: float | Tensor | None = None) -> Tensor:
        """(K,) differentiable in the views (Z_k,C,H,W); ``accuracy`` is the network's on real images, a fraction."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Attributes:
    iterations: Outer ones, a network each.
    inner_steps: Steps of the stored images on each network.
    learning_rates: The optimiser's, one a set, for stored images in [0, 1].
    momentum: SGD's, or Adam's first; its second is 0.999.
    optimizer: Of the images.
    by_class: A step after each class, as the released IDC and IDM do, made as the one step that equals them
        (``joint_rule``).
    most_views: Views of a class that take part in a step, drawn anew; None is all.
    """

    iterations: int
    inner_steps: int
    learning_rates: tuple[float, ...]
    momentum: float = 0.5
    optimizer: ImageOptimizer = "sgd"
    by_class: bool = False
    most_views: int | None = None

    def optimizer_of(self, place: int, images: Tensor, classes: int) -> torch.optim.Optimizer:
        """Of the images of one set."""
        momentum, rate = self.momentum, self.learning_rates[place]
        if self.optimizer == "adam":
            return torch.optim.Adam([images], lr=rate, betas=(momentum, 0.999))
        if self.by_class:
            momentum, rate = joint_rule(momentum, rate, classes)
        return torch.optim.SGD([images], lr=rate, momentum=momentum)


@dataclass
class Matcher:
    """The run, and the state that a checkpoint between iterations needs. Deterministic in ``seed``.

    ``sets`` shows the images as they are now: every step changes them in place.
    """

    sets: list[SyntheticImages]
    real: Split
    objective: MatchingObjective
    selection: Selection
    supply: Supply
    augmentation: Siamese | None
    plan: Plan
    seed: int
    iteration: int = 0

    def __post_init__(self) -> None:
        if len(self.sets) > 1 and not self.supply.shared:
            raise ValueError("Networks that learn from the surrogate serve one set alone.")
        device = self.real.labels.device
        self.clock = Clock(PARTS, device)
        own = [one.to(device) for one in self.sets]
        self.leaves = [one.images.detach().clone().requires_grad_() for one in own]
        self.sets = [replace(one, images=leaf.detach()) for one, leaf in zip(own, self.leaves, strict=True)]
        classes = self.sets[0].classes
        self.optimizers = [self.plan.optimizer_of(place, leaf, classes) for place, leaf in enumerate(self.leaves)]

    def run(self) -> Generator[dict[str, Any], None, list[SyntheticImages]]:
        """Yields a record after every inner step, ``done`` in the last one of an iteration; returns the sets."""
        labels, clock = parallel.share(self.sets[0].classes), self.clock
        while self.iteration < self.plan.iterations:
            with clock.part("train"):
                network = self.supply.network(self.iteration)
            for inner in range(self.plan.inner_steps):
                with clock.part("select"):
                    picks = self.selection.picks(network, *self.moment(inner))
                with clock.part("match"):
                    draws = {label: self._draw(inner, label) for label in labels}
                    seed = derive(self.seed, "objective", self.iteration, inner)
                    real = self.objective.prepared(network, self._real(picks, draws), labels, seed)
                    found: list[Tensor] = []
                    for place in range(len(self.sets)):
                        views = self._views_of(place, draws, inner)
                        losses = real.losses(views, self.supply.accuracy())
                        found.append(self._step(place, losses, labels))
                    del real, views, losses  # before networks learn
                last = inner == self.plan.inner_steps - 1
                with clock.part("train"):
                    self.supply.learn(self.iteration, inner, last, self.sets)
                self.iteration += last
                yield {"iteration": self.iteration - last, "inner": inner, "done": last, **self._named(found)}
        return [replace(one, images=one.images.clone()) for one in self.sets]

    def _named(self, losses: list[Tensor]) -> dict[str, Tensor]:
        if len(losses) == 1:
            return {"loss": losses[0]}
        return {f"loss ipc {one.ipc}": loss for one, loss in zip(self.sets, losses, strict=True)}

    def moment(self, inner: int) -> tuple[int, int]:
        """(iteration, inner step) for a selection: where an iteration is one step, what it keeps for some steps it
        keeps for some iterations."""
        return (self.iteration, inner) if self.plan.inner_steps > 1 else (0, self.iteration)

    def _real(self, picks: Sequence[Tensor], draws: Mapping[int, AugmentationDraw | None]) -> StackedBatches:
        """The augmented real images of the classes in ``draws``, each made when it is needed."""
        labels = list(draws)
        own = [picks[label] for label in labels]
        read = read_steps(self.real.images, own.__getitem__, self.real.labels.device, len(own))

        def batch(place: int) -> Tensor:
            return _seen(draws[labels[place]], to_float(read(place)))

        return StackedBatches([len(pick) for pick in own], batch)

    def _draw(self, inner: int, label: int) -> AugmentationDraw | None:
        if self.augmentation is None:
            return None
        rng = torch_rng(self.seed, "siamese", self.iteration, inner, label)
        return self.augmentation.draw(rng, 1, self.real.images.shape[-1]).to(self.real.labels.device)

    def _views_of(self, place: int, draws: Mapping[int, AugmentationDraw | None], inner: int) -> list[Tensor]:
        """The augmented views of the classes in ``draws``, differentiable in the set's leaf."""
        stored, leaf = self.sets[place], self.leaves[place]
        parts = leaf.split(stored.ipc)  # once: a slice a class would fill a gradient of all classes for each of them
        return [_seen(draw, self._views(stored.decoded(parts[c]), c, inner)) for c, draw in draws.items()]

    def _step(self, place: int, losses: Tensor, labels: Sequence[int]) -> Tensor:
        """A step of the set's optimiser down the summed losses of the classes, of which this process has those of
        ``labels``; returns the mean loss of all."""
        leaf = self.leaves[place]
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        by_class = losses.new_zeros(self.sets[place].classes)
        by_class[list(labels)] = losses.detach()
        parallel.add_up([gradient, by_class])
        leaf.grad = gradient
        self.optimizers[place].step()
        leaf.grad = None
        return by_class.mean()

    def _views(self, views: Tensor, label: int, inner: int) -> Tensor:
        most = self.plan.most_views
        if most is None or len(views) <= most:
            return views
        rng = torch_rng(self.seed, "views", self.iteration, inner, label)
        return views[runtime.to_device(torch.randperm(len(views), generator=rng)[:most], views.device)]

    def state_dict(self) -> dict[str, Tensor]:
        """The run between two iterations, as tensors that later steps leave as they are."""
        spent = self.clock.seconds()
        seconds = torch.tensor([spent[part] for part in PARTS])
        state = {"iteration": torch.tensor(self.iteration), "seconds": seconds}
        for place, (one, optimizer) in enumerate(zip(self.sets, self.optimizers, strict=True)):
            moments = runtime.prefixed(f"{place}", runtime.flatten_optimizer(optimizer))
            state |= {name: value.clone() for name, value in {f"images.{place}": one.images, **moments}.items()}
        state |= {f"supply.{name}": value for name, value in self.supply.state_dict().items()}
        return state | {f"selection.{name}": value for name, value in self.selection.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state.

        Raises:
            ArtifactError: it is of other sets.
        """
        found = [state.get(f"images.{place}") for place in range(len(self.sets))]
        fits = [f is not None and f.shape == leaf.shape for f, leaf in zip(found, self.leaves, strict=True)]
        if f"images.{len(self.sets)}" in state or not all(fits):
            raise ArtifactError(
                "The checkpoint is of other sets than these; resume with the settings it was made with."
            )
        device = self.real.labels.device
        with torch.no_grad():
            for place, leaf in enumerate(self.leaves):
                leaf.copy_(state[f"images.{place}"])
                moments = runtime.unprefixed(f"{place}", state)
                if not moments and (self.plan.momentum or self.plan.optimizer == "adam"):
                    raise ArtifactError(
                        "The checkpoint lacks the momentum of the images; start again with --overwrite."
                    )
                runtime.restore_optimizer(self.optimizers[place], {k: v.clone() for k, v in moments.items()})
        self.iteration = int(state["iteration"])
        self.clock = Clock(PARTS, device)
        self.clock.add(dict(zip(PARTS, state["seconds"].tolist(), strict=True)))
        self.supply.load_state_dict(_below("supply", state))
        self.selection.load_state_dict(_below("selection", state))


def _seen(draw: AugmentationDraw | None, images: Tensor) -> Tensor:
    return images if draw is None else draw.apply(images)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(prefix + ".")}
