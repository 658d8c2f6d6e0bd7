"""What a user can do from Python, with the names of ``gendistill`` alone: from arrays to a report, in miniature."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import gendistill as gd
from gendistill.errors import GendistillError
from tests.helpers import ROOT, files, gendistill

COUNT = 400  # images: enough for every class, few enough for seconds
QUICK = {"runs": 3, "steps": 4, "width": 8, "baseline_cache": None, "mixed_precision": "no", "compile": False}


class Net(nn.Module):
    """A network that the package does not know."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(32, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


@pytest.fixture(scope="module")
def data() -> gd.RealData:
    digits = load_digits()
    return gd.RealData.from_arrays(digits.images[:COUNT] / 16, digits.target[:COUNT], name="some digits")


@pytest.fixture(scope="module")
def teacher(data: gd.RealData) -> gd.Teacher:
    torch.manual_seed(0)
    return gd.train_teacher(data, gd.TeacherConfig(steps=60, batch_size=32, learning_rate=2e-2), network=Net())


@pytest.fixture(scope="module")
def refined(data: gd.RealData, teacher: gd.Teacher) -> gd.SurrogateSet:
    pool = gd.distill(data, "random", 6)
    return gd.refine_set(pool, teacher, data, ipc=2, config=gd.RefineConfig(steps=3))[1]


def test_a_module_of_ones_own_teaches_and_refines(teacher: gd.Teacher, refined: gd.SurrogateSet) -> None:
    assert teacher.meta["accuracy"]["train"] > 0.2
    assert refined.images.shape == (20, 1, 8, 8)
    assert refined.meta["data"]["name"] == "some digits"


@pytest.mark.parametrize("method", ["random", "herding", "kcenter", "kmeans", "difficulty"])
def test_coresets(data: gd.RealData, method: str) -> None:
    assert gd.distill(data, method, 2).images.shape == (20, 1, 8, 8)


def test_first_mistakes_are_taken_or_named() -> None:
    assert gd.load_data("digits", max_per_class=4).name == "digits"
    tiny = gd.load_data("digits", max_per_class=4)
    with pytest.raises(GendistillError, match=r"config.method is 'dm'; expected 'kmeans'"):
        gd.distill(tiny, "kmeans", 1, config=gd.DistillConfig(method="dm"))
    with pytest.raises(GendistillError, match=r"ipc is \[1, 2\]; expected a whole number"):
        gd.distill(tiny, "kmeans", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(GendistillError, match="a teacher is given with method kmeans and features"):
        gd.distill(tiny, "kmeans", 1, features=torch.zeros(40, 2), teacher=["one"])  # type: ignore[list-item]
    with pytest.raises(GendistillError, match=r"refine\.refiner is \(\)"):
        gd.RefineConfig(refiner=())
    with pytest.raises(GendistillError, match=r"teacher\.learning_rate is inf"):
        gd.TeacherConfig(learning_rate=float("inf"))


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("dc", {"inner_steps": 1}),
        ("dsa", {"inner_steps": 1}),
        ("dm", {}),
        ("dm", {"selection": gd.Representative(candidates=8)}),
        ("idc", {"inner_steps": 1, "networks": gd.Fresh(warm_steps=1), "objective": gd.Gradient(distance="mse")}),
        ("idm", {"train_steps": 1, "networks": gd.Queue(size=1), "objective": gd.Features(class_aware=1)}),
    ],
)
def test_matching_methods(data: gd.RealData, method: str, steps: dict[str, Any]) -> None:
    matching = gd.MatchingConfig(width=8, real_batch=8, mixed_precision="no", compile=False, **steps)
    made = gd.distill(data, method, 1, config=gd.DistillConfig(method=method, iterations=1, matching=matching))
    assert made.ipc == 1
    assert made.meta["method"] == method


def test_wmdd(data: gd.RealData, teacher: gd.Teacher) -> None:
    made = gd.distill(data, "wmdd", 1, teacher=teacher, options=gd.WmddConfig(steps=2))
    assert made.meta["method"] == "wmdd"


def test_a_quick_look_at_a_set(data: gd.RealData) -> None:
    found = gd.validation_accuracies(data, {"mine": gd.distill(data, "kmeans", 1)})
    assert found.keys() == {"mine", "random"}


def test_a_method_of_ones_own(data: gd.RealData) -> None:
    @gd.register_coreset("first for this test")
    def first(features: np.ndarray, count: int, seed: int) -> np.ndarray:
        return np.arange(count)

    assert torch.equal(
        gd.distill(data, "first for this test", 1).images[0], data.train.images[data.train.of_class(0)[0]]
    )
    assert "first for this test" in gd.DISTILLERS


def test_a_generator_from_training_to_a_set(data: gd.RealData) -> None:
    model = gd.ModelConfig(architecture=gd.UNet(block_out_channels=(16, 32), norm_num_groups=8))
    generator, _ = gd.finetune(data, gd.FinetuneConfig(model=model, base_steps=2, minimax_steps=1, batch_size=8))
    made = gd.sample_set(generator, 1, gd.SampleConfig(num_inference_steps=2))
    assert made.images.shape == (10, 1, 8, 8)


def test_labels_of_a_teacher_and_batches_of_them(teacher: gd.Teacher, refined: gd.SurrogateSet) -> None:
    labelled = gd.label_set(refined, teacher)
    views, probabilities = gd.soft_batches(labelled, teacher.network)(0)
    assert views.shape[1:] == (1, 8, 8)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(views)))


@pytest.mark.slow
def test_an_evaluation_has_a_row_for_every_set_and_baseline(
    data: gd.RealData, teacher: gd.Teacher, refined: gd.SurrogateSet, tmp_path: Path
) -> None:
    result = gd.evaluate(data, [refined], gd.EvaluateConfig(**QUICK), teacher=teacher)
    assert {row["method"] for row in result.rows} >= {"random", "kmeans", "full", refined.meta["method"]}
    assert "random" in gd.table(result)
    assert len(result.to_pandas()) == len(result.rows)
    assert "<table" in result._repr_html_()
    assert gd.Evaluation.load(result.save(tmp_path / "evaluation")).rows == result.rows
    assert "</html>" in result.report(tmp_path / "out.html", data=data, sets=[refined]).read_text()


@pytest.mark.slow
def test_classes_that_arrive_in_steps(data: gd.RealData, refined: gd.SurrogateSet) -> None:
    config = gd.EvaluateConfig(task=gd.Continual(), **QUICK)
    assert refined.meta["method"] in {row["method"] for row in gd.evaluate_continual(data, [refined], config).rows}


def test_objects_have_short_reprs(data: gd.RealData, teacher: gd.Teacher, refined: gd.SurrogateSet) -> None:
    for one in (data, data.train, teacher, refined):
        assert len(repr(one)) < 200
    assert repr(refined).startswith(f"SurrogateSet({refined.meta['method']} + select + barycenter, 10 classes, ")


def test_a_set_is_saved_verified_exported_and_shown(
    data: gd.RealData, refined: gd.SurrogateSet, tmp_path: Path
) -> None:
    refined.save(tmp_path / "set")
    assert torch.equal(gd.SurrogateSet.load(tmp_path / "set").images, refined.images)
    assert list(gd.verify(tmp_path / "set")) == []
    gd.export(refined, tmp_path / "exported", "parquet")
    assert list((tmp_path / "exported").rglob("*.parquet"))
    gd.show({"mine": refined}, tmp_path / "shown", data=data)
    assert (tmp_path / "shown" / "show.html").is_file()


def test_python_and_the_command_line_make_the_same_images(tmp_path: Path) -> None:
    options = ("--data.max_per_class", 20, "--method", "kmeans", "--ipc", 2, "--seed", 3)
    assert gendistill("distill", *options, "--output_dir", tmp_path / "cli") == 0
    data = gd.load_data(name="digits", max_per_class=20)
    gd.distill(data, "kmeans", 2, seed=3).save(tmp_path / "python")
    assert files(tmp_path / "cli" / "ipc-2", "train/**/*.png") == files(tmp_path / "python", "train/**/*.png") != {}


# documents


def code_blocks(path: Path, heading: str) -> list[str]:
    section = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = code_blocks(ROOT / "README.md", "Python")
    exec(compile(code, "README.md", "exec"), {})
    assert gd.SurrogateSet.load("my_set").ipc == 10


def test_every_public_name_is_listed_and_explained() -> None:
    """docs/python.md has a line for each name, and only for those; each says what it takes."""
    listed = re.findall(r"^\| `gd\.(\w+)` \|", (ROOT / "docs" / "python.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(gd.__all__)
    for name in gd.__all__:
        text = inspect.getdoc(getattr(gd, name)) or ""
        assert "Args:" in text or "Attributes:" in text, name
