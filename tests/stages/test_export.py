"""The command `export`: whole or not at all, refused in one message, pushed to the Hub and fetched again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import constants

from gendistill.errors import ArtifactError, ConfigError
from gendistill.surrogate.card.entry import read_evidence
from gendistill.surrogate.hub_datasets import find_surrogate
from gendistill.surrogate.set import SurrogateSet
from tests.helpers import TINY, files, gendistill, no_file_above
from tests.hub import Hub, serve
from tests.test_cli import refused

CLASSES = ("b", "a/c")


def made(ipc: int, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> SurrogateSet:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(classes) * ipc, 1, 8, 8), generator=rng, dtype=torch.uint8)
    meta = {"method": "kcenter", "data": {"name": "digits"}}
    return SurrogateSet(images, torch.arange(len(classes)).repeat_interleave(ipc), classes, meta)


@pytest.fixture
def sets(tmp_path: Path) -> dict[int, Path]:
    """Folders of two sets by IPC."""
    found = {ipc: tmp_path / "sets" / f"ipc-{ipc}" for ipc in (1, 2)}
    for ipc, folder in found.items():
        made(ipc).save(folder)
    return found


def both(sets: dict[int, Path]) -> str:
    return json.dumps([str(path) for path in sets.values()])


def tree(folder: Path) -> dict[str, bytes]:
    return files(folder, "**/*")


# the folder


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "webdataset", "ddranking"])
def test_every_format_comes_from_the_command_line(tmp_path: Path, sets: dict[int, Path], format: str, capsys) -> None:
    out = tmp_path / "out"
    assert gendistill("export", "--surrogate", sets[2], "--format", format, "--output_dir", out) == 0
    assert f"ipc-2 as {format}, 4 images" in capsys.readouterr().out
    assert {"README.md", "manifest.json", "export.json"} <= {path.name for path in out.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sets"]


def test_sets_become_configs(tmp_path: Path, sets: dict[int, Path]) -> None:
    out = tmp_path / "out"
    assert gendistill("export", "--surrogate", both(sets), "--format", "parquet", "--output_dir", out) == 0
    for ipc in sets:
        rows = load_dataset(str(out), f"ipc-{ipc}", split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == 2 * ipc


def test_what_is_there_is_replaced_only_when_asked_and_only_by_an_export(
    tmp_path: Path, sets: dict[int, Path], capsys
) -> None:
    out = tmp_path / "out"
    arguments = ("export", "--surrogate", sets[1], "--output_dir", out)
    assert gendistill(*arguments, "--format", "parquet") == 0
    before = tree(tmp_path)
    assert "--overwrite" in refused(capsys, *arguments, "--format", "webdataset")
    assert tree(tmp_path) == before
    assert gendistill(*arguments, "--format", "webdataset", "--overwrite") == 0
    assert not list(out.glob("*.parquet"))
    assert len(list(out.glob("*.tar"))) == 1
    for foreign in (out, tmp_path / "out.partial", tmp_path / "out.replaced"):
        if foreign == out:
            (out / "export.json").write_text('{"export": "of something else"}')
        else:
            foreign.mkdir()
            (foreign / "mine.txt").write_text("mine")
        before = tree(tmp_path)
        assert f"{foreign} was not written by this command" in refused(capsys, *arguments, "--overwrite")
        assert tree(tmp_path) == before
        foreign.rename(tmp_path / f"kept {foreign.name}")


def test_an_export_never_goes_over_its_own_source(tmp_path: Path, sets: dict[int, Path], capsys) -> None:
    before = tree(tmp_path)
    for out in (sets[1], tmp_path / "sets", tmp_path):
        message = refused(capsys, "export", "--surrogate", sets[1], "--overwrite", "--output_dir", out)
        assert "holds the input" in message
    assert tree(tmp_path) == before
    assert gendistill("export", "--surrogate", both(sets), "--output_dir", tmp_path / "out") == 0
    before = tree(tmp_path)
    nested = ("export", "--surrogate", tmp_path / "out" / "ipc-1", "--overwrite", "--output_dir", tmp_path / "out")
    assert "holds the input" in refused(capsys, *nested)
    assert tree(tmp_path) == before


def test_a_full_disk_leaves_the_old_export_and_nothing_else(tmp_path: Path, sets: dict[int, Path], capsys) -> None:
    out = tmp_path / "out"
    arguments = ("export", "--surrogate", sets[2], "--output_dir", out)
    assert gendistill(*arguments, "--format", "parquet") == 0
    before = tree(tmp_path)
    with no_file_above(1000):
        message = refused(capsys, *arguments, "--format", "webdataset", "--overwrite")
    assert "has no room left" in message
    assert "resume" not in message
    assert tree(tmp_path) == before


def test_what_a_kill_left_does_not_stand_in_the_way(tmp_path: Path, sets: dict[int, Path]) -> None:
    partial, replaced = tmp_path / "out.partial", tmp_path / "out.replaced"
    assert gendistill("export", "--surrogate", sets[1], "--output_dir", replaced) == 0
    partial.mkdir()
    (partial / "export.json").touch()
    (partial / "half.tar").write_bytes(b"half")
    assert gendistill("export", "--surrogate", sets[1], "--output_dir", tmp_path / "out") == 0
    assert not partial.exists()
    assert not replaced.exists()
    assert not (tmp_path / "out" / "half.tar").exists()


def test_bad_input_is_refused_and_nothing_is_written(tmp_path: Path, sets: dict[int, Path], capsys) -> None:
    made(2, seed=1).save(tmp_path / "sets" / "twin")
    made(3, ("a/c", "b")).save(tmp_path / "sets" / "turned")
    changed = tmp_path / "sets" / "changed"
    made(3).save(changed)
    next((changed / "train").rglob("*.png")).unlink()
    twins, turned = ([str(sets[2]), str(tmp_path / "sets" / name)] for name in ("twin", "turned"))
    cases: list[tuple[tuple[object, ...], list[str]]] = [
        (("--surrogate", json.dumps(twins)), [*twins, "both have IPC 2", "apart"]),
        (("--surrogate", json.dumps(turned)), [*turned, "class 0 is 'b' and 'a/c'"]),
        (("--surrogate", both(sets), "--format", "ddranking"), ["one set, not 2"]),
        (("--surrogate", changed), ["is missing", "gendistill verify"]),
        (("--surrogate", tmp_path / "none"), ["no folder"]),
        (("--surrogate", tmp_path / "sets"), ["not a surrogate set"]),
        (("--surrogate", sets[1], "--format", "zip"), ["zip", "webdataset"]),
        (("--surrogate", sets[1], "--revision", "v1"), ["revision", "push_to_hub"]),
        (("--surrogate", sets[1], "--evaluation", tmp_path / "none.json"), ["none.json", "summary.json"]),
    ]
    before = tree(tmp_path)
    for arguments, words in cases:
        message = refused(capsys, "export", *arguments, "--output_dir", tmp_path / "out")
        assert all(word in message for word in words), message
        assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


# evidence


def row(method: str, ipc: int | None, content: str | None = None, **more: Any) -> dict[str, Any]:
    found = {"method": method, "stage": None, "ipc": ipc, "labels": "hard", "augment": False, "network": "convnet"}
    numbers = {"accuracy": [0.5, 0.6], "mean": 0.55, "std": 0.07, "ci95_vs_random": None, "verdict": "", "seconds": 1.0}
    return {**found, "recipe": None, "space": None, **numbers, "set": content, **more}


def summary(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"protocol": "gendistill", "data": {"name": "digits"}, "command": "e", "rows": rows}))
    return path


def baselines() -> list[dict[str, Any]]:
    return [row("random", 1), row("random", 2), row("kmeans", 2), row("full", None)]


def test_rows_of_a_set_its_baselines_and_full_data_become_evidence(tmp_path: Path, sets: dict[int, Path]) -> None:
    hashes = {ipc: SurrogateSet.load(path).content_hash() for ipc, path in sets.items()}
    rows = [row("kcenter", ipc, content) for ipc, content in hashes.items()]
    path = summary(tmp_path / "summary.json", [*baselines(), *rows, row("kcenter", 2, "of another set")])
    out = tmp_path / "out"
    assert gendistill("export", "--surrogate", both(sets), "--evaluation", path, "--output_dir", out) == 0
    for ipc, source in sets.items():
        found = read_evidence(out / f"ipc-{ipc}")["evaluation"]
        assert (found["protocol"], found["data"], found["command"]) == ("gendistill", "digits", "e")
        wanted = [row("kcenter", ipc, hashes[ipc]), *(b for b in baselines() if b["ipc"] in (ipc, None))]
        assert found["rows"] == wanted
        assert not (source / "evidence.json").exists()
    assert "55.0" in (out / "README.md").read_text(encoding="utf-8")


def test_a_summary_without_hashes_is_read_by_method_stage_and_ipc(
    tmp_path: Path, sets: dict[int, Path], capsys
) -> None:
    path = summary(tmp_path / "summary.json", [*baselines(), row("kcenter", 2), row("kcenter", 2, stage="refined")])
    arguments = ("export", "--evaluation", path, "--output_dir", tmp_path / "out", "--surrogate")
    assert "no row of" in refused(capsys, *arguments, sets[1])
    assert not (tmp_path / "out").exists()
    assert gendistill(*arguments, sets[2]) == 0
    rows = read_evidence(tmp_path / "out")["evaluation"]["rows"]
    assert [(r["method"], r["ipc"]) for r in rows] == [("kcenter", 2), ("random", 2), ("kmeans", 2), ("full", None)]


def test_another_sets_row_is_never_taken(tmp_path: Path, sets: dict[int, Path], capsys) -> None:
    path = summary(tmp_path / "summary.json", [*baselines(), row("kcenter", 2, "of another set")])
    arguments = ("export", "--surrogate", sets[2], "--evaluation", path, "--output_dir", tmp_path / "out")
    assert "Evaluate the set" in refused(capsys, *arguments)


# the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as (address, hub):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


def push(sets: dict[int, Path], out: Path, *more: object) -> int:
    return gendistill("export", "--surrogate", both(sets), "--output_dir", out, "--push_to_hub", "me/digits", *more)


def test_a_pushed_export_is_the_folder_and_comes_back_set_by_set(
    tmp_path: Path, sets: dict[int, Path], hub: Hub, capsys
) -> None:
    assert push(sets, tmp_path / "out", "--private") == 0
    assert "datasets/me/digits/commit" in capsys.readouterr().out
    there = dict(hub.repositories["me/digits"]["main"])
    assert there.pop(".gitattributes") == b""
    assert there == tree(tmp_path / "out")
    assert hub.private["me/digits"]
    folder = find_surrogate("me/digits/ipc-2")
    assert SurrogateSet.load(folder).content_hash() == made(2).content_hash()
    assert {path.split("/")[0] for path in hub.fetched} == {"ipc-2", "export.json"}
    with pytest.raises(ArtifactError, match="give one: me/digits/ipc-1, me/digits/ipc-2"):
        find_surrogate("me/digits")
    with pytest.raises(ArtifactError, match="holds no surrogate set"):
        find_surrogate("me/digits/ipc-9")


def test_an_export_below_the_current_folder_is_pushed(
    tmp_path: Path, sets: dict[int, Path], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gendistill", "export", "--output_dir", "deep/out"])  # which is recorded
    assert push(sets, Path("deep/out")) == 0


def test_a_branch_is_made_and_read_by_its_name(tmp_path: Path, sets: dict[int, Path], hub: Hub) -> None:
    assert push({2: sets[2]}, tmp_path / "out", "--revision", "v1") == 0
    assert set(hub.repositories["me/digits"]["main"]) == {".gitattributes"}
    assert not hub.private["me/digits"]
    assert SurrogateSet.load(find_surrogate("me/digits", "v1")).content_hash() == made(2).content_hash()
    with pytest.raises(ArtifactError, match="holds no surrogate set"):
        find_surrogate("me/digits")


@pytest.mark.slow
def test_a_second_push_leaves_nothing_of_the_first(tmp_path: Path, sets: dict[int, Path], hub: Hub) -> None:
    assert push(sets, tmp_path / "first", "--format", "parquet") == 0
    hub.repositories["me/digits"]["main"]["figure.svg"] = b"the owner's"
    assert push({1: sets[1]}, tmp_path / "second", "--format", "webdataset") == 0
    there = set(hub.repositories["me/digits"]["main"]) - {".gitattributes"}
    assert there == {*tree(tmp_path / "second"), "figure.svg"}
    with pytest.raises(ArtifactError, match="exported as webdataset, for other tools"):
        find_surrogate("me/digits")


def test_a_repository_of_others_is_left_alone(tmp_path: Path, sets: dict[int, Path], hub: Hub, capsys) -> None:
    hub.repositories["me/digits"] = {"main": {".gitattributes": b"", "data.csv": b"1"}}
    message = refused(
        capsys, "export", "--surrogate", sets[1], "--output_dir", tmp_path / "out", "--push_to_hub", "me/digits"
    )
    assert "data.csv" in message
    assert "hf upload me/digits" in message
    assert hub.repositories["me/digits"]["main"] == {".gitattributes": b"", "data.csv": b"1"}
    assert SurrogateSet.load(tmp_path / "out").content_hash() == made(1).content_hash()


def test_a_push_that_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, sets: dict[int, Path], hub: Hub, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("export", "--surrogate", sets[1], "--output_dir", tmp_path / "out", "--push_to_hub")
    for name in ("digits", "me/my digits", "me/a/b", "me/a--b", ""):
        assert "owner/name" in refused(capsys, *arguments, name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(capsys, *arguments, "me/digits")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    assert "hf auth login" in refused(capsys, *arguments, "me/digits")
    assert not (tmp_path / "out").exists()
    assert not hub.repositories


def test_an_unreachable_hub_leaves_the_export_here(
    tmp_path: Path, sets: dict[int, Path], hub: Hub, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    out = tmp_path / "out"
    message = refused(capsys, "export", "--surrogate", sets[1], "--output_dir", out, "--push_to_hub", "me/digits")
    assert f"{out} is written" in message
    assert SurrogateSet.load(out).content_hash() == made(1).content_hash()


# finding a set


def test_a_folder_is_found_as_it_is(tmp_path: Path, sets: dict[int, Path]) -> None:
    assert find_surrogate(sets[1]) == sets[1]
    assert find_surrogate(str(sets[1])) == sets[1]
    with pytest.raises(ConfigError, match="has no revisions"):
        find_surrogate(sets[1], "v1")
    with pytest.raises(ArtifactError, match="is a file"):
        find_surrogate(sets[1] / "manifest.json")
    for name in ("/no/such/folder", "no such", "", "../me/digits", "me/../digits", "a/b/c/d", "alone"):
        with pytest.raises(ArtifactError, match="There is no folder"):
            find_surrogate(name)


def test_an_export_for_other_tools_is_not_taken_for_a_set(tmp_path: Path, sets: dict[int, Path]) -> None:
    for format in ("parquet", "imagefolder"):
        out = tmp_path / format
        assert gendistill("export", "--surrogate", both(sets), "--format", format, "--output_dir", out) == 0
    for name in ("parquet", "parquet/ipc-1"):
        with pytest.raises(ArtifactError, match="exported as parquet"):
            find_surrogate(tmp_path / name)
    with pytest.raises(ArtifactError, match="several sets"):
        find_surrogate(tmp_path / "imagefolder")
    assert find_surrogate(tmp_path / "imagefolder" / "ipc-2") == tmp_path / "imagefolder" / "ipc-2"


def test_offline_only_what_was_fetched_before_is_found(
    tmp_path: Path, sets: dict[int, Path], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(sets, tmp_path / "out") == 0
    folder = find_surrogate("me/digits/ipc-2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_surrogate("me/digits/ipc-2") == folder
    with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE=1"):
        find_surrogate("me/other")


# a generator


@pytest.mark.slow
def test_a_generator_is_exported_with_what_its_stage_recorded(tmp_path: Path, capsys) -> None:
    generator, out = tmp_path / "generator", tmp_path / "small"
    assert gendistill("finetune", "--config", TINY, "--output_dir", generator) == 0
    message = refused(capsys, "export", generator, "--output_dir", out)
    assert "generator is a generator, which is no surrogate set. Export it with --format diffusers." in message
    command = ("export", generator, "--format", "diffusers", "--dtype", "bf16", "--output_dir", out)
    capsys.readouterr()
    assert gendistill(*command) == 0
    assert "10 classes in bf16, 7 files" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "| plain diffusion | 12 steps of 16 images, cosine schedule, muon" in card
    assert "| seconds of training | plain diffusion " in card
    assert [name for name, data in tree(out).items() if str(tmp_path).encode() in data] == []
    first = tree(out)
    assert "small is not empty. Replace it with --overwrite" in refused(capsys, *command)
    assert gendistill(*command, "--overwrite") == 0
    assert {k: v for k, v in tree(out).items() if k != "export.json"} == {
        k: v for k, v in first.items() if k != "export.json"
    }
    sampled = ("--ipc", 1, "--pool", 0, "--num_inference_steps", 2, "--output_dir", tmp_path / "samples")
    assert gendistill("sample", out, *sampled) == 0
    manifest = json.loads((tmp_path / "samples" / "ipc-1" / "manifest.json").read_text())
    assert manifest["shared_seconds"]["generator"] > 0


def test_what_is_no_generator_or_fits_none_is_refused(tmp_path: Path, sets: dict[int, Path], capsys) -> None:
    command = ("--format", "diffusers", "--output_dir", tmp_path / "out")
    assert "model_index.json" in refused(capsys, "export", sets[1], *command)
    assert "surrogate is " in refused(capsys, "export", sets[1], sets[2], *command)
    for option in ("--evaluation=s.json", "--push_to_hub=me/it"):
        assert "expected null with format diffusers" in refused(capsys, "export", sets[1], option, *command)
    message = refused(capsys, "export", sets[1], "--dtype", "bf16", "--output_dir", tmp_path / "out")
    assert "dtype is 'bf16'; expected 'fp32': it is used only with format diffusers" in message
    assert not (tmp_path / "out").exists()
