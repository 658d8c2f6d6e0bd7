"""Checks before refinement begins: sets, teachers, codecs and numbers that do not belong together."""

from __future__ import annotations

from collections.abc import Sequence

from gendistill import parallel
from gendistill.config import ObjectiveConfig, RefineConfig, require
from gendistill.data.dataset import RealData, same_test
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.codec import PIXELS, Codec
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_images import check_teacher
from gendistill.refine.objective import require_batch_norm
from gendistill.refine.select import require_images
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.multi_formation import factor_name
from gendistill.surrogate.set import SurrogateSet


def check_refinement(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    data: RealData,
    config: RefineConfig,
    ipcs: Sequence[int],
    held_out: Teacher | None = None,
    codec: Codec | None = None,
) -> None:
    """Refuse inputs of ``refine_set`` that do not belong together, for sets of every number of ``ipcs``."""
    check_inputs(pool, teachers, data, config, codec)
    for ipc in ipcs:
        _check_count(pool, data, ipc, config.pack)
    if any(map(config.is_matched, ipcs)):
        parallel.require_share(len(data.classes))
    if held_out:
        _check_held_out(held_out, teachers, data, config)


def check_inputs(
    pool: SurrogateSet,
    teachers: Sequence[Teacher],
    data: RealData,
    config: ObjectiveConfig,
    codec: Codec | None = None,
) -> None:
    """Refuse sets, teachers and a codec that do not belong together, before any work."""
    if len({teacher.hash() for teacher in teachers}) < len(teachers):
        raise ConfigError("The same teacher is given twice; expected different ones. Train others with --seed.")
    for teacher in teachers:
        if config.steps:
            require_batch_norm(teacher.statistics.means, config.batch_norm_weight)
        if pool.classes != teacher.classes:
            raise ArtifactError(
                f"The surrogate set has classes {', '.join(pool.classes)}, the teacher {', '.join(teacher.classes)}; "
                "expected the same in the same order."
            )
    if not same_test(pool.meta, data):
        origin = pool.meta["data"]
        raise ArtifactError(
            f"The surrogate set was made from other images or splits ({origin.get('name')}, fingerprint "
            f"{origin['fingerprint']}) than those to refine toward ({data.name}, {data.fingerprint()}), so its "
            "test images may be among them. Take a teacher that was trained with the --data options of the set."
        )
    if pool.factor != 1:
        raise ArtifactError(
            f"Every stored image of the surrogate set holds {factor_name(pool.factor)} views; refinement takes whole "
            "images. Refine first and pack afterwards."
        )
    if isinstance(config, RefineConfig):
        check_tiles(config.pack, int(pool.images.shape[-1]))
        Coding.of(config.image_format, int(pool.images.shape[-1]))
    shape, wanted = tuple(pool.images.shape[1:]), (data.channels, data.image_size, data.image_size)
    if shape != wanted:
        raise ArtifactError(f"The surrogate images are {shape} (C,H,W), the teacher's {wanted}; expected the same.")
    side, size = data.image_size, config.delta_size
    require(size is None or size <= side, "delta_size", size, f"None, or at most the images' side of {side}")
    if codec is not None:
        _check_codec(codec, data, config)


def _check_codec(codec: Codec, data: RealData, config: ObjectiveConfig) -> None:
    require(config.steps > 0, "steps", config.steps, "at least 1 with a codec, in whose latents images are refined")
    if codec.name == PIXELS:
        raise ConfigError("The generator works in pixels, as refinement does without one; leave --generator out.")
    if codec.channels != data.channels:
        raise ArtifactError(
            f"The codec was loaded for images of {codec.channels} channel(s), the data have {data.channels}; load it "
            "for these."
        )
    codec.latent_shape(data.image_size)
    require(config.delta_size is None, "delta_size", config.delta_size, "None with a codec, whose latents are small")


def _check_count(pool: SurrogateSet, data: RealData, ipc: int, factor: int) -> None:
    """Refuse, before any work, more images than a class of the pool or of the real images has."""
    wanted = f"{ipc}" if factor == 1 else f"{ipc} with pack {factor}, which takes {ipc * factor**2} images a class,"
    has = min(pool.split.counts(len(pool.classes)))
    if has < ipc * factor**2:
        raise ConfigError(f"ipc is {wanted} but the pool has {has} images of a class; sample a larger pool.")
    require_images(data.train.counts(len(data.classes)), ipc * factor**2, data.classes, "to take atoms from")


def _check_held_out(held_out: Teacher, teachers: Sequence[Teacher], data: RealData, config: RefineConfig) -> None:
    """Refuse a held-out network of a teacher's architecture, and one that no gate uses."""
    check_teacher("the held-out teacher", held_out, data)
    require(
        config.gate and config.steps > 0, "held_out", held_out.spec["name"], "None without gate true, or with steps 0"
    )
    if any(held_out.spec == teacher.spec for teacher in teachers):
        raise ConfigError(
            f"held_out is a {held_out.spec['name']} of the same shape as a teacher; expected another architecture, "
            "which did not guide the images. Train one: gendistill teacher --network timm:resnet10t."
        )


def check_tiles(factor: int, side: int) -> None:
    """Refuse a factor that leaves some tile of an image of ``side`` pixels empty."""
    if not 1 <= factor <= side:
        raise ConfigError(f"pack is {factor}; expected 1 to {side} for images of {side}x{side} px.")
