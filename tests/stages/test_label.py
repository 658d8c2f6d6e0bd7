"""Soft labels by the command line: what is stored, what it costs, and that every mode trains as it says."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gendistill.cli import USAGE
from gendistill.config import EvaluateConfig, LabelConfig, Online, PerImage, PerView, TeacherConfig
from gendistill.data.crops import batch_indices
from gendistill.data.dataset import RealData
from gendistill.distillers import distill
from gendistill.errors import ArtifactError, ConfigError
from gendistill.evaluation.entries import soft_entries
from gendistill.evaluation.evaluate import all_entries, evaluate
from gendistill.io import WorkFolder
from gendistill.networks import label_blocks
from gendistill.networks.label_blocks import LABELS
from gendistill.networks.soft_labelling import label_set, soft_batches
from gendistill.networks.teacher import Teacher
from gendistill.networks.teacher_training import train_teacher
from gendistill.report.terminal import table
from gendistill.surrogate.manifest import read_manifest
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import edit, files, gendistill
from tests.processes import start

VIEWS = {"min_crop": 0.6, "flip": True}
BATCHES = {"cutmix": 1.0, "batch_size": 8}


@pytest.fixture(scope="module")
def teacher(digits: RealData) -> Teacher:
    return train_teacher(digits, TeacherConfig(steps=60, width=16))


@pytest.fixture(scope="module")
def chosen(digits: RealData) -> SurrogateSet:
    return distill(digits, "random", 2)


@pytest.fixture(scope="module")
def folders(teacher: Teacher, chosen: SurrogateSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("label")
    teacher.save_pretrained(root / "teacher")
    chosen.save(root / "set")
    return root


def command(folders: Path, target: Path, *options: object) -> int:
    return gendistill(
        "label", "--surrogate", folders / "set", "--teacher", folders / "teacher", "--output_dir", target, *options
    )


# training batches


@pytest.mark.parametrize("top_k", [None, 3])
def test_online_and_stored_labels_give_the_same_batches(teacher, chosen, tmp_path, top_k):
    mode = PerView(top_k=top_k, steps=4, **BATCHES)
    label_set(chosen, teacher, LabelConfig(mode=mode, **VIEWS)).save(tmp_path / "stored")
    stored = SurrogateSet.load(tmp_path / "stored")
    online = label_set(chosen, teacher, LabelConfig(mode=Online(**BATCHES), **VIEWS))
    online = replace(online, soft_labels=replace(online.soft_labels, top_k=top_k))
    online.save(tmp_path / "online")
    first, second = soft_batches(stored), soft_batches(SurrogateSet.load(tmp_path / "online"), teacher.network)
    for step in (3, 0, 1, 2):  # in any order
        (images, targets), (again, made) = first(step), second(step)
        assert torch.equal(images, again)
        assert torch.equal(targets, made)
        assert targets.shape == (8, 10)


def test_views_differ_by_step_and_from_the_images(teacher, chosen):
    batches = soft_batches(label_set(chosen, teacher, LabelConfig(mode=Online(**BATCHES), **VIEWS)), teacher.network)
    plain = {tuple(image.flatten().tolist()) for image in (chosen.images.float() / 127.5 - 1)}
    seen = [tuple(image.flatten().tolist()) for step in range(3) for image in batches(step)[0]]
    assert not plain & set(seen)
    assert len(set(seen)) == len(seen)


def test_steps_beyond_the_stored_ones_are_refused(teacher, chosen):
    batches = soft_batches(label_set(chosen, teacher, LabelConfig(mode=PerView(steps=4, **BATCHES), **VIEWS)))
    with pytest.raises(ArtifactError, match="Step 4 is beyond the 4"):
        batches(4)


def test_online_labels_need_their_teacher(teacher, chosen):
    with pytest.raises(ArtifactError, match="teacher"):
        soft_batches(label_set(chosen, teacher, LabelConfig(mode=Online())))


# labels of images


def test_labels_of_images_are_the_teachers_probabilities(teacher, chosen):
    soft = label_set(chosen, teacher, LabelConfig(temperature=3.0)).soft_labels
    with torch.no_grad():
        wanted = (teacher.network(chosen.images.float() / 127.5 - 1) / 3.0).softmax(1)
    torch.testing.assert_close(soft.probabilities(torch.arange(20)), wanted, atol=1e-3, rtol=0)


def test_labels_are_the_mean_over_views(teacher, chosen):
    one = label_set(chosen, teacher, LabelConfig()).soft_labels
    many = label_set(chosen, teacher, LabelConfig(mode=PerImage(views=6), min_crop=0.4)).soft_labels
    again = label_set(chosen, teacher, LabelConfig(mode=PerImage(views=6), min_crop=0.4)).soft_labels
    other = label_set(chosen, teacher, LabelConfig(mode=PerImage(views=6), min_crop=0.4), seed=1).soft_labels
    assert torch.equal(many.values, again.values)
    assert not torch.equal(many.values, other.values)
    assert not torch.equal(many.values, one.values)
    every = torch.arange(20)  # crops make the teacher less sure
    assert (many.probabilities(every).amax(1).mean() < one.probabilities(every).amax(1).mean()).item()


def test_every_decoded_view_gets_its_label(teacher, chosen):
    packed = replace(chosen, factor=2)
    soft = label_set(packed, teacher).soft_labels
    assert soft.values.shape == (80, 10)
    with torch.no_grad():
        wanted = (teacher.network(packed.split.images.float() / 127.5 - 1) / 4.0).softmax(1)
    torch.testing.assert_close(soft.probabilities(torch.arange(80)), wanted, atol=1e-3, rtol=0)


def test_a_prefix_takes_its_labels_along_and_refuses_those_of_batches(teacher, chosen):
    labelled = label_set(replace(chosen, factor=2), teacher)
    first = labelled.prefix(1)
    index = torch.tensor([8 * c + v for c in range(10) for v in range(4)])
    assert torch.equal(first.soft_labels.values, labelled.soft_labels.values[index])
    with pytest.raises(ArtifactError, match="label the smaller set"):
        label_set(chosen, teacher, LabelConfig(mode=PerView(steps=4, **BATCHES), **VIEWS)).prefix(1)


# the command


@pytest.mark.parametrize("mode", ["per_image", "per_view", "online"])
def test_the_command_keeps_the_images_and_counts_the_bytes(folders, tmp_path, capsys, mode):
    target = tmp_path / "labelled"
    steps = ("--steps", 3) if mode == "per_view" else ()
    assert command(folders, target, "--mode", mode, *steps) == 0
    assert files(target) == files(folders / "set")
    manifest = read_manifest(target)
    size = sum(p.stat().st_size for p in target.glob("soft_labels.*"))
    assert manifest["bytes"]["labels"] == size > 0
    assert manifest["bytes"]["images"] == read_manifest(folders / "set")["bytes"]["images"]
    said = capsys.readouterr().out
    assert f"{size:,} bytes of soft labels beside {manifest['bytes']['images']:,} bytes of images" in said
    assert ("the teacher of" in said) == (mode == "online")
    assert (target / "soft_labels.safetensors").exists() == (mode != "online")
    assert gendistill("verify", target) == 0
    again = SurrogateSet.load(target)
    assert again.soft_labels.mode == mode
    assert again.meta["stages"][-1] == "label"


def test_a_finished_command_does_nothing_again(folders, tmp_path):
    assert command(folders, tmp_path / "a") == 0
    before = (tmp_path / "a" / "stage.json").read_bytes()
    assert command(folders, tmp_path / "a", "--resume_from_checkpoint", "latest") == 0
    assert (tmp_path / "a" / "stage.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top_k", 11], "at most the 10 classes"),
        (["--temperature", 0], "more than 0"),
        (["--cutmix", 1], "expected 0.0: it is used only with mode per_view or mode online"),
        (["--views", 3], "without min_crop and flip"),
        (["--mode", "online", "--top_k", 2], "expected null: it is used only with mode per_image or mode per_view"),
        (["--mode", "per_pixel"], "per_pixel"),
    ],
    ids=str,
)
def test_options_that_cannot_be_met_are_refused(folders, tmp_path, capsys, options, message):
    assert command(folders, tmp_path / "out", *options) == USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_images_is_refused(folders, tmp_path, capsys):
    record = json.loads((folders / "teacher" / "teacher.json").read_text())
    other = tmp_path / "teacher"
    Teacher.from_pretrained(folders / "teacher").save_pretrained(other)
    edit(other / "teacher.json", classes=record["classes"][::-1])
    assert gendistill("label", "--surrogate", folders / "set", "--teacher", other, "--output_dir", tmp_path / "o") == 2
    assert "same order" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "shape", "mode", "gone"])
def test_damaged_labels_are_refused(folders, tmp_path, capsys, damage):
    target = tmp_path / "labelled"
    command(folders, target)
    path, record = target / "soft_labels.safetensors", target / "soft_labels.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        changed = json.loads(record.read_text()) | ({"mode": "per_day"} if damage == "mode" else {"top_k": 4})
        record.write_text(json.dumps(changed))
    assert (
        gendistill("label", "--surrogate", target, "--teacher", folders / "teacher", "--output_dir", tmp_path / "o")
        == 2
    )
    said = capsys.readouterr().err
    assert "soft_labels." in said or "soft labels" in said
    assert "gendistill label" in said
    assert gendistill("verify", target) == 2


# evaluation


@pytest.mark.slow
def test_evaluation_sets_soft_rows_beside_hard_ones_with_baselines_of_the_same_recipe(digits, teacher, chosen):
    sets = [
        label_set(chosen, teacher, LabelConfig(mode=PerView(steps=6, batch_size=16, cutmix=1.0))),
        label_set(chosen, teacher, LabelConfig(mode=Online(batch_size=16, cutmix=1.0))),
        label_set(chosen, teacher, LabelConfig(mode=PerImage(top_k=3))),
    ]
    config = EvaluateConfig(runs=3, steps=6, width=8, labels="soft", describe=False)
    summary = evaluate(digits, sets, config, teacher=teacher)
    rows = {(r["method"], r["space"], r["labels"], r["recipe"], r["set"] is not None): r for r in summary["rows"]}
    beside = {r["method"] for r in summary["rows"] if r["labels"] == "hard" and r["space"] != "equal bytes"}
    assert beside == {"random", "kmeans", "herding", "kcenter", "full"}
    dear = [r for r in summary["rows"] if r["space"] == "equal bytes"]  # one for each number of bytes
    assert len(rows) - 1 == len(summary["rows"]) - len(dear) == 5 + 1 + 3 * 6 + 1
    stored, online = (
        rows["random", None, kind, f"{mode}, T 4, batch 16, CutMix 1", True]
        for kind, mode in (("soft", "per_view"), ("online", "online"))
    )
    assert stored["accuracy"] == online["accuracy"]
    hard = rows["random", None, "hard", None, True]
    assert hard["accuracy"] != stored["accuracy"]
    for row in summary["rows"]:
        plain_random = row["method"] == "random" and row["set"] is None and not row["space"]
        if plain_random or row["method"] == "full":
            assert row["verdict"] == "reference"
        else:
            assert row["ci95_vs_random"] is not None
    assert "per_view, T 4, batch 16, CutMix 1" in table(summary)
    assert [entry["labels"] for entry in summary["scores"] if entry["set"]] == ["hard", "soft", "online", "soft"]
    assert all(entry["lrs"]["score"] is not None for entry in summary["scores"])


@pytest.mark.parametrize("mode", [Online(), PerView(steps=2)])
def test_sets_labelled_in_other_batches_have_baselines_of_their_own(digits, teacher, chosen, mode):
    sizes = (5, 20)
    sets = [label_set(chosen, teacher, LabelConfig(mode=replace(mode, batch_size=size))) for size in sizes]
    config = EvaluateConfig(runs=3, labels="soft", baselines=("random",), baseline_cache=None)
    soft = [row for row in all_entries(digits, sets, config, 0, teacher) if row.recipe]
    assert [row.identity is None for row in soft] == [True, False, True, False]
    batches = [[len(targets.batches(0)[0]) for targets in row.targets] for row in soft]
    assert batches == [[5] * 5, [5], [20] * 5, [20]]
    assert soft[0].recipe == soft[1].recipe != soft[2].recipe == soft[3].recipe


def test_soft_evaluation_is_refused_without_labels_teacher_or_steps(digits, teacher, chosen):
    soft = EvaluateConfig(runs=3, steps=6, labels="soft")
    with pytest.raises(ConfigError, match="no set has soft labels"):
        evaluate(digits, [chosen], soft, teacher=teacher)
    labelled = label_set(chosen, teacher, LabelConfig(mode=PerView(steps=5, batch_size=8)))
    with pytest.raises(ConfigError, match="--teacher"):
        evaluate(digits, [labelled], soft)
    with pytest.raises(ArtifactError, match="soft labels for 5 steps"):
        evaluate(digits, [labelled], soft, teacher=teacher)
    epochs = EvaluateConfig(runs=3, epochs=2, batch_size=16, labels="soft")
    with pytest.raises(ArtifactError, match=r"batch_size is 16.* batches of 8 images.* --batch_size 16 --steps 4"):
        evaluate(digits, [labelled], epochs, teacher=teacher)
    other = train_teacher(digits, TeacherConfig(steps=2, width=16))
    with pytest.raises(ArtifactError, match="expected the same"):
        evaluate(digits, [labelled], soft, teacher=other)


@pytest.mark.slow
def test_weights_survive_labelling_and_count_with_labels_of_images(digits, teacher, chosen, folders, tmp_path):
    weights = torch.tensor([0.5, 1.5]).repeat(10)
    replace(chosen, weights=weights).save(tmp_path / "weighted")
    options = ["--surrogate", tmp_path / "weighted", "--teacher", folders / "teacher", "--output_dir", tmp_path / "out"]
    assert gendistill("label", *options) == 0
    labelled = SurrogateSet.load(tmp_path / "out")
    assert torch.equal(labelled.weights, weights)
    config = EvaluateConfig(runs=3, steps=6, width=8, labels="soft", describe=False)
    rows = evaluate(digits, [labelled, replace(labelled, weights=None)], config, teacher=teacher)["rows"]
    weighted, even = (row["accuracy"] for row in rows if row["set"] and row["labels"] == "soft")
    assert weighted != even


@pytest.mark.slow
@pytest.mark.parametrize("mode", [PerView(steps=6), Online()])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_views_count_as_much_as_what_they_show(mode, cutmix, digits, teacher, chosen):
    mode = replace(mode, cutmix=cutmix, batch_size=6)
    labelled = label_set(chosen, teacher, LabelConfig(mode=mode, min_crop=0.5, flip=True))
    weights = torch.linspace(0.2, 1.8, 20)
    (even,) = soft_entries([(labelled,)], [], teacher)
    (weighted,) = soft_entries([(replace(labelled, weights=weights),)], [], teacher)
    seed = labelled.soft_labels.views.seed
    for step in range(5):
        images, plain = even.targets[0].batches(step)
        same, found = weighted.targets[0].batches(step)
        own = weights[batch_indices(20, 6, step, seed)]
        share = ((found / plain).mean(1) - own) / (own.flip(0) - own)  # of the batch in reverse
        assert torch.equal(images, same)
        torch.testing.assert_close(share, share[:1].expand(6), atol=1e-3, rtol=0)
        assert (abs(share[0]) < 1e-3) if not cutmix else (-1e-3 < share[0] < 1 + 1e-3)
    config = EvaluateConfig(runs=3, steps=6, width=8, labels="soft", describe=False)
    rows = evaluate(digits, [replace(labelled, weights=weights), labelled], config, teacher=teacher)["rows"]
    first, second = (row["accuracy"] for row in rows if row["set"] and row["labels"] != "hard")
    assert first != second


# resume


class Cut(Exception):
    """What stops a labelling in the middle."""


class CutFolder(WorkFolder):
    """Stops at the tenth record."""

    def log(self, record: Mapping[str, object]) -> None:
        super().log(record)
        raise Cut


@pytest.mark.parametrize("mode", [PerView(steps=14, top_k=3, **BATCHES), PerImage(views=3), PerImage(top_k=2)])
def test_a_labelling_cut_short_makes_only_what_is_left(
    mode: PerView | PerImage, teacher: Teacher, digits: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_blocks, "LEAST", 0.0)
    many = distill(digits, "random", 30)
    views = {"min_crop": 0.6} if isinstance(mode, PerView) or mode.views > 1 else {}
    config, log = LabelConfig(mode=mode, **views), tmp_path / "log.jsonl"
    whole = label_set(many, teacher, config).soft_labels
    with pytest.raises(Cut):
        label_set(many, teacher, config, folder=CutFolder(tmp_path, log))
    (store,) = (tmp_path / LABELS).iterdir()
    before = files(store, "*.safetensors")
    assert before
    resumed = label_set(many, teacher, config, folder=WorkFolder(tmp_path, log)).soft_labels
    assert whole is not None
    assert resumed is not None
    assert {name: one.tolist() for name, one in resumed.tensors.items()} == {
        name: one.tolist() for name, one in whole.tensors.items()
    }
    assert files(store, "*.safetensors").items() >= before.items()  # as they were
    kept = [r["resumed_at"] for r in map(json.loads, log.read_text().splitlines()) if "resumed_at" in r]
    assert len(kept) == 1
    assert kept[0] >= 1
    label_set(many, teacher, replace(config, temperature=2.0), folder=WorkFolder(tmp_path, log))
    assert len(list((tmp_path / LABELS).iterdir())) == 2  # labels of other options have blocks of their own
    (damaged,) = list(store.iterdir())[:1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="Delete it and resume"):
        label_set(many, teacher, config, folder=WorkFolder(tmp_path, log))


@pytest.mark.slow
def test_a_killed_labelling_is_resumed(folders: Path, tmp_path: Path) -> None:
    options: tuple[object, ...] = ("--mode", "per_view", "--steps", 1500, "--batch_size", 16, "--min_crop", 0.5)
    words = ("label", folders / "set", "--teacher", folders / "teacher", "--output_dir", tmp_path / "cut", *options)
    process, blocks = start(*words), tmp_path / "cut.partial" / LABELS
    deadline = time.time() + 120
    while process.poll() is None and not list(blocks.glob("*/*.safetensors")) and time.time() < deadline:
        time.sleep(0.005)
    assert process.kill().returncode == -signal.SIGKILL
    resume = ("--resume_from_checkpoint", "latest")
    assert command(folders, tmp_path / "cut", *options) == USAGE  # not without asking for it
    assert command(folders, tmp_path / "cut", *options, "--temperature", 2, *resume) == USAGE
    assert command(folders, tmp_path / "cut", *options, *resume) == 0
    assert command(folders, tmp_path / "whole", *options) == 0
    for pattern in ("soft_labels.*", "train/**/*.png", "CHECKSUMS"):
        assert files(tmp_path / "cut", pattern) == files(tmp_path / "whole", pattern)
    log = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    (kept,) = [r["resumed_at"] for r in log if "resumed_at" in r]
    assert 0 < kept < 1500
    assert not (tmp_path / "cut" / LABELS).exists()
