"""Two processes on CPU (gloo) make what one makes; a wrong number of them is refused, and failures are said once."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gendistill.seeding import numpy_rng
from tests.generator.pretrained import IMAGE_SIZE, dit_folder
from tests.helpers import TINY, files, gendistill, messages
from tests.networks.shared_training import trained
from tests.processes import Ended, launch, run_python

pytestmark = pytest.mark.slow


FINETUNE = """
import sys
from gendistill.cli import main
if code := main(["finetune", *sys.argv[1:]]):
    sys.exit(code)
"""


def torchrun(folder: Path, *arguments: object) -> Ended:
    """By torchrun itself, which forks the processes instead of starting interpreters."""
    (folder / "finetune.py").write_text(FINETUNE)
    forked = ("--nproc_per_node", 2, "--start_method", "fork", "--run_path", folder / "finetune.py")
    words = [str(word) for word in (*forked, *arguments)]
    return run_python(f"from torch.distributed.run import main; main({words})", OMP_NUM_THREADS=1)


def test_two_processes_train_the_generator_of_one(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "--config", TINY, "--num_processes", 2, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "stage.json").read_text())["processes"] == 2
    assert gendistill("finetune", "--config", TINY, "--output_dir", tmp_path / "one") == 0
    two, one = (load_file(tmp_path / n / "unet" / "diffusion_pytorch_model.safetensors") for n in ("two", "one"))
    gap = max((two[k] - one[k]).abs().max().item() for k in one)
    assert gap < 1e-4  # the same global batches; sums in another order
    moved = load_file(tmp_path / "one" / "unet" / "diffusion_pytorch_model.base.safetensors")
    assert any(not torch.equal(moved[k], one[k]) for k in one)


def test_a_world_of_another_size_than_asked_for_is_refused(tmp_path: Path) -> None:
    (done,) = launch(("finetune", "--config", TINY, "--num_processes", 3, "--output_dir", tmp_path / "three"))
    assert done.returncode == 2
    assert "num_processes is 3 but 2 run" in done.stderr
    assert not (tmp_path / "three").exists()
    assert gendistill("finetune", "--config", TINY, "--num_processes", 2, "--output_dir", tmp_path / "x") == 2


def test_two_processes_fine_tune_a_pretrained_model_as_one(tmp_path: Path) -> None:
    """In latents that the main process encodes for both; memories kept apart give other weights."""
    for name in ("tench", "church", "parachute"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            pixels = numpy_rng(0, name, i).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    script: tuple[object, ...] = (
        "finetune", "--pretrained", dit_folder(tmp_path / "DiT"), "--data.name", tmp_path / "data",
        "--adaptation", "difffit", "--minimax_steps", 6, "--batch_size", 12, "--checkpointing_steps", 2,
        "--flip", "true", "--minimax.diversity", 10, "--minimax.min_alpha_bar", 0, "--label_dropout", 0,
    )  # fmt: skip
    two = (*script, "--num_processes", 2)
    together, apart = launch(
        (*two, "--latent_cache", tmp_path / "cache", "--output_dir", tmp_path / "two"),
        (*two, "--minimax.share_memory", "false", "--output_dir", tmp_path / "apart"),
    )
    assert together.returncode == 0, together.stderr[-2000:]
    assert apart.returncode == 0, apart.stderr[-2000:]
    assert gendistill("finetune", *script[1:], "--output_dir", tmp_path / "one") == 0
    tensors = {
        name: load_file(tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors")
        for name in ("two", "apart", "one")
    }
    one, two_, apart_ = tensors["one"], tensors["two"], tensors["apart"]
    assert max((two_[k] - one[k]).abs().max().item() for k in one) < 1e-4
    assert 1e-5 < max((apart_[k] - one[k]).abs().max().item() for k in one) < 1
    assert [p.name for p in sorted((tmp_path / "cache").glob("latents*"))] == [
        "latents-00000.safetensors",
        "latents.json",
    ]


def test_two_processes_refine_and_distill_the_images_of_one(tmp_path: Path) -> None:
    """Matched ones, too; and share the pass that collects statistics of other images than the teacher's."""
    teacher, pool, cache = tmp_path / "teacher", tmp_path / "pool", tmp_path / "cache"
    assert gendistill("teacher", "--steps", 30, "--width", 8, "--output_dir", teacher) == 0
    assert gendistill("distill", "--method", "random", "--ipc", 4, "--output_dir", pool) == 0
    refine = ("--surrogate", pool / "ipc-4", "--teacher", teacher, "--ipc", "[1,2]", "--steps", 4, "--batch_size", 6)
    refine += ("--match_iterations", 2, "--match_from", 2, "--mixed_precision", "no")
    wmdd = ("--method", "wmdd", "--teacher", teacher, "--ipc", 2, "--wmdd.steps", 4, "--wmdd.batch_size", 6)
    other = (*wmdd, "--data.validation_fraction", 0.3, "--statistics_cache", cache)
    both = ("--num_processes", 2, "--output_dir")
    together = launch(
        ("refine", *refine, *both, tmp_path / "two" / "refine"),
        ("train/distill.py", *other, *both, tmp_path / "two" / "distill"),
    )
    for done in together:
        assert done.returncode == 0, done.stderr[-2000:]
    assert [done.stderr.count("other images than these") for done in together] == [0, 1]
    (kept,) = cache.iterdir()
    written = kept.read_bytes()
    for verb, options, images in (("refine", refine, 60), ("distill", other, 20)):
        assert gendistill(verb, *options, "--output_dir", tmp_path / "one" / verb) == 0
        assert files(tmp_path / "two" / verb) == files(tmp_path / "one" / verb)
        assert len(files(tmp_path / "two" / verb)) == images
    assert kept.read_bytes() == written


def without_times(summary: Path) -> object:
    """What is the same whenever an evaluation is repeated."""
    found = json.loads(summary.read_text())
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "cached")} for row in found["rows"]]
    return {**{k: v for k, v in found.items() if k not in ("command", "blake2b")}, "rows": rows}


def test_two_processes_share_the_trainings_of_an_evaluation(tmp_path: Path) -> None:
    """Also when one is killed; what cannot be evaluated is refused with one message."""
    made, (cache, other) = tmp_path / "sets" / "ipc-1", (tmp_path / "cache", tmp_path / "other")
    assert gendistill("distill", "--method", "random", "--ipc", 1, "--output_dir", tmp_path / "sets") == 0
    quick = ("evaluate", made, "--runs", 3, "--steps", 40, "--width", 8)
    options = (*quick, "--describe", "false", "--baselines", "random", "kmeans", "full", "--baseline_cache")
    continual = (*quick, "--task", "continual", "--continual.steps", 2, "--baseline_cache", "null")
    killed = (*options, other, "--output_dir", tmp_path / "killed")
    together, kill, *rest = launch(
        (*options, cache, "--output_dir", tmp_path / "two"),
        killed,
        (*continual, "--output_dir", tmp_path / "continual"),
        (*options, cache, "--surrogate", tmp_path / "none", "--output_dir", tmp_path / "refused"),
        kill={1: (1, tmp_path / "killed.partial" / "runs-1.jsonl")},
    )
    assert together.returncode == 0, together.stderr[-2000:]
    assert kill.returncode == -signal.SIGKILL
    assert [done.returncode for done in rest] == [0, 2], rest
    assert len(messages(rest[-1].stderr)) == 1
    logged = [json.loads(line)["run"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert len(logged) == 5 + 3 * 3
    assert len(list(cache.glob("*"))) == 5 + 3 + 3 + 2  # picks, and bytes of all images
    assert gendistill(*killed, "--resume_from_checkpoint", "latest") == 0
    assert gendistill(*options, "null", "--output_dir", tmp_path / "one") == 0
    assert gendistill(*continual, "--output_dir", tmp_path / "alone") == 0
    one, two, resumed = (without_times(tmp_path / name / "summary.json") for name in ("one", "two", "killed"))
    assert one == two == resumed
    assert not list((tmp_path / "killed").glob("runs*")), "what only a resumed run needs goes in the end"
    alone, shared = (without_times(tmp_path / name / "continual.json") for name in ("alone", "continual"))
    assert alone == shared


def test_two_processes_train_a_teacher_label_and_match_as_one(tmp_path: Path) -> None:
    """Batch norm sees whole batches, of an odd number; matching goes on where it was killed, in any number."""
    digits = ("--data.name", "digits", "--data.max_per_class", 30)
    small = ("--ipc", 1, "--iterations", 2, *digits, "--matching.width", 8, "--matching.real_batch", 12)
    inner = ("--matching.inner_steps", 2, "--matching.train_steps", 2)
    teacher = ("teacher", *digits, "--network", "resnet10_bn", "--width", 8, "--steps", 5, "--batch_size", 33)
    label = ("label", tmp_path / "pool" / "ipc-30", "--teacher", tmp_path / "one" / "teacher", "--mode")
    commands: dict[str, tuple[object, ...]] = {
        "teacher": teacher,
        "image": (*label, "per_image", "--views", 2, "--flip", "true"),
        "view": (*label, "per_view", "--steps", 3, "--batch_size", 8, "--top_k", 3),
        "dc": ("distill", "--method", "dc", *small, *inner),
        "dsa": ("distill", "--method", "dsa", *small, *inner),
        "dm": ("distill", "--method", "dm", *small, "--matching.start", "clustered"),
        "idc": ("distill", "--method", "idc", *small, *inner),
        "dream": ("distill", "--method", "dream", *small, *inner),
        "idm": ("distill", "--method", "idm", *small, "--matching.train_steps", 2),
        "cf": ("distill", "--method", "cf", *small, "--matching.pool_steps", 2),
    }
    assert gendistill("distill", "--method", "random", "--ipc", 30, "--output_dir", tmp_path / "pool") == 0
    for name, words in commands.items():
        assert gendistill(*words, "--output_dir", tmp_path / "one" / name) == 0
    killed, waits = tmp_path / "killed", ("--matching.checkpoint_every", 1, "--iterations", 12)
    slow = (*commands["dsa"], *waits, "--output_dir", killed)
    exact = tmp_path / "trained.safetensors"
    *done, kill, resumed, many, float64 = launch(
        *((*words, "--num_processes", 2, "--output_dir", tmp_path / "two" / name) for name, words in commands.items()),
        slow,
        (*slow, "--resume_from_checkpoint", "latest"),
        (*teacher, "--batch_size", 1, "--output_dir", tmp_path / "many"),
        ("tests/networks/shared_training.py", exact),
        kill={len(commands): (0, tmp_path / "killed.partial" / "checkpoints" / "*" / "step-*")},
    )
    for name, ended in zip(commands, done, strict=True):
        assert ended.returncode == 0, ended.stderr[-2000:]
        for pattern in ("**/*.png", "soft_labels.*"):
            assert files(tmp_path / "two" / name, pattern) == files(tmp_path / "one" / name, pattern), name
    assert len(files(tmp_path / "two" / "view", "soft_labels.*")) == 2
    assert float64.returncode == 0, float64.stderr[-2000:]
    one, two = trained(shared=False), load_file(exact)
    assert max((two[k].double() - one[k].double()).abs().max().item() for k in one) < 1e-13
    one, two = (load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("one", "two"))
    assert max((two[k].float() - one[k].float()).abs().mean().item() for k in one) < 5e-3  # AdamW, at its first steps
    one, two = (load_file(tmp_path / name / "teacher" / "statistics.safetensors") for name in ("one", "two"))
    assert [(k, v.shape) for k, v in one.items()] == [(k, v.shape) for k, v in two.items()]
    assert (two["features"] - one["features"]).abs().mean() < 0.02 * one["features"].abs().mean()
    assert (kill.returncode, resumed.returncode, many.returncode) == (-signal.SIGKILL, 0, 2)
    assert len(messages(many.stderr)) == 1
    assert gendistill(*commands["dsa"], *waits, "--output_dir", tmp_path / "whole") == 0
    assert files(killed) == files(tmp_path / "whole")


def test_a_killed_teacher_and_killed_labels_go_on_in_any_number_of_processes(tmp_path: Path) -> None:
    small = ("--data.max_per_class", 40, "--width", 8, "--steps", 30, "--batch_size", 17)
    teacher = ("teacher", *small, "--checkpointing_steps", 2)
    views = ("--mode", "per_view", "--steps", 2000, "--batch_size", 16, "--min_crop", 0.5)
    label = ("label", tmp_path / "pool" / "ipc-2", "--teacher", tmp_path / "one", *views)
    cut, labels, resume = tmp_path / "cut", tmp_path / "labels", ("--resume_from_checkpoint", "latest")
    assert gendistill("distill", "--method", "random", "--ipc", 2, "--output_dir", tmp_path / "pool") == 0
    assert gendistill(*teacher, "--output_dir", tmp_path / "one") == 0
    whole, kill, resumed, kill_labels = launch(
        (*teacher, "--output_dir", tmp_path / "two"),
        (*teacher, "--output_dir", cut),
        (*teacher, "--output_dir", cut, *resume),
        (*label, "--output_dir", labels),
        kill={
            1: (1, tmp_path / "cut.partial" / "checkpoints" / "step-00000[4-8]"),
            3: (1, tmp_path / "labels.partial" / "labels" / "*" / "*.safetensors"),
        },
    )
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert (kill.returncode, kill_labels.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    for pattern in ("*.safetensors", "teacher.json"):
        assert files(cut, pattern) == files(tmp_path / "two", pattern)
    assert gendistill(*label, "--output_dir", labels, *resume) == 0
    assert gendistill(*label, "--output_dir", tmp_path / "alone") == 0
    for pattern in ("soft_labels.*", "**/*.png"):
        assert files(labels, pattern) == files(tmp_path / "alone", pattern)
    (kept,) = [json.loads(s)["resumed_at"] for s in (labels / "log.jsonl").read_text().splitlines() if "resumed" in s]
    assert 0 < kept < 2000


def test_two_processes_run_all_stages_as_one(tmp_path: Path) -> None:
    """Also when one is killed and both go on."""
    run = ("run", "--config", TINY, "--evaluate.describe", "false", "--evaluate.baseline_cache", "null")
    both = (*run, "--num_processes", 2, "--output_dir", tmp_path / "two")
    killed, resumed, other, dry = launch(
        both,
        (*both, "--resume_from_checkpoint", "latest"),
        (*both, "--seed", 1, "--resume_from_checkpoint", "latest"),
        (*both[:-1], tmp_path / "dry", "--dry_run"),
        kill={0: (1, tmp_path / "two" / "generator.partial" / "checkpoints" / "*" / "step-*")},
    )
    assert killed.returncode == -signal.SIGKILL
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert resumed.stderr.count("stage 5 of 5, evaluation: done") == 1
    assert resumed.stdout.count("Everything is in") == 1
    assert (other.returncode, len(messages(other.stderr))) == (2, 1)
    assert dry.returncode == 0, dry.stderr[-2000:]
    assert dry.stdout.count("this will take about") == 1
    assert not (tmp_path / "dry").exists()
    assert gendistill(*run, "--output_dir", tmp_path / "one") == 0
    names = [{p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")} for n in ("one", "two")]
    assert names[0] == names[1]
    one, two = (
        tmp_path / name / "generator" / "unet" / "diffusion_pytorch_model.safetensors" for name in ("one", "two")
    )
    weights, others = load_file(one), load_file(two)
    assert max((others[k] - weights[k]).abs().max().item() for k in weights) < 1e-4
    rows = [json.loads((tmp_path / n / "evaluation" / "summary.json").read_text())["rows"] for n in ("one", "two")]
    assert [{k: r[k] for k in ("method", "stage", "ipc")} for r in rows[0]] == [
        {k: r[k] for k in ("method", "stage", "ipc")} for r in rows[1]
    ]
    of_real = [[r["accuracy"] for r in some if r["method"] in ("random", "kmeans", "full")] for some in rows]
    assert of_real[0] == of_real[1]  # what needs neither teacher nor generator is the same to the byte


def test_a_coreset_is_chosen_by_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gendistill("distill", "--num_processes", 2, "--output_dir", tmp_path / "out") == 2
    assert "num_processes is 2; expected 1 with method kmeans" in capsys.readouterr().err
