"""Backbones of others: tiny random models saved to folders, their preprocessing against their own libraries'."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gendistill.errors import ArtifactError, ConfigError
from gendistill.networks.feature_extractors import LOADERS, load_backbone
from gendistill.networks.published import Preprocessing
from gendistill.seeding import torch_rng

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def pictures(count: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    """Smooth ones: what two resamplers make of noise differs."""
    small = torch.rand(count, channels, 4, 4, generator=torch_rng(0, "pictures"))
    return torch.nn.functional.interpolate(small, size, mode="bicubic").mul(255).clamp(0, 255).byte()


def processor(folder: Path, **facts: object) -> None:
    record = {"size": {"height": 28, "width": 28}, "image_mean": MEAN, "image_std": STD, "resample": 3} | facts
    (folder / "preprocessor_config.json").write_text(json.dumps(record))


def saved(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    import transformers as hf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {
            "vit": lambda: hf.ViTModel(hf.ViTConfig(image_size=28, patch_size=14, **VISION)),
            "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(image_size=28, patch_size=14, **VISION)),
            "clip_vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(image_size=28, patch_size=14, **VISION)),
            "clip": lambda: hf.CLIPModel(
                hf.CLIPConfig(
                    text_config=VISION | {"vocab_size": 50},
                    vision_config=VISION | {"image_size": 28, "patch_size": 14},
                    projection_dim=8,
                )
            ),
            "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)),
            "ijepa": lambda: hf.IJepaModel(hf.IJepaConfig(image_size=28, patch_size=14, **VISION)),
            "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(image_size=28, patch_size=14, **VISION)),
            "siglip_headless": lambda: hf.SiglipVisionModel(
                hf.SiglipVisionConfig(image_size=28, patch_size=14, vision_use_head=False, **VISION)
            ),
            "vitmae": lambda: hf.ViTMAEModel(hf.ViTMAEConfig(image_size=28, patch_size=7, **VISION)),
            "resnet": lambda: hf.ResNetModel(
                hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            ),
            "swin": lambda: hf.SwinModel(
                hf.SwinConfig(image_size=28, patch_size=7, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
            ),
            "vit_unpooled": lambda: hf.ViTModel(
                hf.ViTConfig(image_size=28, patch_size=14, **VISION), add_pooling_layer=False
            ),
        }[kind]()
    model.to(dtype).save_pretrained(folder)
    processor(folder)
    return folder


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip_vision", "clip", "convnext"])
def test_features_are_the_pooled_output_of_the_saved_model(kind: str, tmp_path: Path) -> None:
    import transformers as hf

    backbone = load_backbone(f"transformers:{saved(kind, tmp_path)}")
    found = backbone(pictures())
    assert found.shape == (3, 16)
    model = hf.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        own = getattr(model, "vision_model", model)(pixel_values=backbone.preprocessing(pictures())).pooler_output
    torch.testing.assert_close(found, own.flatten(1))
    assert not torch.allclose(found[0], found[1])


def test_a_pooler_that_was_never_trained_is_not_used(tmp_path: Path) -> None:
    name = f"transformers:{saved('vit_unpooled', tmp_path)}"
    torch.testing.assert_close(load_backbone(name)(pictures()), load_backbone(name)(pictures()))  # not random


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True},
        {"do_normalize": False},
        {"resample": 2, "rescale_factor": 1 / 127.5},
    ],
)
def test_preprocessing_is_that_of_the_models_own_processor(facts: dict[str, object], tmp_path: Path) -> None:
    import transformers as hf

    own: dict[str, object] = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
    own |= {"image_mean": MEAN, "image_std": STD, "resample": 3, "size": {"height": 28, "width": 28}} | facts
    saved("vit", tmp_path)
    processor(tmp_path, **facts)
    found = load_backbone(f"transformers:{tmp_path}").preprocessing(pictures())
    images = [Image.fromarray(np.ascontiguousarray(x.permute(1, 2, 0).numpy())) for x in pictures()]
    made = hf.CLIPImageProcessor(**own)(images, return_tensors="pt")["pixel_values"]
    assert found.shape == made.shape == (3, 3, 28, 28)
    step = 1.5 / 255 / min(STD) * (2 if "rescale_factor" in facts else 1)  # they round to whole grey levels
    torch.testing.assert_close(found, made, atol=step, rtol=0)


def test_normalisation_by_hand() -> None:
    prepare = Preprocessing(resize=2, crop=2, mean=MEAN, std=STD)
    white = prepare(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(white[0, :, 0, 0], (1 - torch.tensor(MEAN)) / torch.tensor(STD))
    grey = prepare(torch.full((1, 1, 2, 2), 51, dtype=torch.uint8))  # repeated in three channels
    torch.testing.assert_close(grey[0, :, 1, 1], (0.2 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_timm_takes_the_size_mean_and_std_of_its_weights(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet10t", num_classes=5)
    facts = {"mean": MEAN, "std": STD, "input_size": (3, 48, 48), "crop_pct": 0.75, "num_classes": 5}
    facts |= {"first_conv": "conv1", "classifier": "fc"}
    record = {"architecture": "resnet10t", "num_classes": 5, "pretrained_cfg": facts}
    (tmp_path / "config.json").write_text(json.dumps(record))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    backbone = load_backbone(f"timm:{tmp_path}")
    assert (backbone.preprocessing.resize, backbone.preprocessing.crop) == (64, 48)
    assert (backbone.preprocessing.mean, backbone.preprocessing.std) == (MEAN, STD)
    net.eval()
    with torch.no_grad():
        own = net.forward_head(net.forward_features(backbone.preprocessing(pictures())), pre_logits=True)
    torch.testing.assert_close(backbone(pictures()), own)


def test_grey_images_are_shown_in_three_channels(tmp_path: Path) -> None:
    backbone = load_backbone(f"transformers:{saved('dinov2', tmp_path)}")
    grey = pictures(channels=1, size=8)
    torch.testing.assert_close(backbone(grey), backbone(grey.expand(-1, 3, -1, -1)))


def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("transformers:facebook/dinov2-small", "timm:resnet18.a1_in1k"):
        with pytest.raises(ArtifactError, match=r"the Hub model .* cannot be loaded.*offline"):
            load_backbone(name)
    with pytest.raises(ConfigError, match="timm has no weights of 'resnet1800'"):
        load_backbone("timm:resnet1800")
    with pytest.raises(ConfigError, match="expected timm:NAME or transformers:NAME"):
        load_backbone("openclip:ViT-B-32")
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        load_backbone(f"transformers:{tmp_path}")
    saved("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"preprocessor_config.json does not say how images are resized"):
        load_backbone(f"transformers:{tmp_path}")


def test_without_transformers_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"gendistill\[transformers\]"):
        load_backbone("transformers:facebook/dinov2-small")


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip", "convnext", "resnet", "swin"])
def test_a_checkpoint_in_half_precision_computes_in_fp32(kind: str, tmp_path: Path) -> None:
    """transformers loads it in its own precision: convolutions refuse the images, and others round."""
    import transformers as hf

    backbone = load_backbone(f"transformers:{saved(kind, tmp_path, torch.bfloat16)}")
    model = hf.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        own = getattr(model, "vision_model", model)(pixel_values=backbone.preprocessing(pictures())).pooler_output
    torch.testing.assert_close(backbone(pictures()), own.flatten(1))


@pytest.mark.parametrize("kind", ["ijepa", "siglip_headless"])
def test_without_a_class_token_features_are_the_mean_over_tokens(kind: str, tmp_path: Path) -> None:
    """The first token is the top left patch."""
    import transformers as hf

    backbone = load_backbone(f"transformers:{saved(kind, tmp_path)}")
    model = hf.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        hidden = model(pixel_values=backbone.preprocessing(pictures())).last_hidden_state
    torch.testing.assert_close(backbone(pictures()), hidden.mean(1))


def test_a_masked_autoencoder_sees_all_patches_in_their_order(tmp_path: Path) -> None:
    """ViTMAE masks 75 % of them at random, in evaluation mode too."""
    import transformers as hf

    backbone = load_backbone(f"transformers:{saved('vitmae', tmp_path)}")
    assert torch.equal(backbone(pictures()), backbone(pictures()))
    whole = hf.AutoModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    with torch.no_grad():
        own = whole(pixel_values=backbone.preprocessing(pictures())).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(pictures()), own)


def test_a_network_that_draws_at_random_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Preprocessing(resize=8, crop=8, mean=MEAN, std=STD)
    noisy = lambda source, device: (lambda images: torch.rand(len(images), 4), prepare)  # noqa: E731
    monkeypatch.setitem(LOADERS, "timm", noisy)
    with pytest.raises(ConfigError, match="timm:any gives other features for the same images"):
        load_backbone("timm:any")


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(ArtifactError, match="cannot be loaded by transformers"):
        load_backbone(f"transformers:{tmp_path}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model", "other"])
def test_a_pickle_beside_safetensors_is_never_read(name: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet10t", num_classes=5)
    facts = {"mean": MEAN, "std": STD, "input_size": (3, 32, 32), "num_classes": 5, "classifier": "fc"}
    record = {"architecture": "resnet10t", "num_classes": 5, "pretrained_cfg": facts | {"first_conv": "conv1"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    for pickle in ("pytorch_model.bin", "model.pth"):  # other numbers: timm takes pytorch_model.bin by preference
        torch.save({key: torch.zeros_like(one) for key, one in net.state_dict().items()}, tmp_path / pickle)
    save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    backbone = load_backbone(f"timm:{tmp_path}")
    net.eval()
    with torch.no_grad():
        own = net.forward_head(net.forward_features(backbone.preprocessing(pictures())), pre_logits=True)
    torch.testing.assert_close(backbone(pictures()), own)


def test_safetensors_among_which_none_is_named_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"one.safetensors, two.safetensors; expected model.safetensors"):
        load_backbone(f"timm:{tmp_path}")
