"""The network supply: on which networks images are matched, and what those learn in between.

``FreshNetworks`` gives every iteration a new network, which may learn between its inner steps: from the surrogate
(DC, DSA), from real images (IDC), or not at all (DM). ``NetworkQueue`` (IDM, arXiv 2307.09742) draws from networks at
all stages of training, ``BlendedNetworks`` (NCFM, 2502.20653) from the way between fresh and trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill import runtime
from gendistill.config import NetworkTraining
from gendistill.data.crops import batch_indices, cutmix
from gendistill.data.dataset import Split
from gendistill.data.mapped import load_batches, read_batch
from gendistill.data.pixels import to_float
from gendistill.data.siamese import Siamese
from gendistill.matching.synthetic import SyntheticImages
from gendistill.networks.pieces import backward_in_pieces, piece_rows
from gendistill.networks.training import mean_loss
from gendistill.seeding import derive, torch_rng
from gendistill.surrogate.multi_formation import views_in

TRAINED = 2  # networks of a queue that learn in an iteration, as in the released code

Build = Callable[[int], nn.Module]  # seed -> a freshly initialised network


@dataclass(frozen=True, kw_only=True)
class Training:
    """SGD with momentum and weight decay on augmented batches: how a matching network learns.

    Attributes:
        classes: Number of classes.
        batch_size: Images a step; fewer where there are fewer.
        learning_rate: Constant.
        augmentation: A draw for every image; None shows them as they are.
        cutmix: Probability that a batch is mixed by CutMix with alpha 1.
        bf16: Run the network under autocast.
        compile: Compile it.
    """

    classes: int
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: Siamese | None = None
    cutmix: float = 0.0
    bf16: bool = False
    compile: bool = False

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            network.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def step(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, seed: int
    ) -> None:
        """One step on images (B,C,H,W) in [-1, 1]; ``seed`` is of its augmentation."""
        rng, targets = torch_rng(seed, "training"), labels
        if self.augmentation is not None:
            images = self.augmentation.draw(rng, len(images), images.shape[-1]).apply(images)
        if self.cutmix and torch.rand((), generator=rng) < self.cutmix:
            one_hot = F.one_hot(labels, self.classes).float()
            images, share = cutmix(images, 1.0, rng)
            targets = (1 - share) * one_hot + share * one_hot.flip(0)
        if self.bf16 or self.compile:
            images = images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        batch_loss = mean_loss(network, bf16=self.bf16, compile=self.compile)
        backward_in_pieces(batch_loss, images, targets, piece_rows(network, images, compiled=self.compile))
        optimizer.step()

    def on_split(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, split: Split, first: int, steps: int, seed: int
    ) -> None:
        """Steps ``first`` to ``first + steps`` - 1 of the walk through ``split`` that ``seed`` names."""
        device, walk = split.labels.device, range(first, first + steps)
        batches = [batch_indices(len(split), self.batch_size, step, seed) for step in walk]
        for step, index, images in zip(walk, batches, load_batches(split.images, batches, device), strict=True):
            labels = split.labels[runtime.to_device(index, device)]
            self.step(network, optimizer, to_float(images), labels, derive(seed, step))


class Supply(Protocol):
    """``network`` opens an iteration, ``learn`` follows each of its inner steps."""

    @property
    def shared(self) -> bool:
        """Whether networks are the same whatever the surrogate is, so that several sets can share them."""
        ...

    def network(self, iteration: int) -> nn.Module: ...
    def accuracy(self) -> float | Tensor:
        """Of the iteration's network on the real images of its last training, a fraction; a tensor is on the device,
        and reading it would wait for all that is queued there."""
        ...

    def learn(self, iteration: int, inner: int, last: bool, stored: Sequence[SyntheticImages]) -> None:
        """Networks learn after an inner step, the last one of its iteration or not, also from the ``stored`` images."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What an iteration needs of those before it."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class FreshNetworks:
    """A new network every iteration; between inner steps ``steps`` steps (or, on the surrogate, epochs) of training."""

    build: Build
    training: Training
    source: NetworkTraining
    real: Split
    steps: int
    seed: int
    warm_steps: int = 0  # on real images before the first inner step, as DREAM+ does for an epoch
    _network: nn.Module = field(init=False, repr=False)
    _optimizer: torch.optim.Optimizer = field(init=False, repr=False)
    _step: int = field(init=False, repr=False)

    @property
    def shared(self) -> bool:
        return self.source != "surrogate"

    def network(self, iteration: int) -> nn.Module:
        self._network = self.build(derive(self.seed, "matching network", iteration)).train()
        self._optimizer, self._step = self.training.optimizer(self._network), 0
        self._on_real(iteration, self.warm_steps)
        return self._network

    def accuracy(self) -> float:
        return 0.0

    def learn(self, iteration: int, inner: int, last: bool, stored: Sequence[SyntheticImages]) -> None:
        if last or self.source == "none":
            return  # nothing would use what it learns
        if self.source == "real":
            self._on_real(iteration, self.steps)
            return
        (own,) = stored
        images = own.decoded(own.images.detach())
        labels = runtime.to_device(own.labels.repeat_interleave(views_in(own.factor)), images.device)
        size = min(self.training.batch_size, len(images))
        seed = derive(self.seed, "surrogate training", iteration, inner)
        for step in range(self.steps * -(-len(images) // size)):
            index = runtime.to_device(batch_indices(len(images), size, step, seed), images.device)
            self.training.step(self._network, self._optimizer, images[index], labels[index], derive(seed, step))

    def _on_real(self, iteration: int, steps: int) -> None:
        seed = derive(self.seed, "real training", iteration)
        self.training.on_split(self._network, self._optimizer, self.real, self._step, steps, seed)
        self._step += steps

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing outlives an iteration."""


@dataclass
class NetworkQueue:
    """Up to ``size`` networks at all stages of training; ``interval`` iterations bring a fresh one, the oldest leaves.

    Every iteration matches on one of them, in eval mode, then trains ``trained`` of them for ``steps`` steps each, with
    the momentum they had. One that had ``most_steps`` is not trained further: the paper's N_max, which the released
    code lacks.
    """

    build: Build
    training: Training
    real: Split
    steps: int
    size: int
    interval: int
    seed: int
    most_steps: int | None = None
    trained: int = TRAINED
    begin: int = 4  # fresh networks at iteration 0, as in the released code
    _members: list[_Member] = field(default_factory=list, init=False)
    _drawn: int = field(default=0, init=False)

    @property
    def shared(self) -> bool:
        return True

    def network(self, iteration: int) -> nn.Module:
        if iteration % self.interval == 0:
            fresh = self.begin if iteration == 0 else 1
            self._members += [self._member(derive(self.seed, "queue", iteration, number)) for number in range(fresh)]
            del self._members[: -self.size]
        self._drawn = int(torch.randint(len(self._members), (), generator=torch_rng(self.seed, "drawn", iteration)))
        return self._members[self._drawn].network.eval()

    def _member(self, seed: int) -> _Member:
        network = self.build(seed)
        return _Member(network, self.training.optimizer(network))

    def accuracy(self) -> float | Tensor:
        return self._members[self._drawn].accuracy

    def learn(self, iteration: int, inner: int, last: bool, stored: Sequence[SyntheticImages]) -> None:
        """Some of the networks, once an iteration: its only inner step is the last one."""
        rng = torch_rng(self.seed, "trained", iteration)
        for place in torch.randperm(len(self._members), generator=rng)[: self.trained].tolist():
            member = self._members[place]
            steps = self.steps if self.most_steps is None else min(self.steps, self.most_steps - member.steps)
            if steps > 0:
                self._train(member, steps, derive(self.seed, "queue training", iteration, place))

    def _train(self, member: _Member, steps: int, seed: int) -> None:
        network = member.network.train()
        self.training.on_split(network, member.optimizer, self.real, 0, steps, seed)
        member.steps += steps
        index, device = batch_indices(len(self.real), self.training.batch_size, steps, seed), self.real.labels.device
        images = to_float(read_batch(self.real.images, index, device))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.training.bf16):
            guesses = network.eval()(images).argmax(1)
        member.accuracy = (guesses == self.real.labels[runtime.to_device(index, device)]).float().mean()

    def state_dict(self) -> dict[str, Tensor]:
        state = {"progress": torch.tensor([[m.steps, m.accuracy] for m in self._members], dtype=torch.float64)}
        for place, member in enumerate(self._members):
            state |= runtime.prefixed(f"{place}.network", member.network.state_dict())
            state |= runtime.prefixed(f"{place}.training", runtime.flatten_optimizer(member.optimizer))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._members = []
        for place, (steps, accuracy) in enumerate(state["progress"].tolist()):
            member = self._member(0)
            member.network.load_state_dict(runtime.unprefixed(f"{place}.network", state))
            runtime.restore_optimizer(member.optimizer, runtime.unprefixed(f"{place}.training", state))
            member.steps = int(steps)
            member.accuracy = torch.tensor(accuracy, dtype=torch.float32, device=self.real.labels.device)
            self._members.append(member)


@dataclass
class BlendedNetworks:
    """Networks between fresh and trained ones (NCFM, arXiv 2502.20653), in evaluation mode.

    Every iteration draws one of ``size`` networks and a share l, uniform in [0, 1]: its weights are (1 - l) times the
    initial ones and l times those after ``steps`` steps on the real images. A network is trained when it is first drawn
    (the released code trains 20 of them beforehand).
    """

    build: Build
    training: Training
    real: Split
    steps: int
    size: int
    seed: int
    _trained: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def shared(self) -> bool:
        return True

    def network(self, iteration: int) -> nn.Module:
        rng = torch_rng(self.seed, "blended", iteration)
        number, share = int(torch.randint(self.size, (), generator=rng)), float(torch.rand((), generator=rng))
        network = self.build(derive(self.seed, "blended network", number))
        trained = self._trained.get(number)
        if trained is None:
            trained = self._trained[number] = self._train(number)
        with torch.no_grad():
            for name, value in network.state_dict().items():
                new = trained[name]
                value.copy_(torch.lerp(value, new, share) if value.is_floating_point() else new)
        return network.eval()

    def _train(self, number: int) -> dict[str, Tensor]:
        """The weights of a network of the pool after its training."""
        network = self.build(derive(self.seed, "blended network", number)).train()
        optimizer, own = self.training.optimizer(network), derive(self.seed, "blended training", number)
        self.training.on_split(network, optimizer, self.real, 0, self.steps, own)
        return {name: value.detach().clone() for name, value in network.state_dict().items()}

    def accuracy(self) -> float:
        return 0.0

    def learn(self, iteration: int, inner: int, last: bool, stored: Sequence[SyntheticImages]) -> None:
        """They have learned."""

    def state_dict(self) -> dict[str, Tensor]:
        found = [runtime.prefixed(str(number), state) for number, state in sorted(self._trained.items())]
        return {name: value for state in found for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device = self.real.labels.device
        self._trained = {}
        for name, value in state.items():
            number, _, own = name.partition(".")
            self._trained.setdefault(int(number), {})[own] = value.to(device)


@dataclass
class _Member:
    network: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int = 0
    accuracy: Tensor | float = 0.0
