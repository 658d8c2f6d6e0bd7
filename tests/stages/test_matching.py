"""The matching methods from the command line, on digits: the contract that every distiller keeps."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from gendistill import cpu_speed
from gendistill.config import DataConfig, DistillConfig, MatchingConfig, Representative, to_dict
from gendistill.config.flat import unflatten
from gendistill.data.dataset import RealData
from gendistill.data.sources import load_data
from gendistill.distillers import distill
from gendistill.errors import ConfigError
from gendistill.evaluation.inputs import facts
from gendistill.matching.build import build, classes_together
from gendistill.matching.distiller import match, save_whole
from gendistill.matching.engine import PARTS
from gendistill.matching.methods import Images, image_rate, plan_runs
from gendistill.registry import DISTILLERS
from gendistill.runtime import Checkpoints, device
from gendistill.stages.folder import StageFolder
from gendistill.surrogate.multi_formation import tiled
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import gendistill, messages
from tests.processes import start

METHODS = [name for name in DISTILLERS.names() if "matching" in DISTILLERS[name].sections]
SELECTIONS = ("random", "representative")
SMALL = ("--data.max_per_class", 20, "--matching.width", 8, "--matching.real_batch", 6)
LEARN = ("--matching.train_steps", 1, "--matching.train_batch", 16)
SHORT = {
    **dict.fromkeys(("dc", "dsa", "idc", "dream"), (*LEARN, "--matching.inner_steps", 2)),
    "dm": (),
    "idm": LEARN,
    "cf": ("--matching.pool_steps", 2, "--matching.pool_size", 2, "--matching.frequencies", 8),
}


BATCH_NORM = ("--matching.network", "timm:resnet10t", "--method")
DREAM = ("--selection", "representative", "--method")


def distil(method, selection, target, *more, iterations=3):
    options = ("--selection", selection, "--iterations", iterations, *SMALL, *SHORT.get(method, ()), *more)
    return gendistill("distill", "--method", method, *options, "--output_dir", target)


@pytest.mark.slow
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_selection_gives_sets_that_verify(method, selection, tmp_path, capsys):
    target = tmp_path / "out"
    assert distil(method, selection, target, "--ipc", "[1,2]", "--matching.start", "clustered", iterations=2) == 0
    assert gendistill("verify", target / "ipc-1", target / "ipc-2") == 0
    for ipc in (1, 2):
        made = SurrogateSet.load(target / f"ipc-{ipc}")
        assert made.ipc == ipc
        assert made.meta["method"] == method
        assert made.meta["space"] == (selection if selection == "representative" else None)
        assert made.factor == (2 if method in ("idc", "dream", "idm", "cf") else 1)
        assert made.split.images.shape[0] == 10 * ipc * made.factor**2
        assert made.images.float().std() > 1
    assert not list(target.rglob("*.safetensors"))  # checkpoints are temporary


@pytest.mark.slow
@pytest.mark.parametrize("method", ["idc", "dm"])
def test_views_of_several_factors_are_matched_saved_and_judged(method, tmp_path, capsys):
    target = tmp_path / "out"
    assert distil(method, "random", target, "--ipc", 2, "--matching.factor", "[2,1]") == 0
    made = SurrogateSet.load(target / "ipc-2")
    assert (made.factor, len(made.split)) == ((1, 2), 100)
    options = (*SMALL[:2], "--runs", 3, "--steps", 4, "--width", 8, "--baselines", '["random"]', "--describe", "false")
    assert gendistill("evaluate", "--surrogate", target / "ipc-2", *options, "--output_dir", tmp_path / "eval") == 0
    rows = json.loads((tmp_path / "eval" / "summary.json").read_text())["rows"]
    assert [r["decoded_images"] for r in rows if r["set"]] == [100]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [None, 3])
def test_classes_of_a_pass_reach_the_objective(method, given, digits):
    config = DistillConfig(method=method, ipc=1, matching=MatchingConfig(width=8, classes_per_chunk=given))
    (run,) = plan_runs(config, digits)
    default = classes_together(device(), run.config.real_batch, 8) if method in ("dc", "dsa", "idc", "dream") else None
    assert build(digits, run, seed=0).objective.classes_per_chunk == (given or default)


def test_a_gpu_takes_fewer_classes_together_the_larger_their_images_are():
    gpu = torch.device("cuda")
    assert [classes_together(gpu, 128, side) for side in (8, 32, 64, 224)] == [10, 10, 2, 1]
    assert classes_together(torch.device("cpu"), 128, 32) == 1


def test_snapshots_are_sets_with_their_iteration(tmp_path):
    target = tmp_path / "out"
    assert distil("dm", "random", target, "--ipc", 1, "--matching.snapshot_every", 1) == 0
    for iteration in (0, 1, 2):
        found = SurrogateSet.load(target / "snapshots" / f"iteration-{iteration:06d}" / "ipc-1")
        assert found.meta["iterations"] == iteration
        seconds = found.meta["seconds"]
        assert seconds["distill"] == pytest.approx(sum(seconds[part] for part in PARTS), abs=0.03)


def test_every_snapshot_and_the_finished_set_have_a_picture(tmp_path):
    target = tmp_path / "out"
    assert distil("idm", "random", target, "--ipc", "[1,2]", "--matching.snapshot_every", 2) == 0
    for ipc in (1, 2):
        drawn = {path.stem: Image.open(path) for path in (target / "previews" / f"ipc-{ipc}").iterdir()}
        assert sorted(drawn) == [f"iteration-{iteration:06d}" for iteration in (0, 2, 3)]
        assert len({one.size for one in drawn.values()}) == 1
        places = [np.asarray(drawn[name])[40:] for name in sorted(drawn)]  # below the title, which has the iteration
        assert all((a != b).any() for a, b in pairwise(places))


def test_a_snapshot_that_a_kill_left_in_part_is_made_again(tmp_path, digits):
    made, target = distill(digits, "random", 1), tmp_path / "iteration-000001" / "ipc-1"
    rest = target.with_name("ipc-1.partial") / "train"
    rest.mkdir(parents=True)
    (rest / "other.png").write_bytes(b"")
    save_whole(made, target)
    assert SurrogateSet.load(target).content_hash() == made.content_hash()
    assert not rest.exists()


def test_the_licence_of_a_start_goes_with_the_set(digits):
    given = distill(digits, "random", 1)
    given.meta["licence"] = "CC-BY-NC-4.0"
    config = MatchingConfig(width=8, real_batch=6)
    (run,) = plan_runs(DistillConfig(method="dm", ipc=1, iterations=1, matching=config), digits)
    (made,) = match(digits, run, seed=0, given=given)
    assert made.meta["licence"] == "CC-BY-NC-4.0"
    assert made.meta["start"] == given.content_hash()


def test_the_time_of_the_set_that_matching_started_from_is_counted(digits, tmp_path):
    given = distill(digits, "random", 1)
    given.meta["stages"], given.meta["seconds"] = ["sample", "select"], {"sample": 90.0, "select": 4.0, "label": 7.0}
    given.meta["shared_seconds"] = {"generator": 2200.0, "teacher": 33.0, "label_teacher": 30.0}
    given.save(tmp_path / "start")
    options = ("--matching.start", tmp_path / "start", "--ipc", 1, "--iterations", 1)
    whole = ("--method", "dm", "--matching.width", 8, "--matching.real_batch", 6)  # of digits, as the start is
    assert gendistill("distill", *whole, *options, "--output_dir", tmp_path / "out") == 0
    made = SurrogateSet.load(tmp_path / "out" / "ipc-1")
    shared = {"generator": 2200.0, "teacher": 33.0, "start_set": 94.0}
    assert made.meta["shared_seconds"] == shared
    matching = MatchingConfig(width=8, real_batch=6, start=tmp_path / "out" / "ipc-1")
    again = distill(digits, "dm", 1, config=DistillConfig(method="dm", ipc=1, iterations=1, matching=matching))
    total = round(94.0 + made.meta["seconds"]["distill"], 2)
    assert again.meta["shared_seconds"] == {**shared, "start_set": pytest.approx(total)}
    found = facts([again], labels=True)
    assert found["shared_seconds"]["start_set"] == pytest.approx(total)
    assert found["synthesis_seconds"] == pytest.approx(2233 + total + again.meta["seconds"]["distill"], abs=0.02)


@pytest.mark.slow
def test_the_manifest_tells_what_every_option_came_to(tmp_path):
    target = tmp_path / "out"
    assert distil("idc", "random", target, "--ipc", "[1,2]") == 0
    for ipc in (1, 2):
        told = json.loads((target / f"ipc-{ipc}" / "manifest.json").read_text())["matching"]
        assert (told["distance"], told["learning_rate"], told["real_batch"]) == ("l1", 1e-4, 6)
        beside = {"checkpoint_every", "snapshot_every", "selection"}  # decide nothing; and the manifest's space
        assert set(told) == {"image_rate", *to_dict(MatchingConfig())} - beside
        unused = {"frequencies", "amplitude_weight", "pool_size", "pool_steps"}  # of method cf
        assert {name for name, value in told.items() if value is None} == {"depth", "classes_per_chunk", *unused}
        assert told["image_rate"] == image_rate(
            "idc", MatchingConfig(learning_rate=1e-4), ipc, Images(1, 8, 10, name="digits")
        )


def test_images_that_are_no_longer_numbers_are_refused(tmp_path, capsys):
    assert distil("dm", "random", tmp_path / "out", "--ipc", 1, "--matching.learning_rate", 1e37) == 2
    assert "Lower --matching.learning_rate (1e+37)" in capsys.readouterr().err


@pytest.mark.slow
def test_another_set_is_carried_on_by_matching(tmp_path):
    assert (
        gendistill(
            "distill", "--method", "kmeans", "--ipc", 4, "--data.max_per_class", 20, "--output_dir", tmp_path / "k"
        )
        == 0
    )
    given = SurrogateSet.load(tmp_path / "k" / "ipc-4").images
    begun = {("dm", 4): given, ("idc", 1): tiled(given, 2)}
    for (method, ipc), images in begun.items():
        target, options = tmp_path / method, ("--matching.start", tmp_path / "k" / "ipc-4", "--ipc", ipc)
        options = (*options, "--matching.snapshot_every", 1, "--matching.learning_rate", 0.1)
        assert distil(method, "random", target, *options) == 0
        places = [target / "snapshots" / "iteration-000000" / f"ipc-{ipc}", target / f"ipc-{ipc}"]
        first, last = (SurrogateSet.load(place).images for place in places)
        assert torch.equal(first, images)
        assert not torch.equal(last, images)


def test_a_start_whose_weights_would_be_lost_or_that_is_too_small_is_refused(tmp_path, capsys):
    made = distill(load_data(DataConfig(name="digits", max_per_class=20)), "random", 2)
    made.save(tmp_path / "plain")
    replace(made, weights=torch.full((len(made.labels),), 0.5)).save(tmp_path / "weighted")
    for name, ipc, words in (
        ("weighted", 2, "has weights of its images"),
        ("plain", 3, "ipc is 3, but class '0' has 2 images"),
    ):
        assert distil("dm", "random", tmp_path / "out", "--ipc", ipc, "--matching.start", tmp_path / name) == 2
        assert words in capsys.readouterr().err


def test_what_is_decided_for_a_size_is_decided_for_it_alone(digits, monkeypatch):
    """Whether a size is compiled does not depend on the others that are asked for."""
    monkeypatch.setattr("gendistill.runtime.native_bf16", lambda device: True)
    monkeypatch.setattr("gendistill.runtime._has_compiler", lambda: True)
    for method in ("dc", "idm"):
        together = plan_runs(DistillConfig(method=method, ipc=[1, 10], iterations=20), digits)
        for ipc, run in zip((1, 10), together, strict=True):
            (alone,) = plan_runs(DistillConfig(method=method, ipc=ipc, iterations=20), digits)
            assert (alone.fast, alone.ipcs) == (run.fast, run.ipcs)


def test_little_is_lost_where_a_checkpoint_is_far_away(tmp_path, monkeypatch):
    monkeypatch.setattr("gendistill.runtime.MOST_LOST", 0.0)
    saved = []
    keep = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: (saved.append(step), keep(self, step, state)))
    assert distil("dm", "random", tmp_path / "out", "--iterations", 4, "--ipc", 1) == 0
    assert saved == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--matching.train_on", "real", "--method", "idm"),
            "train_on is 'real'; expected null with method idm: Fresh",
        ),
        (("--method", "dm", "--matching.class_aware", 5), "class_aware is 5.0; expected null with method dm"),
        (("--method", "idm", "--matching.distance", "l1"), "an option of dc, dsa, idc, dream"),
        (
            ("--method", "dm", "--matching.learning_rate", 0),
            "learning_rate is 0; expected null or a number more than 0",
        ),
        (("--method", "dm", "--matching.factor", 9), "factor"),
        (("--method", "dm", "--matching.factor", "[1,9]"), "factor"),
        (("--method", "dm", "--matching.factor", "[2,2]"), "different ones such as [1,2]"),
        ((*DREAM, "dm", "--matching.candidates", 20), "at least real_batch = 2"),
        ((*DREAM, "dm", "--matching.real_batch", 64, "--matching.per_cluster", 3), "a divisor of 64"),
        (
            (*DREAM, "dm", "--matching.real_batch", 128),
            "real_batch is 128; expected below 123, the images of the largest",
        ),
        (
            ("--method", "dm", "--matching.network", "resnet10", "--matching.width", 32),
            "width is 32; expected 128 with",
        ),
        (("--method", "dm", "--matching.network", "resnet10", "--matching.depth", 3), "depth is 3; expected null with"),
        (
            ("--method", "dm", "--matching.inner_steps", 3, "--matching.train_on", "real"),
            "train_steps is 0; expected at least 1, or no network would learn",
        ),
        (("--method", "idm", "--matching.train_steps", 0), "train_steps is 0; expected at least 1"),
        (("--method", "dm", "--wmdd.start", "real"), "'wmdd.start'; expected none of them with method dm"),
        (
            ("--method", "idc", "--matching.network", "timm:mobilenetv3_small_050", "--iterations", 1),
            "derivative for aten::hardsigmoid_backward is not implemented",
        ),
        (("--method", "dm", "--matching.start", "clustered", "--ipc", 200), "starts from 200 images of every class"),
        (("--method", "dc", "--matching.flip", "true"), "flip is True; expected False with matching.augmentation none"),
        (
            ("--method", "dm", "--matching.train_on", "real"),
            "train_on is 'real'; expected null with matching.inner_steps",
        ),
        (
            ("--method", "dm", "--matching.train_steps", 5),
            "train_steps is 5; expected null with matching.train_on none",
        ),
        (("--method", "dm", "--matching.train_batch", 9), "train_batch is 9"),
        (("--method", "dm", "--matching.cutmix", 0.3), "cutmix is 0.3"),
        (
            ("--method", "idc", "--matching.train_steps", 0, "--matching.cutmix", 0.9),
            "cutmix is 0.9; expected null with matching.train_steps 0",
        ),
        (
            ("--matching.network", "resnet10_bn", "--method", "dm", "--matching.classes_per_chunk", 4),
            "which sees one class at a time",
        ),
        (
            ("--method", "dm", "--matching.network", "foo", "--matching.width", 8),
            "network is 'foo'; expected one of",
        ),
        (("--method", "dsa", "--ipc", "[1,9]", "--matching.train_steps", 5), "between two inner steps"),
        (("--method", "idm", "--matching.warm_steps", 5), "warm_steps is 5; expected null with method idm"),
        (
            ("--method", "idc", "--matching.interval", 5),
            "interval is 5; expected null: it is used only with selection r",
        ),
        (("--method", "idc", "--matching.candidates", 5000), "it is used only with selection representative"),
        (
            ("--method", "idc", "--matching.queue_size", 5),
            "queue_size is 5; expected null with method idc: Queue",
        ),
        (
            ("--method", "dc", "--matching.distance", "l1", "--matching.class_aware", 5),
            "class_aware is 5; expected null: it is used only with objective features",
        ),
        (("--method", "idm", "--matching.inner_steps", 2), "inner_steps is 2; expected 1 with a queue"),
        (
            ("--method", "kmeans", "--selection", "representative"),
            "'selection'; expected none of them with method kmeans",
        ),
        (("--method", "wmdd", "--iterations", 7, "--matching.factor", 3), "'matching.factor, iterations'"),
        (("--method", "dm", "--ipc", 50, "--data.max_per_class", 20), "lower ipc or factor"),
        (
            ("--method", "dm", "--matching.start", "clusterd"),
            "'clusterd', which is no folder; expected noise, random, clustered",
        ),
        (("--method", "idc", "--teacher", "somewhere"), "teacher"),
        ((*BATCH_NORM, "dm", "--ipc", 1), "statistics of 1 view of a class (ipc x factor^2)"),
        ((*BATCH_NORM, "idc", "--ipc", 1, "--matching.real_batch", 1), "statistics of 1 real image"),
    ],
)
def test_what_cannot_work_is_refused_in_words(options, words, tmp_path, capsys):
    assert gendistill("distill", *options, "--output_dir", tmp_path / "out") == 2
    (message,) = messages(capsys.readouterr().err)
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "ipc", "selection", "given"),
    [
        ("dsa", (1, 10), "random", {"train_steps": 5}),  # of use at IPC 10
        ("dc", 1, "random", {"train_on": "surrogate", "train_batch": 256}),  # what it would be anyway
        ("idc", 1, "representative", {"interval": 5, "dimensions": 16, "flip": True, "cutmix": 0.1}),
        ("dm", 1, "random", {"warm_steps": 5, "train_batch": 9}),
        ("idm", 1, "random", {"train_steps": 5, "train_batch": 9, "flip": True}),
    ],
)
def test_options_of_use_are_taken(method, ipc, selection, given, digits):
    flat = {"method": method, "ipc": ipc, "selection": selection, "matching": given}
    assert plan_runs(unflatten(DistillConfig, flat), digits)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "iterations"), [("idc", 6), ("idm", 12)])
def test_a_killed_run_goes_on_to_the_same_bytes(method, iterations, tmp_path):
    def command(target, every=2):
        options = ["--method", method, "--selection", "representative", "--ipc", 1, "--iterations", iterations, *SMALL]
        return ["distill", *options, "--matching.checkpoint_every", every, *SHORT[method], "--output_dir", target]

    assert gendistill(*command(tmp_path / "whole")) == 0
    killed, folder = start(*command(tmp_path / "cut")), tmp_path / "cut.partial" / "checkpoints"
    while killed.poll() is None and not list(folder.rglob("state.safetensors")):
        time.sleep(0.01)
    killed.kill()
    assert list(folder.rglob("state.safetensors"))
    assert gendistill(*command(tmp_path / "cut", every=3), "--resume_from_checkpoint", "latest") == 0
    hashes = {SurrogateSet.load(tmp_path / name / "ipc-1").content_hash() for name in ("whole", "cut")}
    assert len(hashes) == 1
    assert json.loads((tmp_path / "cut" / "stage.json").read_text())["resumed"]


def test_a_run_of_dream_starts_from_clusters(digits):
    (run,) = plan_runs(DistillConfig(method="dc", ipc=1, matching=MatchingConfig(selection=Representative())), digits)
    assert run.config.start == "clustered"


@pytest.mark.slow
def test_one_loss_a_set_is_logged(tmp_path):
    assert distil("dm", "random", tmp_path / "out", "--ipc", "[1,2]") == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {"loss ipc 1", "loss ipc 2"} <= set(records[-1])
    assert distil("dc", "random", tmp_path / "alone", "--ipc", "[1,2]") == 0  # networks learn from each set itself
    records = [json.loads(line) for line in (tmp_path / "alone" / "log.jsonl").read_text().splitlines()]
    assert [r["ipc"] for r in records if r.get("iteration") == 2] == [[1], [2]]


def test_a_resumed_run_says_in_its_log_where_it_took_over(digits, tmp_path):
    config = MatchingConfig(width=4, real_batch=4, checkpoint_every=12)
    (run,) = plan_runs(DistillConfig(method="dm", ipc=1, iterations=25, matching=config), digits)

    class Cut(Exception):
        pass

    class Cutting(StageFolder):
        def log(self, record):
            super().log(record)
            if record.get("iteration") == 19:
                raise Cut

    where = tmp_path, tmp_path / "log.jsonl"
    with pytest.raises(Cut):
        match(digits, run, seed=0, folder=Cutting(*where))
    match(digits, run, seed=0, folder=StageFolder(*where))
    records = [json.loads(line) for line in where[1].read_text().splitlines()]
    (taken,) = [place for place, record in enumerate(records) if "resumed_at" in record]
    assert (records[taken]["resumed_at"], records[taken]["ipc"]) == (12, [1])
    assert [r["iteration"] for r in records[:taken]] == [9, 19]
    assert [r["iteration"] for r in records[taken + 1 :]] == [19, 24]


@pytest.mark.slow
def test_learning_lowers_the_distance_that_it_descends(tmp_path):
    """DM on digits from noise: the images' mean features come nearer to those of real ones."""
    target = tmp_path / "out"
    options = ("--data.max_per_class", 40, "--matching.width", 16, "--matching.augmentation", "none", "--ipc", 2)
    assert gendistill(
        "distill", "--method", "dm", *options, "--iterations", 60, "--matching.start", "noise", "--output_dir", target
    ) == 0  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (target / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]


def test_a_matching_method_is_run_from_python(digits):
    options = MatchingConfig(width=8, real_batch=6)
    config = DistillConfig(method="dm", iterations=1, matching=options)
    assert distill(digits, "dm", 1, config=config).meta["method"] == "dm"


def test_a_refusal_needs_no_measurement_of_the_machine(digits: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published length of dm is long enough for one, which would take a minute before the message."""
    monkeypatch.setattr(cpu_speed, "measured", lambda: pytest.fail("measured"))
    with pytest.raises(ConfigError, match="starts from 200 images"):
        distill(digits, "dm", 200, options=MatchingConfig(start="clustered"))
