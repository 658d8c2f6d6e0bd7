"""Refinement of a surrogate set: crop, select, refine, pack and match; each step is recorded in the manifest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from gendistill import runtime
from gendistill.config import DistillConfig, MatchingConfig, ObjectiveConfig, RefineConfig, as_tuple, to_dict
from gendistill.config.refine import refiner_options
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError, require_type, require_types
from gendistill.generator.codec import Codec
from gendistill.io import WorkFolder
from gendistill.matching.distiller import match
from gendistill.matching.methods import Run, plan_runs
from gendistill.networks.teacher import Teacher, time_of
from gendistill.progress import follow
from gendistill.refine.checks import check_refinement, check_tiles
from gendistill.refine.constraints import LatentRegion
from gendistill.refine.feature_space import FeatureSpace, ground_space
from gendistill.refine.objective import class_w2
from gendistill.refine.optimization import refine_images
from gendistill.refine.patches import ROWS, best_patches
from gendistill.refine.select import select, select_by_error
from gendistill.registry import REFINERS, accepted, resolve
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.manifest import Provenance, add_step, with_options, with_step_coding
from gendistill.surrogate.multi_formation import tiled
from gendistill.surrogate.set import SurrogateSet

REAL_BATCH, IMAGE_RATE = 32, 0.125  # of matching: as good as 256 and 1/16, in a fifth of the time


def refine_set(
    pool: SurrogateSet,
    teacher: Teacher | Sequence[Teacher],
    data: RealData,
    ipc: int,
    config: RefineConfig | None = None,
    *,
    seed: int = 0,
    held_out: Teacher | None = None,
    folder: WorkFolder | None = None,
    space: FeatureSpace | None = None,
    codec: Codec | None = None,
    refiner: str | Sequence[str] | None = None,
) -> tuple[SurrogateSet, SurrogateSet]:
    """Select ``ipc`` images of every class of a pool, and move them toward the real images' barycenter.

    Selection gives every atom of the class's W2 barycenter its own image of the pool, or takes the easy or the hard
    images of the teachers (``refine.select``). The images
    x of the classes c then descend, within a trust region, on

        features * |f(x_i) - atom_i|^2 + batch_norm * gap of the class moments + cross_entropy * CE(x_i, c_i)

    (WMDD, arXiv 2311.18531, eq. 9 to 11, from the selected images instead of noise, with a bound on their change).

    Args:
        pool: The set to choose from, at least ``ipc`` images (times pack^2) of every class; soft labels are dropped.
        teacher: Whose features and statistics guide, or several, which count alike.
        data: The real images; the test split is only compared by fingerprint.
        ipc: Images per class of the refined set, at least 1.
        config: Options; ``config.ipc`` is not read. The defaults where None.
        seed: Of the barycenters, the crops and the matching.
        held_out: A teacher of another architecture that the acceptance gate asks, with ``config.gate``.
        folder: Keeps finished parts, so that a killed run continues; several processes need it.
        space: Of these teachers and data, where a caller has it already.
        codec: A generator's autoencoder, in whose latents images are refined.
        refiner: A registered refiner, or several in turn, instead of ``config.refiner``.

    Returns:
        (selected, refined). With ``config.pack`` f the first has ipc * f^2 images a class, and the second stores them
        f x f in one. ``refined.meta["w2"]`` has the mean class W2 before and after. Both are as ``config.image_format``
        stores them.

    Raises:
        ConfigError: the same teacher twice, too few images, or options that the inputs do not allow.
        ArtifactError: sets, teachers and data of other classes, sizes or splits.
        DivergenceError: images that are not finite; lower the learning rate.

    Example:
        >>> selected, refined = gd.refine_set(pool, teacher, data, ipc=10, config=gd.RefineConfig(steps=200))
        >>> refined.save("refined/ipc-10")
    """
    config = require_type("config", config or RefineConfig(), RefineConfig)
    if refiner is not None:
        config = replace(config, refiner=refiner if isinstance(refiner, str) else tuple(refiner))
    require_type("pool", pool, SurrogateSet)
    require_type("data", data, RealData)
    teachers = require_types("teacher", teacher, Teacher)
    check_refinement(pool, teachers, data, config, [ipc], held_out, codec)
    space = space or ground_space(teachers, data, config)
    pool = crop_pool(pool, teachers, config, seed=seed, folder=folder)
    pool = replace(pool, meta={"data": data.describe(), **pool.meta})
    selected = select_images(pool, teachers, space, ipc, config, seed=seed, folder=folder)
    made = replace(selected, meta=with_options(selected.meta, "refine", decisive(config)))
    for name in as_tuple(config.refiner):
        start, before = time.perf_counter(), made
        offered = {"space": space, "config": config, "ipc": ipc, "held_out": held_out, "work": folder, "codec": codec}
        if name in (own := refiner_options(config)):
            offered["options"] = own[name]
        function = resolve(REFINERS[name].function)
        made = function(before, data, teachers, seed, **accepted(function, offered))
        _check_refined(name, made, before)
        if REFINERS.is_added(name):  # ours has measured it
            known = before.meta.get("w2") or _with_w2(before, space, "before").meta["w2"]
            made = _with_w2(replace(made, meta=made.meta | {"w2": known}), space, "after")
        done = config.steps > 0 or REFINERS.is_added(name)
        stage = "refined" if done else before.meta["stage"]
        made = with_meta(made, teachers, stage, name if done else None, start)
    stage = made.meta["stage"]
    if config.pack > 1:
        start = time.perf_counter()
        made = _with_w2(pack(made, config.pack), space, "packed")
        made = with_meta(made, teachers, stage, "pack", start)
    if config.is_matched(ipc):
        start = time.perf_counter()
        made = _with_w2(match_further(made, data, config, seed, folder), space, "matched")
        made = with_meta(made, teachers, "refined", "match", start)
    stored = made.stored_as(config.image_format)
    if "w2" in made.meta and not torch.equal(stored.images, made.images):
        stored = _with_w2(stored, space, "stored")
    return selected.stored_as(config.image_format), stored


def decisive(config: ObjectiveConfig) -> dict[str, object]:
    """The options that decide an image after it was cropped, whatever the sizes and the images in a pass."""
    others = ("ipc", "batch_size", "patches", "min_patch", "patch_places")
    return {name: value for name, value in to_dict(config).items() if name not in others}


def barycenter(
    made: SurrogateSet,
    data: RealData,
    teachers: Sequence[Teacher],
    seed: int,
    *,
    space: FeatureSpace,
    config: RefineConfig,
    ipc: int,
    held_out: Teacher | None,
    work: WorkFolder | None,
    codec: Codec | None,
) -> SurrogateSet:
    """The refiner of that name: ``refine_images``, in the codec's latents where there is one."""
    region = latent_region(config, codec) if codec else None
    refined = refine_images(
        made,
        space,
        config,
        seed=seed,
        held_out=held_out,
        folder=work,
        label=f"ipc {ipc}",
        region=region,
        image_format=config.step_format if config.pack == 1 else None,
    )
    if codec and config.steps:
        latents = {"codec": codec.name, "hash": codec.hash(), "trust_region": config.latent_trust_region}
        refined.meta["latent_space"] = latents
    return refined


def _check_refined(name: str, made: SurrogateSet, before: SurrogateSet) -> None:
    if not isinstance(made, SurrogateSet):
        raise ConfigError(f"The refiner {name!r} returned {type(made).__name__}; expected a SurrogateSet.")
    if made.classes != before.classes or made.images.shape[1:] != before.images.shape[1:]:
        raise ConfigError(
            f"The refiner {name!r} returned images {tuple(made.images.shape)} of {len(made.classes)} classes; expected "
            f"{tuple(before.images.shape[1:])} each, of the same {len(before.classes)} classes."
        )


def drop_soft_labels(pool: SurrogateSet) -> SurrogateSet:
    """The pool without soft labels and weights, and its provenance without what is true of its images alone."""
    meta = with_step_coding(pool.meta, None)
    meta.pop("soft_labels", None)
    meta.pop("validation", None)
    meta.pop("label_teacher_hash", None)
    meta["stages"] = [stage for stage in meta.get("stages", []) if stage != "label"]
    meta["seconds"] = {stage: s for stage, s in meta.get("seconds", {}).items() if stage != "label"}
    return replace(pool, soft_labels=None, weights=None, meta=meta)


def crop_pool(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    config: RefineConfig,
    *,
    seed: int,
    folder: WorkFolder | None = None,
) -> SurrogateSet:
    """The pool without soft labels, every image replaced by its best crop with ``config.patches``."""
    pool = drop_soft_labels(pool)
    if config.patches is None:
        return pool
    start, shown = time.perf_counter(), runtime.processes().is_main_process
    loop = best_patches(
        pool,
        [teacher.network for teacher in teachers],
        patches=config.patches.count,
        min_patch=config.patches.smallest,
        places=config.patches.places,
        factor=config.pack,
        seed=seed,
    )
    log, total = folder.log if folder and shown else None, -(-len(pool.labels) // ROWS)
    made = follow(loop, "patches", total, log=log, every=1, shown=shown, stage="patches")
    made = replace(made, meta=with_options(made.meta, "patches", to_dict(config.patches)))
    return with_meta(made, teachers, pool.meta.get("stage"), "patches", start)


def select_images(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    space: FeatureSpace,
    ipc: int,
    config: RefineConfig,
    *,
    seed: int,
    folder: WorkFolder | None = None,
) -> SurrogateSet:
    """The pool's images that are refined to ``ipc`` stored ones a class: selected, or its first."""
    start, count, main_process = time.perf_counter(), ipc * config.pack**2, runtime.processes().is_main_process
    if not config.select:
        return with_meta(pool.prefix(count), teachers, pool.meta.get("stage"), None, start)
    log = folder.log if folder and main_process else None
    if isinstance(config.select, str):
        loop = select_by_error(pool, space.networks, ipc=count, prefer=config.select)
    else:
        loop = select(pool, space, ipc=count, seed=seed, weights=config.weights, solver=config.solver)
    chosen = follow(loop, f"select ipc {ipc}", len(pool.classes), log=log, every=1, stage="select", ipc=ipc)
    if isinstance(config.select, str):
        chosen = replace(chosen, meta=chosen.meta | {"selection": config.select})
    else:
        options = {"weights": config.weights, "solver": config.solver}
        chosen = replace(chosen, meta=with_options(chosen.meta, "select", options))
    return with_meta(chosen, teachers, "select", "select", start)


def latent_region(config: RefineConfig, codec: Codec) -> LatentRegion:
    """Its codec on this process's device."""
    every, blend = config.blending
    return LatentRegion(
        codec=codec.to(runtime.device()),
        bound=config.latent_trust_region,
        change=config.trust_region,
        blend_every=every,
        blend=blend,
    )


def matching_after(ipc: int, data: RealData, config: RefineConfig) -> Run:
    """The distribution matching that follows the refinement of a set: dm with few real images in a step."""
    matching = MatchingConfig(
        factor=config.pack,
        flip=config.flip,
        mixed_precision=config.mixed_precision,
        real_batch=REAL_BATCH,
        learning_rate=IMAGE_RATE,
    )
    wanted = DistillConfig(method="dm", ipc=ipc, iterations=config.match_iterations, matching=matching)
    return plan_runs(wanted, data)[0]


def match_further(
    made: SurrogateSet, data: RealData, config: RefineConfig, seed: int, folder: WorkFolder | None
) -> SurrogateSet:
    """The set after distribution matching (method dm) from its own images."""
    run = matching_after(made.ipc, data, config)
    coding = Coding.of_steps(config.step_format, data.image_size)
    (matched,) = match(data, run, seed=seed, given=made, folder=folder, coding=coding)
    meta: Provenance = made.meta | {"matching": {**matched.meta["matching"], "start": "set"}}
    return replace(made, images=matched.images, meta=with_step_coding(meta, coding))


def _with_w2(made: SurrogateSet, space: FeatureSpace, name: str) -> SurrogateSet:
    """The set with the mean class W2 of its decoded views under ``name``."""
    views = made.split
    w2 = float(class_w2(space.points(views.pixels, views.labels), views.labels, space).mean())
    return replace(made, meta=made.meta | {"w2": {**made.meta.get("w2", {}), name: w2}})


def with_meta(
    made: SurrogateSet, teachers: Sequence[Teacher], stage: str | None, name: str | None, start: float
) -> SurrogateSet:
    """The set with this step, its seconds since ``start`` and its teachers in the provenance.

    ``teacher_data`` names what a teacher was trained on where that is not the set's own data.
    """
    own = made.meta.get("data", {}).get("fingerprint")
    trained_on = [teacher.meta.get("data", {}) for teacher in teachers]
    others = [one for one in trained_on if None not in (own, one.get("fingerprint")) and one["fingerprint"] != own]
    hashes = [teacher.hash() for teacher in teachers]
    more: dict[str, object] = {"teacher_data": others} if others else {}
    more["shared_seconds"] = {**made.meta.get("shared_seconds", {}), **time_of(teachers)}
    teacher_hash = hashes[0] if len(hashes) == 1 else hashes
    seconds = time.perf_counter() - start
    meta = add_step(made.meta, name, seconds, stage=stage, teacher_hash=teacher_hash, **more)
    return replace(made, meta=meta)


def pack(whole: SurrogateSet, factor: int) -> SurrogateSet:
    """ipc * factor^2 whole images a class -> ipc stored ones, each tile antialiased; images fill tiles in order.

    The inverse of ``decode``, except for the lost resolution.

    Args:
        whole: Images without soft labels and weights; of every class a multiple of factor^2.
        factor: Images a side in a stored image, from 1 to the images' side in pixels.

    Raises:
        ConfigError: the images are packed, labelled or weighted already, too small, or a class's number does not fill
            its tiles.
    """
    tiles = factor**2
    if whole.factor != 1:
        raise ConfigError(f"The set is packed by {whole.factor} already; pack the whole images.")
    if whole.soft_labels is not None or whole.weights is not None:
        what = "weights, of which a stored image has only one" if whole.soft_labels is None else "soft labels"
        raise ConfigError(f"The set to pack has {what}; expected hard labels alone. Pack first and label afterwards.")
    check_tiles(factor, int(whole.images.shape[-1]))
    short = [(name, n) for name, n in zip(whole.classes, whole.counts, strict=True) if n % tiles]
    if short:
        raise ConfigError(f"Class {short[0][0]!r} has {short[0][1]} images; expected a multiple of {tiles} to pack.")
    order = torch.argsort(whole.labels, stable=True)
    labels = whole.labels[order][::tiles]
    return SurrogateSet(tiled(whole.images[order], factor), labels, whole.classes, whole.meta.copy(), factor)
