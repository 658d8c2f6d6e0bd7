"""The training loop of the generator: plain diffusion, or diffusion with the minimax criteria added."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from collections.abc import Generator as Loop
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gendistill import runtime
from gendistill.config import FinetuneConfig, MinimaxConfig
from gendistill.generator.adaptation import Adapted, adapt
from gendistill.generator.batch_source import BatchDraw, BatchSource, prefetch, slices
from gendistill.generator.generator import Generator
from gendistill.generator.latent_cache import RealLatents
from gendistill.generator.memory import MinimaxMemories
from gendistill.generator.training_state import TrainingState
from gendistill.objectives import diffusion, minimax

if TYPE_CHECKING:
    from gendistill.runtime import Accelerator

FLOAT = 4  # bytes


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


@dataclass(frozen=True)
class Callbacks:
    """What a caller may want to do during the training.

    Attributes:
        estimate: Called once, after the first step, or the second where the first one compiles or starts a GPU.
        preview: Called with the step's number every ``preview_steps`` steps, with the averaged weights in place.
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
    checkpoints: runtime.Checkpoints | None = None,
    callbacks: Callbacks | None = None,
) -> Loop[dict[str, Any], None, dict[str, Tensor]]:
    """Train in place, one optimiser step at a time.

    Without ``criteria`` this is plain diffusion for ``base_steps``; with them the loss of ``minimax_steps`` steps has
    the two minimax terms (``step_losses``). AdamW, gradient clipping, and a running average of the weights.

    Args:
        generator: Its network is trained and moved to the accelerator's device.
        latents: Real x0, in the space that the network denoises.
        config: Steps, rates and batch size; its network, codec and adaptation are not used.
        accelerator: From ``runtime.make_accelerator`` with the same number of micro-batches.
        adapted: Which parameters train and are kept in checkpoints; all of them by default.
        criteria: Of the minimax phase.
        seed: Of the batches.
        checkpoints: Where the state is saved, and where an interrupted training continues from.
        callbacks: For an estimate of the cost and for previews.

    Yields:
        ``{"phase", "step", ...}`` with the weighted loss terms of the last micro-batch, as scalars on the device.

    Returns:
        The averaged (EMA) weights by name; they are also left in the generator.

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
    own, callbacks = parts[accelerator.process_index], callbacks or Callbacks()
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
    batches = prefetch(
        lambda i: source.draw(done + i // len(own), config.batch_size, own[i % len(own)]),
        range((steps - done) * len(own)),
        accelerator.device,
    )
    timed = min(done + 1, steps - 1) if config.compile or torch.cuda.is_available() else done
    runtime.reset_peak_memory()
    for step in range(done, steps):
        start = _now() if step == timed else 0.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, peak)
        for batch in islice(batches, len(own)):
            with accelerator.accumulate(network):
                losses = step_losses(generator, network, batch, alphas, state.memories)
                accelerator.backward(sum(losses.values()))
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(state.parameters, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        state.ema.step(state.parameters)
        if callbacks.estimate and step == timed:
            callbacks.estimate(_estimate(state, _now() - start, steps - done))
        if step + 1 < steps:
            _save_and_preview(state, step + 1, config, accelerator, checkpoints, callbacks)
        yield {"phase": phase, "step": step + 1, **{k: v.detach() for k, v in losses.items()}}
    state.ema.copy_to(state.parameters)
    _release(accelerator, network, adapted)
    return {k: runtime.full_tensor(v.detach()).cpu().clone() for k, v in adapted.trainable().items()}


def step_losses(
    generator: Generator, network: nn.Module, batch: BatchDraw, alphas: Tensor, memories: MinimaxMemories | None
) -> dict[str, Tensor]:
    """The weighted terms of a micro-batch's loss by name; the batch is added to the memories afterwards.

    denoising, with learned sigma + variational bound, and with memories + w_r * representativeness + w_d * diversity
    (arXiv 2311.15529, eq. 7) on the predicted x0 of images that keep their label and have alpha_bar(t) >=
    min_alpha_bar. The released code also lets label-dropped and pure-noise images into both.
    """
    alpha_bar, prediction_type = alphas[batch.t], generator.prediction_type
    xt = diffusion.add_noise(batch.x0, batch.eps, alpha_bar)
    output = network(xt, batch.t, class_labels=batch.condition).sample.float()
    predicted, variance = diffusion.split_prediction(output, xt.shape[1])
    target = diffusion.target(batch.x0, batch.eps, alpha_bar, prediction_type)
    losses = {"denoising": diffusion.denoising_loss(predicted, target)}
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


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _estimate(state: TrainingState, seconds: float, steps: int) -> Estimate:
    """A trained parameter is held four times more than as a weight: gradient, AdamW's two moments, running average."""
    parameters = sum(p.numel() for p in state.adapted.network.parameters())
    trained = sum(p.numel() for p in state.parameters)
    held = FLOAT * (parameters + 4 * trained) + (state.memories.bytes if state.memories else 0)
    return Estimate(parameters, trained, held, runtime.peak_memory(), seconds, steps)


def _save_and_preview(
    state: TrainingState,
    step: int,
    config: FinetuneConfig,
    accelerator: Accelerator,
    checkpoints: runtime.Checkpoints | None,
    callbacks: Callbacks,
) -> None:
    """Where they are due after ``step`` steps."""
    if checkpoints and step % checkpoints.every == 0:
        tensors = state.tensors()  # by every process: sharded ones are gathered
        if accelerator.is_main_process:
            checkpoints.save(step, tensors)
    if callbacks.preview and config.preview_steps and step % config.preview_steps == 0:
        with state.averaged():
            callbacks.preview(step)


def _release(accelerator: Accelerator, prepared: Any, adapted: Adapted) -> None:
    """Leave the plain network behind, in evaluation mode, and this phase's optimiser out of the next one."""
    if prepared is adapted.network or not hasattr(prepared, "_orig_mod"):
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # or the network would go on under autocast
    else:  # compiled: autocast is only around the compiled wrapper, and unwrapping would break the network inside
        vars(adapted.network).pop("_original_forward", None)
    accelerator.free_memory()  # or the next phase's gradients would also be scaled for this optimiser
    adapted.network.disable_gradient_checkpointing()
    adapted.network.eval()
