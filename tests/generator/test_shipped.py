"""Generators that come with the package: their names, their files, and what they are stored in."""

from __future__ import annotations

import json
import tomllib
from glob import glob
from pathlib import Path

import pytest
import torch

from gendistill import hub
from gendistill.config import FinetuneConfig, ModelConfig, SampleConfig, UNet
from gendistill.data.dataset import RealData
from gendistill.errors import ArtifactError, ConfigError
from gendistill.generator.finetuning import finetune
from gendistill.generator.generator import Generator
from gendistill.generator.loading import licence_of, resolve_model_folder
from gendistill.generator.surrogate_sets import sample_set
from tests.helpers import ROOT, files, gendistill
from tests.test_cli import refused

NAMES = ["fashion-mnist"]  # of the generators that come with the package
LARGEST = 6_000_000  # bytes of one
MODEL = ModelConfig(architecture=UNet(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4))
QUICK = SampleConfig(num_inference_steps=2)


@pytest.fixture(scope="module")
def tiny(digits: RealData) -> Generator:
    return finetune(digits, FinetuneConfig(model=MODEL, base_steps=2, minimax_steps=1, batch_size=10))[0]


@pytest.fixture
def shipped(tiny: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in, ``tiny-digits``, in a package of its own; the current folder is empty."""
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "package" / "generators")
    folder = hub.SHIPPED / "tiny-digits"
    tiny.save_pretrained(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


# names


def test_a_name_stands_for_the_folder_in_the_package(tiny: Generator, shipped: Path) -> None:
    assert hub.shipped_generators() == ["tiny-digits"]
    assert resolve_model_folder("tiny-digits") == shipped
    assert Generator.from_pretrained("tiny-digits").hash() == tiny.hash()


def test_a_folder_of_that_name_goes_first(shipped: Path) -> None:
    Path("tiny-digits").mkdir()
    assert resolve_model_folder("tiny-digits") == Path("tiny-digits")


def test_an_owner_makes_a_hub_id(shipped: Path) -> None:
    with pytest.raises(ArtifactError, match="the Hub model owner/tiny-digits cannot be loaded") as found:
        resolve_model_folder("owner/tiny-digits")
    assert "come with" not in str(found.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../generators/tiny-digits", "tiny-digits/../tiny-digits", "unet"])
def test_only_whole_names_are_looked_up(name: str, shipped: Path) -> None:
    assert hub.shipped_generator(name) is None


def test_the_message_of_an_unknown_name_lists_those_that_exist(shipped: Path) -> None:
    with pytest.raises(ArtifactError) as found:
        Generator.from_pretrained("tiny-digit")
    assert "There is no folder tiny-digit, and the Hub model tiny-digit cannot be loaded" in str(found.value)
    ending = "Generators that come with gendistill: tiny-digits. Did you mean 'tiny-digits'?"
    assert str(found.value).endswith(ending)
    with pytest.raises(ArtifactError, match=r"There is no folder 'tiny digits'.*come with gendistill: tiny-digits"):
        Generator.from_pretrained("tiny digits")


def test_it_has_no_revision(shipped: Path) -> None:
    with pytest.raises(ConfigError, match="revision is 'main', but tiny-digits comes with gendistill"):
        Generator.from_pretrained("tiny-digits", revision="main")


@pytest.mark.slow
def test_commands_take_a_name_and_record_it(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = ("--ipc", 1, "--pool", 0, "--num_inference_steps", 2)
    assert gendistill("sample", "tiny-digits", *sampling, "--output_dir", "named") == 0
    assert gendistill("sample", shipped, *sampling, "--output_dir", "placed") == 0
    assert files(Path("named")) == files(Path("placed")) != {}
    training = ("--data", "digits", "--data.max_per_class", 20, "--minimax_steps", 1, "--batch_size", 10)
    assert gendistill("finetune", "--pretrained", "tiny-digits", *training, "--output_dir", "tuned") == 0
    assert json.loads(Path("tuned/gendistill.json").read_text())["parents"]["pretrained"] == "tiny-digits"
    for folder in (Path("named"), Path("tuned")):
        assert [path for path in folder.rglob("*") if path.is_file() and b"/package/" in path.read_bytes()] == []
    words = "Generators that come with gendistill: tiny-digits. Did you mean 'tiny-digits'?"
    assert words in refused(capsys, "sample", "tinydigits", *sampling, "--output_dir", "none")
    assert words in refused(capsys, "finetune", "--pretrained", "tinydigits", *training, "--output_dir", "none")


# files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_sixteen_bits_are_read_in_fp32(dtype: torch.dtype, tiny: Generator, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    halved = Generator.from_pretrained(tmp_path)
    for parameter in halved.network.parameters():
        parameter.data = parameter.data.to(dtype)
    halved.save_pretrained(tmp_path)
    first, second = (Generator.from_pretrained(tmp_path) for _ in range(2))
    assert {p.dtype for p in first.network.parameters()} == {torch.float32}
    assert torch.equal(sample_set(first, 1, QUICK).images, sample_set(second, 1, QUICK).images)


def test_a_saved_generator_names_no_folder_that_it_was_read_from(tiny: Generator, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "first")
    Generator.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert "unet/config.json" in files(tmp_path / "second", "**/*")
    assert [name for name, data in files(tmp_path / "second", "**/*").items() if b"first" in data] == []


def test_all_files_of_a_generator_go_into_a_wheel(shipped: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["gendistill"]
    package = hub.SHIPPED.parent
    packed = {name for pattern in patterns for name in glob(pattern, root_dir=package, recursive=True)}
    assert {path.relative_to(package).as_posix() for path in shipped.rglob("*") if path.is_file()} <= packed


def test_the_generators_of_the_package_are_small_and_complete() -> None:
    folders = [path for path in hub.SHIPPED.glob("*") if path.is_dir()]
    assert sorted(path.name for path in folders) == hub.shipped_generators() == NAMES
    for folder in folders:
        content = files(folder, "**/*")
        assert sum(map(len, content.values())) <= LARGEST
        assert not [name for name, data in content.items() if name.endswith((".json", ".md")) and b'"/' in data]
        assert licence_of(folder) != "unknown"
        generator = Generator.from_pretrained(folder.name)
        assert generator.meta["licence"] != "unknown"
        made = sample_set(generator, 1, QUICK)
        assert made.images.shape == (len(generator.classes), *generator.image_shape)
