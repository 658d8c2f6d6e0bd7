"""Surrogate sets from a generator: in memory, or as folders whose images are written one by one.

Prototypes are k-means centres of each class's real latents, for guidance toward them and for starts.
Legend: K classes, M modes a class, N images, (c,h,w) the space the network denoises, D = c h w.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gendistill import runtime
from gendistill.config import SampleConfig, ipc_sizes, to_dict
from gendistill.data.class_positions import positions_by_class
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError, ConfigError, require_type
from gendistill.generator.batch_source import RealLatents
from gendistill.generator.generator import Generator, check_shape
from gendistill.generator.latent_cache import real_latents
from gendistill.generator.sampler import Clusters, Request, denoised_images, in_groups, requests_for, sample
from gendistill.io import WorkFolder
from gendistill.progress import track
from gendistill.seeding import derive
from gendistill.surrogate.card.card import write_card
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.manifest import Provenance, provenance, write_manifest
from gendistill.surrogate.set import SurrogateSet, SurrogateWriter, link_prefix
from gendistill.transport.barycenter import kmeans_atoms
from gendistill.transport.plans import one_thread

IMAGES = "images"  # where the largest set is written, image by image, before the sets are put together
DECISIVE = (
    "num_inference_steps", "scheduler", "guidance", "guidance_scale", "guidance_interval", "guidance_channels",
    "guidance_windows", "mode_scale", "mode_stop", "transport_scale", "transport_regularisation", "repulsion_scale",
    "coupling_interval", "group", "modes", "start", "strength", "mixed_precision", "compile",
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
        config: Solver, guidance, start, classes, precision, batch size and image format; its ipc, pool and base are not
            used.
        data: Real images, needed by guidance ``mode`` and ``transport`` and by start ``prototypes``.
        seed: Of the noise.

    Returns:
        The set in memory, ordered by class and then by index; images uint8 (K * ipc, C, H, W), as they are stored.

    Raises:
        ConfigError: the options do not fit the generator, or real images are needed and missing.
        ArtifactError: the generator lacks a class, or the data have another image size or lack a class.

    Example:
        >>> images = sample_set(Generator.from_pretrained("generator"), ipc=10)
        >>> images.save("samples/ipc-10")
    """
    require_type("generator", generator, Generator)
    if require_type("ipc", ipc, int) < 1:
        raise ConfigError(f"ipc is {ipc}; expected images per class of at least 1.")
    config = require_type("config", config or SampleConfig(), SampleConfig)
    start = time.perf_counter()
    Coding.of(config.image_format, generator.image_shape[-1])
    if config.class_names is not None:
        generator = generator.map_classes(config.class_names)
    requests = requests_for(len(generator.classes), ipc)
    clusters = _clusters(generator, config, data, seed)
    made = list(_tracked(_images(generator, requests, config, clusters, seed), f"sample x{ipc}", requests, config))
    labels = torch.tensor([request.label for request, _ in made])
    order = torch.argsort(labels, stable=True)
    images = torch.stack([image for _, image in made])
    meta = _provenance(generator, config, seed, "samples", time.perf_counter() - start)
    return SurrogateSet(images[order], labels[order], generator.classes, meta).stored_as(config.image_format)


def _images(
    generator: Generator, requests: Sequence[Request], config: SampleConfig, clusters: Clusters | None, seed: int
) -> Iterator[tuple[Request, Tensor]]:
    if not requests:
        return
    generator.mapping.check(trusted=generator.meta.get("given_labels") or ())
    for batch, images in sample(generator.to(runtime.device()), requests, config, seed=seed, clusters=clusters):
        yield from zip(batch, images, strict=True)


def _tracked(
    made: Iterable[tuple[Request, Tensor]], label: str, requests: Sequence[Request], config: SampleConfig
) -> Iterator[tuple[Request, Tensor]]:
    """``made`` with a bar that counts the images that are denoised: the last one of a group counts the rest of it."""
    costs = dict.fromkeys(requests, 1)
    for group in in_groups(requests, config.group):
        costs[group[-1]] += config.group - len(group)
    return track(made, label, sum(costs.values()), size=lambda one: costs[one[0]])


def _clusters(generator: Generator, config: SampleConfig, data: RealData | None, seed: int) -> Clusters | None:
    """Clusters of the real images in the generator's space, where the options need them."""
    check_images(generator, config, data)
    if data is None or config.modes is None:
        return None
    codec, found = generator.codec.to(runtime.device()), []
    for name in generator.classes:  # encoded apart: a latent's last bits depend on the others of its batch
        own = data.for_classes((name,)).train
        latents = real_latents(codec, own, fingerprint=data.fingerprint())
        found.append(prototypes(latents, (name,), config.modes, seed))
    return Clusters(*(torch.cat(part) for part in zip(*((c.centres, c.masses) for c in found), strict=True)))


def check_images(generator: Generator, config: SampleConfig, data: RealData | None) -> None:
    """Check the real images, where the options need them.

    Raises:
        ConfigError: there are no real images.
        ArtifactError: they have another size or lack a class.
    """
    if config.needs_data is None:
        return
    if data is None:
        raise ConfigError(f"sample.{config.needs_data} needs the real images; give --data.name.")
    check_shape(generator, data)
    lacking = [name for name in generator.classes if name not in data.classes]
    if lacking:
        raise ArtifactError(
            f"The data lack {len(lacking)} of the generator's classes, such as {', '.join(lacking[:5])}; give other "
            "--data.* or choose --classes."
        )


Sampled = Literal["samples", "base"]


def _provenance(generator: Generator, config: SampleConfig, seed: int, stage: Sampled, seconds: float) -> Provenance:
    options, trained = to_dict(config), generator.meta.get("training_seconds")
    counted = [spent for phase, spent in (trained or {}).items() if stage != "base" or phase != "minimax"]
    known = {} if trained is None else {"shared_seconds": {"generator": round(sum(counted), 2)}}
    return provenance(
        "generative",
        seed=seed,
        data=generator.meta.get("data", {}),
        seconds={"sample": seconds},
        **known,
        licence=generator.meta.get("licence", "unknown"),
        stages=["sample"] if stage == "base" else ["finetune", "sample"],
        stage=stage,
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
    stage: Sampled = "samples",
) -> None:
    """Write the sets ``ipc-K`` and ``pool`` into a folder; images that are there already are kept.

    The largest set is written image by image into ``images/``; the others are links to its first images. Several
    processes share the work.

    Args:
        generator: A generator of images.
        folder: Where the sets and the log are written.
        config: Options of sampling, and which sets to write.
        data: Real images, needed by guidance ``mode`` and ``transport`` and by start ``prototypes``.
        seed: Of the noise.
        stage: ``base`` for a generator before its minimax phase, whose sets go into ``base/``, without a pool.

    Raises:
        ConfigError: the options do not fit the generator, or real images are needed and missing.
        ArtifactError: the data have another image size or lack a class.
    """
    base, state = stage == "base", runtime.processes()
    sets = {f"ipc-{ipc}": ipc for ipc in ipc_sizes(config.ipc)}
    if config.pool and not base:
        sets["pool"] = config.pool
    images, classes = folder.path / IMAGES / stage, generator.classes
    coding = Coding.of(config.image_format, generator.image_shape[-1])
    with SurrogateWriter(images, classes, coding) as writer:
        wanted = requests_for(len(classes), max(sets.values()))
        missing = runtime.of_main_process(lambda: [r for r in wanted if not writer.has(r.label, r.index)])
        start = time.perf_counter()
        groups = in_groups(missing, config.group)[state.process_index :: state.num_processes]
        share = [request for group in groups for request in group]
        clusters = runtime.of_main_process(lambda: _clusters(generator, config, data, seed)) if missing else None
        made: Any = _images(generator, share, config, clusters, seed)
        if state.is_main_process:
            made = _tracked(made, "sample (base)" if base else "sample", share, config)
        with closing(made):  # or the bar of a failed write would be drawn over its message
            for request, image in made:
                writer.put(request.label, request.index, image)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    spent, denoised = time.perf_counter() - start, denoised_images(missing, config.group)
    for name, ipc in sets.items():
        target = folder.path / "base" / name if base else folder.path / name
        link_prefix(images, target, classes, ipc, coding.suffix)
        needed = denoised_images(requests_for(len(classes), ipc), config.group)
        own = spent * needed / denoised if missing else 0.0  # of its images, also those there before
        meta = _provenance(generator, config, seed, stage, own)
        write_card(target, write_manifest(target, classes, generator.image_shape, meta, coding=coding))
    folder.log({"stage": "sample", "set": stage, "images": len(missing), "sample": round(spent, 2)})


COMPONENTS = 64


def prototypes(latents: RealLatents, classes: Sequence[str], modes: int, seed: int) -> Clusters:
    """Centres (K,M,c,h,w) and masses (K,M) float32, each class's by population, largest first.

    The x0 are means of unmirrored images, clustered by class as in D4M (arXiv 2407.15138) and MGD3 (arXiv 2505.18963).
    Unlike there, clusters are found among the first 64 principal components, and a centre is the mean of its members in
    the full space. On 5000 CIFAR-10 sized images of a class (D = 3072) and one CPU core, 10 and 50 modes take 0.7 s and
    0.8 s, with 0.3 % and 0.4 % less within-cluster variance than one full k-means in 1.0 s and 1.9 s; mini-batches had
    0.9 % and 2.2 % more.

    Raises:
        ConfigError: a class has fewer images than modes.
    """
    found = []
    for name, index in zip(classes, positions_by_class(latents.labels, len(classes)), strict=True):
        if len(index) < modes:
            raise ConfigError(
                f"sample.modes is {modes}, but class {name!r} has {len(index)} real image(s); expected at most that."
            )
        x0 = latents.x0(index, torch.zeros(len(index), dtype=torch.bool))
        found.append(_class_clusters(x0.flatten(1).numpy(), modes, derive(seed, "prototypes", name)))
    centres, masses = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
    return Clusters(centres.view(len(classes), modes, *latents.shape), masses)


def _class_clusters(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` centres (M,D) and masses (M,) of points (n,D), by population and then by first member."""
    with one_thread():  # or the order of a sum would decide which of two near centres an image joins
        reduced = _reduced(points, seed)
        atoms = kmeans_atoms(reduced, count, seed)
        distances = (reduced**2).sum(1)[:, None] - 2 * reduced @ atoms.T + (atoms**2).sum(1)
    cluster = distances.argmin(1)
    members = [np.flatnonzero(cluster == j) for j in range(count)]
    # Fewer different images than modes leave clusters empty: the image nearest to the atom takes their place.
    members = [m if len(m) else distances[:, j].argmin(keepdims=True) for j, m in enumerate(members)]
    members.sort(key=lambda m: (-len(m), m[0]))
    centres = np.stack([points[m].mean(0, dtype=np.float64) for m in members]).astype(np.float32)
    sizes = np.array([len(m) for m in members])
    return centres, (sizes / sizes.sum()).astype(np.float32)


def _reduced(points: np.ndarray, seed: int) -> np.ndarray:
    """The points' first principal components, where there are more dimensions and images than those."""
    if min(points.shape) <= COMPONENTS:
        return points.astype(np.float64)
    from sklearn.decomposition import PCA

    solver = PCA(COMPONENTS, svd_solver="randomized", random_state=seed % 2**32)
    return solver.fit_transform(points).astype(np.float64)
