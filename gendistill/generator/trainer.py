"""The training loop of the generator: plain diffusion, or diffusion with the minimax criteria added."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Loop
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from gendistill import parallel, runtime
from gendistill.config import FinetuneConfig, MinimaxConfig, RateSchedule
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.adaptation import Adapted, adapt
from gendistill.generator.batch_source import BatchDraw, BatchSource, RealLatents, prefetch, slices
from gendistill.generator.generator import Generator
from gendistill.generator.loading import UsedOptimizer
from gendistill.generator.memory import MinimaxMemories
from gendistill.generator.muon import Muon
from gendistill.objectives import diffusion, minimax
from gendistill.progress import note
from gendistill.runtime import (
    Checkpoints,
    CheckpointTimer,
    TimeLimit,
    flatten_optimizer,
    full_tensor,
    prefixed,
    restore_optimizer,
    sharded_like,
    unprefixed,
)

if TYPE_CHECKING:
    from gendistill.runtime import Accelerator

FLOAT = 4  # bytes
MUON_RATE, ADAMW_RATE = 6e-3, 1e-3  # peaks in training from scratch, measured on 32 px (docs/results.md)


@dataclass(frozen=True)
class Estimate:
    """Cost of a training, from one of its first steps; ``state_bytes`` are weights, optimiser, average and memories."""

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


def learning_rate_at(step: int, steps: int, peak: float, schedule: RateSchedule = "cosine") -> float:
    """``constant`` is the peak; ``cosine`` a linear warm-up over 5 % of the steps, then a cosine down to 5 % of it."""
    if schedule == "constant":
        return peak
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
    estimate: Callable[[Estimate], None] | None = None,
    preview: Callable[[int], None] | None = None,
    limit: TimeLimit | None = None,
) -> Loop[dict[str, Any], None, dict[str, Tensor]]:
    """Train in place, one optimiser step at a time.

    Without ``criteria`` this is plain diffusion for ``base_steps``; with them the loss of ``minimax_steps`` steps has
    the two minimax terms (``step_losses``). AdamW or Muon, gradient clipping, and a running average of the weights.

    Args:
        generator: Its network is trained and moved to the accelerator's device.
        latents: Real x0, in the space that the network denoises.
        config: Steps, rates and batch size; its network, codec and adaptation are not used.
        accelerator: From ``runtime.make_accelerator`` with the same number of micro-batches.
        adapted: Which parameters train and are kept in checkpoints; all of them by default.
        criteria: Of the minimax phase.
        seed: Of the batches.
        checkpoints: Where the state is saved, and where an interrupted training continues from.
        estimate: Called once, after the first step, or the second where the first one starts a GPU.
        preview: Called with the step's number every ``preview_steps`` steps, with the averaged weights in place.
        limit: Ends the training early, with a checkpoint; its ``stopped_at`` is then the last step.

    Yields:
        ``{"phase", "step", ...}`` with the weighted loss terms of the last micro-batch, as scalars on the device.

    Returns:
        The averaged (EMA) weights by name; they are also left in the generator.

    Raises:
        ConfigError: the batch does not divide among processes and micro-batches, or there is no null class to drop to.
        DivergenceError: weights are no longer finite, which are never saved.
        ArtifactError: the checkpoint belongs to another model.
    """
    phase, steps = ("minimax", config.minimax_steps) if criteria else ("base", config.base_steps)
    parts = slices(config.batch_size, accelerator.num_processes, config.gradient_accumulation_steps)
    generator.to(accelerator.device)
    adapted = adapted or adapt(generator.network, "full", base_hash="")
    used = used_optimizer(config, adapted.method, accelerator, minimax=criteria is not None)
    network, optimizer = _prepared(generator, adapted, config, accelerator, muon=used["name"] == "muon")
    state = TrainingState(generator, adapted, optimizer, config, criteria, accelerator)
    done = state.restore(checkpoints)
    timesteps = "uniform" if criteria else config.timesteps
    weighted = criteria is None and _weighs_velocity(config, generator)
    source = BatchSource(generator, latents, config.label_dropout, seed, phase, config.flip, timesteps)
    batches = _micro_batches(source, range(done, steps), config, parts[accelerator.process_index], accelerator.device)
    alphas = generator.alphas_cumprod.to(accelerator.device)
    timed = (min(done + 1, steps - 1) if torch.cuda.is_available() else done) if estimate else None
    runtime.reset_peak_memory()
    saving = _Saving(state, config, accelerator, checkpoints, limit, done)
    for step in range(done, steps):
        start = _now() if step == timed else 0.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, used["learning_rate"], config.rate_schedule)
        for batch in islice(batches, config.gradient_accumulation_steps):
            with accelerator.accumulate(network):
                losses = step_losses(generator, network, batch, alphas, state.memories, weighted=weighted)
                accelerator.backward(sum(losses.values()))
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(state.parameters, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        state.ema.step(state.parameters)
        if estimate and step == timed:
            estimate(_estimate(state, _now() - start, steps - done))
        stops = step + 1 < steps and saving.after(step + 1)
        if preview and config.preview_steps and (step + 1) % config.preview_steps == 0 and step + 1 < steps:
            with state.averaged():
                preview(step + 1)
        yield {"phase": phase, "step": step + 1, **{k: v.detach() for k, v in losses.items()}}
        if stops:
            break
    state.ema.copy_to(state.parameters)
    _release(accelerator, network, adapted)
    trained = {k: full_tensor(v.detach()).cpu().clone() for k, v in adapted.trainable().items()}
    _refuse_divergence(trained, (limit and limit.stopped_at) or steps, config, minimax=criteria is not None)
    return trained


def _prepared(
    generator: Generator, adapted: Adapted, config: FinetuneConfig, accelerator: Accelerator, *, muon: bool
) -> Any:
    """The network and its optimiser, as accelerate trains them."""
    if config.gradient_checkpointing:
        generator.network.enable_gradient_checkpointing()
    network: Any = adapted.network
    if config.compile is True:
        rows = config.batch_size // (accelerator.num_processes * config.gradient_accumulation_steps)
        network = _compiled(generator, network, config, rows)
    parameters = adapted.trainable()
    optimizer: torch.optim.Optimizer
    if muon:
        optimizer = Muon(parameters, lr=0.0, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=config.weight_decay)
    return accelerator.prepare(network.train(), optimizer)


def used_optimizer(config: FinetuneConfig, method: str, accelerator: Accelerator, *, minimax: bool) -> UsedOptimizer:
    """The optimiser of a phase that trains the weights of ``method``, and its peak rate, with ``auto`` resolved.

    Raises:
        ConfigError: Muon where FSDP or DeepSpeed divides the weights.
    """
    muon = _uses_muon(config, method, accelerator, minimax=minimax)
    plain = config.learning_rate if config.learning_rate is not None else MUON_RATE if muon else ADAMW_RATE
    return {"name": "muon" if muon else "adamw", "learning_rate": config.minimax_learning_rate if minimax else plain}


def _uses_muon(config: FinetuneConfig, method: str, accelerator: Accelerator, *, minimax: bool) -> bool:
    if config.optimizer == "adamw" or method != "full":
        return False
    divided = runtime.divides_weights(accelerator)
    if config.optimizer == "auto":
        return not (minimax or divided)
    if divided:
        raise ConfigError(
            "finetune.optimizer is muon, which needs whole weights in every process; expected auto or adamw where FSDP "
            "or DeepSpeed divides them."
        )
    return True


def _weighs_velocity(config: FinetuneConfig, generator: Generator) -> bool:
    """Whether plain training weighs the errors as those of a velocity.

    Raises:
        ConfigError: that is asked for, and the network predicts eps.
    """
    is_v = generator.prediction_type == "v_prediction"
    if config.loss_weighting == "velocity" and not is_v:
        raise ConfigError(
            "finetune.loss_weighting is velocity, but this generator predicts epsilon, whose weights would have no "
            "bound; expected auto or none."
        )
    return config.loss_weighting != "none" and is_v


def _compiled(generator: Generator, network: nn.Module, config: FinetuneConfig, rows: int) -> Any:
    """The network compiled, which a pass of zeros forth and back tries; itself, with a note, where that fails."""
    runtime.quiet_compiler()
    compiled = torch.compile(network.train())
    device, bf16 = generator.device, config.mixed_precision == "bf16"
    x = torch.zeros(rows, *generator.sample_shape, device=device)
    t, labels = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(2))  # one tensor is another graph
    try:
        with warnings.catch_warnings(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # diffusers'
            output = compiled(x, t, class_labels=labels).sample
        output.float().sum().backward()
    except Exception as error:  # backward passes fail with the compiler's own error; ours would come again below
        note(f"torch.compile fails here ({type(error).__name__}), so the generator trains uncompiled")
        return network
    finally:
        network.zero_grad(set_to_none=True)
    return compiled


class _Saving:
    """When checkpoints are saved, and when the training's time is over; asked after each step but the last."""

    def __init__(
        self,
        state: TrainingState,
        config: FinetuneConfig,
        accelerator: Accelerator,
        checkpoints: Checkpoints | None,
        limit: TimeLimit | None,
        done: int,
    ) -> None:
        self.state, self.config, self.accelerator = state, config, accelerator
        self.checkpoints, self.limit = checkpoints, limit
        self.timer = CheckpointTimer(done, parallel.most, wait=60 * config.checkpoint_minutes)
        if limit:
            limit.begin(done)

    def after(self, step: int) -> bool:
        """Save what is due after ``step``; whether the training ends here."""
        stops = self.limit is not None and self.limit.is_over(step)
        checkpoints = self.checkpoints
        if checkpoints and (stops or step % checkpoints.every == 0 or self.timer.is_due(step)):
            tensors = self.state.tensors()  # by every process: sharded ones are gathered
            _refuse_divergence(tensors, step, self.config, minimax=self.state.memories is not None)
            if self.accelerator.is_main_process:
                checkpoints.save(step, tensors)
            self.timer.restart(step)
        return stops


def _micro_batches(
    source: BatchSource, steps: range, config: FinetuneConfig, own: Sequence[slice], device: torch.device
) -> Iterator[BatchDraw]:
    """Of every step the positions that are this process's ``own`` in its batch."""

    def draw(i: int) -> BatchDraw:
        return source.draw(steps[i // len(own)], config.batch_size, own[i % len(own)])

    return prefetch(draw, range(len(steps) * len(own)), device)


def rate_advice(config: FinetuneConfig, *, minimax: bool) -> str:
    """What to change where a phase diverges."""
    name = "minimax_learning_rate" if minimax else "learning_rate"
    rate = getattr(config, name)
    used = f"{rate:g}" if rate is not None else f"{MUON_RATE:g} with Muon, {ADAMW_RATE:g} with AdamW"
    return f"Lower finetune.{name} ({used})."


def _refuse_divergence(tensors: Mapping[str, Tensor], step: int, config: FinetuneConfig, *, minimax: bool) -> None:
    phase = "minimax" if minimax else "base"
    what = f"The {phase} phase diverged: after step {step} the generator has weights that are"
    runtime.refuse_divergence(what, tensors.values(), rate_advice(config, minimax=minimax))


def step_losses(
    generator: Generator,
    network: nn.Module,
    batch: BatchDraw,
    alphas: Tensor,
    memories: MinimaxMemories | None,
    *,
    weighted: bool = False,
) -> dict[str, Tensor]:
    """The weighted terms of a micro-batch's loss by name; the batch is added to the memories afterwards.

    denoising, ``weighted`` as the error of a velocity or not, with learned sigma + variational bound, and with memories
    + w_r * representativeness + w_d * diversity (arXiv 2311.15529, eq. 7) on the predicted x0 of images that keep their
    label and have alpha_bar(t) >= min_alpha_bar. The released code also lets label-dropped and pure-noise images into
    both.
    """
    alpha_bar, prediction_type = alphas[batch.t], generator.prediction_type
    xt = diffusion.add_noise(batch.x0, batch.eps, alpha_bar)
    output = network(xt, batch.t, class_labels=batch.condition).sample.float()
    predicted, variance = diffusion.split_prediction(output, xt.shape[1])
    target = diffusion.target(batch.x0, batch.eps, alpha_bar, prediction_type)
    weights = diffusion.velocity_weights(alpha_bar) if weighted else None
    losses = {"denoising": diffusion.denoising_loss(predicted, target, weights)}
    if variance is not None:
        bound = diffusion.variational_bound(batch.x0, xt, predicted, variance, batch.t, alphas)
        losses["variational_bound"] = bound.mean()
    if memories:
        criteria, real, generated = memories.criteria, memories.real, memories.generated
        z = diffusion.predicted_x0(predicted, xt, alpha_bar, prediction_type).flatten(1)
        active = ~batch.dropped & (alpha_bar >= criteria.min_alpha_bar)
        weight = alpha_bar if criteria.weighting == "alpha_bar" else None
        near = minimax.representativeness(
            z, batch.labels, real.vectors, real.filled, reduction=criteria.reduction, active=active, weight=weight
        )
        apart = minimax.diversity(
            z, batch.labels, generated.vectors, generated.filled,
            reduction=criteria.reduction, active=active, weight=weight,
        )  # fmt: skip
        losses["representativeness"] = criteria.representativeness * near
        losses["diversity"] = criteria.diversity * apart
        memories.update(batch.x0, z, batch.labels, active)
    return losses


class TrainingState:
    """Trained parameters, optimiser, running average (EMA) of the parameters, and the minimax memories.

    Batches are functions of (seed, phase, step) and the networks have no dropout of their own, so the step in the
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
        self.named = adapted.trainable()
        self.parameters = list(self.named.values())
        self.ema = EMAModel(self.parameters, decay=config.ema_decay)
        size = (len(generator.classes), math.prod(generator.sample_shape))
        self.memories = MinimaxMemories(*size, criteria, accelerator, generator.device) if criteria else None

    def tensors(self) -> dict[str, Tensor]:
        """The state as whole tensors; every process calls it, because sharded tensors are gathered."""
        return {
            **prefixed("network", {k: full_tensor(v.detach()) for k, v in self.named.items()}),
            **flatten_optimizer(self.optimizer),
            **prefixed("ema", {k: full_tensor(v) for k, v in zip(self.named, self.ema.shadow_params, strict=True)}),
            "ema_step": torch.tensor(self.ema.optimization_step),
            **prefixed("memory", self.memories.state_dict() if self.memories else {}),
        }

    @torch.no_grad()
    def restore(self, checkpoints: Checkpoints | None) -> int:
        """Load the newest checkpoint, if there is one; returns the number of steps it has done.

        Raises:
            ArtifactError: the checkpoint is damaged, or belongs to another model, adaptation or number of processes.
        """
        found = checkpoints.latest() if checkpoints else None
        if checkpoints is None or found is None:
            return 0
        step, state = found
        weights, averages = unprefixed("network", state), unprefixed("ema", state)
        shapes = {k: tuple(v.shape) for k, v in self.named.items()}
        if {k: tuple(v.shape) for k, v in weights.items()} != shapes:
            raise ArtifactError(
                f"The checkpoint of step {step} in {checkpoints.folder} belongs to another "
                "model or adaptation; resume with the settings it was made with, or start again with --overwrite."
            )
        with runtime.restoring(checkpoints.file(step)):
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
        """Put the running averages in place of the weights, in evaluation mode, until the block ends."""
        training = self.adapted.network.training
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.adapted.network.eval()
        try:
            yield
        finally:
            self.ema.restore(self.parameters)
            self.adapted.network.train(training)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _estimate(state: TrainingState, seconds: float, steps: int) -> Estimate:
    """A trained parameter is held four times more than as a weight: gradient, AdamW's two moments, running average.

    Muon has one moment of the matrices that it orthogonalises.
    """
    parameters = sum(p.numel() for p in state.adapted.network.parameters())
    trained = sum(p.numel() for p in state.parameters)
    orthogonal = [group["params"] for group in state.optimizer.param_groups if group.get("orthogonal")]
    spared = sum(p.numel() for group in orthogonal for p in group)
    held = FLOAT * (parameters + 4 * trained - spared) + (state.memories.bytes if state.memories else 0)
    return Estimate(parameters, trained, held, runtime.peak_memory(), seconds, steps)


def _release(accelerator: Accelerator, prepared: Any, adapted: Adapted) -> None:
    """Leave the plain network behind, in evaluation mode, and this phase's optimiser out of the next one."""
    if prepared is adapted.network or not hasattr(prepared, "_orig_mod"):
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # or the network would go on under autocast
    else:  # compiled: autocast is only around the compiled wrapper, and unwrapping would break the network inside
        vars(adapted.network).pop("_original_forward", None)
    accelerator.free_memory()  # or the next phase's gradients would also be scaled for this optimiser
    adapted.network.disable_gradient_checkpointing()
    adapted.network.eval()
