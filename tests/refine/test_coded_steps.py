"""Compression-aware refinement: its steps see the images as the files hold them, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gendistill as gd
from gendistill.config import ObjectiveConfig, RefineConfig, to_dict
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ConfigError
from gendistill.generator.codec import LatentCodec
from gendistill.io import WorkFolder
from gendistill.networks.teacher import Teacher
from gendistill.refine.constraints import LatentRegion, PixelRegion, TrustRegion
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.optimization import CHUNKS, MicroBatch, _identity, refine_images
from gendistill.refine.refiner import refine_set
from gendistill.surrogate.image_formats import Coding
from gendistill.surrogate.set import SurrogateSet
from tests.generator.autoencoders import tiny

JPEG = gd.Jpeg(quality=20)
AWARE = RefineConfig(steps=5, image_format=JPEG, compression_aware=True, mixed_precision="no")


@pytest.fixture(scope="module")
def space(digits: RealData, teacher: Teacher) -> FeatureSpace:
    return FeatureSpace.build([teacher], digits.train, pixel_weight=1.0)


def test_what_is_stored_is_what_was_optimised(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, space: FeatureSpace
) -> None:
    _, aware = refine_set(pool, teacher, digits, 3, AWARE)
    _, afterwards = refine_set(pool, teacher, digits, 3, replace(AWARE, compression_aware=False))
    assert not torch.equal(aware.images, afterwards.images)
    assert aware.meta["compression_aware"] == Coding.of(JPEG).record()
    assert "compression_aware" not in afterwards.meta
    assert aware.meta["w2"]["after"] == aware.meta["w2"]["stored"]  # the networks saw these pixels
    assert afterwards.meta["w2"]["after"] != afterwards.meta["w2"]["stored"]
    start = pool.prefix(3)
    refined = refine_images(start, space, AWARE, seed=0, image_format=JPEG)
    assert refined.coded is None, "it would be coded twice"
    again = refine_images(refined.stored_as(JPEG), space, replace(AWARE, steps=1), seed=0)
    assert "compression_aware" not in again.meta, "that step saw the images as they were"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["pixels", "coarse", "latents"])
def test_networks_see_the_pixels_of_the_files_and_the_free_variable_has_its_own_gradient(
    kind: str, channels: int
) -> None:
    rng = torch.Generator().manual_seed(0)
    x0 = 0.8 * torch.rand(2, channels, 16, 16, generator=rng) - 0.4
    regions: dict[str, TrustRegion] = {"pixels": PixelRegion(), "coarse": PixelRegion(size=4)}
    region = regions.get(kind) or LatentRegion(codec=LatentCodec(tiny(), channels))
    delta, f = region.around(x0)
    with torch.no_grad():
        delta += 0.1 * torch.randn(delta.shape, generator=rng)
    coding = Coding.of(JPEG)
    plain, coded = (MicroBatch(delta, f, torch.arange(2), [], torch.arange(2), one) for one in (None, coding))
    with torch.no_grad():
        made = SurrogateSet(to_uint8(f(delta)), torch.arange(2), ("ant", "bee")).stored_as(JPEG)
    assert torch.equal(coded.seen(delta), to_float(made.images))
    assert torch.equal(plain.seen(delta), f(delta))
    weights = torch.randn(x0.shape, generator=rng)
    found, expected = (torch.autograd.grad((weights * b.seen(delta)).sum(), delta)[0] for b in (coded, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_an_image_is_refined_alike_whatever_else_is_in_the_chunk(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, space: FeatureSpace, tmp_path: Path
) -> None:
    """And in a second run that finds finished chunks, of which one was lost."""
    start = pool.prefix(3)
    whole, cut = (
        refine_images(start, space, replace(AWARE, batch_size=n), seed=1, image_format=JPEG).images for n in (30, 7)
    )
    assert (whole.int() - cut.int()).abs().float().mean() < 0.5  # kernels round otherwise for other batch shapes
    work = WorkFolder(tmp_path, tmp_path / "log.jsonl")
    options: dict[str, Any] = {"seed": 1, "image_format": JPEG, "folder": work}
    config = replace(AWARE, batch_size=7)
    first = refine_images(start, space, config, **options)
    (store,) = (tmp_path / CHUNKS).iterdir()
    sorted(store.iterdir())[2].unlink()
    second = refine_images(start, space, config, **options)
    assert torch.equal(first.images, cut)
    assert torch.equal(second.images, cut)
    plain = refine_images(start, space, config, seed=1, folder=work)
    assert not torch.equal(plain.images, cut)
    assert len(list((tmp_path / CHUNKS).iterdir())) == 2  # chunks of other codings are others


def test_chunks_of_a_refinement_that_codes_nothing_keep_their_names(pool: SurrogateSet, space: FeatureSpace) -> None:
    """A run of a version without the option continues from them."""
    start, region = pool.prefix(1), PixelRegion()

    def name(config: ObjectiveConfig, coding: Coding | None) -> str:
        return _identity(start, space, config, region, 0, True, None, coding)

    plain = RefineConfig(image_format=JPEG)
    assert "compression_aware" in to_dict(plain)
    aware = replace(plain, compression_aware=True)
    assert name(plain, None) == name(aware, None)
    others = [Coding.of(JPEG), Coding.of(gd.Jpeg(quality=21)), Coding.of(gd.Webp(quality=20))]
    others.append(replace(others[0], coder={"Pillow": "1"}))
    assert len({name(plain, None), *(name(aware, one) for one in others)}) == 5


def test_the_gate_judges_what_is_stored(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    config = replace(AWARE, gate=True, steps=3, image_format=gd.Jpeg(quality=1), learning_rate=1e-6)
    _, made = refine_set(pool, teacher, digits, 2, config)
    assert made.meta["gate"]["refused_classes"] == 10  # such small steps change no stored pixel
    assert made.meta["w2"]["before"] == made.meta["w2"]["stored"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_format": "png"}, "expected false with image_format png, which keeps every pixel"),
        ({"image_format": "webp_lossless", "match_iterations": 3}, "expected false with image_format webp_lossless"),
        ({"pack": 2}, "expected false with pack above 1, steps 0 or without refiner barycenter, unless"),
        ({"steps": 0}, "unless match_iterations is above 0"),
    ],
    ids=str,
)
def test_where_no_step_sees_what_is_stored_the_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        RefineConfig(**{"image_format": JPEG, "compression_aware": True, **changes})
    assert str(refused.value).startswith("refine.compression_aware is True; expected false")


@pytest.mark.slow
def test_of_packed_images_matching_alone_sees_the_files(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    config = replace(AWARE, pack=2, match_iterations=2, match_from=1)
    sets = [refine_set(pool, teacher, digits, 1, one)[1] for one in (config, replace(config, compression_aware=False))]
    aware, afterwards = sets
    assert aware.meta["w2"]["packed"] == afterwards.meta["w2"]["packed"]
    assert not torch.equal(aware.images, afterwards.images)
    assert aware.meta["compression_aware"] == Coding.of(JPEG).record()
    unmatched = refine_set(pool, teacher, digits, 1, replace(config, match_from=5))[1]
    assert "compression_aware" not in unmatched.meta
