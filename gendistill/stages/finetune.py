"""Finetune stage: real data -> generator folder, by plain diffusion and then the minimax criteria."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill import runtime
from gendistill.config import FinetuneConfig, SampleConfig, stage_options
from gendistill.config.commands import FinetuneCommand
from gendistill.data.dataset import RealData
from gendistill.data.pixels import tile, to_pil
from gendistill.data.sources import read_data
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.adaptation import Adapted, adapt, require_peft, save_adapter
from gendistill.generator.batch_source import check_label_dropout, slices
from gendistill.generator.codec import PixelCodec, load_codec
from gendistill.generator.generator import Generator, build_generator, licence_of
from gendistill.generator.latent_cache import PixelLatents, RealLatents, cache_key, read_cache, write_cache
from gendistill.generator.loading import resolve_model_folder
from gendistill.generator.map_classes import map_classes
from gendistill.generator.sampler import Request, sample
from gendistill.generator.trainer import Hooks, train_generator
from gendistill.hashing import hash_tensors
from gendistill.progress import follow, note
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings

LATENTS, CHECKPOINTS, BASE_WEIGHTS, PREVIEWS, ADAPTER = (
    "latents", "checkpoints", "base.safetensors", "previews", "adapter",
)  # fmt: skip
PREVIEW_CLASSES, PREVIEW_IMAGES = 10, 8
OUR_LICENCE = "apache-2.0"


def finetune(
    data: RealData,
    config: FinetuneConfig | None = None,
    *,
    seed: int = 0,
    folder: StageFolder | None = None,
    generator: Generator | None = None,
) -> tuple[Generator, dict[str, Tensor]]:
    """Train a generator (``start_generator``'s, unless one is given); returns it with its weights before minimax.

    With ``folder`` every phase keeps checkpoints there and goes on from the newest one.
    """
    config = config or FinetuneConfig()
    generator = fitting(generator, data, config) if generator else start_generator(data, config, seed)
    check_training(generator, config)
    parent_licence = generator.meta.get("licence", OUR_LICENCE)
    accelerator = runtime.make_accelerator(
        config.mixed_precision,
        config.gradient_accumulation_steps,
        tracker=config.report_to if folder else "none",
        folder=folder.path / config.report_to if folder else None,
    )
    training = _Training(generator, data, config, accelerator, seed, folder)
    base = training.plain()
    base_hash = hash_tensors(base)
    adapted = adapt(generator.network, config.adaptation, rank=config.lora_rank, seed=seed, base_hash=base_hash)
    training.phase("minimax", config.minimax_steps, adapted)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    plain_steps = 0 if config.pretrained else config.base_steps
    generator.meta = {
        "adaptation": config.adaptation,
        "licence": parent_licence,
        "given_labels": config.label_map,
        "data": data.describe(),
        "steps": {"base": plain_steps, "minimax": config.minimax_steps},
        "null_class_trained": config.label_dropout > 0 or config.pretrained is not None,
        "base_hash": base_hash,
    }
    if folder and config.adaptation != "full":
        record = {"pretrained": config.pretrained, "classes": list(data.classes), "label_map": generator.label_map}
        written = {**record, "meta": generator.meta}
        save_adapter(folder.path / ADAPTER, adapted, written, main_process=accelerator.is_main_process)
    generator.network = adapted.merged()
    return generator, base


def start_generator(data: RealData, config: FinetuneConfig, seed: int) -> Generator:
    """A fresh network, or the pretrained one with the data's classes mapped to its conditions.

    Raises:
        ArtifactError: the pretrained one makes images of another size or lacks a class.
        ConfigError: the images do not fit the network or the codec.
    """
    if config.pretrained is None:
        codec = load_codec(config.codec, data.channels, config.revision)
        generator = build_generator(config.model, data.classes, data.image_size, seed, codec=codec)
        told = (
            OUR_LICENCE
            if isinstance(codec, PixelCodec)
            else licence_of(resolve_model_folder(config.codec, config.revision))
        )
        generator.meta["licence"] = told
        return generator
    generator = Generator.from_pretrained(config.pretrained, revision=config.revision, channels=data.channels)
    return fitting(generator, data, config)


def fitting(generator: Generator, data: RealData, config: FinetuneConfig) -> Generator:
    """The generator for the data's classes.

    Raises:
        ArtifactError: it makes images of another size, or lacks a class.
    """
    wanted = (data.channels, data.image_size, data.image_size)
    if generator.image_shape != wanted:
        raise ArtifactError(
            f"The generator makes {generator.image_shape} images (C,H,W) with codec {generator.codec.name}; the data "
            f"have {wanted}. Give --data.image_size {generator.image_shape[-1]}, or another --pretrained."
        )
    return map_classes(generator, data.classes, config.label_map)


def check_training(generator: Generator, config: FinetuneConfig) -> None:
    """Refuse, before any work, what the training would refuse later.

    Raises:
        ConfigError: the batch does not divide, no null class to drop labels to, peft or a tracker is missing.
    """
    slices(config.batch_size, runtime.processes().num_processes, config.gradient_accumulation_steps)
    check_label_dropout(generator, config.label_dropout)
    if config.adaptation == "lora":
        require_peft()
    runtime.require_tracker(config.report_to)
    if config.latent_cache and isinstance(generator.codec, PixelCodec):
        raise ConfigError(
            f"finetune.latent_cache is {config.latent_cache}, but this generator's codec is pixels; leave it out."
        )


class _Training:
    """What both phases share."""

    def __init__(
        self,
        generator: Generator,
        data: RealData,
        config: FinetuneConfig,
        accelerator: Any,
        seed: int,
        folder: StageFolder | None,
    ) -> None:
        self.generator, self.config, self.seed, self.folder = generator, config, seed, folder
        self.accelerator = accelerator
        self.latents = training_latents(generator, data, config, folder)

    def plain(self) -> dict[str, Tensor]:
        """Plain diffusion training where there is no pretrained network; returns the weights it leaves."""
        network = self.generator.network
        saved = self.folder.path / BASE_WEIGHTS if self.folder else None
        if saved is not None and saved.is_file():
            base = load_file(saved)
            network.load_state_dict(base)
            return base
        if self.config.pretrained is None and self.config.base_steps:
            adapted = adapt(network, "full", base_hash="")
            self.phase("base", self.config.base_steps, adapted)
            self.generator.network = adapted.merged()
        base = {k: v.detach().cpu().clone() for k, v in self.generator.network.state_dict().items()}
        if saved is not None and self.config.pretrained is None and self.accelerator.is_main_process:
            part = saved.with_suffix(".part")
            save_file(base, part)
            part.rename(saved)
        return base

    def phase(self, name: str, steps: int, adapted: Adapted) -> None:
        if steps == 0:
            return
        shown = self.accelerator.is_main_process
        checkpoints = self._checkpoints(name)
        loop = train_generator(
            self.generator,
            self.latents,
            self.config,
            accelerator=self.accelerator,
            adapted=adapted,
            criteria=self.config.minimax if name == "minimax" else None,
            seed=self.seed,
            checkpoints=checkpoints,
            hooks=Hooks(
                lambda found: note(f"{name}: {found}") if shown else None,
                lambda step: self._preview(f"{name}-{step:06d}"),
            ),
        )
        done = checkpoints.steps() if checkpoints else []
        label = "generator" if name == "base" else "minimax fine-tuning"
        start = done[-1] if done else 0
        follow(loop, label, steps, start=start, log=self._log if shown else None, stage="finetune", shown=shown)
        self._preview(name)

    def _checkpoints(self, phase: str) -> runtime.Checkpoints | None:
        if self.folder is None or runtime.owns_optimizer(self.accelerator):
            return None
        config, identity = self.config, {"phase": phase, "seed": str(self.seed), "adaptation": self.config.adaptation}
        folder = self.folder.path / CHECKPOINTS / phase
        return runtime.Checkpoints(folder, config.checkpointing_steps, config.checkpoints_total_limit, identity)

    def _log(self, record: dict[str, Any]) -> None:
        if self.folder:
            self.folder.log(record)
        values = {f"{record['phase']}/{k}": v for k, v in record.items() if isinstance(v, float)}
        self.accelerator.log(values, step=record["step"])

    def _preview(self, name: str) -> None:
        """A grid of samples, a row a class, the same noise every time."""
        if self.folder is None:
            return
        classes = range(min(PREVIEW_CLASSES, len(self.generator.classes)))
        requests = [Request(c, i) for c in classes for i in range(PREVIEW_IMAGES)]
        options = SampleConfig(batch_size=min(len(requests), self.config.batch_size))
        images = [batch for _, batch in sample(self.generator, requests, options, seed=self.seed)]
        if not self.accelerator.is_main_process:
            return  # all take part: a sharded network needs every process
        path = self.folder.path / PREVIEWS / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        to_pil(tile(images, PREVIEW_IMAGES)).save(part, "PNG")
        part.rename(path)


def training_latents(
    generator: Generator, data: RealData, config: FinetuneConfig, folder: StageFolder | None
) -> RealLatents:
    """What training draws from: pixels as they are, or the encoded images, encoded once by the main process."""
    if isinstance(generator.codec, PixelCodec):
        return PixelLatents(data.train)
    key = cache_key(generator.codec, data.train, flip=config.flip, fingerprint=data.fingerprint())
    cache = config.latent_cache or (folder.path / LATENTS if folder else None)
    state = runtime.processes()
    if not state.is_main_process and cache is not None:
        state.wait_for_everyone()
        return read_cache(cache, key)
    encoded = write_cache(generator.codec, data.train, cache, key=key, flip=config.flip, device=state.device)
    state.wait_for_everyone()
    return encoded


def run_stage(data: RealData, config: FinetuneConfig, target: Path, *, seed: int, log_path: Path | None = None) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    generator = start_generator(data, config, seed)
    parent = generator.hash() if config.pretrained else None
    check_training(generator, config)
    decisive = replace(config, latent_cache=None, report_to="none")
    settings = stage_settings(decisive, seed, data=data.fingerprint(), pretrained=parent, codec=generator.codec.hash())
    if finished(target, "finetune", settings):
        return target
    main_process = runtime.processes().is_main_process
    with stage_folder(
        target, "finetune", settings, keep_partial=True, log_path=log_path, main_process=main_process
    ) as folder:
        runtime.processes().wait_for_everyone()
        generator, base = finetune(data, config, seed=seed, folder=folder, generator=generator)
        if main_process:
            generator.meta["parents"] = {"pretrained": config.pretrained, "hash": parent, "codec": config.codec}
            generator.save_pretrained(folder.path, base=base)
            folder.scaffold = (CHECKPOINTS, BASE_WEIGHTS, LATENTS)
            folder.facts |= {"hash": generator.hash(), "processes": runtime.processes().num_processes}
    return target


def main(command: FinetuneCommand) -> None:
    runtime.check_processes(command.num_processes)
    state = runtime.processes()
    inputs = (command.data.folder, Path(command.pretrained) if command.pretrained else None, command.latent_cache)
    guard = output(command, *inputs) if state.is_main_process else nullcontext()
    with guard:
        state.wait_for_everyone()
        data = read_data(command.data)
        run_stage(data, stage_options(command, FinetuneConfig), command.output_dir, seed=command.seed)
