"""Fine-tuning: real images -> generator, by plain diffusion and then the minimax criteria."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gendistill import cpu_speed, parallel, runtime
from gendistill.config import FinetuneConfig, LoRA, SampleConfig, kind_of, to_dict
from gendistill.data.dataset import RealData
from gendistill.data.pixels import tile, to_pil
from gendistill.errors import ArtifactError, ConfigError, require_type
from gendistill.generator.adaptation import Adapted, AdapterOrigin, adapt, require_peft, save_adapter
from gendistill.generator.batch_source import check_label_dropout, slices
from gendistill.generator.codec import PixelCodec, load_codec
from gendistill.generator.generator import Generator, build_generator, check_shape
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.loading import GeneratorMeta, Stopped, UsedOptimizer, licence_of, resolve_model_folder
from gendistill.generator.networks import training_flop
from gendistill.generator.sampler import Request, sample
from gendistill.generator.trainer import learning_rate_at, rate_advice, train_generator, used_optimizer
from gendistill.hashing import hash_json, hash_tensors
from gendistill.io import WorkFolder, atomic, read_tensors, write_tensors
from gendistill.progress import follow, note

LATENTS, CHECKPOINTS, BASE_WEIGHTS = "latents", "checkpoints", "base.safetensors"
TEMPORARY = (CHECKPOINTS, BASE_WEIGHTS, LATENTS)  # what only an interrupted training needs
PLAIN = (  # options that decide plain training
    "model", "codec", "flip", "base_steps", "batch_size", "learning_rate", "optimizer", "timesteps", "noise_mean",
    "noise_std", "loss_weighting", "rate_schedule", "weight_decay", "label_dropout", "ema_decay", "max_grad_norm",
)  # fmt: skip
WHERE = {  # where a training runs, and what it writes
    "latent_cache", "gradient_accumulation_steps", "gradient_checkpointing",
    "mixed_precision", "compile", "checkpointing_steps", "checkpoint_minutes", "checkpoints_total_limit", "max_minutes",
    "preview_steps", "report_to",
}  # fmt: skip
PREVIEWS, ADAPTER = "previews", "adapter"
PREVIEW_CLASSES, PREVIEW_IMAGES = 10, 8
RELEASED_CHANGE = 12.0  # steps x rate: about 12 000 steps of 1e-3 for DiT-XL/2 on ten classes of ImageNet
OUR_LICENCE = "apache-2.0"


@dataclass(frozen=True, eq=False)
class BaseWeights:
    """The weights of the network before the minimax phase, which ``Generator.save_pretrained`` keeps beside the others.

    Attributes:
        state: The network's state dict, on the CPU.
    """

    state: dict[str, Tensor]

    def __repr__(self) -> str:
        return f"BaseWeights({len(self.state)} tensors, {sum(one.numel() for one in self.state.values()):,} values)"


@runtime.own_accelerate_state()
def finetune(
    data: RealData,
    config: FinetuneConfig | None = None,
    *,
    seed: int = 0,
    folder: WorkFolder | None = None,
    generator: Generator | None = None,
) -> tuple[Generator, BaseWeights]:
    """Train a class-conditional generator: plain diffusion, then the minimax criteria (Gu et al. 2024).

    The loss of the second phase is denoising + w_r * representativeness + w_d * diversity (arXiv 2311.15529, eq. 7);
    see ``objectives.minimax``. The first phase is left out for a pretrained generator.

    Args:
        data: Real images; ``data.train`` is learned.
        config: Options of the network and of both phases.
        seed: Of the initial weights and of every batch.
        folder: Where checkpoints, previews, the adapter and the log are written; a training that was interrupted there
            continues from its newest checkpoint. None writes nothing.
        generator: Where to start from, in place of a fresh or pretrained one; it is trained in place.

    With ``config.max_minutes`` the training may end early: ``meta["stopped"]`` of the generator then says where, and
    the same call with the same ``folder`` trains on.

    Returns:
        The fine-tuned generator, and the weights before the minimax phase, which ``Generator.save_pretrained`` keeps as
        variant ``base``.

    Raises:
        ArtifactError: the pretrained generator makes images of another size or lacks a class, or a checkpoint belongs
            to another training.
        ConfigError: the images do not fit the network or the codec, the batch does not divide among processes and
            micro-batches, the network has no null class to drop labels to, or a package is missing.

    Example:
        >>> generator, base = finetune(load_data(name="digits"), FinetuneConfig(base_steps=400, minimax_steps=100))
        >>> generator.save_pretrained("generator", base=base.state)
    """
    require_type("data", data, RealData)
    config = require_type("config", config or FinetuneConfig(), FinetuneConfig)
    generator = fit_classes(generator, data, config) if generator else start_generator(data, config, seed)
    check_training(generator, config)
    config = with_mode(config, generator)
    run = _Training(generator, data, config, seed, folder)
    base = run.plain_phase()
    base_hash, kind = hash_tensors(base.state), kind_of(config.adaptation)
    rank = config.adaptation.rank if isinstance(config.adaptation, LoRA) else LoRA.rank
    adapted = adapt(generator.network, kind, rank=rank, seed=seed, base_hash=base_hash)
    if config.minimax_steps and not run.stopped:
        run.run_phase("minimax", adapted)
    run.end()
    generator.meta = run.meta(data, base_hash)
    if folder and config.adaptation != "full":
        origin: AdapterOrigin = {
            "pretrained": config.pretrained,
            "classes": list(data.classes),
            "label_map": generator.label_map,
            "channels": generator.codec.channels,
            "meta": generator.meta,
        }
        save_adapter(folder.path / ADAPTER, adapted, origin, main_process=run.is_main)
    generator.network = adapted.merged()
    return generator, base


def _note_small_change(config: FinetuneConfig) -> None:
    """Say so where the steps are far too few, or the rate too low, to change a pretrained generator."""
    steps, peak = config.minimax_steps, config.minimax_learning_rate
    total = sum(learning_rate_at(step, steps, peak, config.rate_schedule) for step in range(steps))
    if total < RELEASED_CHANGE / 10:
        note(
            f"the learning rates of the {steps} minimax steps sum to {total:.2g}, those of the released recipe for a "
            f"pretrained DiT to about {RELEASED_CHANGE:g}: the generator will hardly change. Set --minimax_steps and "
            "--minimax_learning_rate, such as 12000 and 1e-3, or take --config minimax/as-released."
        )


def _note_unused(config: FinetuneConfig) -> None:
    """Say which options of plain training and of a new network were given beside a pretrained generator."""
    usual, plain = FinetuneConfig(), ("model", "base_steps", "timesteps", "loss_weighting")
    names = [name for name in plain if getattr(config, name) != getattr(usual, name)]
    if config.pretrained is not None and names:
        listed = ", ".join(f"finetune.{name}" for name in names)
        note(f"{listed}: not used with pretrained, which has its network and no plain training")


def start_generator(data: RealData, config: FinetuneConfig, seed: int) -> Generator:
    """A fresh network, or the pretrained one with the data's classes mapped to its conditions.

    Raises:
        ArtifactError: the pretrained one makes images of another size or lacks a class.
        ConfigError: the images do not fit the network or the codec.
    """
    if config.pretrained is not None:
        generator = Generator.from_pretrained(config.pretrained, revision=config.revision, channels=data.channels)
        return fit_classes(generator, data, config)
    codec = load_codec(config.codec, data.channels, config.revision)
    generator = build_generator(config.model, data.classes, data.image_size, seed, codec=codec)
    pixels = isinstance(codec, PixelCodec)
    folder = None if pixels else resolve_model_folder(config.codec, config.revision)
    generator.meta["licence"] = licence_of(folder) if folder else OUR_LICENCE
    return generator


def fit_classes(generator: Generator, data: RealData, config: FinetuneConfig) -> Generator:
    """The generator for the data's classes.

    Raises:
        ArtifactError: it makes images of another size, or lacks a class.
    """
    check_shape(generator, data)
    return generator.map_classes(data.classes, config.label_map)


def given_labels(before: GeneratorMeta, config: FinetuneConfig, classes: Sequence[str]) -> dict[str, int] | None:
    """The conditions that users gave for these classes, now and in earlier trainings; None where they gave none."""
    known = {**(before.get("given_labels") or {}), **(config.label_map or {})}
    return {name: index for name, index in known.items() if name in classes} or None


def trains_null_class(config: FinetuneConfig, before: GeneratorMeta) -> bool:
    """Whether the network knows the null class, which classifier-free guidance needs, after training from ``before``.

    Pretrained models of others are taken to know it.
    """
    return config.label_dropout > 0 or before.get("null_class_trained", config.pretrained is not None)


def with_mode(
    config: FinetuneConfig,
    generator: Generator,
    speeds: Callable[[], cpu_speed.Seconds | None] = cpu_speed.speeds,
) -> FinetuneConfig:
    """The options with ``auto`` precision and compilation resolved for the work of both phases on this machine."""
    steps = config.minimax_steps + (0 if config.pretrained else config.base_steps)

    def flop() -> float:
        return training_flop(generator.network, steps * config.batch_size)

    mode = runtime.execution_mode(config.mixed_precision, config.compile, runtime.device(), flop, speeds)
    return replace(config, mixed_precision="bf16" if mode.bf16 else "no", compile=mode.compile)


def check_training(generator: Generator, config: FinetuneConfig) -> None:
    """Refuse, before any work, what the training would refuse later.

    Raises:
        ConfigError: the batch does not divide, no null class to drop labels to, peft or a tracker is missing.
    """
    slices(config.batch_size, runtime.processes().num_processes, config.gradient_accumulation_steps)
    check_label_dropout(generator, config.label_dropout)
    if isinstance(config.adaptation, LoRA):
        require_peft()
    runtime.require_tracker(config.report_to)
    if config.latent_cache and isinstance(generator.codec, PixelCodec):
        raise ConfigError(
            f"finetune.latent_cache is {config.latent_cache}, but this generator's codec is pixels; leave it out."
        )


class _Training:
    """What both phases share: the real latents, the accelerator, and what is written to the folder."""

    def __init__(
        self, generator: Generator, data: RealData, config: FinetuneConfig, seed: int, folder: WorkFolder | None
    ) -> None:
        self.generator, self.config, self.seed, self.folder = generator, config, seed, folder
        self.fingerprint, self.seconds = data.fingerprint(), dict[str, float]()
        self.stopped: Stopped | None = None
        self.limit = runtime.TimeLimit(60 * config.max_minutes, parallel.most) if config.max_minutes else None
        self.accelerator = runtime.make_accelerator(
            config.mixed_precision,
            config.gradient_accumulation_steps,
            tracker=config.report_to if folder else "none",
            folder=folder.path / config.report_to if folder else None,
        )
        self.is_main = self.accelerator.is_main_process
        self.optimizers()  # refuses what does not suit the launcher before anything is encoded
        if self.is_main:
            _note_unused(config)
        self.latents = real_latents(
            generator.codec.to(runtime.device()),
            data.train,
            fingerprint=self.fingerprint,
            flip=config.flip,
            folder=config.latent_cache or (folder.path / LATENTS if folder else None),
        )

    def plain_phase(self) -> BaseWeights:
        """Plain diffusion, unless the generator is a pretrained one or the weights are in the folder already."""
        generator, config = self.generator, self.config
        saved = self.folder.path / BASE_WEIGHTS if self.folder else None
        identity = self._identity("base")
        if saved is not None and saved.is_file():
            weights, kept = read_tensors(saved, fix="Delete it and resume.")
            if kept.get("training", identity["training"]) != identity["training"]:
                raise ArtifactError(
                    f"{saved} belongs to a plain training with other data, options or seed; call finetune with those "
                    "it was made with, or with another folder."
                )
            with runtime.restoring(saved):
                generator.network.load_state_dict(weights)
            self.seconds["base"] = float(kept.get("seconds", 0))
        elif config.pretrained is None and config.base_steps:
            adapted = adapt(generator.network, "full", base_hash="")
            self.run_phase("base", adapted)
            generator.network = adapted.merged()
        base = BaseWeights({k: v.detach().cpu().clone() for k, v in generator.network.state_dict().items()})
        whole = config.pretrained is None and self.stopped is None
        if whole and saved is not None and not saved.is_file() and self.is_main:
            kept = {"seconds": f"{self.seconds.get('base', 0)}", "training": identity["training"]}
            write_tensors(saved, base.state, kept, hashed=True)
        return base

    def meta(self, data: RealData, base_hash: str) -> GeneratorMeta:
        """Where the trained generator comes from."""
        config, before = self.config, self.generator.meta
        seconds = before.get("training_seconds")
        meta: GeneratorMeta = {
            "adaptation": kind_of(config.adaptation),
            "licence": before.get("licence", OUR_LICENCE),
            "given_labels": given_labels(before, config, data.classes),
            "data": data.describe(),
            "steps": self.steps_done(),
            "optimizers": self.optimizers(),
            "null_class_trained": trains_null_class(config, before),
            "base_hash": base_hash,
            "training_seconds": ({"pretrained": sum(seconds.values())} if seconds else {}) | self.seconds,
        }
        return meta | {"stopped": self.stopped} if self.stopped else meta

    def run_phase(self, name: str, adapted: Adapted) -> None:
        """Train one phase, with its bar, log and preview; of a resumed one the time of all steps is estimated."""
        minimax, checkpoints = name == "minimax", self._checkpoints(name)
        if minimax and self.config.pretrained is not None and self.is_main:
            _note_small_change(self.config)
        loop = train_generator(
            self.generator,
            self.latents,
            self.config,
            accelerator=self.accelerator,
            adapted=adapted,
            criteria=self.config.minimax if minimax else None,
            seed=self.seed,
            checkpoints=checkpoints,
            estimate=(lambda found: note(f"{name}: {found}")) if self.is_main else None,
            preview=lambda step: self.preview(f"{name}-{step:06d}"),
            limit=self.limit,
        )
        steps = self.config.minimax_steps if minimax else self.config.base_steps
        begun, start = max(checkpoints.steps(), default=0) if checkpoints else 0, time.perf_counter()
        if minimax and not begun and self.is_main:
            self._note_share_of_criteria()
        follow(
            loop,
            "minimax fine-tuning" if minimax else "generator",
            steps,
            start=begun,
            log=self._log if self.is_main else None,
            stage="finetune",
            shown=self.is_main,
            remedy=rate_advice(self.config, minimax=minimax),
        )
        if self.limit and self.limit.stopped_at:
            self.stopped = {"phase": name, "step": self.limit.stopped_at}
            steps = self.limit.stopped_at
        self.seconds[name] = round((time.perf_counter() - start) * steps / max(1, steps - begun), 2)
        self.preview(name)

    def steps_done(self) -> dict[str, int]:
        """Optimiser steps of each phase, in this and earlier runs."""
        done = {"base": 0 if self.config.pretrained else self.config.base_steps, "minimax": self.config.minimax_steps}
        if self.stopped:
            done |= {"minimax": 0, self.stopped["phase"]: self.stopped["step"]}
        return done

    def optimizers(self) -> dict[str, UsedOptimizer]:
        """What trained each phase that has steps."""
        methods = {"base": "full", "minimax": kind_of(self.config.adaptation)}
        return {
            phase: used_optimizer(self.config, methods[phase], self.accelerator, minimax=phase == "minimax")
            for phase, steps in self.steps_done().items()
            if steps
        }

    def _note_share_of_criteria(self) -> None:
        """Say and log on which share of the timesteps the criteria act: it depends on the noise schedule."""
        least, alphas = self.config.minimax.min_alpha_bar, self.generator.alphas_cumprod
        share = float((alphas >= least).float().mean())
        note(
            f"minimax: the criteria act on {100 * share:.1f} % of the timesteps, where alpha_bar is at least {least:g}"
        )
        if self.folder:
            self.folder.log({"stage": "finetune", "phase": "minimax", "share_of_timesteps_with_criteria": share})

    def end(self) -> None:
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:  # accelerate's end_training would also part the processes for good
            tracker.finish()

    def _checkpoints(self, phase: str) -> runtime.Checkpoints | None:
        if self.folder is None or runtime.owns_optimizer(self.accelerator):
            return None
        config, folder = self.config, self.folder.path / CHECKPOINTS / phase
        every, keep = config.checkpointing_steps, config.checkpoints_total_limit
        return runtime.Checkpoints(folder, every, keep, self._identity(phase))

    def _identity(self, phase: str) -> dict[str, str]:
        """What a phase that is about to begin belongs to; where it runs, and what it writes, do not count."""
        options = to_dict(self.config)
        names = PLAIN if phase == "base" else [name for name in options if name not in WHERE]
        decisive = {name: options[name] for name in names}
        training = hash_json([decisive, self.seed, self.fingerprint])
        adaptation = kind_of(self.config.adaptation)
        return {"phase": phase, "seed": str(self.seed), "adaptation": adaptation, "training": training}

    def _log(self, record: Mapping[str, Any]) -> None:
        if self.folder:
            self.folder.log(record)
        values = {f"{record['phase']}/{k}": v for k, v in record.items() if isinstance(v, float)}
        before = self.config.base_steps if record["phase"] == "minimax" and not self.config.pretrained else 0
        self.accelerator.log(values, step=before + record["step"])  # wandb drops a step below the last one

    def preview(self, name: str) -> None:
        """Write a grid of samples, one row per class, from the same noise every time."""
        if self.folder is None:
            return
        classes = range(min(PREVIEW_CLASSES, len(self.generator.classes)))
        requests = [Request(c, i) for c in classes for i in range(PREVIEW_IMAGES)]
        options = SampleConfig(batch_size=min(len(requests), self.config.batch_size))
        images = [batch for _, batch in sample(self.generator, requests, options, seed=self.seed)]
        if not self.is_main:
            return  # all take part: a sharded network needs every process
        path = self.folder.path / PREVIEWS / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as unfinished:
            to_pil(tile(images, PREVIEW_IMAGES)).save(unfinished, "PNG")
