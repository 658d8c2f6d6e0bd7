"""Surrogate sets from a generator: in memory, or as folders whose images are written one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import torch
from torch import Tensor

from gendistill import runtime
from gendistill.config import ModeGuidance, SampleConfig, ipc_sizes, to_dict
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.generator import Generator
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.prototypes import prototypes
from gendistill.generator.sampler import Request, requests_for, sample
from gendistill.io import WorkFolder
from gendistill.progress import track
from gendistill.surrogate.card.card import write_card
from gendistill.surrogate.manifest import Provenance, provenance, write_manifest
from gendistill.surrogate.set import SurrogateSet, SurrogateWriter, link_prefix

IMAGES = "images"  # where the largest set is written, image by image, before the sets are put together
DECISIVE = (
    "num_inference_steps", "scheduler", "guidance", "guidance_scale", "guidance_interval", "mode_scale", "mode_stop",
    "modes", "start", "strength", "mixed_precision", "compile",
)  # fmt: skip


def sample_set(
    generator: Generator,
    ipc: int,
    config: SampleConfig | None = None,
    *,
    data: RealData | None = None,
    seed: int = 0,
) -> SurrogateSet:
    """Sample a surrogate set with ``ipc`` images of every class.

    An image depends on the generator, the options, the seed, its class and its index: on a CPU the batch size
    changes no byte, and a smaller set with the same seed is a prefix of a larger one.

    Args:
        generator: A generator of images; it is moved to the device of this process.
        ipc: Images per class, at least 1.
        config: Solver, guidance, start, classes, precision and batch size; its ipc, pool and base are not used.
        data: Real images, needed by guidance ``mode`` and start ``prototypes``.
        seed: Of the noise.

    Returns:
        The set in memory, ordered by class and then by index; images uint8 (K * ipc, C, H, W).

    Raises:
        ConfigError: the options do not fit the generator, or real images are needed and missing.
        ArtifactError: the generator lacks a class, or the data have another image size or lack a class.

    Example:
        >>> images = sample_set(Generator.from_pretrained("generator"), ipc=10)
        >>> images.save("samples/ipc-10")
    """
    if ipc < 1:
        raise ConfigError(f"ipc is {ipc}; expected images per class of at least 1.")
    config = config or SampleConfig()
    start = time.perf_counter()
    if config.class_names is not None:
        generator = generator.map_classes(config.class_names)
    requests = requests_for(len(generator.classes), ipc)
    made = list(track(_images(generator, requests, config, data, seed), f"sample x{ipc}", len(requests)))
    labels = torch.tensor([request.label for request, _ in made])
    order = torch.argsort(labels, stable=True)
    images = torch.stack([image for _, image in made])
    meta = _provenance(generator, config, seed, time.perf_counter() - start)
    return SurrogateSet(images[order], labels[order], generator.classes, meta)


def _images(
    generator: Generator, requests: Sequence[Request], config: SampleConfig, data: RealData | None, seed: int
) -> Iterator[tuple[Request, Tensor]]:
    if not requests:
        return
    generator.mapping.check(trusted=generator.meta.get("given_labels") or ())
    centres = _centres(generator, config, data, seed)
    for batch, images in sample(generator.to(runtime.device()), requests, config, seed=seed, prototypes=centres):
        yield from zip(batch, images, strict=True)


def _centres(generator: Generator, config: SampleConfig, data: RealData | None, seed: int) -> Tensor | None:
    """Cluster centres (K,M,c,h,w) of the real images in the generator's space, where the options need them."""
    check_images(generator, config, data)
    if data is None or config.modes is None:
        return None
    chosen = data.for_classes(generator.classes)
    latents = real_latents(generator.codec.to(runtime.device()), chosen.train, fingerprint=chosen.fingerprint())
    return prototypes(latents, generator.classes, config.modes, seed)


def check_images(generator: Generator, config: SampleConfig, data: RealData | None) -> None:
    """Check the real images, where the options need them.

    Raises:
        ConfigError: there are no real images.
        ArtifactError: they have another size or lack a class.
    """
    if config.modes is None:
        return
    if data is None:
        option = "guidance mode" if isinstance(config.guidance, ModeGuidance) else "start prototypes"
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


def _provenance(generator: Generator, config: SampleConfig, seed: int, seconds: float) -> Provenance:
    options = to_dict(config)
    return provenance(
        "generative",
        seed=seed,
        data=generator.meta.get("data", {}),
        seconds={"sample": seconds},
        licence=generator.meta.get("licence", "unknown"),
        stages=["finetune", "sample"],
        stage="samples",
        generator_hash=generator.hash(),
        label_map=generator.label_map,
        conditions=generator.conditions,
        sampling={k: options[k] for k in DECISIVE},
    )


def write_sets(
    generator: Generator,
    folder: WorkFolder,
    config: SampleConfig,
    *,
    data: RealData | None = None,
    seed: int = 0,
    stage: Literal["samples", "base"] = "samples",
) -> None:
    """Write the sets ``ipc-K`` and ``pool`` into a folder; images that are there already are kept.

    The largest set is written image by image into ``images/``; the others are links to its first images. Several
    processes share the work.

    Args:
        generator: A generator of images.
        folder: Where the sets and the log are written.
        config: Options of sampling, and which sets to write.
        data: Real images, needed by guidance ``mode`` and start ``prototypes``.
        seed: Of the noise.
        stage: ``base`` for a generator before its minimax phase, whose sets go into ``base/``, without a pool.

    Raises:
        ConfigError: the options do not fit the generator, or real images are needed and missing.
        ArtifactError: the data have another image size or lack a class.
    """
    base, state, start = stage == "base", runtime.processes(), time.perf_counter()
    sets = {f"ipc-{ipc}": ipc for ipc in ipc_sizes(config.ipc)}
    if config.pool and not base:
        sets["pool"] = config.pool
    images, classes = folder.path / IMAGES / stage, generator.classes
    with SurrogateWriter(images, classes) as writer:
        missing = [r for r in requests_for(len(classes), max(sets.values())) if not writer.has(r.label, r.index)]
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
    meta = _provenance(generator, config, seed, time.perf_counter() - start)
    if base:
        meta |= {"stage": "base", "stages": ["sample"]}
    for name, ipc in sets.items():
        target = folder.path / "base" / name if base else folder.path / name
        link_prefix(images, target, classes, ipc)
        write_card(target, write_manifest(target, classes, generator.image_shape, meta))
    folder.log({"stage": "sample", "set": stage, "images": len(missing), **meta["seconds"]})
