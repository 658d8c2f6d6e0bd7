"""Options of a method of one's own: lists, tuples and dataclasses in them, from Python, arguments and YAML alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

import gendistill as gd
from gendistill.cli import main, parse
from gendistill.config import to_dict
from gendistill.config.distill import method_options
from gendistill.config.flat import unflatten
from gendistill.config.refine import refiner_options
from gendistill.errors import ConfigError
from gendistill.registry import DISTILLERS, REFINERS


@dataclass(frozen=True)
class Noise:
    std: float = 0.1
    kind: Literal["normal", "uniform"] = "normal"


@dataclass(frozen=True)
class Mixture:
    sizes: tuple[int, ...] = (1, 2)
    names: list[str] = field(default_factory=list)
    interval: tuple[float, float] = (0.0, 1.0)
    noise: Noise = field(default_factory=Noise)
    several: list[Noise] = field(default_factory=list)
    folder: Path | None = None
    note: str = ""
    plain: tuple = ()

    def __post_init__(self) -> None:
        if self.interval[0] > self.interval[1]:
            raise ValueError("interval is not ascending")


USED: list[Mixture] = []
WANTED = Mixture(
    sizes=(3, 4), names=["a", "b"], interval=(0.25, 1.0), noise=Noise(std=2.0, kind="uniform"),
    several=[Noise(std=1.0)], folder=Path("f"), note="7", plain=(1, 2),
)  # fmt: skip
FLAGS = [
    "--options.sizes=[3,4]", "--options.names", "[a,b]", "--options.interval=[0.25,1]", "--options.noise.std", "2",
    "--options.noise.kind=uniform", "--options.several=[{std: 1.0}]", "--options.folder=f", "--options.note=7",
    "--options.plain=[1,2]",
]  # fmt: skip
FILE = """
method: mixture
options:
  sizes: [3, 4]
  names: [a, b]
  interval: [0.25, 1]
  noise: {std: 2, kind: uniform}
  several: [{std: 1.0}]
  folder: f
  note: "7"
  plain: [1, 2]
"""


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    @gd.register_distiller("mixture", options=Mixture)
    def mixture(data: gd.RealData, ipc: int, seed: int, options: Mixture) -> gd.SurrogateSet:
        USED.append(options)
        labels = torch.arange(len(data.classes)).repeat_interleave(ipc)
        return gd.SurrogateSet(data.train.images[: len(labels)], labels, data.classes)

    yield
    DISTILLERS._added.pop("mixture")
    DISTILLERS._functions.pop("mixture")
    USED.clear()


def test_from_python(digits: gd.RealData) -> None:
    gd.distill(digits, "mixture", 1, options=WANTED)
    gd.distill(digits, "mixture", 1, options={"sizes": [3, 4], "noise": {"std": 2}})
    gd.distill(digits, "mixture", 1)
    assert [WANTED, Mixture(sizes=(3, 4), noise=Noise(std=2.0)), Mixture()] == USED


def test_from_arguments_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(FILE, encoding="utf-8")
    flags = parse("distill", ["--method", "mixture", *FLAGS, "--output_dir", "x"])
    file = parse("distill", ["--config", str(tmp_path / "own.yaml"), "--output_dir", "x"])
    assert flags == file
    assert method_options(flags) == WANTED


def test_a_run_stores_what_can_be_read_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["distill", "--method", "mixture", *FLAGS, "--ipc", "1", "--output_dir", str(out)]) == 0
    assert [WANTED] == USED
    stored = json.loads((out / "stage.json").read_text(encoding="utf-8"))["settings"]["options"]
    assert stored["options"] == to_dict(WANTED)
    assert method_options(unflatten(gd.DistillConfig, stored)) == WANTED
    assert gd.SurrogateSet.load(out / "ipc-1").meta["options"] == {"mixture": to_dict(WANTED)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizs": 1}, "distill.options has no sizs; expected some of sizes, names, interval, noise, several, folder, "
                      "note, plain. Did you mean 'sizes'?"),
        ({"sizes": ["a"]}, "distill.options.sizes is ['a']; expected a whole number."),
        ({"sizes": "many"}, "distill.options.sizes is 'many'; expected a list (each a whole number)."),
        ({"noise": {"kind": "norml"}}, "distill.options.noise.kind is 'norml'; expected one of normal, uniform. Did "
                                       "you mean 'normal'?"),
        ({"noise": {"sdt": 1}}, "distill.options.noise has no sdt; expected some of std, kind. Did you mean 'std'?"),
        ({"noise": 3}, "distill.options.noise is 3; expected Noise(...)."),
        ({"several": [{"sdt": 1}]}, "Noise has no sdt; expected some of std, kind. Did you mean 'std'?"),
        ({"interval": [1, 0]}, "distill.options is {'interval': [1, 0]}; Mixture refuses it: "
                               "interval is not ascending"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(given: dict, message: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError) as refused:
        gd.DistillConfig(method="mixture", options=given)
    assert str(refused.value) == message
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"method": "mixture", "options": given}), encoding="utf-8")
    assert main(["distill", "--config", str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"gendistill: {message}\n"


@pytest.fixture
def _refiners() -> Iterator[None]:
    for name in ("one", "other"):
        gd.register_refiner(name, options=Noise)(lambda made, data, teachers, seed, options: made)
    yield
    for name in ("one", "other"):
        REFINERS._added.pop(name)
        REFINERS._functions.pop(name)


@pytest.mark.usefixtures("_refiners")
def test_a_refiner_has_options_of_its_own() -> None:
    words = ["--refiner", "[barycenter,one]", "--options.std=2", "--surrogate=s", "--teacher=t", "--output_dir=x"]
    flags = parse("refine", words)
    assert refiner_options(flags) == {"one": Noise(std=2.0)}
    assert flags.options == gd.RefineConfig(refiner=("barycenter", "one"), options={"std": 2}).options
    assert gd.RefineConfig(refiner="one").options == to_dict(Noise())
    with pytest.raises(ConfigError, match=r"refine\.options has no sdt; .* Did you mean 'std'"):
        gd.RefineConfig(refiner="one", options={"sdt": 1})
    with pytest.raises(ConfigError, match="expected at most one with options of one, other"):
        gd.RefineConfig(refiner=("one", "other"))
    with pytest.raises(ConfigError, match=r"refine\.options is .* None with refiner barycenter, which has none"):
        gd.RefineConfig(options={"std": 1})
