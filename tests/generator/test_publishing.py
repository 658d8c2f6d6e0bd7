"""The export of a generator: one network in the type that is asked for, a card, and nothing of this computer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from gendistill.config import FinetuneConfig, GeneratorExport, ModelConfig, SampleConfig, UNet, to_dict
from gendistill.data.dataset import RealData
from gendistill.errors import ConfigError
from gendistill.generator.finetuning import finetune
from gendistill.generator.generator import Generator
from gendistill.generator.publishing import DTYPES, export_generator
from gendistill.generator.surrogate_sets import sample_set
from tests.generator.pretrained import dit_folder
from tests.helpers import files

CONFIG = FinetuneConfig(
    model=ModelConfig(architecture=UNet(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)),
    base_steps=2,
    minimax_steps=2,
    batch_size=10,
)


@pytest.fixture(scope="module")
def tuned(digits: RealData) -> Generator:
    generator = finetune(digits, CONFIG)[0]
    generator.meta |= {"recipe": to_dict(CONFIG), "training_seconds": {"base": 1234.5, "minimax": 6.0}}
    return generator


def exported(
    generator: Generator, folder: Path, config: GeneratorExport | None = None, name: str = "tiny"
) -> Generator:
    export_generator(generator, folder, config or GeneratorExport(), name=name)
    return Generator.from_pretrained(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_rounded_once_to_the_type(dtype: str, tuned: Generator, tmp_path: Path) -> None:
    before = tuned.hash()
    read = exported(tuned, tmp_path, GeneratorExport(dtype=dtype))
    for key, weight in tuned.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[key], weight.to(DTYPES[dtype]).float()), key
    assert (read.classes, read.label_map, tuned.hash()) == (tuned.classes, tuned.label_map, before)
    assert (read.hash() == before) is (dtype == "fp32")
    quick = SampleConfig(num_inference_steps=2)
    again = exported(read, tmp_path / "again", GeneratorExport(dtype=dtype))
    assert torch.equal(sample_set(read, 1, quick).images, sample_set(again, 1, quick).images)


def test_two_bytes_a_weight_and_no_other_network_are_stored(tuned: Generator, tmp_path: Path) -> None:
    tuned.save_pretrained(tmp_path / "whole", base=tuned.network.state_dict())
    whole = Generator.from_pretrained(tmp_path / "whole")
    exported(whole, tmp_path / "small", GeneratorExport(dtype="bf16"))
    weights = files(tmp_path / "small", "**/*.safetensors")
    assert [*weights] == ["unet/diffusion_pytorch_model.safetensors"]
    count = sum(p.numel() for p in tuned.network.parameters())
    assert 2 * count < len(weights["unet/diffusion_pytorch_model.safetensors"]) < 2.5 * count
    names = {name.partition("/")[0] for name in files(tmp_path / "small", "**/*")}
    assert names == {"README.md", "gendistill.json", "model_index.json", "scheduler", "unet"}


def test_an_autoencoder_and_its_hash_stay(tmp_path: Path) -> None:
    generator = Generator.from_pretrained(dit_folder(tmp_path / "dit"))
    read = exported(generator, tmp_path / "small", GeneratorExport(dtype="fp16"))
    assert read.codec.hash() == generator.codec.hash()
    assert (read.meta["licence"], read.conditions) == ("cc-by-nc-4.0", 1000)


def test_weights_that_are_too_large_for_the_type_are_refused(tuned: Generator, tmp_path: Path) -> None:
    large = Generator.from_pretrained(saved(tuned, tmp_path / "large"))
    with torch.no_grad():
        next(large.network.parameters()).fill_(70_000.0)
    with pytest.raises(ConfigError, match=r"dtype is 'fp16', but weights of conv_in.weight are too large for it"):
        export_generator(large, tmp_path / "small", GeneratorExport(dtype="fp16"), name="small")
    exported(large, tmp_path / "small", GeneratorExport(dtype="bf16"))


def saved(generator: Generator, folder: Path) -> Path:
    generator.save_pretrained(folder)
    return folder


def test_the_card_says_what_is_known(tuned: Generator, tmp_path: Path) -> None:
    options = GeneratorExport(dtype="bf16", data_licence="mit", results="| accuracy |\n|---|\n| 71.2 |")
    read = exported(tuned, tmp_path, options, name="tiny digits")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---")[1])["license"] == ["apache-2.0", "mit"]
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (.+) \|$", text, re.MULTILINE))
    same = "2 steps of 10 images, cosine schedule"
    assert rows["plain diffusion"] == f"{same}, muon, learning rate 0.006"
    assert rows["minimax criteria"] == f"{same}, adamw, learning rate 0.0003, representativeness 0.02, diversity 0.05"
    assert rows["seconds of training"] == "plain diffusion 1,234, minimax criteria 6"
    assert rows["classes"].startswith("10: `0`, `1`")
    assert rows["network"].startswith("unet, 0.04 M")
    assert rows["weights"] == "stored in bf16, read in fp32"
    assert (rows["data"], rows["licence of the images"]) == ("`digits`", "`mit`")
    assert "class-conditional diffusion model of grey images of 8 x 8 pixels" in text
    assert "gendistill sample 'tiny digits' --ipc 10" in text
    assert text.endswith("## Results\n\n| accuracy |\n|---|\n| 71.2 |\n")
    assert read.meta["data"]["licence"] == "mit"  # so that the cards of sets sampled from it say so too


def test_the_card_leaves_out_what_is_not_known(tuned: Generator, tmp_path: Path) -> None:
    exported(replace(tuned, meta={}), tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license: unknown" in text
    assert not [words for words in ("steps", "seconds", "Results", "| data", "base model") if words in text]


def test_no_file_names_a_local_folder(tuned: Generator, tmp_path: Path) -> None:
    data = {**tuned.meta["data"], "name": "/home/me/photos", "options": {"name": "/home/me/photos"}}
    parents = {"pretrained": "/home/me/dit", "hash": None, "codec": "pixels"}
    private = replace(tuned, meta={**tuned.meta, "data": data, "parents": parents})
    read = exported(private, tmp_path)
    assert [name for name, content in files(tmp_path, "**/*").items() if b"/home" in content] == []
    assert (read.meta["data"]["name"], read.meta["parents"]["pretrained"]) == ("photos", "dit")
