"""A set says how its real images were read, so that the commands of its card read them again."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gendistill.cli import parse
from gendistill.config import DataConfig
from gendistill.data.dataset import RealData, check_origin, data_arguments, data_config_of
from gendistill.data.sources import load_data
from gendistill.errors import ArtifactError, ConfigError
from tests.surrogate.sets import make

OPTIONS = {"split_seed": 3, "max_per_class": 20, "classes": "present", "value_range": (0, 255), "licence": "cc0-1.0"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "my cats" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my cats" / name / f"{i}.png")
    return tmp_path / "my cats"


def test_what_was_made_from_data_says_how_to_read_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    data = load_data(name="my cats", **OPTIONS)
    facts = data.describe()
    assert facts["options"] == {**OPTIONS, "name": str(folder.resolve()), "value_range": [0, 255]}
    monkeypatch.chdir("/")
    config = data_config_of(facts)
    assert config is not None
    assert load_data(config).fingerprint() == data.fingerprint()


def test_defaults_are_left_out_and_images_from_memory_have_none() -> None:
    assert load_data(name="digits", max_per_class=8).describe()["options"] == {"name": "digits", "max_per_class": 8}
    images = np.zeros((8, 4, 4), np.uint8)
    facts = RealData.from_arrays(images, [0, 1] * 4).describe()
    assert "options" not in facts
    assert data_config_of(facts) is None


def test_the_command_of_a_card_reads_the_same_images(folder: Path, tmp_path: Path) -> None:
    data = load_data(name=str(folder), **OPTIONS)
    made = make(classes=("ant", "bee"), method="random", data=data.describe())
    made.save(tmp_path / "set")
    text = (tmp_path / "set" / "README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("gendistill evaluate"))
    command = parse("evaluate", shlex.split(line)[2:])
    assert command.data == data_config_of(data.describe())  # type: ignore[attr-defined]
    assert load_data(command.data).fingerprint() == data.fingerprint()  # type: ignore[attr-defined]


def test_the_error_of_other_splits_names_the_options() -> None:
    first, second = load_data(name="digits", max_per_class=8, split_seed=4), load_data(name="digits", max_per_class=8)
    with pytest.raises(
        ArtifactError, match=r"made with: --data\.name digits --data\.split_seed 4 --data\.max_per_class 8\."
    ):
        check_origin("the set", first.classes, {"data": first.describe()}, second)


def test_sets_of_older_versions_have_a_name_alone() -> None:
    assert data_arguments({"name": "my cats"}) == "--data.name 'my cats'"
    assert data_arguments({}) == ""
    assert data_config_of({"name": "my cats"}) is None


def test_options_beside_a_config_are_refused_rather_than_left_out() -> None:
    with pytest.raises(ConfigError, match="not both: max_per_class"):
        load_data(DataConfig(), max_per_class=5)
