"""Tiny random classifiers in folders as timm and transformers save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28}


def timm_folder(folder: Path, name: str = "resnet10t", outputs: int = 1000, **record: Any) -> Path:
    import timm

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=outputs, **record.get("model_args", {}))
    facts = {"mean": MEAN, "std": STD, "input_size": (3, 32, 32), "interpolation": "bilinear", "license": "mit"}
    known = timm.get_pretrained_cfg(name)
    facts |= {"num_classes": outputs, "first_conv": known.first_conv, "classifier": known.classifier}
    (folder / "config.json").write_text(
        json.dumps({"architecture": name, "num_classes": outputs, "pretrained_cfg": facts, **record})
    )
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


def transformers_folder(folder: Path, kind: str = "vit", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    import transformers as hf

    config = {"num_labels": 4, "id2label": dict(enumerate(["goldfish, carp", "shark", "tench", "n01484850"]))} | config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = {
            "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, patch_size=14, **config)),
            "vit_base": lambda: hf.ViTModel(hf.ViTConfig(**VIT, patch_size=14)),
            "resnet": lambda: hf.ResNetForImageClassification(
                hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **config)
            ),
        }[kind]()
    model.to(dtype).save_pretrained(folder)
    record = {"size": {"height": 28, "width": 28}, "image_mean": MEAN, "image_std": STD, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    return folder
