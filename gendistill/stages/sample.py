"""Sample stage: generator folder -> surrogate sets ``ipc-K``, with ``pool`` and ``base/ipc-K`` where asked."""

from __future__ import annotations

import time
from collections.abc import Generator as Loop
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.config import SampleConfig, ipc_sizes, stage_options, to_dict
from gendistill.config.commands import SampleCommand
from gendistill.data.dataset import RealData
from gendistill.data.sources import read_data
from gendistill.environment import command_line, versions
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.adaptation import load_adapter, read_adapter_record
from gendistill.generator.class_mapping import check_label_map
from gendistill.generator.generator import BASE, Generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.map_classes import check_labels, map_classes
from gendistill.generator.prototypes import prototypes
from gendistill.generator.sampler import Request, requests_for, sample
from gendistill.progress import track
from gendistill.stages.folder import StageFolder, finished, output, stage_folder, stage_settings
from gendistill.surrogate.card.card import write_card
from gendistill.surrogate.manifest import write_manifest
from gendistill.surrogate.set import SurrogateSet, SurrogateWriter, link_prefix

IMAGES = "images"  # where the largest set is written, image by image, before the sets are put together


def sample_set(
    generator: Generator,
    ipc: int,
    config: SampleConfig | None = None,
    *,
    data: RealData | None = None,
    seed: int = 0,
    label: str = "sample",
) -> SurrogateSet:
    """``ipc`` images of every class, by class and index; a smaller set with the same seed is its prefix.

    ``data`` are the real images for guidance ``mode`` and start ``prototypes``.
    """
    config = config or SampleConfig()
    start = time.perf_counter()
    if config.class_names is not None:
        generator = map_classes(generator, config.class_names)
    requests = requests_for(len(generator.classes), ipc)
    made = list(track(_images(generator, requests, config, data, seed), f"{label} x{ipc}", len(requests)))
    labels = torch.tensor([request.label for request, _ in made])
    order = torch.argsort(labels, stable=True)
    images = torch.stack([image for _, image in made])
    meta = _meta(generator, generator.hash(), config, seed, time.perf_counter() - start)
    return SurrogateSet(images[order], labels[order], generator.classes, meta)


def _images(
    generator: Generator, requests: list[Request], config: SampleConfig, data: RealData | None, seed: int
) -> Loop[tuple[Request, Tensor], None, None]:
    if not requests:
        return
    check_labels(generator, generator.meta.get("given_labels"))
    centres = _centres(generator, config, data, seed)
    batches = sample(generator.to(runtime.device()), requests, config, seed=seed, prototypes=centres)
    for batch, images in batches:
        yield from zip(batch, images, strict=True)


def _centres(generator: Generator, config: SampleConfig, data: RealData | None, seed: int) -> Tensor | None:
    """Cluster centres (K,M,c,h,w) of the real images in the generator's space, where the options need them."""
    check_images(generator, config, data)
    if data is None or not config.needs_real_images:
        return None
    chosen = data.for_classes(generator.classes)
    latents = real_latents(generator.codec.to(runtime.device()), chosen.train, fingerprint=chosen.fingerprint())
    return prototypes(latents, generator.classes, config.modes, seed)


def check_images(generator: Generator, config: SampleConfig, data: RealData | None) -> None:
    """Refuse to go without the real images where the options need them, or with others than the generator's.

    Raises:
        ConfigError: there are none.
        ArtifactError: they have another size or lack a class.
    """
    if not config.needs_real_images:
        return
    if data is None:
        option = "guidance mode" if config.guidance == "mode" else "start prototypes"
        raise ConfigError(f"sample.{option} needs the real images; give --data.name.")
    wanted = (data.channels, data.image_size, data.image_size)
    if generator.image_shape != wanted:
        raise ArtifactError(
            f"The generator makes {generator.image_shape} images (C,H,W), the data are {wanted}; give "
            f"--data.image_size {generator.image_shape[-1]}."
        )
    lacking = [name for name in generator.classes if name not in data.classes]
    if lacking:
        raise ArtifactError(
            f"The data lack {len(lacking)} of the generator's classes, such as {', '.join(lacking[:5])}; give other "
            "--data.* or choose --classes."
        )


def _meta(generator: Generator, digest: str, config: SampleConfig, seed: int, seconds: float) -> dict[str, Any]:
    options = to_dict(config)
    return {
        "method": "generative",
        "stages": ["finetune", "sample"],
        "stage": "samples",
        "seed": seed,
        "generator_hash": digest,
        "licence": generator.meta.get("licence", "unknown"),
        "data": generator.meta.get("data", {}),
        "label_map": generator.label_map,
        "conditions": generator.conditions,
        "sampling": {k: options[k] for k in _DECISIVE},
        "seconds": {"sample": round(seconds, 2)},
        "command": command_line(),
        "versions": versions(),
    }


_DECISIVE = (
    "num_inference_steps", "scheduler", "guidance", "guidance_scale", "guidance_interval", "mode_scale", "mode_stop",
    "modes", "start", "strength", "mixed_precision", "compile",
)  # fmt: skip


def load_generator(
    source: str, config: SampleConfig, *, revision: str | None = None, adapter: Path | None = None
) -> Generator:
    """The generator of a folder or Hub id for the classes asked for, with an adapter merged in where one is given."""
    generator = Generator.from_pretrained(source, revision=revision)
    classes = config.class_names
    if adapter is not None:
        record = read_adapter_record(adapter)
        generator.network = load_adapter(generator.network, adapter)
        lacking = [key for key in ("classes", "label_map", "meta") if key not in record]
        if lacking:
            raise ArtifactError(
                f"{adapter} does not say its {', '.join(lacking)}; give one that `gendistill finetune` wrote."
            )
        told, meta = tuple(record["classes"]), record["meta"]
        check_label_map(told, record["label_map"], generator.conditions)
        generator = generator.for_classes(told, record["label_map"])
        generator.meta = {**meta, "licence": generator.meta.get("licence", meta.get("licence"))}
    return generator if classes is None else map_classes(generator, classes)


def run_stage(
    source: str | Path,
    config: SampleConfig,
    target: Path,
    *,
    seed: int,
    data: RealData | None = None,
    revision: str | None = None,
    adapter: Path | None = None,
    log_path: Path | None = None,
) -> Path:
    """Write ``target`` unless it is there already, made with the same settings; several processes share the work."""
    generator = load_generator(str(source), config, revision=revision, adapter=adapter)
    check_images(generator, config, data)
    with_base = config.base and generator.has_variant(BASE) and adapter is None
    real = data.fingerprint() if data and config.needs_real_images else None
    digest = generator.hash()
    options = {k: v for k, v in to_dict(config).items() if k != "batch_size"}  # which never changes an image
    settings = stage_settings(options, seed, generator=digest, data=real)
    if finished(target, "sample", settings):
        return target
    state = runtime.processes()
    with stage_folder(
        target, "sample", settings, keep_partial=True, log_path=log_path, main_process=state.is_main_process
    ) as folder:
        state.wait_for_everyone()
        _write_sets(generator, digest, config, data, seed, folder)
        if with_base:
            base = Generator.from_pretrained(source, BASE, revision=revision)
            base = base.for_classes(generator.classes, generator.label_map)
            _write_sets(base, base.hash(), config, data, seed, folder, base=True)
        folder.scaffold = (IMAGES,)
    return target


def _write_sets(
    generator: Generator,
    digest: str,
    config: SampleConfig,
    data: RealData | None,
    seed: int,
    folder: StageFolder,
    base: bool = False,
) -> None:
    """Write what is missing of the largest set, and put the sets together from it."""
    largest = max(ipc_sizes(config.ipc)) if base else max(*ipc_sizes(config.ipc), config.pool)
    name, path = ("base", folder.path / "base") if base else ("samples", folder.path)
    images = folder.path / IMAGES / name
    state, start = runtime.processes(), time.perf_counter()
    with SurrogateWriter(images, generator.classes) as writer:
        missing = [r for r in requests_for(len(generator.classes), largest) if not writer.has(r.label, r.index)]
        state.wait_for_everyone()  # all have looked before anyone writes
        share = missing[state.process_index :: state.num_processes]
        made: Any = _images(generator, share, config, data, seed)
        if state.is_main_process:
            made = track(made, "sample (base)" if base else "sample", len(share))
        with closing(made):  # or the bar of a failed write would be drawn over its message
            for request, image in made:
                writer.put(request.label, request.index, image)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    seconds = time.perf_counter() - start
    meta = _meta(generator, digest, config, seed, seconds) | ({"stage": "base", "stages": ["sample"]} if base else {})
    for ipc, target in [(ipc, path / f"ipc-{ipc}") for ipc in ipc_sizes(config.ipc)]:
        _put_together(images, target, generator, ipc, meta)
    if config.pool and not base:
        _put_together(images, path / "pool", generator, config.pool, meta)
    folder.log({"stage": "sample", "set": name, "images": len(missing), **meta["seconds"]})


def _put_together(images: Path, target: Path, generator: Generator, ipc: int, meta: dict[str, Any]) -> None:
    link_prefix(images, target, generator.classes, ipc)
    write_card(target, write_manifest(target, generator.classes, generator.image_shape, meta))


def main(command: SampleCommand) -> None:
    runtime.check_processes(command.num_processes)
    state = runtime.processes()
    config = stage_options(command, SampleConfig)
    source = Path(command.generator).expanduser()
    inputs = (source if source.is_dir() else None, command.adapter, command.data.folder if command.data else None)
    with output(command, *inputs) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        data = read_data(command.data) if command.data and config.needs_real_images else None
        run_stage(
            command.generator,
            config,
            command.output_dir,
            seed=command.seed,
            data=data,
            revision=command.revision,
            adapter=command.adapter,
        )
