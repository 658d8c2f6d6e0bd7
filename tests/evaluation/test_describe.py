"""Sets beside random real ones through the stage and the command line; faults made on purpose, and honest sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gendistill.cli import DONE, USAGE
from gendistill.config import EvaluateConfig, LabelConfig, PerView, TeacherConfig
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.evaluation.evaluate import describe, evaluate
from gendistill.networks.feature_extractors import (
    REFERENCE,
    FeatureExtractor,
    make_feature_extractor,
    reference_network,
)
from gendistill.networks.soft_labelling import label_set
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.report.terminal import finding_lines, set_table
from gendistill.seeding import torch_rng
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill

FAST = EvaluateConfig(runs=3, steps=3, width=8)


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(steps=150, width=32))


@pytest.fixture(scope="module")
def extractor(digits: RealData, teacher: Teacher) -> FeatureExtractor:
    return make_feature_extractor("auto", digits, teacher)


@pytest.fixture(scope="module")
def drawn(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 10, seed=4)


def surrogate(images: Tensor, labels: Tensor, **options: Any) -> SurrogateSet:
    return SurrogateSet(images, labels, tuple(str(k) for k in range(10)), **options)


def faulty(drawn: SurrogateSet, data: RealData) -> dict[str, SurrogateSet]:
    """Sets by the kind of finding that each must raise, alone."""
    images, labels = drawn.images, drawn.labels
    order = torch.randperm(100, generator=torch_rng(0, "shuffled"))
    swapped = torch.where(labels == 2, 7, torch.where(labels == 7, 2, labels))
    leaked, flat, twice = images.clone(), images.clone(), images.clone()
    of_label = data.test.of_class(3)[:5]
    leaked[30:35] = data.test.images[of_label]
    flat[11] = 0
    twice[5] = twice[6]
    unit = images / 255
    standardised = ((unit - unit.mean()) / unit.std() * 255).round().clamp(0, 255).byte()
    return {
        "shuffled labels": surrogate(images, labels[order]),
        "class order": surrogate(images, swapped),
        "test leakage": surrogate(leaked, labels),
        "missing classes": surrogate(images[labels != 4], labels[labels != 4]),
        "value range": surrogate(standardised, labels),
        "constant images": surrogate(flat, labels),
        "duplicates": surrogate(twice, labels),
        "duplicates across classes": surrogate(torch.cat([images, images[:1]]), torch.cat([labels, labels[-1:]])),
        "uneven classes": surrogate(images[5:], labels[5:]),
    }


@pytest.mark.slow
def test_every_fault_made_on_purpose_is_named_and_nothing_else(
    digits: RealData, extractor: FeatureExtractor, drawn: SurrogateSet
) -> None:
    sets = faulty(drawn, digits)
    _, findings = describe(digits, sets, extractor)
    found = {name: [f["kind"] for f in findings if f["set"] == name] for name in sets}
    assert found == {name: [name] for name in sets}
    texts = {f["set"]: f["text"] for f in findings}
    assert "'2' look like '7', '7' look like '2'" in texts["class order"]
    assert "5 of 100 images (train/3/00000.png is test image" in texts["test leakage"]
    assert "1 of 10 (4)" in texts["missing classes"]
    assert "standardised" in texts["value range"]
    assert "train/1/00001.png" in texts["constant images"]
    assert {f["severity"] for f in findings if f["set"] not in ("duplicates", "uneven classes")} == {"error"}


def test_good_sets_raise_nothing(digits: RealData, extractor: FeatureExtractor) -> None:
    sets = {f"{m} {n}": distill(digits, m, n, seed=n) for m in ("random", "kmeans", "herding") for n in (1, 3, 20)}
    sets["all"] = surrogate(digits.train.images, digits.train.labels)
    _, findings = describe(digits, sets, extractor)
    assert findings == []


def test_samples_of_an_early_generator_are_not_recognised_once_and_the_remedy_is_training(
    digits: RealData, extractor: FeatureExtractor, drawn: SurrogateSet
) -> None:
    noise = torch.randint(60, 200, drawn.images.shape, generator=torch_rng(0, "noise"), dtype=torch.uint8)
    meta = {"method": "generative", "stage": "samples"}
    early = {f"{n}": surrogate(noise[:: 100 // n], drawn.labels[:: 100 // n], meta=meta) for n in (50, 100)}
    _, (finding,) = describe(digits, early, extractor)
    assert (finding["kind"], finding["severity"], finding["set"]) == ("not recognised", "warning", "100")
    assert "longer training of the generator" in finding["text"]
    assert finding["text"].endswith("This is so in 2 of 2 generated sets.")
    assert not any(word in finding["text"] for word in ("value range", "normalisation", "two lists"))
    wrong = drawn.labels[torch.randperm(100, generator=torch_rng(0, "shuffled"))]
    _, shuffled = describe(digits, {"good": surrogate(drawn.images, wrong, meta=meta)}, extractor)
    assert [f["kind"] for f in shuffled] == ["shuffled labels"]  # of images that look as they should


def test_noise_gives_warnings_at_most(digits: RealData, extractor: FeatureExtractor, drawn: SurrogateSet) -> None:
    noise = torch.randint(0, 256, drawn.images.shape, generator=torch_rng(0, "noise"), dtype=torch.uint8)
    _, findings = describe(digits, {"noise": surrogate(noise, drawn.labels)}, extractor)
    assert {f["severity"] for f in findings} == {"warning"}


def test_a_random_set_is_like_random_sets_and_a_damaged_one_is_not(
    digits: RealData, extractor: FeatureExtractor, drawn: SurrogateSet
) -> None:
    rng = torch_rng(0, "damage")
    noisy = (drawn.images.int() + torch.randint(-90, 91, drawn.images.shape, generator=rng)).clamp(0, 255).byte()
    sets = {"random": drawn, "noisy": surrogate(noisy, drawn.labels)}
    found, _ = describe(digits, sets, extractor)
    assert json.loads(json.dumps(found)) == found
    for name, value in found["random"]["measures"].items():
        assert abs(value["mean"] - value["random"]["mean"]) < 5 * value["random"]["std"] + 0.02, name
        assert len(value["by_class"]) == len(value["random"]["by_class"]) == 10
    bad = found["noisy"]["measures"]
    assert bad["kid"]["mean"] > bad["kid"]["random"]["mean"] + 3 * bad["kid"]["random"]["std"]
    assert bad["precision"]["mean"] < bad["precision"]["random"]["mean"]
    assert bad["coverage"]["mean"] < bad["coverage"]["random"]["mean"]
    assert found["random"]["copies"]["exact"] == {"train": 100, "validation": 0, "test": 0}
    assert found["random"]["copies"]["control"] == 1
    labels = found["noisy"]["labels"]
    assert labels["hard"]["agreement"]["mean"] < labels["hard"]["agreement"]["random"]["mean"]
    assert labels["hard"]["entropy"]["mean"] > labels["hard"]["entropy"]["random"]["mean"]
    assert labels["held_out_agreement"] > 0.9


def test_large_sets_are_sampled_evenly_and_say_so(digits: RealData, extractor: FeatureExtractor) -> None:
    found, _ = describe(digits, {"all": surrogate(digits.train.images, digits.train.labels)}, extractor)
    numbers = found["all"]
    assert numbers["views"] == 1211
    assert numbers["measured_by_class"] == [n // 2 for n in digits.train.counts(10)]
    assert "of 1,211 images" in set_table({"sets": found}, {"all": (10, "all")})


def test_soft_labels_of_the_teacher_stand_beside_those_of_random_images(
    digits: RealData, teacher: Teacher, extractor: FeatureExtractor, drawn: SurrogateSet
) -> None:
    soft = label_set(drawn, teacher, LabelConfig(temperature=4.0))
    views = label_set(drawn, teacher, LabelConfig(mode=PerView(steps=3, batch_size=20)))
    numbers, findings = describe(digits, {"soft": soft, "views": views}, extractor)
    first, second = numbers.values()
    value = first["labels"]["soft"]["entropy"]
    assert value["mean"] == pytest.approx(value["random"]["mean"], rel=0.2)
    assert value["mean"] > first["labels"]["hard"]["entropy"]["mean"]  # temperature 4
    assert second["labels"]["soft"]["agreement"]["mean"] > 0.9
    other = describe(digits, {"x": soft}, replace(extractor, classifier=None))[0]["x"]["labels"]
    assert other["soft"]["entropy"]["random"] is None
    assert "give it as --teacher" in other["soft_reason"]
    assert findings == []


def test_the_reference_network_is_kept_and_read_again(
    digits: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gendistill.networks.feature_extractors.TeacherConfig", lambda: TeacherConfig(steps=3, width=8))
    first = reference_network(digits, tmp_path)
    written = (tmp_path / REFERENCE).stat().st_mtime_ns
    again = reference_network(digits, tmp_path)
    assert (tmp_path / REFERENCE).stat().st_mtime_ns == written
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(first.eval()(image), again(image))


@pytest.mark.slow
def test_the_summary_holds_sets_and_findings_unless_left_out(
    digits: RealData, teacher: Teacher, drawn: SurrogateSet
) -> None:
    swapped = surrogate(drawn.images, (drawn.labels + 1) % 10)
    summary = evaluate(digits, [swapped], FAST, teacher=teacher)
    key = swapped.content_hash()
    assert set(summary["sets"]) == {key}
    assert [(f["set"], f["kind"]) for f in summary["findings"]] == [(key, "class order")]
    lines = finding_lines(summary, {key: (10, "mine")})
    assert lines.startswith("ERROR  10  mine: Classes swapped")
    table = set_table(summary, {key: (10, "mine")})
    assert max(map(len, table.splitlines())) <= 100
    assert "random real sets" in table
    config = EvaluateConfig(**{**vars(FAST), "describe": False})
    assert evaluate(digits, [swapped], config, teacher=teacher)["sets"] == {}


def test_the_table_names_sets_of_any_size_in_order(
    digits: RealData, extractor: FeatureExtractor, drawn: SurrogateSet
) -> None:
    found, _ = describe(digits, {"a": drawn}, extractor)
    names = {"large": (1000, "mine"), "small": (2, "yours"), "none": (None, "others")}
    lines = set_table({"sets": dict.fromkeys([*names, "0123456789abcdef"], found["a"])}, names).splitlines()
    heads = [line[:26].rstrip() for line in lines[2:] if line[:6].strip() and "spread" not in line]
    assert heads == [
        "     random real sets", "   others", "   0123456789ab", "  2  random real sets", "   yours",
        "1000  random real sets", "   mine",
    ]  # fmt: skip


def test_teacher_features_need_a_teacher(digits: RealData) -> None:
    with pytest.raises(ConfigError, match="add --teacher"):
        make_feature_extractor("teacher", digits)
    with pytest.raises(ConfigError, match=r"evaluate.features is 'dino'; expected auto, teacher, trained, timm:NAME"):
        EvaluateConfig(features="dino")


@pytest.mark.slow
def test_foreign_features_by_the_command_line(
    teacher: Teacher, drawn: SurrogateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Dinov2Config, Dinov2Model

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **shape)).save_pretrained(tmp_path / "dino")
    record = {"size": 28, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(record))
    teacher.save_pretrained(tmp_path / "teacher")
    drawn.save(tmp_path / "set")
    command = ["evaluate", "--surrogate", tmp_path / "set", "--teacher", tmp_path / "teacher", "--runs", 3]
    command += ["--data", "digits", "--steps", 2, "--width", 8, "--output_dir"]
    name = f"transformers:{tmp_path / 'dino'}"
    assert gendistill(*command, tmp_path / "out", "--features", name) == DONE
    assert f"The sets by {name}" in " ".join(capsys.readouterr().out.split())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (numbers,) = summary["sets"].values()
    assert numbers["features"] == name
    assert numbers["measures"]["kid"]["mean"] is not None
    missing = tmp_path / "missing"
    assert gendistill(*command, tmp_path / "none", "--features", f"transformers:{missing}") == USAGE
    assert "cannot be loaded" in capsys.readouterr().err
