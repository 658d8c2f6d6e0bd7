"""Training of the generator under Accelerate: plain diffusion, or diffusion plus the minimax criteria.

Every draw of step s (which images, their timesteps, noise and dropped labels) comes from the stream (seed, phase, s),
so a resumed run continues exactly and any number of processes sees the same global batch.
"""

from __future__ import annotations

import math
from collections.abc import Generator as Loop
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from gendistill.config import FinetuneConfig, MinimaxConfig
from gendistill.data.images import to_float
from gendistill.data.real import Split
from gendistill.errors import ConfigError
from gendistill.generator.generator import Generator
from gendistill.generator.memory import ClassMemory
from gendistill.objectives import diffusion, minimax
from gendistill.runtime import Checkpoints, flatten_optimizer, prefixed, restore_optimizer, unprefixed
from gendistill.seeding import torch_rng

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Draw:
    """One process's share of a step's batch: x0 and eps (b,C,H,W), t, labels and conditions (b,)."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    labels: Tensor
    condition: Tensor


class BatchSource:
    """Class-balanced batches as a function of (seed, phase, step), sliced by process and micro-batch."""

    def __init__(self, generator: Generator, split: Split, label_dropout: float, seed: int, phase: str) -> None:
        self.generator, self.split, self.label_dropout = generator, split, label_dropout
        self.seed, self.phase = seed, phase
        self.positions = [split.of_class(c) for c in range(len(generator.classes))]

    def draw(self, step: int, batch_size: int, part: slice) -> Draw:
        """The images ``part`` of global batch ``step``; every class has batch_size / K images, give or take one."""
        rng = torch_rng(self.seed, self.phase, "batch", step)
        classes = len(self.positions)
        labels = (torch.arange(batch_size) + int(torch.randint(classes, (), generator=rng))) % classes
        labels = labels[torch.randperm(batch_size, generator=rng)]
        chance, dropped = torch.rand(2, batch_size, generator=rng, dtype=torch.float64)
        t = torch.randint(len(self.generator.alphas_cumprod), (batch_size,), generator=rng)
        labels, chance, dropped, t = labels[part], chance[part], dropped[part], t[part]
        index = torch.stack(
            [self.positions[c][int(u * len(self.positions[c]))] for c, u in zip(labels.tolist(), chance, strict=True)]
        )
        shape = self.split.images.shape[1:]
        slots = range(batch_size)[part]
        eps = torch.stack(
            [torch.randn(shape, generator=torch_rng(self.seed, self.phase, "eps", step, j)) for j in slots]
        )
        condition = self.generator.condition(labels)
        condition = condition.where(dropped >= self.label_dropout, self.generator.null_class)
        device = self.generator.device
        x0 = to_float(self.split.images[index])
        return Draw(*(value.to(device) for value in (x0, eps, t, labels, condition)))


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to 5 % of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train_generator(
    generator: Generator,
    split: Split,
    config: FinetuneConfig,
    *,
    accelerator: Accelerator,
    criteria: MinimaxConfig | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Loop[dict[str, Any], None, dict[str, Tensor]]:
    """Train in place; yields {step, loss, ...} and returns the averaged (EMA) weights, also left in the generator.

    Without ``criteria`` this is plain diffusion for ``base_steps``; with them the loss of ``minimax_steps`` steps is
    denoising + w_r * representativeness + w_d * diversity on the predicted x0 of images that keep their label and have
    alpha_bar(t) >= min_alpha_bar. The released code also lets label-dropped and pure-noise images into both.

    Raises:
        ConfigError: the batch does not divide among processes and micro-batches.
    """
    phase = "minimax" if criteria else "base"
    steps = config.minimax_steps if criteria else config.base_steps
    peak = config.minimax_learning_rate if criteria else config.learning_rate
    parts = slices(config.batch_size, accelerator.num_processes, config.gradient_accumulation_steps)
    generator.to(accelerator.device)
    parameters = list(generator.unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=config.weight_decay)
    ema = EMAModel(parameters, decay=config.ema_decay)
    memories = _Memories(generator, criteria) if criteria else None
    done = _restore(checkpoints, generator, optimizer, ema, memories)
    network: Any = torch.compile(generator.unet) if config.compile else generator.unet
    network, optimizer = accelerator.prepare(network.train(), optimizer)
    source = BatchSource(generator, split, config.label_dropout, seed, phase)
    alphas = generator.alphas_cumprod.to(accelerator.device)

    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, peak)
        for part in parts[accelerator.process_index]:
            draw = source.draw(step, config.batch_size, part)
            with accelerator.accumulate(network):
                terms = _losses(generator, network, draw, alphas[draw.t], memories, accelerator)
                accelerator.backward(sum(terms.values()))
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)
        if checkpoints and (step + 1) % checkpoints.every == 0 and step + 1 < steps and accelerator.is_main_process:
            checkpoints.save(step + 1, _state(generator, optimizer, ema, memories))
        yield {"phase": phase, "step": step + 1, **{k: v.detach() for k, v in terms.items()}}
    ema.copy_to(parameters)
    accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # or the network would go on under autocast
    accelerator.free_memory()  # or the next phase's gradients would also be scaled for this optimiser
    generator.unet.eval()
    return {k: v.detach().cpu().clone() for k, v in generator.unet.state_dict().items()}


def slices(batch_size: int, processes: int, micro_batches: int) -> list[list[slice]]:
    """Which positions of the global batch each process takes in each micro-batch: contiguous, in gathering order."""
    size, rest = divmod(batch_size, processes * micro_batches)
    if rest or not size:
        raise ConfigError(
            f"finetune.batch_size is {batch_size}; expected a multiple of {processes} process(es) x "
            f"{micro_batches} gradient_accumulation_steps."
        )
    starts = [[(m * processes + p) * size for m in range(micro_batches)] for p in range(processes)]
    return [[slice(start, start + size) for start in row] for row in starts]


class _Memories:
    """The real and the generated memory with the criteria's settings."""

    def __init__(self, generator: Generator, criteria: MinimaxConfig) -> None:
        self.criteria = criteria
        size = (len(generator.classes), criteria.memory_size, math.prod(generator.image_shape))
        self.real = ClassMemory(*size, device=generator.device)
        self.generated = ClassMemory(*size, device=generator.device)

    def losses(self, z: Tensor, labels: Tensor, active: Tensor) -> dict[str, Tensor]:
        options: dict[str, Any] = {"reduction": self.criteria.reduction, "active": active}
        near = minimax.representativeness(z, labels, self.real.vectors, self.real.filled, **options)
        apart = minimax.diversity(z, labels, self.generated.vectors, self.generated.filled, **options)
        return {
            "representativeness": self.criteria.representativeness * near,
            "diversity": self.criteria.diversity * apart,
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {**prefixed("real", self.real.state_dict()), **prefixed("generated", self.generated.state_dict())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.real.load_state_dict(unprefixed("real", state))
        self.generated.load_state_dict(unprefixed("generated", state))


def _losses(
    generator: Generator,
    network: torch.nn.Module,
    draw: Draw,
    alpha_bar: Tensor,
    memories: _Memories | None,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """The step's weighted terms by name; the memories take up the batch of all processes after the loss."""
    xt = diffusion.add_noise(draw.x0, draw.eps, alpha_bar)
    output = network(xt, draw.t, class_labels=draw.condition).sample
    wanted = diffusion.target(draw.x0, draw.eps, alpha_bar, generator.prediction_type)
    terms = {"denoising": diffusion.denoising_loss(output, wanted)}
    if memories:
        z = diffusion.predicted_x0(output.float(), xt, alpha_bar, generator.prediction_type).flatten(1)
        active = (draw.condition != generator.null_class) & (alpha_bar >= memories.criteria.min_alpha_bar)
        terms |= memories.losses(z, draw.labels, active)
        gathered = accelerator.gather((draw.x0.flatten(1), z.detach(), draw.labels, active))
        x0, z, labels, active = gathered
        memories.real.update(x0, labels)
        memories.generated.update(z, labels, active)
    return terms


def _state(generator: Generator, optimizer: Any, ema: EMAModel, memories: _Memories | None) -> dict[str, Tensor]:
    shadow = {str(i): p for i, p in enumerate(ema.shadow_params)}
    return {
        **prefixed("unet", generator.unet.state_dict()),
        **flatten_optimizer(optimizer),
        **prefixed("ema", shadow),
        "ema_step": torch.tensor(ema.optimization_step),
        **prefixed("memory", memories.state_dict() if memories else {}),
    }


def _restore(
    checkpoints: Checkpoints | None,
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    memories: _Memories | None,
) -> int:
    """Load the newest checkpoint, if any; returns the number of steps it has done."""
    found = checkpoints.latest() if checkpoints else None
    if found is None:
        return 0
    step, state = found
    generator.unet.load_state_dict(unprefixed("unet", state))
    restore_optimizer(optimizer, state)
    for i, shadow in enumerate(ema.shadow_params):
        shadow.copy_(state[f"ema.{i}"])
    ema.optimization_step = int(state["ema_step"])
    if memories:
        memories.load_state_dict(unprefixed("memory", state))
    return step
