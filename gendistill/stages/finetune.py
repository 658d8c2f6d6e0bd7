"""Finetune stage: real data -> generator folder, by plain diffusion and then the minimax criteria."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill import runtime
from gendistill.commands import FinetuneCommand
from gendistill.config import FinetuneConfig, SampleConfig, section
from gendistill.data.images import tile, to_pil
from gendistill.data.real import RealData
from gendistill.errors import ArtifactError
from gendistill.generator.adaptation import Adapted, adapt, save_adapter
from gendistill.generator.codec import PixelCodec, load_codec
from gendistill.generator.generator import Generator, build_generator
from gendistill.generator.latents import PixelLatents, RealLatents, cache_key, read_cache, write_cache
from gendistill.generator.sampler import Request, sample
from gendistill.generator.training import Hooks, train_generator
from gendistill.hashing import hash_tensors
from gendistill.progress import follow, note
from gendistill.stages.folders import StageFolder, finished, read_data, stage_folder, stage_settings
from gendistill.stages.labels import map_classes
from gendistill.stages.output import output

LATENTS, CHECKPOINTS, BASE_WEIGHTS, PREVIEWS, ADAPTER = (
    "latents", "checkpoints", "base.safetensors", "previews", "adapter",
)  # fmt: skip
PREVIEW_CLASSES, PREVIEW_IMAGES = 10, 8


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
    generator = generator or start_generator(data, config, seed)
    parent_licence = generator.meta.get("licence", "apache-2.0")
    accelerator = runtime.make_accelerator(
        config.mixed_precision,
        config.gradient_accumulation_steps,
        tracker=config.report_to if folder else "none",
        folder=folder.path / config.report_to if folder else None,
    )
    training = _Training(generator, data, config, accelerator, seed, folder)
    base = training.plain()
    adapted = adapt(generator.network, config.adaptation, rank=config.lora_rank, seed=seed)
    training.phase("minimax", config.minimax_steps, adapted)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if folder and config.adaptation != "full" and accelerator.is_main_process:
        record = {"pretrained": config.pretrained, "classes": list(data.classes), "label_map": generator.label_map}
        save_adapter(folder.path / ADAPTER, adapted, record)
    generator.network = adapted.merged()
    plain_steps = 0 if config.pretrained else config.base_steps
    generator.meta = {
        "adaptation": config.adaptation,
        "licence": parent_licence,
        "given_labels": config.label_map,
        "data": data.describe(),
        "steps": {"base": plain_steps, "minimax": config.minimax_steps},
    }
    return generator, base


def start_generator(data: RealData, config: FinetuneConfig, seed: int) -> Generator:
    """A fresh network, or the pretrained one with the data's classes mapped to its conditions.

    Raises:
        ArtifactError: the pretrained one makes images of another size or lacks a class.
        ConfigError: the images do not fit the network or the codec.
    """
    if config.pretrained is None:
        codec = load_codec(config.codec, data.channels, config.revision)
        return build_generator(config.model, data.classes, data.image_size, seed, codec=codec)
    generator = Generator.from_pretrained(config.pretrained, revision=config.revision, channels=data.channels)
    wanted = (data.channels, data.image_size, data.image_size)
    if generator.image_shape != wanted:
        raise ArtifactError(
            f"{config.pretrained} makes {generator.image_shape} images (C,H,W) with codec {generator.codec.name}; the "
            f"data have {wanted}. Give --data.image_size {generator.image_shape[-1]}, or another --pretrained."
        )
    return map_classes(generator, data.classes, config.label_map)


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
            adapted = adapt(network, "full")
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
            hooks=Hooks(lambda found: note(f"{name}: {found}"), lambda step: self._preview(f"{name}-{step:06d}")),
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
    if state.is_main_process or cache is None:
        encoded = write_cache(generator.codec, data.train, cache, key=key, flip=config.flip, device=state.device)
    state.wait_for_everyone()
    return encoded if cache is None else read_cache(cache, key)


def run_stage(data: RealData, config: FinetuneConfig, target: Path, *, seed: int, log_path: Path | None = None) -> Path:
    """Write ``target`` unless it is there already, made with the same settings."""
    generator = start_generator(data, config, seed)
    parent = generator.hash() if config.pretrained else None
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
            generator.meta["base_hash"] = hash_tensors(base)
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
        run_stage(data, section(command, FinetuneConfig), command.output_dir, seed=command.seed)
