"""Training of the generator under Accelerate: plain diffusion, or diffusion plus the minimax criteria."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Generator as Loop
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from gendistill.config import FinetuneConfig, MinimaxConfig
from gendistill.errors import ArtifactError
from gendistill.generator.adaptation import Adapted, adapt
from gendistill.generator.batch_source import BatchDraw, BatchSource, prefetch, slices
from gendistill.generator.generator import Generator
from gendistill.generator.latent_cache import RealLatents
from gendistill.generator.memory import ClassMemory
from gendistill.objectives import diffusion, minimax
from gendistill.runtime import (
    Checkpoints,
    flatten_optimizer,
    full_tensor,
    prefixed,
    restore_optimizer,
    sharded_like,
    unprefixed,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
import time
from collections.abc import Iterable

from gendistill import runtime

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """Parameters, bytes of weights and optimiser state a process, peak bytes as measured, seconds a step."""

    parameters: int
    trainable: int
    state_bytes: int
    peak_bytes: int
    seconds_per_step: float
    steps: int

    def __str__(self) -> str:
        minutes = self.seconds_per_step * self.steps / 60
        time_left = f"{minutes:.0f} min" if minutes >= 2 else f"{minutes * 60:.0f} s"
        share = f"{self.trainable / 1e6:.2f} of {self.parameters / 1e6:.2f} M parameters"
        memory = f"{self.peak_bytes / 2**30:.1f} GiB ({self.state_bytes / 2**30:.2f} GiB weights and optimiser)"
        pace = f"about {time_left} for {self.steps} steps ({self.seconds_per_step:.2f} s each)"
        return f"trains {share}, {memory}, {pace}"


def estimate(
    network: nn.Module,
    trainable: Iterable[nn.Parameter],
    memory_bytes: int,
    rehearse: Callable[[], None],
    micro_batches: int,
    steps: int,
    *,
    compiled: bool = False,
) -> Estimate:
    """Time ``rehearse``, forward and backward of one micro-batch, and add up the state.

    Where the first call compiles, or starts a GPU's libraries, the second is timed.

    A trained parameter is held four times more than as a weight: gradient, two moments of AdamW, running average.
    """
    runtime.reset_peak_memory()
    for _ in range(2 if compiled or torch.cuda.is_available() else 1):
        start = time.perf_counter()
        rehearse()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    parameters = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in trainable)
    state = FLOAT * (parameters + 4 * trained) + memory_bytes
    return Estimate(
        parameters, trained, state, runtime.peak_memory() + 3 * FLOAT * trained, seconds * micro_batches, steps
    )


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to see: the cost before the first step, and pictures every ``preview_steps`` steps.

    ``preview(step)`` runs with the averaged weights in place.
    """

    estimate: Callable[[Estimate], None] | None = None
    preview: Callable[[int], None] | None = None


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to 5 % of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train_generator(
    generator: Generator,
    latents: RealLatents,
    config: FinetuneConfig,
    *,
    accelerator: Accelerator,
    adapted: Adapted | None = None,
    criteria: MinimaxConfig | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    hooks: Hooks | None = None,
) -> Loop[dict[str, Any], None, dict[str, Tensor]]:
    """Train in place; yields {step, loss, ...} and returns the averaged (EMA) weights, also left in the generator.

    Without ``criteria`` this is plain diffusion for ``base_steps``; with them the loss of ``minimax_steps`` steps is
    denoising + w_r * representativeness + w_d * diversity on the predicted x0 of images that keep their label and have
    alpha_bar(t) >= min_alpha_bar. The released code also lets label-dropped and pure-noise images into both. With
    learned sigma the variational bound is added. Only the parameters of ``adapted`` (default: all) train and are kept
    in checkpoints.

    Raises:
        ConfigError: the batch does not divide among processes and micro-batches, or there is no null class to drop to.
        ArtifactError: the checkpoint belongs to another model.
    """
    phase, steps, peak = (
        ("minimax", config.minimax_steps, config.minimax_learning_rate)
        if criteria
        else ("base", config.base_steps, config.learning_rate)
    )
    parts = slices(config.batch_size, accelerator.num_processes, config.gradient_accumulation_steps)
    own, hooks = parts[accelerator.process_index], hooks or Hooks()
    generator.to(accelerator.device)
    adapted = adapted or adapt(generator.network, "full", base_hash="")
    if config.gradient_checkpointing:
        generator.network.enable_gradient_checkpointing()
    network: Any = torch.compile(adapted.network) if config.compile else adapted.network
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=0.0, weight_decay=config.weight_decay)
    network, optimizer = accelerator.prepare(network.train(), optimizer)
    state = TrainingState(generator, adapted, optimizer, config, criteria, accelerator)
    done = state.restore(checkpoints)
    source = BatchSource(generator, latents, config.label_dropout, seed, phase, config.flip)
    alphas = generator.alphas_cumprod.to(accelerator.device)

    def losses(draw: BatchDraw) -> dict[str, Tensor]:
        return step_losses(generator, network, draw, alphas, state.memories)

    if hooks.estimate and done < steps:
        first = source.draw(done, config.batch_size, own[0]).to(accelerator.device)
        hooks.estimate(_rehearse(accelerator, state, losses, first, len(own), steps - done, config.compile))
    draws = prefetch(
        lambda i: source.draw(done + i // len(own), config.batch_size, own[i % len(own)]),
        range((steps - done) * len(own)),
        accelerator.device,
    )
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, peak)
        for _ in own:
            with accelerator.accumulate(network):
                terms = losses(next(draws))
                accelerator.backward(sum(terms.values()))
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(state.parameters, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        state.ema.step(state.parameters)
        _look(state, step + 1, steps, config, checkpoints, hooks)
        yield {"phase": phase, "step": step + 1, **{k: v.detach() for k, v in terms.items()}}
    state.ema.copy_to(state.parameters)
    _release(accelerator, network, adapted)
    return {k: full_tensor(v.detach()).cpu().clone() for k, v in adapted.trainable().items()}


def _look(
    state: TrainingState, step: int, steps: int, config: FinetuneConfig, checkpoints: Checkpoints | None, hooks: Hooks
) -> None:
    """Checkpoint and preview where they are due, but not after the last step."""
    if checkpoints and step % checkpoints.every == 0 and step < steps:
        tensors = state.tensors()  # by every process: sharded ones are gathered
        if state.accelerator.is_main_process:
            checkpoints.save(step, tensors)
    if hooks.preview and config.preview_steps and step % config.preview_steps == 0 and step < steps:
        with state.averaged():
            hooks.preview(step)


def _release(accelerator: Accelerator, prepared: Any, adapted: Adapted) -> None:
    """Leave the plain network behind, in evaluation mode, and this phase's optimiser out of the next one."""
    if prepared is adapted.network or not hasattr(prepared, "_orig_mod"):
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # or the network would go on under autocast
    else:  # compiled: autocast is around the compiled wrapper alone, and unwrapping would break the network inside
        vars(adapted.network).pop("_original_forward", None)
    accelerator.free_memory()  # or the next phase's gradients would also be scaled for this optimiser
    adapted.network.disable_gradient_checkpointing()
    adapted.network.eval()


class TrainingState:
    """All that a checkpoint holds: trained parameters, optimiser, their running average and the minimax memories.

    Draws are functions of (seed, phase, step) and the networks have no dropout of their own, so the step in the
    checkpoint's name is the state of every random stream.
    """

    def __init__(
        self,
        generator: Generator,
        adapted: Adapted,
        optimizer: Any,
        config: FinetuneConfig,
        criteria: MinimaxConfig | None,
        accelerator: Accelerator,
    ) -> None:
        self.generator, self.adapted, self.optimizer = generator, adapted, optimizer
        self.accelerator = accelerator
        self.named = adapted.trainable()
        self.parameters = list(self.named.values())
        self.ema = EMAModel(self.parameters, decay=config.ema_decay)
        self.memories = Memories(generator, criteria, accelerator) if criteria else None

    def tensors(self) -> dict[str, Tensor]:
        return {
            **prefixed("network", {k: full_tensor(v.detach()) for k, v in self.named.items()}),
            **flatten_optimizer(self.optimizer),
            **prefixed("ema", {k: full_tensor(v) for k, v in zip(self.named, self.ema.shadow_params, strict=True)}),
            "ema_step": torch.tensor(self.ema.optimization_step),
            **prefixed("memory", self.memories.state_dict() if self.memories else {}),
        }

    @torch.no_grad()
    def restore(self, checkpoints: Checkpoints | None) -> int:
        """Load the newest checkpoint, if any; returns the number of steps it has done."""
        found = checkpoints.latest() if checkpoints else None
        if found is None:
            return 0
        step, state = found
        weights, averages = unprefixed("network", state), unprefixed("ema", state)
        shapes = {k: tuple(v.shape) for k, v in self.named.items()}
        if {k: tuple(v.shape) for k, v in weights.items()} != shapes:
            raise ArtifactError(
                f"The checkpoint of step {step} in {checkpoints.folder if checkpoints else ''} belongs to another "
                "model or adaptation; resume with the settings it was made with, or start anew with --overwrite."
            )
        for shadow, (name, parameter) in zip(self.ema.shadow_params, self.named.items(), strict=True):
            parameter.copy_(sharded_like(weights[name], parameter))
            shadow.copy_(sharded_like(averages[name], shadow))
        restore_optimizer(self.optimizer, state)
        self.ema.optimization_step = int(state["ema_step"])
        if self.memories:
            self.memories.load_state_dict(unprefixed("memory", state))
        return step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running averages in place of the weights, in evaluation mode."""
        training = self.adapted.network.training
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.adapted.network.eval()
        try:
            yield
        finally:
            self.ema.restore(self.parameters)
            self.adapted.network.train(training)


class Memories:
    """The real and the generated memory with the criteria's settings, shared by all processes or each with its own."""

    def __init__(self, generator: Generator, criteria: MinimaxConfig, accelerator: Accelerator) -> None:
        self.criteria, self.accelerator = criteria, accelerator
        size = (len(generator.classes), criteria.memory_size, math.prod(generator.sample_shape))
        self.real = ClassMemory(*size, device=generator.device)
        self.generated = ClassMemory(*size, device=generator.device)

    def losses(self, z: Tensor, labels: Tensor, active: Tensor, alpha_bar: Tensor) -> dict[str, Tensor]:
        weight = alpha_bar if self.criteria.weighting == "alpha_bar" else None
        options: dict[str, Any] = {"reduction": self.criteria.reduction, "active": active, "weight": weight}
        near = minimax.representativeness(z, labels, self.real.vectors, self.real.filled, **options)
        apart = minimax.diversity(z, labels, self.generated.vectors, self.generated.filled, **options)
        return {
            "representativeness": self.criteria.representativeness * near,
            "diversity": self.criteria.diversity * apart,
        }

    def update(self, x0: Tensor, z: Tensor, labels: Tensor, active: Tensor) -> None:
        """Take up the batch, of all processes together unless each is to keep its own."""
        values = (x0.flatten(1), z.detach(), labels, active)
        if self.criteria.share_memory:
            values = self.accelerator.gather(values)
        x0, z, labels, active = values
        self.real.update(x0, labels)
        self.generated.update(z, labels, active)

    @property
    def bytes(self) -> int:
        return sum(v.numel() * v.element_size() for v in self.own().values())

    def own(self) -> dict[str, Tensor]:
        """This process's memories."""
        return {**prefixed("real", self.real.state_dict()), **prefixed("generated", self.generated.state_dict())}

    def load_own(self, state: dict[str, Tensor]) -> None:
        self.real.load_state_dict(unprefixed("real", state))
        self.generated.load_state_dict(unprefixed("generated", state))

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: where each process has its own, those of all of them (P, ...)."""
        if self.criteria.share_memory:
            return self.own()
        return {k: self.accelerator.gather(v[None]) for k, v in self.own().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ArtifactError where the checkpoint is of another number of processes, each with its own memory."""
        if not self.criteria.share_memory:
            counts = {len(v) for v in state.values()}
            if counts != {self.accelerator.num_processes}:
                raise ArtifactError(
                    f"The checkpoint holds the memories of {max(counts)} process(es), now "
                    f"{self.accelerator.num_processes} run; resume with as many as before."
                )
            state = {k: v[self.accelerator.process_index] for k, v in state.items()}
        self.load_own(state)


def step_losses(
    generator: Generator,
    network: nn.Module,
    draw: BatchDraw,
    alphas: Tensor,
    memories: Memories | None,
) -> dict[str, Tensor]:
    """The step's weighted terms by name; the memories take up the batch after the loss."""
    alpha_bar = alphas[draw.t]
    xt = diffusion.add_noise(draw.x0, draw.eps, alpha_bar)
    output = network(xt, draw.t, class_labels=draw.condition).sample.float()
    predicted, variance = diffusion.split_prediction(output, xt.shape[1])
    wanted = diffusion.target(draw.x0, draw.eps, alpha_bar, generator.prediction_type)
    terms = {"denoising": diffusion.denoising_loss(predicted, wanted)}
    if variance is not None:
        bound = diffusion.variational_bound(draw.x0, xt, predicted, variance, draw.t, alphas)
        terms["variational_bound"] = bound.mean()
    if memories:
        z = diffusion.predicted_x0(predicted, xt, alpha_bar, generator.prediction_type).flatten(1)
        active = ~draw.dropped & (alpha_bar >= memories.criteria.min_alpha_bar)
        terms |= memories.losses(z, draw.labels, active, alpha_bar)
        memories.update(draw.x0, z, draw.labels, active)
    return terms


def _rehearse(
    accelerator: Accelerator,
    state: TrainingState,
    losses: Callable[[BatchDraw], dict[str, Tensor]],
    draw: BatchDraw,
    micro_batches: int,
    steps: int,
    compiled: bool,
) -> Estimate:
    """Cost of a step from one forward and backward that leaves no trace: gradients and memories are put back."""
    before = {k: v.clone() for k, v in state.memories.own().items()} if state.memories else {}

    def rehearsal() -> None:
        accelerator.backward(sum(losses(draw).values()))
        for parameter in state.parameters:  # accelerate's zero_grad waits for the end of an accumulation
            parameter.grad = None

    memory = state.memories.bytes if state.memories else 0
    network = state.adapted.network
    found = estimate(network, state.parameters, memory, rehearsal, micro_batches, steps, compiled=compiled)
    if state.memories:
        state.memories.load_own(before)
    return found
