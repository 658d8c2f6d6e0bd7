"""All stages in miniature, by the command line: contracts, same bytes, kill and resume, refusals."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from gendistill.generator.generator import Generator
from gendistill.surrogate.card.entry import read_evidence
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import TINY, environment, files, gendistill
from tests.processes import start

pytestmark = pytest.mark.slow

MANIFEST_KEYS = {
    "method", "stages", "ipc", "classes", "image_size", "stored_images", "decoded_images", "factor", "bytes", "seed",
    "data", "licence", "seconds", "command", "versions",
}  # fmt: skip
ROW_KEYS = {
    "method", "stage", "ipc", "labels", "augment", "network", "accuracy", "mean", "std", "ci95_vs_random", "verdict",
    "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "tiny"
    assert gendistill("run", "--config", TINY, "--output_dir", out) == 0
    return out


def test_run_folder_keeps_the_contract(run: Path) -> None:
    for name in ("config.yaml", "teacher/teacher.json", "generator/model_index.json", "generator/gendistill.json",
                 "samples/ipc-1", "samples/ipc-2", "refined/ipc-1", "refined/ipc-2", "evaluation/summary.json",
                 "report.html", "log.jsonl"):  # fmt: skip
        assert (run / name).exists(), name
    assert not list(run.rglob("*.partial"))
    assert all(json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())


def test_manifests_say_where_a_set_comes_from(run: Path) -> None:
    manifest = json.loads((run / "refined" / "ipc-2" / "manifest.json").read_text())
    assert manifest.keys() >= MANIFEST_KEYS | {"generator_hash", "teacher_hash"}
    assert manifest["stages"] == ["finetune", "sample", "select", "barycenter"]
    assert manifest["stored_images"] == 20
    assert manifest["w2"]["after"] < manifest["w2"]["before"]
    parts = json.loads((run / "generator" / "stage.json").read_text())["training_seconds"]
    assert parts.keys() == {"base", "minimax"}
    assert manifest["shared_seconds"].keys() == {"generator", "teacher"}
    assert manifest["shared_seconds"]["generator"] == pytest.approx(sum(parts.values()), abs=0.02)
    base = json.loads((run / "samples" / "base" / "ipc-2" / "manifest.json").read_text())
    assert base["shared_seconds"] == {"generator": parts["base"]}  # it needed no minimax phase
    pool = json.loads((run / "samples" / "pool" / "manifest.json").read_text())
    own = json.loads((run / "samples" / "ipc-2" / "manifest.json").read_text())
    assert own["seconds"]["sample"] < pool["seconds"]["sample"] == manifest["seconds"]["sample"]


def test_summary_has_every_row_at_every_ipc(run: Path) -> None:
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    rows = summary["rows"]
    assert all(row.keys() >= ROW_KEYS for row in rows)
    for ipc in (1, 2):
        found = {(r["method"], r["stage"]) for r in rows if r["ipc"] == ipc}
        stages = {("generative", s) for s in ("base", "samples", "select", "refined")}
        assert found == {(method, None) for method in ("random", "kmeans", "herding", "kcenter")} | stages
    assert sum(r["method"] == "full" for r in rows) == 1
    random = [r for r in rows if r["method"] == "random"]
    assert all(len(r["accuracy"]) == 5 and r["ci95_vs_random"] is None for r in random)
    assert all(len(r["accuracy"]) >= 3 for r in rows)
    assert all(0 <= a <= 1 for r in rows for a in r["accuracy"])


@pytest.mark.slow
def test_packed_sets_are_compared_at_their_stored_images_and_their_bytes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "packed"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("refined", "evaluation", "report.html"))
    options = ("--config", TINY, "--refine.pack", 2, "--refine.ipc", 1, "--output_dir", out)
    assert gendistill("run", *options, "--resume_from_checkpoint", "latest") == 0
    assert "ipc-1  a surrogate set, 2x2 images in each file" in capsys.readouterr().out
    rows = json.loads((out / "evaluation" / "summary.json").read_text())["rows"]
    assert {row["ipc"] for row in rows if row["method"] != "full"} == {1, 2}
    (made,) = (row for row in rows if row["stage"] == "refined")
    assert (made["ipc"], made["stored_images"], made["decoded_images"]) == (1, 10, 40)
    assert made["ci95_vs_equal_bytes"] is not None
    assert not any(row["stage"] == "select" for row in rows)  # 4 whole images a class: no other row has as many
    assert gendistill("evaluate", out / "refined" / "ipc-1" / "train", "--output_dir", tmp_path / "files") == 2
    assert f"2x2 images in each, which a plain folder does not say; give the set: {out}" in capsys.readouterr().err


def test_classes_too_small_for_the_atoms_of_packed_sets_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ("--refine.pack", 3, "--sample.pool", 20, "--data.max_per_class", 15, "--dry_run")
    assert gendistill("run", "--config", TINY, *options, "--output_dir", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "refine.ipc 2 with refine.pack 3 refines 18 images a class" in message
    assert "expected at least 18. Lower refine.ipc, or set refine.pack 1, which needs 2." in message


def test_smaller_sets_are_prefixes_of_larger_ones(run: Path) -> None:
    small, large, pool = (SurrogateSet.load(run / "samples" / name) for name in ("ipc-1", "ipc-2", "pool"))
    assert torch.equal(large.prefix(1).images, small.images)
    assert torch.equal(pool.prefix(2).images, large.images)


def test_generator_folder_is_a_pipeline_with_both_weights(run: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(run / "generator")
    tuned, base = (Generator.from_pretrained(run / "generator", variant=v) for v in (None, "base"))
    assert pipeline.unet.config.num_class_embeds == 11
    assert tuned.hash() != base.hash()
    assert tuned.label_map == {str(d): d for d in range(10)}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(run: Path, tmp_path: Path) -> None:
    assert gendistill("run", "--config", TINY, "--output_dir", tmp_path / "again") == 0
    assert files(tmp_path / "again") == files(run)
    weights = "**/*.safetensors"
    assert files(tmp_path / "again", weights) == files(run, weights)
    command = ("sample", "--generator", run / "generator", "--ipc", 2, "--num_inference_steps", 4, "--pool", 0)
    assert gendistill(*command, "--seed", 1, "--output_dir", tmp_path / "other") == 0
    assert files(tmp_path / "other" / "ipc-2") != files(run / "samples" / "ipc-2")


@pytest.mark.parametrize(
    ("file", "step"), [("generator.partial", 6), ("generator.partial", 14), ("refined.partial", 1)]
)
def test_killed_and_resumed_run_ends_with_the_same_bytes(run: Path, tmp_path: Path, file: str, step: int) -> None:
    out = tmp_path / "killed"
    arguments = ("run", "--config", TINY, "--output_dir", out)
    process = start(*arguments)
    steps = step if file.startswith("generator") else 0
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        log = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
        trained = sum('"finetune"' in line for line in log)
        saved = len(list(out.glob("generator.partial/checkpoints/*/step-*")))
        if (out / file).is_dir() and (not steps or saved >= steps // 4 or trained > 1):
            break
        time.sleep(0.005)
    process.kill()
    assert not (out / "evaluation").exists()
    before = {p: p.stat().st_mtime_ns for p in out.glob("teacher/*")}
    assert gendistill(*arguments) == 2  # not without being told to
    assert gendistill(*arguments, "--resume_from_checkpoint", "latest") == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert files(out) == files(run)
    for name in ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.base.safetensors"):
        one, other = (load_file(f / "generator" / name) for f in (out, run))
        assert all(torch.equal(one[k], other[k]) for k in other)


@pytest.mark.usefixtures("short_reference")
def test_each_stage_alone_gives_what_the_run_gave(run: Path, tmp_path: Path) -> None:
    common = ("--config", TINY)
    assert gendistill("teacher", *common, "--output_dir", tmp_path / "teacher") == 0
    assert gendistill("finetune", *common, "--output_dir", tmp_path / "generator") == 0
    assert (
        gendistill("sample", *common, "--generator", tmp_path / "generator", "--output_dir", tmp_path / "samples") == 0
    )
    assert gendistill(
        "refine", *common, "--surrogate", tmp_path / "samples" / "pool", "--teacher", tmp_path / "teacher",
        "--output_dir", tmp_path / "refined",
    ) == 0  # fmt: skip
    for stage in ("samples", "refined"):
        assert files(tmp_path / stage, "**/train/*/*.png") == files(run / stage, "**/train/*/*.png") != {}
    assert gendistill(
        "evaluate", *common, "--surrogate", tmp_path / "refined" / "ipc-2", "--output_dir", tmp_path / "evaluation"
    ) == 0  # fmt: skip
    alone = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["rows"]
    whole = json.loads((run / "evaluation" / "summary.json").read_text())["rows"]
    key = ("method", "stage", "ipc", "space")
    by_key = {tuple(r[k] for k in key): r["accuracy"] for r in whole}
    shared = [r for r in alone if tuple(r[k] for k in key) in by_key]  # herding on pixels needs no teacher
    assert {r["method"] for r in shared} == {"random", "kmeans", "generative", "full"}
    assert all(by_key[tuple(r[k] for k in key)] == r["accuracy"] for r in shared)
    assert gendistill("report", "--run", run) == 0


def test_output_folders_are_not_overwritten_by_accident(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = files(run, "**/*")
    assert gendistill("run", "--config", TINY, "--output_dir", run) == 2
    assert "not empty" in capsys.readouterr().err
    assert (
        gendistill("run", "--config", TINY, "--output_dir", run, "--resume_from_checkpoint", "latest", "--seed", 3) == 2
    )
    assert "seed: 0 there, 3 now" in capsys.readouterr().err
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.txt").write_text("mine")
    assert gendistill("run", "--config", TINY, "--output_dir", foreign, "--overwrite") == 2
    assert "Delete it yourself" in capsys.readouterr().err
    (foreign / "config.yaml").write_text("lr: 1\n")  # other tools write such a file too
    assert gendistill("run", "--config", TINY, "--output_dir", foreign, "--overwrite") == 2
    assert files(run, "**/*") == before
    assert (foreign / "photo.txt").read_text() == "mine"


def test_overwrite_gives_the_old_folder_back_when_the_command_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "old"
    command = ("distill", "--method", "random", "--ipc", 2, "--output_dir", out)
    assert gendistill(*command) == 0
    before = files(out, "**/*")
    assert gendistill(*command, "--data.name", "/no/such/folder", "--overwrite") == 2
    assert files(out, "**/*") == before
    assert gendistill(*command, "--seed", 1, "--overwrite") == 0
    assert files(out) != {k: v for k, v in before.items() if k.endswith("png")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]


def test_a_folder_that_holds_the_input_is_no_output(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = files(run, "**/*")
    for target in (run, run / "generator"):
        command = ("sample", "--generator", run / "generator", "--output_dir", target, "--overwrite")
        assert gendistill(*command) == 2
        assert "holds the input" in capsys.readouterr().err
    assert gendistill("teacher", "--config", TINY, "--output_dir", run, "--resume_from_checkpoint", "latest") == 2
    assert files(run, "**/*") == before


def test_results_take_no_output_folder_in(run: Path, capsys: pytest.CaptureFixture) -> None:
    generator, made = run / "generator", run / "samples" / "ipc-1"
    before = files(run, "**/*")
    for command, folder in (
        (("sample", "--generator", generator), generator),
        (("export", generator, "--format", "diffusers"), generator),
        (("export", made, "--format", "parquet"), made),
    ):
        assert gendistill(*command, "--output_dir", folder / "new") == 2
        assert f"{folder / 'new'} lies in" in capsys.readouterr().err
    assert files(run, "**/*") == before


def test_sets_and_teachers_of_other_splits_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Their training images may be this split's test images."""
    other = ("--config", TINY, "--data.split_seed", 1)
    assert gendistill("distill", *other, "--ipc", 1, "--output_dir", tmp_path / "set") == 0
    assert gendistill("teacher", *other, "--output_dir", tmp_path / "teacher") == 0
    for arguments in (
        ("--surrogate", tmp_path / "set" / "ipc-1"),
        ("--surrogate", run / "samples" / "ipc-1", "--teacher", tmp_path / "teacher"),
    ):
        assert gendistill("evaluate", "--config", TINY, *arguments, "--output_dir", tmp_path / "out") == 2
        assert "test images may be among them" in capsys.readouterr().err


def test_evaluation_goes_on_from_its_last_training(run: Path, tmp_path: Path) -> None:
    out, surrogate = tmp_path / "evaluation", run / "refined" / "ipc-2"
    arguments = ("evaluate", "--config", TINY, "--surrogate", surrogate, "--steps", 60, "--output_dir", out)
    arguments += ("--describe", "false")
    process = start(*arguments)
    finished = tmp_path / "evaluation.partial" / "runs.jsonl"
    while process.poll() is None and not (finished.exists() and len(finished.read_text().splitlines()) > 4):
        time.sleep(0.005)
    process.kill()
    kept = [json.loads(line) for line in finished.read_text().splitlines()[:4]]
    known = {"accuracy": 0.125, "correct": 10 * [1], "ece": 0.5, "seconds": 1.0}
    older = json.dumps([kept[0][0], 0.75]) + "\n"  # an accuracy alone, as older versions wrote, counts for nothing
    finished.write_text("".join(json.dumps([key, known]) + "\n" for key, _ in kept) + older + '["cut off')
    assert gendistill(*arguments, "--resume_from_checkpoint", "latest") == 0
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert [a == 0.125 for a in rows[0]["accuracy"]] == [True] * 4 + [False]  # taken over, not trained again
    assert [e == 0.5 for e in rows[0]["ece"]] == [True] * 4 + [False]
    assert not (out / "runs.jsonl").exists()


def test_resuming_a_finished_run_does_nothing_twice(run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("stage.json")}
    assert gendistill("run", "--config", TINY, "--output_dir", run, "--resume_from_checkpoint", "latest") == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("stage.json")} == before


def test_a_refinement_toward_other_images_is_not_taken_for_this_one(run: Path, tmp_path: Path, capsys) -> None:
    few = ("--data.name", "digits", "--data.max_per_class", 30)
    words = ("--surrogate", run / "samples" / "pool", "--teacher", run / "teacher", "--ipc", 1, "--steps", 1)
    out = ("--validate", "false", "--output_dir", tmp_path / "refined")
    assert gendistill("refine", *words, *out) == 0
    record = tmp_path / "refined" / "stage.json"
    made = json.loads(record.read_text(encoding="utf-8"))
    del made["settings"]["inputs"]["data"]  # as older versions wrote it: taken for a refinement toward any
    for known in (True, False):
        capsys.readouterr()
        again = gendistill("refine", *words, *few, *out, "--resume_from_checkpoint", "latest")
        said = capsys.readouterr().err
        assert (again == 2) == known
        assert ("made with other settings (inputs.data: " in said) == known
        record.write_text(json.dumps(made), encoding="utf-8")


def test_a_run_of_an_older_version_without_todays_options_is_found_finished(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "older"
    shutil.copytree(run, out)
    record = json.loads((out / "refined" / "stage.json").read_text())
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert record["settings"]["options"].pop("refiner") == config["refine"].pop("refiner") == "barycenter"
    (out / "refined" / "stage.json").write_text(json.dumps(record))
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    before = (out / "refined" / "stage.json").stat().st_mtime_ns
    assert gendistill("run", "--config", TINY, "--output_dir", out, "--resume_from_checkpoint", "latest") == 0
    assert (out / "refined" / "stage.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "options", [("--finetune.minimax_steps", 0), ("--finetune.max_minutes", 1e-9)], ids=["no criteria", "no time"]
)
def test_a_generator_without_a_minimax_phase_has_no_rows_of_before_it(
    options: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    quick = ("--evaluate.describe", "false", "--evaluate.baseline_cache", "null", "--refine.steps", 1)
    assert gendistill("run", "--config", TINY, *options, *quick, "--output_dir", out) == 0
    rows = json.loads((out / "evaluation" / "summary.json").read_text())["rows"]
    assert {row["stage"] for row in rows if row["method"] == "generative"} == {"samples", "select", "refined"}
    assert (out / "report.html").is_file()


def test_interrupt_exits_with_130_and_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = start("finetune", "--config", TINY, "--base_steps", 5000, "--output_dir", out)
    while process.poll() is None and not list(tmp_path.glob("stopped.partial/checkpoints/base/step-*")):
        time.sleep(0.05)
    ended = process.kill(signal.SIGINT)
    assert ended.returncode == 130
    assert "--resume_from_checkpoint latest" in ended.stderr
    assert list(tmp_path.glob("stopped.partial/checkpoints/base/step-*/state.safetensors"))
    assert environment()["HF_HUB_OFFLINE"] == "1"


def test_every_card_of_a_run_has_its_rows_and_its_copy_check(run: Path) -> None:
    for path in (run / "refined" / "ipc-2", run / "samples" / "base" / "ipc-1"):
        card, evidence = (path / "README.md").read_text(), read_evidence(path)
        own = [row for row in evidence["evaluation"]["rows"] if row["set"]]
        assert [row["set"] for row in own] == [SurrogateSet.load(path).content_hash()]
        assert f"{100 * own[0]['mean']:.1f} ± {100 * own[0]['std']:.1f}" in card
        assert evidence["copies"]["exact"] == {"train": 0, "validation": 0, "test": 0}
        assert "closest_pairs.png" in card
        assert (path / "closest_pairs.png").is_file()
        assert gendistill("verify", path) == 0
