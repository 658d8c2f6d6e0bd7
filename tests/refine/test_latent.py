"""Refinement in latents: the image itself at zero, true gradients, and the same promises as in pixels."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gendistill.cli import USAGE
from gendistill.config import Blend, ModelConfig, RefineConfig, UNet
from gendistill.data.dataset import RealData
from gendistill.data.pixels import to_float
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.codec import Codec, LatentCodec, PixelCodec
from gendistill.generator.generator import Generator, build_generator, load_generator_codec
from gendistill.networks.teacher import Teacher
from gendistill.refine.constraints import LatentRegion, RefineAugmentation
from gendistill.refine.feature_space import FeatureSpace
from gendistill.refine.objective import RefineObjective, matched_targets
from gendistill.refine.optimization import refine_chunk
from gendistill.refine.refiner import refine_set
from gendistill.surrogate.set import SurrogateSet
from tests.generator.autoencoders import dc, kl, tiny
from tests.generator.pretrained import dit_folder
from tests.helpers import files, gendistill
from tests.processes import start

every_kind = pytest.mark.parametrize("build", [kl, tiny, dc])
CONFIG = RefineConfig(steps=30)
UNET = ModelConfig(architecture=UNet(block_out_channels=(8,), norm_num_groups=4))


def images(count: int = 3, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.fixture(scope="module")
def codec() -> Codec:
    return LatentCodec(kl(), 1)


# the region


@every_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_zero_is_the_image_to_the_bit_though_the_codec_draws_another(build: Callable, channels: int) -> None:
    codec, x0 = LatentCodec(build(), channels), images(channels=channels)
    x0[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    delta, moved_by = LatentRegion(codec=codec).around(x0)
    assert delta.shape == (3, *codec.latent_shape(16))
    assert torch.equal(moved_by(delta), x0)
    with torch.no_grad():
        assert torch.equal(moved_by(delta), x0)
        assert not torch.equal(moved_by(delta + 0.5), x0)
    assert (codec.decode(codec.encode(x0).mean) - x0).abs().mean() > 0.1


@every_kind
def test_gradients_equal_finite_differences_of_diffusers_in_float64(build: Callable) -> None:
    double, codec = build().double().eval(), LatentCodec(build(), 3)
    config, x0 = double.config, 0.1 * images()
    shift, scale = config.get("shift_factor") or 0.0, config["scaling_factor"]
    rng = torch.Generator().manual_seed(0)
    delta, moved_by = LatentRegion(codec=codec).around(x0)
    at, way = (0.12 * torch.randn(delta.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    weight, z0 = torch.randn(x0.shape, generator=rng, dtype=torch.float64), codec.encode(x0).mean.double()

    @torch.no_grad()
    def value(d: Tensor) -> Tensor:
        drawn, base = (double.decode(z / scale + shift).sample for z in (z0 + d, z0))
        assert (x0 + drawn - base).abs().max() < 1  # outside the gradient is not that of the cut (test_region)
        return (weight * (x0 + drawn - base)).sum()

    delta.data.copy_(at)
    (gradient,) = torch.autograd.grad((weight * moved_by(delta)).sum(), delta)
    wanted = (value(at + 1e-4 * way) - value(at - 1e-4 * way)) / 2e-4  # AutoencoderDC's attention stays in float32
    assert (gradient * way).sum().item() == pytest.approx(wanted.item(), rel=1e-2)
    assert wanted.abs() > 1e-3
    assert all(p.grad is None and not p.requires_grad for p in codec.autoencoder.parameters())


def test_latents_and_pixels_are_held_in_their_bounds() -> None:
    codec, x0 = LatentCodec(kl(), 3), images()
    region = LatentRegion(codec=codec, bound=0.4, change=0.1, blend_every=2, blend=0.5)
    delta, moved_by = region.around(x0)
    with torch.no_grad():
        delta.normal_(generator=torch.Generator().manual_seed(0))
    region.project(delta, 1, 3)
    assert delta.abs().max() == torch.tensor(0.4)
    moved = moved_by(delta).detach()
    assert 0.09 < (moved - x0).abs().max() <= 0.1 + 1e-6
    assert moved.abs().max() <= 1
    region.project(delta, 2, 3)
    assert delta.abs().max() == torch.tensor(0.2)


# refinement


@pytest.mark.slow
def test_refinement_descends_through_the_decoder(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, codec: Codec
) -> None:
    space, chosen = FeatureSpace.build([teacher], digits.train, pixel_weight=3.0), pool.prefix(2)
    targets = matched_targets(space.points(chosen.images, chosen.labels), chosen.labels, space)
    loop = refine_chunk(
        chosen.images, chosen.labels, targets, space, steps=40, learning_rate=0.03, objective=RefineObjective(),
        region=LatentRegion(codec=codec), crops=RefineAugmentation(), positions=torch.arange(20), total=20,
    )  # fmt: skip
    losses = [sum(v.item() for k, v in record.items() if k != "step") for record in loop]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_a_set_refined_in_latents_lowers_w2_and_says_so(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, codec: Codec
) -> None:
    config = replace(CONFIG, trust_region=0.2)
    selected, refined = refine_set(pool, teacher, digits, 2, config, codec=codec)
    moved = (to_float(refined.images) - to_float(selected.images)).abs().max().item()
    assert 0 < moved <= 0.2 + 1 / 127.5
    assert refined.meta["w2"]["after"] < refined.meta["w2"]["before"]
    assert refined.meta["latent_space"] == {"codec": "AutoencoderKL", "hash": codec.hash(), "trust_region": 0.5}
    in_pixels = refine_set(pool, teacher, digits, 2, config)[1]
    assert "latent_space" not in {**selected.meta, **in_pixels.meta}
    assert not torch.equal(in_pixels.images, refined.images)


@pytest.mark.slow
def test_options_of_the_region_reach_it(digits: RealData, teacher: Teacher, pool: SurrogateSet, codec: Codec) -> None:
    def run(**changes: object) -> tuple[SurrogateSet, SurrogateSet]:
        return refine_set(pool, teacher, digits, 1, replace(CONFIG, steps=10, **changes), codec=codec)

    reference, again = run()[1].images, run()[1].images
    assert torch.equal(again, reference)
    for changes in ({"latent_trust_region": 0.02}, {"blend": Blend(every=2)}, {"learning_rate": 0.01}):
        assert not torch.equal(run(**changes)[1].images, reference), changes
    selected, refined = run(latent_trust_region=0.0)
    assert torch.equal(selected.images, refined.images)


@pytest.mark.slow
def test_an_image_is_refined_alike_whatever_else_is_in_the_chunk(
    digits: RealData, teacher: Teacher, pool: SurrogateSet, codec: Codec
) -> None:
    config = replace(CONFIG, steps=10, min_crop=0.7, roll=1)
    together, apart = (
        refine_set(pool, teacher, digits, 3, replace(config, batch_size=n), codec=codec)[1].images for n in (30, 7)
    )
    gap = (together.int() - apart.int()).abs()
    assert (gap > 1).float().mean() < 0.01  # rounding of other batch shapes
    assert gap.float().mean() < 0.2


def test_a_codec_that_cannot_serve_is_refused(digits: RealData, teacher: Teacher, pool: SurrogateSet) -> None:
    with pytest.raises(ConfigError, match=r"works in pixels.*leave --generator out"):
        refine_set(pool, teacher, digits, 2, CONFIG, codec=PixelCodec(1))
    with pytest.raises(ArtifactError, match=r"images of 3 channel\(s\), the data have 1"):
        refine_set(pool, teacher, digits, 2, CONFIG, codec=LatentCodec(kl(), 3))
    deep = kl(block_out_channels=(8,) * 5, down_block_types=("DownEncoderBlock2D",) * 5,
              up_block_types=("UpDecoderBlock2D",) * 5)  # fmt: skip
    with pytest.raises(ConfigError, match="multiple of 16"):
        refine_set(pool, teacher, digits, 2, CONFIG, codec=LatentCodec(deep, 1))
    with pytest.raises(ConfigError, match="delta_size is 4; expected None"):
        refine_set(pool, teacher, digits, 2, replace(CONFIG, delta_size=4), codec=LatentCodec(kl(), 1))


# the command


@pytest.fixture(scope="module")
def folders(digits: RealData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, an untrained generator for each codec, and a pool sampled from the one in KL latents."""
    root = tmp_path_factory.mktemp("latent")
    assert gendistill("teacher", "--width", 8, "--steps", 30, "--output_dir", root / "teacher") == 0
    codecs = {"kl": LatentCodec(kl(), 1), "tiny": LatentCodec(tiny(), 1), "pixels": PixelCodec(1)}
    for name, codec in codecs.items():
        build_generator(UNET, digits.classes, 8, 0, codec=codec).save_pretrained(root / name)
    sample = ("--ipc", 4, "--pool", 0, "--num_inference_steps", 1, "--output_dir", root / "samples")
    assert gendistill("sample", "--generator", root / "kl", *sample) == 0
    return root


def command(folders: Path, generator: str, output: Path, *more: object) -> list[object]:
    return ["refine", "--surrogate", folders / "samples" / "ipc-4", "--teacher", folders / "teacher", "--ipc", 2,
            "--generator", folders / generator, "--batch_size", 4, "--output_dir", output, *more]  # fmt: skip


@pytest.mark.slow
def test_the_command_refines_in_the_latents_of_any_generator(folders: Path, tmp_path: Path) -> None:
    assert gendistill(*command(folders, "tiny", tmp_path / "out", "--steps", 3, "--latent_trust_region", 0.3)) == 0
    sampled, refined = (
        json.loads((path / "manifest.json").read_text())
        for path in (folders / "samples" / "ipc-4", tmp_path / "out" / "ipc-2")
    )
    codec = load_generator_codec(folders / "tiny", 1)
    assert refined["latent_space"] == {"codec": "AutoencoderTiny", "hash": codec.hash(), "trust_region": 0.3}
    assert refined["generator_hash"] == sampled["generator_hash"] == Generator.from_pretrained(folders / "kl").hash()
    assert json.loads((tmp_path / "out" / "stage.json").read_text())["settings"]["inputs"]["codec"] == codec.hash()


@pytest.mark.slow
def test_a_killed_command_ends_with_the_same_bytes_and_with_its_own_codec_alone(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--steps", 8, "--resume_from_checkpoint", "latest")
    process = start(*command(folders, "kl", tmp_path / "killed", *more))
    chunks = tmp_path / "killed.partial" / "chunks"
    while process.poll() is None and len(list(chunks.glob("*/*.safetensors"))) < 2:
        time.sleep(0.02)
    process.kill()
    assert gendistill(*command(folders, "tiny", tmp_path / "killed", *more)) == USAGE
    assert "inputs.codec" in capsys.readouterr().err
    assert gendistill(*command(folders, "kl", tmp_path / "killed", *more)) == 0
    assert gendistill(*command(folders, "kl", tmp_path / "whole", *more)) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_generators_that_cannot_serve_are_refused_and_nothing_is_written(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = shutil.copytree(folders / "tiny", tmp_path / "swapped")
    (folder,) = (p.parent for p in swapped.glob("v*/config.json"))
    tiny(seed=1).save_pretrained(folder)
    out = tmp_path / "out"
    cases = [
        (command(folders, "pixels", out), "works in pixels"),
        (command(folders, "teacher", out), "not a generator folder"),
        (command(folders, swapped, out), "is not the AutoencoderTiny"),
        (command(folders, "kl", out, "--delta_size", 4), "delta_size is 4; expected null"),
        (command(folders, "kl", folders / "kl", "--overwrite"), "holds the input"),
        (["refine", "--surrogate", out, "--teacher", out, "--output_dir", out, "--latent_trust_region", 0.2],
         "0.5 without generator"),
        (["run", "--refine.latent_trust_region", 0.2, "--output_dir", out], "0.5 in a run"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert gendistill(*arguments) == USAGE
        assert message in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["swapped"]


def test_the_codec_of_a_published_folder_is_found_without_its_network(tmp_path: Path) -> None:
    folder = dit_folder(tmp_path / "DiT")
    whole = Generator.from_pretrained(folder).codec.hash()
    shutil.rmtree(folder / "transformer")
    assert load_generator_codec(folder, 3).hash() == whole
