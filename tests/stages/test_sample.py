"""Sampling by the command line: the same bytes however it is cut up, killed or guided; what does not fit is refused."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendistill import progress
from gendistill.generator.generator import Generator
from gendistill.seeding import numpy_rng
from gendistill.stages import sample as sample_stage
from gendistill.stages.folder import ADDED
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import TINY, edit, files, gendistill
from tests.processes import launch, start

pytestmark = pytest.mark.slow

MODE = ("--guidance", "mode", "--mode_scale", 0.5, "--data.name", "digits", "--data.max_per_class", 40)
COUPLED = ("--group", 4, "--coupling_interval", 0.1, 1)
TRANSPORT = ("--guidance", "transport", "--transport_scale", 0.5, *COUPLED, "--data.name", "digits")
REPULSION = ("--guidance", "repulsion", "--repulsion_scale", 0.5, *COUPLED, "--guidance_windows", "[1,2,0.5]")
PROTOTYPES = ("--start", "prototypes", "--data.name", "digits", "--data.max_per_class", 40)
Sample = Callable[..., Path]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator") / "generator"
    assert gendistill("finetune", "--config", TINY, "--output_dir", out) == 0
    return out


@pytest.fixture
def command(generator: Path) -> tuple[object, ...]:
    return "sample", "--generator", generator, "--ipc", "[1,3]", "--pool", 0, "--num_inference_steps", 3


@pytest.fixture
def sampled(command: tuple[object, ...], tmp_path: Path) -> Sample:
    def sample(name: str, *more: object) -> Path:
        assert gendistill(*command, *more, "--output_dir", tmp_path / name) == 0
        return tmp_path / name

    return sample


@pytest.fixture
def refused(command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refuse(*more: object, out: str = "refused") -> str:
        capsys.readouterr()
        assert gendistill(*command, *more, "--output_dir", tmp_path / out) == 2
        return capsys.readouterr().err

    return refuse


def times(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.png")}


# --- the same bytes


CFG = ("--scheduler", "ddpm", "--guidance", "cfg", "--guidance_scale", 2)


@pytest.mark.parametrize("more", [(), MODE, CFG, TRANSPORT, REPULSION])
def test_no_byte_depends_on_the_batch_size(sampled: Sample, more: tuple[object, ...]) -> None:
    sizes = (64, 7) if more else (64, 7, 1)
    whole, *others = (files(sampled(f"by {size}", *more, "--batch_size", size)) for size in sizes)
    assert all(one == whole for one in others)
    assert len(whole) == 2 * 10 * (1 + 3)


@pytest.mark.parametrize("guidance", [(), TRANSPORT, REPULSION])
def test_smaller_sets_are_prefixes_of_larger_ones(sampled: Sample, guidance: tuple[object, ...]) -> None:
    out, more = sampled("sets", *guidance, "--pool", 4), sampled("more", *guidance, "--ipc", 5)
    pool, three, one, five = (
        SurrogateSet.load(p) for p in (out / "pool", out / "ipc-3", out / "ipc-1", more / "ipc-5")
    )
    assert torch.equal(five.prefix(4).images, pool.images)
    assert torch.equal(pool.prefix(3).images, three.images)
    assert torch.equal(three.prefix(1).images, one.images)
    assert [s.ipc for s in (pool, three, one)] == [4, 3, 1]


def test_two_processes_make_the_sets_of_one(command: tuple[object, ...], sampled: Sample, tmp_path: Path) -> None:
    """And leave alone what is not theirs; the main process alone reads the real images for mode guidance."""
    script, more = ("sample/generate.py", *command[1:]), ("--pool", 4, *MODE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.txt").write_text("mine")
    (tmp_path / "counts").mkdir()
    refused, done, coupled, counted = launch(
        (*script, "--overwrite", "--output_dir", tmp_path / "mine"),
        (*script, *more, "--num_processes", 2, "--output_dir", tmp_path / "two"),
        (*script, *TRANSPORT, "--num_processes", 2, "--output_dir", tmp_path / "two coupled"),
        (
            *("tests/generator/counted_prototypes.py", tmp_path / "counts", *command, *MODE),
            *("--base", "false", "--output_dir", tmp_path / "counted"),
        ),
    )
    assert counted.returncode == 0, counted.stderr[-2000:]
    assert files(tmp_path / "counts", "*") == {"0": b"10", "1": b"0"}  # once a class
    assert refused.returncode == 2
    assert refused.stderr.count("was not written by this command") == 1
    assert files(tmp_path / "mine", "**/*") == {"photo.txt": b"mine"}
    assert done.returncode == 0, done.stderr[-2000:]
    one = sampled("one", *more)
    assert files(tmp_path / "two") == files(one)
    assert coupled.returncode == 0, coupled.stderr[-2000:]
    assert files(tmp_path / "two coupled") == files(sampled("one coupled", *TRANSPORT))
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in one.iterdir()}


@pytest.mark.parametrize("guidance", [(), REPULSION])
def test_killed_sampling_goes_on_where_it_was(
    command: tuple[object, ...], sampled: Sample, tmp_path: Path, guidance: tuple[object, ...]
) -> None:
    options = (*guidance, "--num_inference_steps", 30, "--base", "false")
    whole, out = sampled("whole", *options), tmp_path / "killed"
    process = start(*command, *options, "--batch_size", 2, "--output_dir", out)
    images = tmp_path / "killed.partial" / "images" / "samples"
    while process.poll() is None and sum(1 for _ in images.rglob("*.png")) < 8:
        time.sleep(0.02)
    process.kill()
    before = times(images)
    assert 8 <= len(before) < 30
    assert all(Image.open(images / name).size == (8, 8) for name in before)
    assert gendistill(*command, *options, "--output_dir", out) == 2  # not without being told to
    resumed = sampled("killed", *options, "--resume_from_checkpoint", "latest")
    assert files(resumed) == files(whole)
    after = times(resumed / "ipc-3")
    assert {name: after[name] for name in before} == before  # the file itself, not one like it
    assert {p.name for p in resumed.iterdir()} == {p.name for p in whole.iterdir()}
    assert json.loads((resumed / "stage.json").read_text())["resumed"]


@pytest.mark.parametrize("guidance", [TRANSPORT, REPULSION])
def test_images_of_a_group_that_are_missing_come_out_as_before(
    sampled: Sample, guidance: tuple[object, ...], tmp_path: Path
) -> None:
    out = sampled("whole", *guidance, "--base", "false")
    whole, partial = files(out / "ipc-3"), tmp_path / "cut.partial"
    shutil.copytree(out / "ipc-3" / "train", partial / "images" / "samples" / "train")
    record = json.loads((out / "stage.json").read_text())
    (partial / "stage.json").write_text(json.dumps({**record, "state": "started"}))
    for lost in ("3/00001", "3/00002", "7/00000"):
        (partial / "images" / "samples" / "train" / f"{lost}.png").unlink()
    resumed = sampled("cut", *guidance, "--base", "false", "--resume_from_checkpoint", "latest")
    assert files(resumed / "ipc-3") == whole
    log = [json.loads(line) for line in (resumed / "log.jsonl").read_text().splitlines()]
    assert log[-1]["images"] == 3


def test_a_set_of_before_the_coupled_guidance_is_finished(sampled: Sample, tmp_path: Path) -> None:
    out = sampled("set")
    record = json.loads((out / "stage.json").read_text())
    added = ADDED["sample"]
    assert added.items() <= record["settings"]["options"].items()
    options = {name: value for name, value in record["settings"]["options"].items() if name not in added}
    edit(out / "stage.json", settings={**record["settings"], "options": options})
    before = times(out)
    assert times(sampled("set", "--resume_from_checkpoint", "latest")) == before


# --- real images


def test_modes_and_prototypes_move_the_images(sampled: Sample) -> None:
    plain, mode, prototypes = sampled("plain"), sampled("mode", *MODE), sampled("prototypes", *PROTOTYPES)
    sets = [files(out / "ipc-3") for out in (plain, mode, prototypes)]
    assert all(sets[0][k] != sets[1][k] != sets[2][k] != sets[0][k] for k in sets[0])
    assert files(sampled("again", *MODE)) == files(mode)
    assert files(sampled("other", *PROTOTYPES, "--data.split_seed", 1)) != files(prototypes)
    manifest = json.loads((mode / "ipc-3" / "manifest.json").read_text())
    assert manifest["sampling"]["guidance"] == "mode"
    assert manifest["sampling"]["mode_scale"] == 0.5


def test_a_whole_run_can_be_guided(tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = ("--finetune.base_steps", 2, "--finetune.minimax_steps", 2, "--evaluate.steps", 2, "--refine.steps", 2)
    mode = ("--sample.guidance", "mode", "--sample.start", "prototypes", "--sample.modes", 3)
    assert gendistill("run", "--config", TINY, *short, *mode, "--output_dir", out) == 0
    manifest = json.loads((out / "samples" / "base" / "ipc-2" / "manifest.json").read_text())
    assert (manifest["sampling"]["guidance"], manifest["sampling"]["start"]) == ("mode", "prototypes")
    assert (out / "report.html").is_file()


def test_real_images_must_be_there_and_fit(refused: Callable[..., str], tmp_path: Path) -> None:
    kinds = {"guidance mode": MODE[:2], "guidance transport": TRANSPORT[:2], "start prototypes": PROTOTYPES[:2]}
    for name, options in kinds.items():
        said = refused(*options)
        assert f"sample.{name} needs the real images; give --data.name" in said
    assert "--data.image_size 8" in refused(*MODE, "--data.image_size", 16)
    assert "sample.modes is 50" in refused(*MODE, "--modes", 50)
    for name in map(str, range(9)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = numpy_rng(0, name, i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    said = refused(*MODE[:2], "--data.name", tmp_path / "data")
    assert "lack 1 of the generator's classes, such as 9" in said
    assert "--classes" in said
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


# --- what is asked for


def test_chosen_classes_look_as_they_do_among_all(sampled: Sample) -> None:
    whole, part = sampled("all"), sampled("some", "--classes", '["7","3"]')
    assert SurrogateSet.load(part / "ipc-3").classes == ("7", "3")
    some = files(part)
    assert len(some) == 2 * 2 * (1 + 3)
    assert some == {k: v for k, v in files(whole).items() if k in some}


def test_one_size_without_pool_and_without_base(sampled: Sample, generator: Path, tmp_path: Path) -> None:
    out = sampled("one", "--ipc", 3, "--base", "false")
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "ipc-3", "log.jsonl", "stage.json"]
    tuned = Generator.from_pretrained(generator)
    tuned.meta = {}
    tuned.save_pretrained(tmp_path / "tuned alone")
    alone = sampled("alone", "--ipc", 3, "--base", "true", "--generator", tmp_path / "tuned alone")
    assert not (alone / "base").exists()  # no other weights to sample from
    assert files(alone) == files(out)


@pytest.mark.parametrize("one_bit", [False, True])
def test_damaged_base_weights_are_refused_before_anything_is_sampled(
    one_bit: bool,
    sampled: Sample,
    generator: Path,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copytree(generator, tmp_path / "copy")
    path = copy / "unet" / "diffusion_pytorch_model.base.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if one_bit else b"damaged")
    monkeypatch.setattr(sample_stage, "write_sets", lambda *_, **__: pytest.fail("sampled before the check"))
    said = refused("--generator", copy)
    assert said.count("gendistill: ") == len(said.splitlines()) == 1, said
    assert "base" in said
    assert not (tmp_path / "refused").exists()


def test_nothing_is_overwritten_but_what_sampling_wrote(
    sampled: Sample, refused: Callable[..., str], generator: Path, tmp_path: Path
) -> None:
    shutil.copytree(generator, tmp_path / "mine")  # a stage's folder, but of another command
    shutil.copytree(generator, tmp_path / "set.replaced")
    sampled("set")
    before = files(tmp_path, "**/*")
    for name in ("mine", "set"):
        assert "was not written by this command" in refused("--overwrite", out=name)
    assert files(tmp_path, "**/*") == before


def test_progress_counts_images(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    options = ("--batch_size", 7, "--pool", 4)
    assert gendistill(*command, *options, "--output_dir", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert re.search(r"sample: 40 of 40 \(100 %\)", said)
    assert re.search(r"sample \(base\): 30 of 30 \(100 %\)", said)
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [(record["set"], record["images"]) for record in log] == [("samples", 40), ("base", 30)]


def test_progress_counts_whole_groups(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    assert gendistill(*command, *REPULSION, "--base", "false", "--output_dir", tmp_path / "out") == 0
    assert re.search(r"sample: 40 of 40 \(100 %\)", capsys.readouterr().err)  # 3 of each 4 are kept
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [record["images"] for record in log] == [30]


# --- folders


def test_a_begun_set_of_other_settings_is_kept(sampled: Sample, refused: Callable[..., str], tmp_path: Path) -> None:
    sampled("done").rename(tmp_path / "set.partial")
    before = files(tmp_path, "**/*")
    resume = ("--resume_from_checkpoint", "latest")
    said = refused("--seed", 1, "--num_inference_steps", 2, *resume, out="set")
    assert "options.num_inference_steps: 3 there, 2 now, seed: 0 there, 1 now" in said
    assert "--overwrite" in said
    assert "not empty" in refused("--seed", 1, out="set")
    assert "no generator" in refused("--generator", tmp_path / "no generator", "--overwrite", out="set")
    assert files(tmp_path, "**/*") == before
    out = sampled("set", "--seed", 1, "--overwrite")
    assert json.loads((out / "stage.json").read_text())["settings"]["seed"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_linked_sets_are_replaced_and_put_back_whole(
    sampled: Sample, refused: Callable[..., str], tmp_path: Path
) -> None:
    out = sampled("set")
    assert (out / "ipc-3" / "train" / "0" / "00000.png").stat().st_nlink == 2
    before = files(tmp_path, "**/*")
    assert "not empty" in refused(out="set")
    assert "needs the real images" in refused(*MODE[:2], "--overwrite", out="set")
    assert files(tmp_path, "**/*") == before
    (out / "images").mkdir()  # as a kill may leave it, just before the end
    sampled("set", "--resume_from_checkpoint", "latest")  # finished: nothing else to do
    assert files(tmp_path, "**/*") == before
    sampled("set", "--seed", 1, "--overwrite")
    (tmp_path / "empty").mkdir()
    sampled("empty", "--overwrite")
    shutil.rmtree(tmp_path / "empty")
    other = files(out)
    assert other.keys() == {k.removeprefix("set/") for k in before if k.endswith(".png")}
    assert all(other[k] != before[f"set/{k}"] for k in other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
