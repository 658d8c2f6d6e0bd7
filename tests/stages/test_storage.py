"""A disk that fills while a stage writes: one clear message, nothing half written, and the same bytes with more room.

A limit on the size of files stands in for the full disk; a small tmpfs is a real one, where mounting is permitted.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from gendistill.config import ModelConfig, UNet
from gendistill.errors import ArtifactError
from gendistill.generator.codec import PixelCodec
from gendistill.generator.generator import build_generator
from gendistill.runtime import Checkpoints
from gendistill.stages.folder import StageFolder, finished
from tests.generator.autoencoders import kl
from tests.helpers import TINY, files, gendistill, no_file_above

pytestmark = pytest.mark.slow

RESUME = ("--resume_from_checkpoint", "latest")
FINETUNE = ("finetune", "--config", TINY)
SET = ("--ipc", 8, "--pool", 0, "--num_inference_steps", 2, "--batch_size", 4)
UNET = "unet/diffusion_pytorch_model.safetensors"
WEIGHTS = "**/*.safetensors"


@pytest.fixture
def no_room(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end for want of room, and returns the message."""

    def run(*command: object) -> str:
        capsys.readouterr()
        assert gendistill(*command) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        messages = [line for line in said.splitlines() if line.startswith("gendistill: ") and "make room" in line]
        assert len(messages) == 1
        return messages[0]

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training."""
    out = tmp_path_factory.mktemp("trained") / "generator"
    assert gendistill(*FINETUNE, "--output_dir", out) == 0
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator, untrained, whose images are larger than the other files of a set."""
    model = ModelConfig(architecture=UNet(block_out_channels=(8, 16), norm_num_groups=4, attention_levels=0))
    out = tmp_path_factory.mktemp("large") / "generator"
    build_generator(model, ("ant", "bee"), 64, 0, codec=PixelCodec(3)).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def images(large: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of an undisturbed sampling."""
    out = tmp_path_factory.mktemp("images") / "set"
    assert gendistill("sample", "--generator", large, *SET, "--output_dir", out) == 0
    return files(out)


def is_whole(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
    return True


def test_a_checkpoint_is_whole_or_absent_and_older_ones_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=2, keep=1)
    checkpoints.save(2, {"x": torch.ones(100)})
    before = files(tmp_path, "**/*")
    with no_file_above(3000), pytest.raises(Exception, match="os error 27"):
        checkpoints.save(4, {"x": torch.zeros(1000)})
    assert files(tmp_path, "**/*") == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]
    assert checkpoints.steps() == [2]


def test_a_log_keeps_whole_lines(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path, tmp_path / "log.jsonl")
    folder.log({"step": 1})
    before = folder.log_path.read_bytes()
    with no_file_above(len(before) + 10), pytest.raises(OSError, match="File too large"):
        folder.log({"step": 2})
    assert folder.log_path.read_bytes() == before


@pytest.mark.parametrize("settings", [{}, {"options": None}, {"options": []}, [], None])
def test_a_record_without_options_is_of_other_settings(settings: object, tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(json.dumps({"stage": "refine", "settings": settings}))
    with pytest.raises(ArtifactError, match="was made with other settings"):
        finished(tmp_path, "refine", {"options": {"ipc": 1}, "seed": 0, "inputs": {}})


def test_training_goes_on_after_a_full_disk(no_room: Callable[..., str], trained: Path, tmp_path: Path) -> None:
    """It fills at the record and the first checkpoint of either phase; in another folder at the weights, twice."""
    size = (trained / UNET).stat().st_size
    memories = 2 * 10 * 64 * 64 * 4
    checkpoint = 4 * size  # weights, their average, two moments
    base = b""
    for name, more, limits in (
        ("often", (), {500: [], checkpoint // 2: [], checkpoint + memories // 2: ["base"]}),
        ("rarely", ("--checkpointing_steps", 100), {size // 2: [], size - 1: ["base"]}),
    ):
        out, partial = tmp_path / name, tmp_path / f"{name}.partial"
        for limit, done in limits.items():
            if limit == size - 1:  # the base weights have a hash too, so they would not fit
                (partial / "base.safetensors").write_bytes(base)
            with no_file_above(limit):
                said = no_room(*FINETUNE, *more, *RESUME, "--output_dir", out)
            assert f"The disk of {tmp_path} has no room left" in said
            assert "--resume_from_checkpoint latest" in said
            assert [p.stem for p in partial.glob("*.safetensors")] == done
            assert not list(partial.glob("checkpoints/*/partial-*"))
            assert partial.is_dir() == (limit > 500)
            base = (partial / "base.safetensors").read_bytes() if done else base
        assert gendistill(*FINETUNE, *more, *RESUME, "--output_dir", out) == 0
        assert files(out, WEIGHTS) == files(trained, WEIGHTS)
        assert {p.name for p in out.iterdir()} == {p.name for p in trained.iterdir()}


def test_latents_are_encoded_after_a_full_disk(no_room: Callable[..., str], tmp_path: Path) -> None:
    kl(in_channels=3, out_channels=3).save_pretrained(tmp_path / "vae")
    many = (*FINETUNE, "--data.max_per_class", 40, "--codec", tmp_path / "vae", "--latent_cache")
    command = (*many, tmp_path / "cache")
    with no_file_above(100_000):
        assert "latents-00000.safetensors cannot be written" in no_room(*command, "--output_dir", tmp_path / "full")
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {".lock", "latents.json"}
    assert gendistill(*command, *RESUME, "--output_dir", tmp_path / "full") == 0
    assert gendistill(*many, tmp_path / "other", "--output_dir", tmp_path / "whole") == 0
    assert files(tmp_path / "full", WEIGHTS) == files(tmp_path / "whole", WEIGHTS)
    assert files(tmp_path / "cache", WEIGHTS) == files(tmp_path / "other", WEIGHTS)


def test_sampling_goes_on_after_a_full_disk(
    no_room: Callable[..., str], large: Path, images: dict[str, bytes], tmp_path: Path
) -> None:
    command = ("sample", "--generator", large, *SET)
    with no_file_above(8000):
        assert "has no room left" in no_room(*command, "--output_dir", tmp_path / "full")
    assert not files(tmp_path)
    assert not list(tmp_path.rglob("*.png.partial"))
    assert gendistill(*command, *RESUME, "--output_dir", tmp_path / "full") == 0
    assert files(tmp_path / "full") == images


def test_a_full_disk_is_no_refusal_of_overwrite(no_room: Callable[..., str], large: Path, tmp_path: Path) -> None:
    """The new work goes on from where it was; the old folder waits beside it until that is done."""
    command = ("sample", "--generator", large, *SET, "--output_dir", tmp_path / "set")
    assert gendistill(*command) == 0
    old = files(tmp_path / "set", "**/*")
    with no_file_above(8000):
        no_room(*command, "--seed", 1, "--overwrite")
    assert files(tmp_path / "set.replaced", "**/*") == old
    before = files(tmp_path, "**/*")
    assert gendistill(*command, "--generator", tmp_path / "none", "--overwrite") == 2  # refused: all is as it was
    assert files(tmp_path, "**/*") == before
    assert gendistill(*command, "--seed", 1, *RESUME) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    assert json.loads((tmp_path / "set" / "stage.json").read_text())["settings"]["seed"] == 1


def test_a_run_says_it_too(no_room: Callable[..., str], tmp_path: Path) -> None:
    """Outside of its stages: the settings and the report."""
    short = ("--finetune.base_steps", 2, "--finetune.minimax_steps", 2, "--evaluate.steps", 2, "--refine.steps", 2)
    command = ("run", "--config", TINY, *short, "--output_dir", tmp_path / "run")
    with no_file_above(300):
        no_room(*command)
    assert gendistill(*command, *RESUME) == 0
    report = tmp_path / "run" / "report.html"
    report.unlink()
    with no_file_above(8000):
        assert "has no room left" in no_room(*command, *RESUME)
    assert not report.exists()
    assert gendistill(*command, *RESUME) == 0
    assert report.is_file()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A real disk of so many KiB, which can grow later."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kibibytes: int) -> Path:
        remount = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}size={kibibytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting is not permitted")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", [60, 160])
def test_a_real_disk_that_fills_with_images(
    no_room: Callable[..., str], disk: Callable[[int], Path], large: Path, images: dict[str, bytes], room: int
) -> None:
    command = ("sample", "--generator", large, *SET)
    out = disk(room) / "set"
    assert "No space left" in no_room(*command, "--output_dir", out)
    kept = [p for p in out.parent.glob("set.partial/images/**/*.png") if is_whole(p)]
    disk(10_000)
    assert gendistill(*command, *RESUME, "--output_dir", out) == 0
    assert files(out) == images
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["set"] for record in records] == ["samples"]
    assert records[0]["images"] == 16 - len(kept)
    assert kept or room == 60
