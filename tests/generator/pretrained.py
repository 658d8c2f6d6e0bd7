"""A tiny random model in the layout of facebook/DiT-XL-2-256: learned sigma, 1000 classes and null, KL latents."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from gendistill.generator.class_mapping import imagenet_names
from gendistill.seeding import derive
from tests.generator.autoencoders import kl

IMAGE_SIZE = 16
CARD = "---\nlicense: cc-by-nc-4.0\ntags: [image]\n---\n\n# A tiny DiT\n"


def dit_folder(folder: Path, seed: int = 0) -> Path:
    """Written by diffusers, then given what only the published folder has: id2label, its card, its old class name."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(derive(seed, "dit"))
        transformer = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
            patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
        first, *others = [block.norm1.emb for block in transformer.transformer_blocks]
        for other in others:  # as converted from the original, which has one embedding
            other.load_state_dict(first.state_dict())
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    DiTPipeline(transformer, kl(scaling_factor=0.18215), scheduler).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): ", ".join(names[1:]) for i, names in enumerate(imagenet_names())}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "transformer" / "config.json").read_text())
    old = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "cross_attention_dim": None}
    (folder / "transformer" / "config.json").write_text(json.dumps(config | old))
    (folder / "README.md").write_text(CARD)
    return folder
