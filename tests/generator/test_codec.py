"""Codecs against diffusers called by hand: value ranges, the latent scale, and what is refused on loading."""

from __future__ import annotations

import time
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from diffusers.configuration_utils import FrozenDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill.data.pixels import to_float, to_uint8
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.codec import PATTERNS, LatentCodec, PixelCodec, load_codec
from gendistill.generator.loading import resolve_model_folder
from tests.generator.autoencoders import dc, kl, tiny

KINDS = {"AutoencoderKL": (kl, 2), "AutoencoderTiny": (tiny, 4), "AutoencoderDC": (dc, 4)}
WEIGHTS = "diffusion_pytorch_model.safetensors"
every_kind = pytest.mark.parametrize("name", KINDS)


def images(channels: int = 3, size: int = 16, count: int = 3) -> Tensor:
    x = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    return x


# --- encoding and decoding


@torch.no_grad()
def test_kl_equals_diffusers_by_hand() -> None:
    autoencoder, x = kl(shift_factor=0.1).eval(), images()
    moments = LatentCodec(autoencoder, 3).encode(x)
    posterior = autoencoder.encode(x).latent_dist
    torch.testing.assert_close(moments.mean, (posterior.mean - 0.1) * 0.7)
    assert moments.std is not None
    torch.testing.assert_close(moments.std, posterior.std * 0.7)  # a shift moves no spread
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
    drawn = posterior.sample(torch.Generator().manual_seed(2))
    torch.testing.assert_close(moments.mean + moments.std * noise, (drawn - 0.1) * 0.7)
    z = moments.mean
    torch.testing.assert_close(LatentCodec(autoencoder, 3).decode(z), autoencoder.decode(z / 0.7 + 0.1).sample)


@torch.no_grad()
def test_tiny_and_dc_equal_diffusers_by_hand_and_have_no_spread() -> None:
    x = images()
    autoencoder = tiny().eval()
    moments = LatentCodec(autoencoder, 3).encode(x)
    torch.testing.assert_close(moments.mean, (autoencoder.encode(x).latents - 0.2) * 1.3)
    assert moments.std is None
    decoded = LatentCodec(autoencoder, 3).decode(moments.mean)
    torch.testing.assert_close(decoded, autoencoder.decode(moments.mean / 1.3 + 0.2).sample)

    autoencoder = dc().eval()
    moments = LatentCodec(autoencoder, 3).encode(x)
    torch.testing.assert_close(moments.mean, autoencoder.encode(x).latent * 0.4)
    assert moments.std is None
    torch.testing.assert_close(
        LatentCodec(autoencoder, 3).decode(moments.mean), autoencoder.decode(moments.mean / 0.4)[0]
    )


@torch.no_grad()
def test_scale_by_channel_as_in_sdxl() -> None:
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    autoencoder, x = kl(latents_mean=mean, latents_std=std).eval(), images()
    m, s = torch.tensor(mean).view(1, 4, 1, 1), torch.tensor(std).view(1, 4, 1, 1)
    codec, posterior = LatentCodec(autoencoder, 3), autoencoder.encode(x).latent_dist
    moments = codec.encode(x)
    torch.testing.assert_close(moments.mean * s / 0.7 + m, posterior.mean)
    torch.testing.assert_close(moments.std, posterior.std * 0.7 / s)
    torch.testing.assert_close(
        codec.decode(moments.mean), autoencoder.decode(posterior.mean).sample, rtol=1e-4, atol=1e-5
    )


@every_kind
def test_the_autoencoder_sees_full_range_images_and_its_own_latents(name: str) -> None:
    """Grey levels in at [-1, 1], and back to the decoder what the encoder gave."""
    codec = LatentCodec(KINDS[name][0](), 3)
    seen: list[Tensor] = []
    autoencoder = codec.autoencoder
    for part in (autoencoder.encoder, autoencoder.decoder):
        part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    autoencoder.encoder.register_forward_hook(lambda _, args, output: seen.append(output))
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    z = codec.encode(to_float(pixels)).mean
    given, raw = seen
    assert (given.min(), given.max()) == (-1, 1)
    assert torch.equal(to_uint8(given), pixels)
    if name != "AutoencoderKL":  # the KL encoder's output passes one more convolution
        codec.decode(z)
        torch.testing.assert_close(seen[2], raw)


def test_tiny_turns_its_range_itself() -> None:
    """If diffusers' AutoencoderTiny ever takes [0, 1], the adapter has to."""
    autoencoder, seen = tiny(), []
    autoencoder.encoder.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    autoencoder.decoder.layers.register_forward_hook(lambda _, args, output: seen.append(output))
    codec = LatentCodec(autoencoder, 3)
    seen.clear()
    decoded = codec.decode(codec.encode(images()).mean)
    torch.testing.assert_close(seen[0], (images() + 1) / 2)
    torch.testing.assert_close(decoded, seen[1] * 2 - 1)


@every_kind
@torch.no_grad()
def test_grey_images_are_repeated_and_averaged(name: str) -> None:
    autoencoder, x = KINDS[name][0](), images(channels=1)
    grey, colour = LatentCodec(autoencoder, 1), LatentCodec(autoencoder, 3)
    z = grey.encode(x).mean
    torch.testing.assert_close(z, colour.encode(x.repeat(1, 3, 1, 1)).mean)
    torch.testing.assert_close(grey.decode(z), colour.decode(z).mean(1, keepdim=True))
    assert grey.decode(z).shape == x.shape


def test_a_grey_autoencoder_takes_grey_data_alone() -> None:
    x = images(channels=1)
    autoencoder = kl(in_channels=1, out_channels=1)
    codec = LatentCodec(autoencoder, 1)
    torch.testing.assert_close(codec.encode(x).mean, autoencoder.encode(x).latent_dist.mean * 0.7)
    assert codec.decode(codec.encode(x).mean).shape == x.shape
    with pytest.raises(ConfigError, match=r"images of 1 channel\(s\), the data have 3"):
        LatentCodec(kl(in_channels=1, out_channels=1), 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_pass_unchanged(channels: int) -> None:
    codec, x = PixelCodec(channels).to("cpu"), images(channels)
    assert torch.equal(codec.encode(x).mean, x)
    assert codec.encode(x).std is None
    assert torch.equal(codec.decode(x), x)
    assert (codec.name, codec.hash(), codec.latent_shape(7), codec.image_size(7)) == (
        "pixels",
        "pixels",
        (channels, 7, 7),
        7,
    )


@every_kind
def test_no_gradient_no_dropout_and_the_same_again(name: str) -> None:
    autoencoder = KINDS[name][0]().train().to(torch.float64)
    codec, x = LatentCodec(autoencoder, 3), images().requires_grad_()
    moments = codec.encode(x)
    assert not autoencoder.training
    assert not any(p.requires_grad for p in autoencoder.parameters())
    assert moments.mean.dtype == torch.float32
    assert not moments.mean.requires_grad
    assert not codec.decode(moments.mean.requires_grad_()).requires_grad
    assert torch.equal(moments.mean, codec.encode(x).mean)


# --- shapes


@every_kind
def test_shapes_follow_the_down_sampling(name: str) -> None:
    build, factor = KINDS[name]
    codec = LatentCodec(build(), 3)
    assert (codec.name, codec.channels) == (name, 3)
    shape = codec.latent_shape(16)
    assert shape == (codec.latent_channels, 16 // factor, 16 // factor)
    assert codec.encode(images()).mean.shape[1:] == shape
    assert codec.image_size(shape[-1]) == 16
    assert codec.decode(torch.zeros(2, *shape)).shape == (2, 3, 16, 16)
    for call in (lambda: codec.latent_shape(17), lambda: codec.encode(images(size=18 if factor == 4 else 17))):
        with pytest.raises(ConfigError, match=rf"data.image_size must be a multiple of {factor}"):
            call()


def test_wrong_tensors_are_refused() -> None:
    codec = LatentCodec(kl(), 3)
    with pytest.raises(ValueError, match=r"expected float \(B,3,H,W\)"):
        codec.encode(images(channels=1))
    with pytest.raises(ValueError, match="expected float"):
        PixelCodec(3).encode(to_uint8(images()))
    with pytest.raises(ValueError, match=r"expected \(B,4,h,w\)"):
        codec.decode(torch.zeros(1, 3, 8, 8))


def test_a_config_that_the_output_contradicts_is_refused() -> None:
    with pytest.raises(ArtifactError, match="decodes"):
        LatentCodec(tiny(upsampling_scaling_factor=4), 3)
    with pytest.raises(ArtifactError, match="scaling_factor 0"):
        LatentCodec(kl(scaling_factor=0), 3)
    with pytest.raises(ArtifactError, match="expected one of AutoencoderKL, AutoencoderTiny, AutoencoderDC"):
        LatentCodec(torch.nn.Conv2d(1, 1, 1), 3)


# --- hash, saving and loading


@every_kind
def test_hash_tells_weights_config_and_class_but_not_the_folder(name: str, tmp_path: Path) -> None:
    build = KINDS[name][0]
    reference = LatentCodec(build(), 3).hash()
    assert LatentCodec(build(), 3).hash() == reference
    assert LatentCodec(build(seed=1), 3).hash() != reference
    assert LatentCodec(build(scaling_factor=0.9), 3).hash() != reference
    build().save_pretrained(tmp_path / "a")
    assert load_codec(str(tmp_path / "a"), 3).hash() == reference
    codec = LatentCodec(build(), 3)
    less = {k: v for k, v in codec.autoencoder.config.items() if k not in ("act_fn", "upsample_block_type")}
    codec.autoencoder._internal_dict = FrozenDict(less)  # as before diffusers had these fields
    assert codec.hash() == reference


@every_kind
def test_loaded_codec_encodes_alike(name: str, tmp_path: Path) -> None:
    autoencoder = KINDS[name][0]()
    autoencoder.save_pretrained(tmp_path)
    saved, loaded = LatentCodec(autoencoder, 1), load_codec(str(tmp_path), 1)
    x = images(channels=1)
    assert (loaded.name, loaded.channels) == (name, 1)
    assert torch.equal(saved.encode(x).mean, loaded.encode(x).mean)
    assert torch.equal(saved.decode(saved.encode(x).mean), loaded.decode(saved.encode(x).mean))


def test_autoencoder_of_a_pipeline_folder(tmp_path: Path) -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1, sample_size=8,
        patch_size=4, num_embeds_ada_norm=2,
    )  # fmt: skip
    DiTPipeline(transformer, kl(), DDPMScheduler()).save_pretrained(tmp_path / "dit")
    unet = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    LDMPipeline(tiny(), unet, DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    (tmp_path / "dit" / "config.json").write_text('{"model_type": "something of the Hub"}')
    assert load_codec(str(tmp_path / "dit"), 3).hash() == LatentCodec(kl(), 3).hash()
    assert load_codec(str(tmp_path / "ldm"), 3).hash() == LatentCodec(tiny(), 3).hash()


def test_half_precision_weights_become_fp32(tmp_path: Path) -> None:
    kl().half().save_pretrained(tmp_path)
    codec = load_codec(str(tmp_path), 3)
    assert codec.encode(images()).mean.dtype == torch.float32


def test_pixels_by_name() -> None:
    codec = load_codec("pixels", 1)
    assert isinstance(codec, PixelCodec)
    assert codec.channels == 1
    with pytest.raises(ConfigError, match="revision is 'main'"):
        load_codec("pixels", 1, "main")


# --- what is refused


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(ArtifactError, match=r"pickled ones \(.bin\) are not read.*AutoencoderKL.*save_pretrained"):
        load_codec(str(tmp_path), 3)


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    """diffusers would fill it with random numbers and warn."""
    kl().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    del weights["decoder.conv_in.bias"]
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lack 1 tensor.*decoder.conv_in.bias"):
        load_codec(str(tmp_path), 3)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_weights_are_refused(tmp_path: Path, keep: int) -> None:
    kl().save_pretrained(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    assert len(data) > keep
    (tmp_path / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(ArtifactError, match="cannot be loaded as AutoencoderKL"):
        load_codec(str(tmp_path), 3)


def test_unknown_class_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=4).save_pretrained(tmp_path / "vqvae")
    with pytest.raises(
        ArtifactError, match="is a VQModel; expected one of AutoencoderKL, AutoencoderTiny, AutoencoderDC"
    ):
        load_codec(str(tmp_path), 3)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"config.json is damaged"):
        load_codec(str(tmp_path), 3)


def test_paths_that_hold_no_autoencoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no autoencoder"):
        load_codec(str(tmp_path), 3)
    with pytest.raises(ArtifactError, match="There is no folder"):
        load_codec(str(tmp_path / "missing"), 3)
    with pytest.raises(ArtifactError, match="There is no folder ''"):
        load_codec("", 3)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file"):
        load_codec(str(tmp_path / "file"), 3)
    with pytest.raises(ConfigError, match=r"revision is 'v1', but .* is a folder"):
        load_codec(str(tmp_path), 3, "v1")


# --- the Hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_unknown_hub_id_offline_is_one_fast_error(offline: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(
        ArtifactError, match=r"no folder gendistill/nothing, and the Hub model gendistill/nothing"
    ) as error:
        load_codec("gendistill/nothing", 3)
    assert time.perf_counter() - start < 5
    assert "HF_HUB_OFFLINE" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match="at revision v7"):
        resolve_model_folder("gendistill/nothing", "v7")


def test_a_downloaded_model_is_used_offline_by_revision(offline: Path) -> None:
    repository = offline / "models--someone--vae"
    for seed, (branch, commit) in enumerate({"main": "a" * 40, "v2": "b" * 40}.items()):
        kl(seed=seed).save_pretrained(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    assert load_codec("someone/vae", 3).hash() == LatentCodec(kl(seed=0), 3).hash()
    assert load_codec("someone/vae", 3, "v2").hash() == LatentCodec(kl(seed=1), 3).hash()


def test_only_the_autoencoder_of_a_pipeline_is_fetched() -> None:
    wanted = ("config.json", WEIGHTS, f"vae/{WEIGHTS}", "vae/config.json", "vqvae/config.json", "README.md")
    other = (f"unet/{WEIGHTS}", "unet/config.json", "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.bin")
    assert all(any(fnmatch(name, pattern) for pattern in PATTERNS) for name in wanted)
    assert not any(fnmatch(name, pattern) for name in other for pattern in PATTERNS)
