"""Evaluation by protocol from the command line: tables, labels that a protocol needs, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from gendistill.config import EvaluateConfig
from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.inputs import check_soft_labels, label_command
from gendistill.evaluation.protocols import resolve_protocol
from gendistill.networks.teacher import Teacher
from gendistill.report.terminal import table
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import TINY, gendistill

DATA = ("--data.max_per_class", 8)
SOFT = ("--protocol", "wmdd-soft", "--flip", "false", "--epochs", 2, "--network", "convnet", "--width", 8, "--runs", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a set at IPC 1, and the set with the labels that the message of protocol wmdd-soft asks for."""
    out = tmp_path_factory.mktemp("protocols")
    assert gendistill("teacher", *DATA, "--steps", 10, "--width", 8, "--output_dir", out / "teacher") == 0
    assert gendistill("distill", *DATA, "--ipc", 1, "--output_dir", out / "sets") == 0
    settings = resolve_protocol(EvaluateConfig(protocol="wmdd-soft", flip=False, epochs=2))
    command = label_command(settings, SurrogateSet.load(out / "sets" / "ipc-1")).split()
    inputs = ("--surrogate", out / "sets" / "ipc-1", "--teacher", out / "teacher", "--output_dir", out / "labelled")
    assert gendistill(*command[1:], *inputs) == 0
    return out


def evaluate(made: Path, name: str, out: Path, *options: object) -> int:
    surrogate = made / name if name == "labelled" else made / "sets" / "ipc-1"
    return gendistill("evaluate", *DATA, "--surrogate", surrogate, "--output_dir", out, "--describe", "false", *options)


@pytest.mark.slow
def test_the_labels_that_the_message_asks_for_are_enough(made: Path, tmp_path: Path) -> None:
    assert evaluate(made, "labelled", tmp_path / "out", *SOFT, "--teacher", made / "teacher") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["protocol"] == "wmdd-soft"
    assert set(summary["settings"]["changed"]) == {"network", "width", "flip", "epochs"}
    soft = [row for row in summary["rows"] if row["labels"] == "soft"]
    assert {row["recipe"] for row in soft} == {"per_view, T 20, batch 100, crop 0.08, CutMix 1"}
    assert all(row["augment"] for row in summary["rows"])
    assert any(row["set"] and row["ci95_vs_random"] for row in soft)


def test_a_set_without_what_a_protocol_needs_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(name: str, *options: object) -> str:
        assert evaluate(made, name, tmp_path / "out", *options) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    teacher = ("--teacher", made / "teacher")
    assert "no set has soft labels; make some with `gendistill label --mode per_view --temperature 20" in error(
        "plain", *SOFT, *teacher
    )
    assert "--steps 2`" in error("plain", *SOFT, *teacher)
    assert "Give --teacher" in error("labelled", *SOFT)
    longer = error("labelled", *SOFT[:4], "--epochs", 3, *teacher)
    assert "evaluate.epochs is 3, which are 3 steps, but a set has soft labels for 2 steps" in longer
    mirrored = error("labelled", "--protocol", "wmdd-soft", "--epochs", 2, *teacher)
    assert "it has flip False for True" in mirrored
    assert "--flip true" in mirrored
    plain = error("labelled", "--labels", "soft", "--steps", 2, "--augment", "false", *teacher)
    assert "belong to augmented views" in plain


def test_labels_for_images_do_not_serve_a_protocol_of_views(made: Path, tmp_path: Path) -> None:
    inputs = ("--surrogate", made / "sets" / "ipc-1", "--teacher", made / "teacher", "--output_dir", tmp_path / "image")
    assert gendistill("label", *inputs, "--temperature", 20) == 0
    settings = resolve_protocol(EvaluateConfig(protocol="wmdd-soft", flip=False, epochs=2))
    with pytest.raises(ArtifactError, match=r"mode per_image for per_view or online, min_crop 1\.0 for 0\.08"):
        check_soft_labels([SurrogateSet.load(tmp_path / "image")], settings, Teacher.from_pretrained(made / "teacher"))


@pytest.mark.slow
def test_two_networks_and_both_augmentations_in_one_table(made: Path, tmp_path: Path, capsys) -> None:
    options = ("--protocol", "idc", "--flip", "false", "--epochs", 1, "--runs", 3, "--width", 8)
    both = ("--network", "[convnet,convnet_bn]", "--augment", "[true,false]", "--legacy_best", "true")
    assert evaluate(made, "plain", tmp_path / "out", *options, *both) == 0
    text = capsys.readouterr().out
    heads = [line for line in text.splitlines() if line.startswith("convnet")]
    wanted = [f"{network}; {told}:" for network in ("convnet", "convnet_bn") for told in ("augmented", "not augmented")]
    assert heads == wanted
    assert text.count("(best)") == 4 + 1
    assert text.count("random real images  ") == 4
    assert "random real images" in text.splitlines()[-1]  # the verdict
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["network"], row["augment"]) for row in rows} == {
        (network, augment) for network in ("convnet", "convnet_bn") for augment in ("True", "False")
    }
    assert all(0 <= float(row["ece"]) <= 1 and float(row["legacy_best"]) >= float(row["mean"]) for row in rows)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert all(len(row["per_class"]) == 10 for row in summary["rows"])
    one = [row for row in summary["rows"] if row["network"] == "convnet" and row["augment"]]
    for row in one:
        row.pop("legacy_best")
    plain = table({"rows": one}).splitlines()[0]
    assert not any(word in plain for word in ("network", "augmented", "legacy", "labels"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "idm"), "protocol"),
        (("--steps", 3, "--epochs", 3), "null with steps"),
        (("--augment", "[true,false]"), "augments nothing"),
        (("--augment", "false", "--shift", 2), "evaluate.shift is 2; expected null with augment false"),
        (("--augment", "false", "--flip", "true"), "evaluate.flip is True"),
        (("--network", "[convnet,convnet]"), "each once"),
        (("--network", "[convnet,resnet99]"), "resnet99"),
        (("--epochs", 0), "evaluate.epochs is 0"),
    ],
)
def test_bad_options_are_refused(made: Path, tmp_path: Path, capsys, options, message) -> None:
    assert evaluate(made, "plain", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--evaluate.protocol", "wmdd-soft"), "one with hard labels in a run"),
        (("--evaluate.labels", "soft"), "hard in a run"),
        (("--evaluate.network", "[convnet,resnet99]"), "resnet99"),
        (("--evaluate.network", "[convnet,convnet_bn]", "--evaluate.batch_size", 1), "batch norm"),
        (
            (
                "--evaluate.network",
                "convnet_bn",
                "--evaluate.steps",
                "null",
                "--evaluate.epochs",
                2,
                "--evaluate.batch_size",
                19,
            ),
            "leaves 1 of the 20 images of the refined set at IPC 2 for the last batch",
        ),
    ],
)
def test_a_run_refuses_what_its_evaluation_could_not_do(tmp_path: Path, capsys, options, message) -> None:
    assert gendistill("run", "--config", TINY, *options, "--output_dir", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_soft_rows_are_never_asked_for_without_a_labelled_set() -> None:
    with pytest.raises(ConfigError, match="gendistill label"):
        check_soft_labels([_unlabelled()], resolve_protocol(EvaluateConfig(labels="soft")), None)
    check_soft_labels([_unlabelled()], resolve_protocol(EvaluateConfig(protocol="wmdd-soft", labels="hard")), None)


def _unlabelled() -> SurrogateSet:
    return SurrogateSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), ("a", "b"))
