"""Output folders: links, mount points, two processes at once, damaged records, and what is no longer complete."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gendistill.config import DistillConfig, MatchingConfig, RefineConfig, to_dict
from gendistill.errors import ArtifactError
from gendistill.hashing import hash_json
from gendistill.io import WorkFolder
from gendistill.runtime import Checkpoints
from gendistill.stages.folder import ADDED, finished, read_record, stage_folder, stage_settings, with_added
from tests.helpers import TINY, files, gendistill, messages
from tests.processes import start

RANDOM = ("distill", "--method", "random", "--ipc", 2, "--data.name", "digits")
RESUME = ("--resume_from_checkpoint", "latest")
SETTINGS = stage_settings(ADDED["teacher"], 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "sets"
    assert gendistill(*RANDOM, "--output_dir", out) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """The one message of a command that is refused."""
    capsys.readouterr()
    assert gendistill(*command) == 2
    (said,) = messages(capsys.readouterr().err)
    return said


def test_a_link_to_an_empty_folder_is_filled(made: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk" / "scratch"
    disk.mkdir(parents=True)
    (tmp_path / "link").symlink_to(disk)
    commands = (
        (*RANDOM, "--output_dir", tmp_path / "link"),
        (*RANDOM, "--output_dir", tmp_path / "link", "--overwrite"),
    )
    for command in commands:
        assert gendistill(*command) == 0
        assert files(disk) == files(made)
        assert (tmp_path / "link").is_symlink()
        assert {p.name for p in disk.parent.iterdir()} == {"scratch"}


@pytest.mark.parametrize(
    "command", [RANDOM, (*RANDOM, "--overwrite"), ("export", "--surrogate", "SET"), ("show", "SET")]
)
def test_a_mount_point_is_refused_before_the_work(
    command: tuple[object, ...], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mounted"
    out.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(out)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted")
    try:
        words = [made / "ipc-2" if word == "SET" else word for word in command]
        said = refused(capsys, *words, "--output_dir", out)
        assert said.endswith(f"{out} is a mount point, which a finished folder cannot replace. Give a folder in it, as "
                             f"{out / 'out'}.")  # fmt: skip
        assert gendistill(*words, "--output_dir", out / "out") == 0
    finally:
        subprocess.run(["umount", str(out)], check=True)
    assert {p.name for p in tmp_path.iterdir()} == {"mounted"}


def test_the_current_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is the current folder" in refused(capsys, *RANDOM, "--output_dir", ".")


def test_the_folder_of_stores_and_output_dir_do_not_hold_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sets"
    assert "holds the input" in refused(capsys, *RANDOM, "--data.cache", out / "cache", "--output_dir", out)
    for place in (out, out / "set"):
        said = refused(capsys, *RANDOM, "--data.cache", out, "--output_dir", place)
        assert f"output_dir {place} lies in data.cache {out}; give another --output_dir." in said


def test_names_that_no_file_can_have_and_links_in_a_circle_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be written: File name too long" in refused(capsys, *RANDOM, "--output_dir", tmp_path / ("x" * 250))
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "cannot be written" in refused(capsys, *RANDOM, "--output_dir", tmp_path / "a")


def test_of_two_processes_one_writes(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sets"
    with (tmp_path / ".sets.lock").open("w") as lock:  # as a running process holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ((), RESUME, ("--overwrite",)):
            said = refused(capsys, *RANDOM, *more, "--output_dir", out)
            assert f"Another process is writing output_dir {out}." in said
        assert "Another process" in refused(capsys, "export", "--surrogate", made / "ipc-2", "--output_dir", out)
    assert gendistill(*RANDOM, "--output_dir", out) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"sets"}


@pytest.mark.slow
def test_processes_that_start_together_leave_one_whole_set(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "sets"
    racing = [start(*RANDOM, "--overwrite", "--output_dir", out) for _ in range(3)]
    ended = [process.wait() for process in racing]
    codes = [one.returncode for one in ended]
    assert 0 in codes
    assert set(codes) <= {0, 2}
    assert all("Traceback" not in one.stderr for one in ended)
    assert files(out) == files(made)
    assert {p.name for p in tmp_path.iterdir()} == {"sets"}


@pytest.mark.parametrize("name", ["ipc-2/train/3/00001.png", "ipc-2/manifest.json"])
@pytest.mark.parametrize("cut", [None, 10])
def test_a_finished_folder_that_lost_something_is_not_taken_for_finished(
    name: str, cut: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (*RANDOM, "--output_dir", tmp_path / "sets")
    assert gendistill(*command) == 0
    path = tmp_path / "sets" / name
    path.unlink() if cut is None else path.write_bytes(path.read_bytes()[:cut])
    assert str(tmp_path / "sets") in refused(capsys, *command, *RESUME)
    assert gendistill(*command, "--overwrite") == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": 3, "settings": {}}', '{"stage": "teacher"}', "[" * 10**5])
def test_a_damaged_record_is_one_message(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    with stage_folder(folder, "teacher", SETTINGS):
        pass
    assert finished(folder, "teacher", SETTINGS)
    (folder / "stage.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"has no stage\.json that can be read"):
        finished(folder, "teacher", SETTINGS)


def test_names_in_a_record_never_leave_its_folder(tmp_path: Path) -> None:
    folder, marker = tmp_path / "teacher", tmp_path / "marker"
    marker.write_text("mine")
    with stage_folder(folder, "teacher", SETTINGS):
        pass
    record = json.loads((folder / "stage.json").read_text())
    for name in ("../marker", str(marker), "a/../../marker"):
        (folder / "stage.json").write_text(json.dumps({**record, "temporary": [name]}))
        assert read_record(folder) is None
    assert marker.read_text() == "mine"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("work", [True, False])
def test_an_error_leaves_only_what_can_be_resumed(keep: bool, work: bool, tmp_path: Path) -> None:
    def stage() -> None:
        with stage_folder(tmp_path / "out", "refine", SETTINGS, keep_partial=keep) as folder:
            folder.log({"step": 1})
            if work:
                (folder.path / "chunk").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    assert (tmp_path / "out.partial").exists() == (keep and work)


def test_files_are_as_private_as_the_umask_says(tmp_path: Path) -> None:
    command = ("teacher", "--steps", 2, "--width", 4, "--data.name", "digits", "--output_dir", tmp_path / "teacher")
    for mask, expected in ((0o022, 0o644), (0o077, 0o600)):
        old = os.umask(mask)
        try:
            assert gendistill(*command, "--overwrite") == 0
        finally:
            os.umask(old)
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "teacher").rglob("*") if p.is_file()}
        assert set(modes.values()) == {expected}, modes


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    import torch

    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.save(1, {"x": torch.ones(100)})
    path = tmp_path / "step-000001" / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="do not match their hash"):
        checkpoints.latest()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself"])
def test_a_log_that_is_no_file_is_one_message(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log.jsonl"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to itself": lambda: path.symlink_to(path)}
    make[kind]()
    with pytest.raises(ArtifactError, match="is no file; expected a log of JSON lines"):
        WorkFolder(tmp_path, path).log({"step": 1})


def test_only_folders_with_the_name_of_a_step_are_checkpoints(tmp_path: Path) -> None:
    import torch

    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.save(1, {"x": torch.ones(1)})
    for name in ("step-²", "step-2", "step-last"):
        shutil.copytree(tmp_path / "step-000001", tmp_path / name)
    assert checkpoints.steps() == [1]


def test_a_cache_that_is_a_file_is_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()
    command = (
        "run",
        "--config",
        TINY,
        "--evaluate.baseline_cache",
        tmp_path / "cache",
        "--output_dir",
        tmp_path / "run",
    )
    assert "is a file; expected a folder" in refused(capsys, *command)
    assert {p.name for p in tmp_path.iterdir()} == {"cache"}


RUN = ("run", "--config", TINY)
WMDD = ("distill", "--method", "wmdd", "--ipc", 1, "--data.name", "digits")
PLACES = {
    "data.name": RUN,
    "data.cache": RUN,
    "data.class_names": RUN,
    "evaluate.baseline_cache": RUN,
    "finetune.latent_cache": (*RUN, "--finetune.pretrained", "owner/name"),
    "finetune.pretrained": RUN,
    "teacher": WMDD,
    "statistics_cache": (*WMDD, "--teacher", "none"),
    "generator": ("sample", "--ipc", 1),
    "surrogate": ("evaluate",),
    "output_dir": RUN,
    "cache": ("cache", "list"),
}


@pytest.mark.parametrize("option", PLACES)
def test_a_link_to_itself_is_refused_in_one_message(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, out = tmp_path / "loop", () if option in ("output_dir", "cache") else ("--output_dir", tmp_path / "out")
    loop.symlink_to(loop)
    for path in (loop, loop / "below"):
        said = refused(capsys, *PLACES[option], *out, f"--{option}", path)
        assert option in said
        assert "symbolic links" in said or "cannot be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


@pytest.mark.parametrize("option", [name for name in PLACES if name.endswith("cache")])
@pytest.mark.parametrize("below", ["", "cache"])
def test_a_cache_that_can_be_no_folder_is_refused_before_the_work(
    option: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    out = () if option == "cache" else ("--output_dir", tmp_path / "out")
    said = refused(capsys, *PLACES[option], *out, f"--{option}", tmp_path / "file" / below)
    assert f"{option} is" in said
    assert "file is a file; expected a folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def older(options: dict[str, Any], new: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in new}


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_folder_of_matching_from_before_its_optimiser_was_an_option_continues(momentum: float | None) -> None:
    options = to_dict(DistillConfig(method="dm", ipc=1, matching=MatchingConfig(momentum=momentum, width=8)))
    new = ["optimizer", "frequencies", "amplitude_weight", "pool_size", "pool_steps"]
    matching = older(options["matching"], new) | {"momentum": 0.5 if momentum is None else momentum}
    assert len(options["matching"]) == len(matching) + len(new)
    before = older(options, ["image_format", "image_quality", "compression_aware"]) | {"matching": matching}
    assert hash_json(with_added("distill", before)) == hash_json(options)


def test_a_folder_of_refinement_from_before_match_from_continues_unless_its_sets_were_matched() -> None:
    for iterations in (0, 3):
        options = to_dict(RefineConfig(match_iterations=iterations))
        before = older(options, ["match_from", "image_format", "image_quality", "compression_aware"])
        assert (hash_json(with_added("refine", before)) == hash_json(options)) == (iterations == 0)
