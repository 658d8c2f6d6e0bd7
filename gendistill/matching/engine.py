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
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gendistill import parallel, runtime
from gendistill.data.dataset import Split
from gendistill.data.mapped import read_steps
from gendistill.data.pixels import to_float
from gendistill.data.siamese import AugmentationDraw, Siamese
from gendistill.errors import ArtifactError
from gendistill.matching.functional import StackedBatches
from gendistill.matching.network_pool import Supply
from gendistill.matching.selection import Selection
from gendistill.matching.synthetic import SyntheticImages
from gendistill.seeding import torch_rng


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

    def prepared(self, network: nn.Module, real: Sequence[Tensor], labels: Sequence[int] | Tensor) -> Prepared:
        """The real side, images (R_k,C,H,W) of each class; no graph."""
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
    learning_rates: SGD's, one a set, for stored images in [0, 1].
    momentum: SGD's.
    by_class: A step after each class, as the released IDC and IDM do, made as the one step that equals them
        (``joint_rule``).
    most_views: Views of a class that take part in a step, drawn anew; None is all.
    """

    iterations: int
    inner_steps: int
    learning_rates: tuple[float, ...]
    momentum: float = 0.5
    by_class: bool = False
    most_views: int | None = None


@dataclass
class Matcher:
    """The run, and the state that a checkpoint between iterations needs. Deterministic in ``seed``."""

    sets: list[SyntheticImages]
    real: Split
    objective: MatchingObjective
    selection: Selection
    supply: Supply
    augmentation: Siamese | None
    plan: Plan
    seed: int
    iteration: int = 0
    velocities: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.sets) > 1 and not self.supply.shared:
            raise ValueError("Networks that learn from the surrogate serve one set alone.")
        device = self.real.labels.device
        self.clock = Clock(PARTS, device)
        self.sets = [one.to(device) for one in self.sets]
        self.velocities = self.velocities or [torch.zeros_like(one.images) for one in self.sets]

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
                    real = self.objective.prepared(network, self._real(picks, draws), labels)
                    found: list[Tensor] = []
                    for place in range(len(self.sets)):
                        leaf, views = self._views_of(place, draws, inner)
                        losses = real.losses(views, self.supply.accuracy())
                        found.append(self._step(place, leaf, losses, labels))
                    del real, leaf, views, losses  # before networks learn
                last = inner == self.plan.inner_steps - 1
                with clock.part("train"):
                    self.supply.learn(self.iteration, inner, last, self.sets)
                self.iteration += last
                yield {"iteration": self.iteration - last, "inner": inner, "done": last, **self._named(found)}
        return self.sets

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

    def _views_of(
        self, place: int, draws: Mapping[int, AugmentationDraw | None], inner: int
    ) -> tuple[Tensor, list[Tensor]]:
        """A set's images as a leaf, and the augmented views of the classes in ``draws``, differentiable in it."""
        stored = self.sets[place]
        leaf = stored.images.detach().requires_grad_()
        parts = leaf.split(stored.ipc)  # once: a slice a class would fill a gradient of all classes for each of them
        return leaf, [_seen(draw, self._views(stored.decoded(parts[c]), c, inner)) for c, draw in draws.items()]

    def _step(self, place: int, leaf: Tensor, losses: Tensor, labels: Sequence[int]) -> Tensor:
        """A step of SGD with momentum down the summed losses of the classes, of which this process has those of
        ``labels``; returns the mean loss of all."""
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        by_class = losses.new_zeros(self.sets[place].classes)
        by_class[list(labels)] = losses.detach()
        parallel.add_up([gradient, by_class])
        momentum, rate = self.plan.momentum, self.plan.learning_rates[place]
        if self.plan.by_class:
            momentum, rate = joint_rule(momentum, rate, len(by_class))
        self.velocities[place].mul_(momentum).add_(gradient)
        images = leaf.detach().sub(self.velocities[place], alpha=rate)
        self.sets[place] = replace(self.sets[place], images=images)
        return by_class.mean()

    def _views(self, views: Tensor, label: int, inner: int) -> Tensor:
        most = self.plan.most_views
        if most is None or len(views) <= most:
            return views
        rng = torch_rng(self.seed, "views", self.iteration, inner, label)
        return views[runtime.to_device(torch.randperm(len(views), generator=rng)[:most], views.device)]

    def state_dict(self) -> dict[str, Tensor]:
        """The run between two iterations, as tensors."""
        spent = self.clock.seconds()
        seconds = torch.tensor([spent[part] for part in PARTS])
        state = {"iteration": torch.tensor(self.iteration), "seconds": seconds}
        for place, (one, velocity) in enumerate(zip(self.sets, self.velocities, strict=True)):
            state |= {f"images.{place}": one.images, f"velocity.{place}": velocity}
        state |= {f"supply.{name}": value for name, value in self.supply.state_dict().items()}
        return state | {f"selection.{name}": value for name, value in self.selection.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state.

        Raises:
            ArtifactError: it is of other sets.
        """
        places = range(len(self.sets))
        shapes = [one.images.shape for one in self.sets for _ in ("images", "velocity")]
        found = [state.get(f"{name}.{place}") for place in places for name in ("images", "velocity")]
        if f"images.{len(self.sets)}" in state or any(
            f is None or f.shape != shape for f, shape in zip(found, shapes, strict=True)
        ):
            raise ArtifactError(
                "The checkpoint is of other sets than these; resume with the settings it was made with."
            )
        device = self.real.labels.device
        self.sets = [replace(self.sets[place], images=state[f"images.{place}"].to(device)) for place in places]
        self.velocities = [state[f"velocity.{place}"].to(device) for place in places]
        self.iteration = int(state["iteration"])
        self.clock = Clock(PARTS, device)
        self.clock.add(dict(zip(PARTS, state["seconds"].tolist(), strict=True)))
        self.supply.load_state_dict(_below("supply", state))
        self.selection.load_state_dict(_below("selection", state))


def _seen(draw: AugmentationDraw | None, images: Tensor) -> Tensor:
    return images if draw is None else draw.apply(images)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(prefix + ".")}
