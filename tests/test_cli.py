"""The command line: quick help, typed options, and one clear message with exit code 2 for bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from gendistill.cli import COMMANDS, main
from gendistill.config import to_dict
from gendistill.config.commands import RunCommand
from tests.helpers import ROOT, TINY, gendistill, messages


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["sample", "--help"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = f"import sys, gendistill.cli as c; c.main({arguments!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage: gendistill" in done.stdout


def test_every_command_is_listed_and_has_help(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name}" in listing
        assert main([name, "--help"]) == 0
        assert f"{command.summary[1:]}." in capsys.readouterr().out.replace("\n", " ")


def test_print_config_is_what_the_dataclass_says(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "--output_dir", "x", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == to_dict(RunCommand(output_dir=Path("x")))


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
IN_HUGE_PAGES = """
import re, sys, gendistill.cli as c
c.main(["verify", "nowhere"])
import torch
kept = torch.ones(2**24)
sizes = re.findall(r"AnonHugePages: +([0-9]+) kB", open("/proc/self/smaps").read())
print("huge MiB:", sum(map(int, sizes)) // 1024)
"""


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(), reason="no huge pages are given on request"
)
@pytest.mark.parametrize(("given", "least", "most"), [({}, 32, 1024), ({"THP_MEM_ALLOC_ENABLE": "0"}, 0, 16)])
def test_large_tensors_are_in_huge_pages_unless_told_otherwise(given: dict[str, str], least: int, most: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | given
    code = [sys.executable, "-c", IN_HUGE_PAGES]
    done = subprocess.run(code, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert least <= int(done.stdout.split("huge MiB:")[1]) <= most


@pytest.mark.parametrize("value", ["3", "", "[]"])
def test_a_section_that_is_no_section_is_refused(value: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "own.yaml").write_text(f"method: dm\nmatching: {value}\n")
    message = refused(capsys, "distill", "--config", tmp_path / "own.yaml", "--output_dir", tmp_path / "out")
    shown = {"3": "3", "": "null", "[]": "[]"}[value]
    assert f"distill.matching is {shown}; expected its options below it." in message


def test_shipped_configs_are_accepted(capsys: pytest.CaptureFixture) -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert main(["run", "--config", str(path), "--output_dir", "x", "--print_config"]) == 0, path


BAD_OPTIONS = {
    "unknown command": (["destroy"], ["'destroy'", "run, teacher"]),
    "unknown key": (["teacher", "--output_dir", "x", "--widht", "3"], ["widht"]),
    "unknown nested key": (["run", "--output_dir", "x", "--data.nmae", "digits"], ["nmae"]),
    "missing option": (["sample", "--generator", "g"], ["output_dir"]),
    "bad type": (["teacher", "--output_dir", "x", "--width", "wide"], ["width", "wide"]),
    "bad choice": (["distill", "--output_dir", "x", "--method", "magic"], ["magic", "kmeans", "herding"]),
    "ipc 0": (["distill", "--output_dir", "x", "--ipc", "0"], ["distill.ipc is 0", "at least 1"]),
    "ipc twice": (["sample", "--generator", "g", "--output_dir", "x", "--ipc", "[1,1]"], ["each number once"]),
    "fraction": (["run", "--output_dir", "x", "--data.test_fraction", "1.5"], ["test_fraction", "1.5"]),
    "groups": (["finetune", "--output_dir", "x", "--model.norm_num_groups", "7"], ["block_out_channels", "multiples"]),
    "pool": (["run", "--output_dir", "x", "--sample.pool", "3"], ["sample.pool is 3", "refine.ipc = 10"]),
    "two intentions": (
        ["teacher", "--output_dir", "x", "--overwrite", "--resume_from_checkpoint", "latest"],
        ["overwrite"],
    ),
    "missing config": (["run", "--config", "nowhere.yaml", "--output_dir", "x"], ["nowhere.yaml"]),
    "negative guidance": (
        ["sample", "--generator", "g", "--output_dir", "x", "--guidance_scale", "0"],
        ["guidance_scale"],
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_by_name(case: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD_OPTIONS[case]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one message of a command that must exit with 2, beside the line that says which images were read."""
    capsys.readouterr()
    assert gendistill(*arguments) == 2
    lines = messages(capsys.readouterr().err)
    assert len(lines) == 1, lines
    return lines[0]


def picture_folder(root: Path, mode: str = "RGB", size: int = 16, count: int = 8) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = Image.effect_noise((size, size), 40 + 60 * label + i)
            noise.convert(mode).save(root / name / f"{i}.png")
    return root


def test_bad_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert "no such folder" in refused(capsys, "teacher", "--data.name", "/nowhere/at/all", "--output_dir", out)
    assert "There is no folder" in refused(
        capsys, "evaluate", "--surrogate", tmp_path / "none", "--config", TINY, "--output_dir", out
    )
    assert "not a generator folder" in refused(capsys, "sample", "--generator", tmp_path, "--output_dir", out)
    assert "not a teacher folder" in refused(
        capsys, "refine", "--surrogate", tmp_path, "--teacher", tmp_path, "--output_dir", out
    )
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "teacher", "--config", TINY, "--output_dir", tmp_path / "file" / "x")
    assert "is a file" in refused(capsys, "teacher", "--config", TINY, "--output_dir", tmp_path / "file")
    empty = picture_folder(tmp_path / "images")
    (empty / "bird").mkdir()
    assert "bird" in refused(capsys, "teacher", "--data.name", empty, "--output_dir", out)
    assert not out.exists()


def test_bad_sizes_and_networks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, out = picture_folder(tmp_path / "images", size=18), tmp_path / "out"
    message = refused(capsys, "finetune", "--data.name", images, "--output_dir", out)
    assert "18 x 18" in message
    assert "multiple of 4" in message
    assert "one of convnet" in refused(capsys, "teacher", "--config", TINY, "--network", "vgg", "--output_dir", out)
    assert "timm has no network" in refused(
        capsys, "teacher", "--config", TINY, "--network", "timm:resnet18x", "--output_dir", out
    )
    message = refused(capsys, "teacher", "--config", TINY, "--batch_size", 1, "--output_dir", out)
    assert "at least 2 images" in message
    message = refused(capsys, "distill", "--config", TINY, "--ipc", 100, "--output_dir", out)
    assert "ipc is 100" in message
    message = refused(
        capsys, "run", "--config", TINY, "--refine.ipc", 60, "--sample.pool", 60, "--output_dir", tmp_path / "run"
    )
    assert "ipc is 60" in message


def test_teacher_without_batch_norm_is_refused_for_batch_norm_refinement(tmp_path: Path, capsys) -> None:
    teacher, pool, out = tmp_path / "teacher", tmp_path / "pool", tmp_path / "out"
    assert gendistill("teacher", "--config", TINY, "--network", "convnet", "--output_dir", teacher) == 0
    assert gendistill("distill", "--config", TINY, "--method", "random", "--ipc", 4, "--output_dir", pool) == 0
    arguments = (
        "refine",
        "--surrogate",
        pool / "ipc-4",
        "--teacher",
        teacher,
        "--ipc",
        2,
        "--steps",
        3,
        "--output_dir",
        out,
    )
    assert "no batch-norm layers" in refused(capsys, *arguments)
    assert not out.exists()
    assert gendistill(*arguments, "--batch_norm_weight", 0) == 0
    whole = ("run", "--config", TINY, "--teacher.network", "convnet", "--output_dir", tmp_path / "run")
    assert "no batch-norm layers" in refused(capsys, *whole)
    assert not (tmp_path / "run").exists()


def test_run_on_a_users_own_folder_with_mixed_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = picture_folder(tmp_path / "images", size=20, count=12)
    Image.new("L", (20, 20), 90).save(images / "cat" / "grey.png")
    Image.new("RGBA", (40, 30), (9, 9, 200, 128)).save(images / "dog" / "clear.png")
    (images / "dog" / "broken.png").write_bytes((images / "dog" / "0.png").read_bytes()[:60])
    out = tmp_path / "run"
    assert gendistill(
        "run", "--config", TINY, "--data.name", images, "--data.image_size", 16, "--output_dir", out
    ) == 0  # fmt: skip
    err = capsys.readouterr().err
    assert "broken.png" in err
    assert "1 skipped" in err
    assert sorted(p.name for p in (out / "refined" / "ipc-2" / "train").iterdir()) == ["cat", "dog"]
    assert Image.open(out / "refined" / "ipc-2" / "train" / "cat" / "00000.png").size == (16, 16)
