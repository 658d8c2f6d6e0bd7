"""The experiment scripts: they use the public names alone, they say what they found, and each still runs."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

import gendistill as gd
from tests.helpers import ROOT, TINY, gendistill
from tests.networks.classifier_folders import timm_folder

SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
RUNNABLE = [path.stem for path in SCRIPTS if path.stem != "curves"]  # with which three others draw
PURE = re.compile(  # modules of pure functions, which a script may import beside gendistill itself
    r"gendistill\.((transport|objectives)\.\w+|evaluation\.set_metrics|seeding|data\.pixels)"
)
QUICK = ("--max_per_class", 20, "--width", 8, "--judge_steps", 2, "--ipc", 1, "--seeds", 0, "--runs", 3)
MOVED = (*QUICK, "--teacher_steps", 2, "--steps", 2)


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of ours; the name is empty where a module itself is imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_use_the_public_names_alone(path: Path) -> None:
    for module, name in imported(path):
        if module.partition(".")[0] == "gendistill":
            assert (module, name) == ("gendistill", "") or PURE.fullmatch(module), (module, name)
            assert not name.startswith("_"), (module, name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "gd"}
    assert used <= set(gd.__all__)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_say_what_was_measured_where(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if path.stem == "curves":
        assert "no command" in text
        return
    assert f"python -m experiments.{path.stem} " in text
    assert "\nMachine: " in text
    assert re.search(r"[Tt]ime\s+not\s+recorded|took \d+", text)
    (place,) = re.findall(r"\nResult \((docs/[\w.]+#[\w-]+)\): ", text)
    file, _, anchor = place.partition("#")
    titles = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


# commands


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of ``python -m experiments.NAME`` in a document's code blocks, the variables filled in."""
    for block in re.findall(r"^```\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        text = block.replace("\\\n", " ")
        for name, value in re.findall(r'^(\w)="(.*)"$', text, flags=re.MULTILINE):
            text = text.replace(f"${name} ", f"{value} ")
        for line in re.findall(r"^.*python -m (experiments\..*)$", text, flags=re.MULTILINE):
            yield shlex.split(line, comments=True)


DOCUMENTED = [(path.name, *words) for path in sorted((ROOT / "docs").glob("*.md")) for words in commands(path)]


class Parsed(Exception):
    """The command line was read; nothing runs."""


@pytest.mark.parametrize("command", DOCUMENTED, ids=lambda command: " ".join(command[:2]))
def test_documented_commands_are_understood(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module(command[1])
    kind = script.argparse.ArgumentParser
    original = kind.parse_args

    def parse(self: object, *given: object) -> object:
        original(self, *given)
        raise Parsed

    monkeypatch.setattr(kind, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [str(word) for word in command[1:] if word != "..."])
    with pytest.raises(Parsed):
        script.main()


@pytest.mark.parametrize("name", RUNNABLE)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"experiments.{name}").main()
    assert "Machine: " in capsys.readouterr().out


# runs in miniature


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A generator and a teacher of few steps."""
    out = tmp_path_factory.mktemp("models")
    for command in ("finetune", "teacher"):
        assert gendistill(command, "--config", TINY, "--output_dir", out / command) == 0
    return out / "finetune", out / "teacher"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    monkeypatch.setattr(importlib.import_module("experiments.guides"), "DM_STEPS", 2)

    def once(name: str, *options: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        importlib.import_module(f"experiments.{name}").main()
        return capsys.readouterr().out

    return once


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_barycenters(run, tmp_path: Path) -> None:
    run("barycenters", "--points", 60, "--classes", 1, "--atoms", 2, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["solver"] for row in rows} >= {"fixed, exact", "fixed, Sinkhorn", "free, k-means"}
    assert all(0 < row["w2"] < 2 for row in rows)


@pytest.mark.slow
def test_compression_aware(run, tmp_path: Path) -> None:
    few = ("--pool", 4, "--ipc", 2, "--teacher_steps", 5, "--steps", 2, "--match_iterations", 1, "--judge_steps", 3)
    options = ("--max_per_class", 12, "--qualities", 10, "--runs", 3, "--width", 8, "--output", tmp_path / "rows.json")
    run("compression_aware", *few, *options)
    rows = {row["space"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows) == {None, "png", "afterwards, 10", "aware, 10"}
    assert "image_format" not in rows["png"]
    assert rows["aware, 10"]["image_format"] == rows["afterwards, 10"]["image_format"] == "webp at quality 10"


@pytest.mark.slow
def test_criteria(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("experiments.criteria"), "VARIANTS", {"both": (1.0, 1.0)})
    monkeypatch.setattr(gd, "SampleConfig", partial(gd.SampleConfig, num_inference_steps=2))
    options = ("--max_per_class", 12, "--seeds", 2, "--ipc", 2, "--scales", 1, "--json", tmp_path / "figures.json")
    text = run("criteria", *options, "--base_steps", 1, "--minimax_steps", 1, "--teacher_steps", 1)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert {"no criterion", "both x1", "random real images"} <= set(found)
    assert "| both x1 |" in text


@pytest.mark.slow
def test_difficulty(run, tmp_path: Path) -> None:
    options = (*QUICK, "--epochs", 2, "--scores", "confidence", "--output", tmp_path / "rows.json")
    text = run("difficulty", *options)
    rows = {(row["method"], row["space"]): row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {("difficulty", "confidence, easy"), ("difficulty", "confidence, hard"), ("kmeans", "pixels")} <= set(rows)
    assert "difficulty (confidence, hard)" in text
    data, script = gd.load_data(max_per_class=12), importlib.import_module("experiments.difficulty")
    config = gd.DifficultyConfig(width=8, epochs=2, score="forgetting", prefer="hard")
    made = script.chosen(data, gd.measure_difficulty(data, config), "forgetting", "hard", 3, 0)
    assert made.content_hash() == gd.distill(data, "difficulty", 3, options=config).content_hash()


@pytest.mark.slow
def test_equal_seconds(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("experiments.equal_seconds")
    pool = gd.Blended(pool_size=1, pool_steps=1)
    monkeypatch.setattr(script, "WIDTH", 8)
    monkeypatch.setattr(script, "RECIPES", {"dm": ("dm", {"real_batch": 4}), "cf": ("cf", {"networks": pool})})
    options = (*QUICK, "--seconds", 0.5, "--validation", "--output", tmp_path / "rows.jsonl")
    text = run("equal_seconds", *options)
    rows = records(tmp_path / "rows.jsonl")
    for name in ("dm", "cf"):
        own = [row for row in rows if row["recipe"] == name]
        assert [row["iterations"] for row in own] == sorted({row["iterations"] for row in own})
        assert [row["seconds"] for row in own] == sorted(row["seconds"] for row in own)
        assert len(own) == 3
        assert name in text
    assert run("equal_seconds", *options) == text  # nothing is made anew
    with pytest.raises(SystemExit, match=r"was made with --flip False, not True; give another --output"):
        run("equal_seconds", *options, "--flip")


@pytest.mark.slow
def test_every_method(run, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("experiments.every_method")
    monkeypatch.setattr(script, "BUDGETS", {"dm": (1, {})})
    options = ("--generator", models[0], "--networks", "convnet", "convnet_bn", "--output", tmp_path / "rows.jsonl")
    text = run("every_method", *MOVED, *options)
    found = {(row["name"], row["network"]) for row in records(tmp_path / "rows.jsonl")}
    names = ("difficulty", "wmdd", "dm", "herding (teacher features)", "ours, generated", "ours, from photographs")
    assert {(name, network) for name in (*names, "random") for network in ("convnet", "convnet_bn")} <= found
    assert "ours, generated" in text


@pytest.mark.slow
def test_faulty(run, tmp_path: Path) -> None:
    run("faulty", "--max_per_class", 20, "--ipc", 2, "--sets", tmp_path / "sets")
    counts = {place.name: len([*place.glob("train/*/*.png")]) for place in (tmp_path / "sets").iterdir()}
    assert counts.pop("missing") == 18
    assert set(counts.values()) == {20}
    assert len(counts) == 7


@pytest.mark.slow
def test_generators(run, models: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = ("photographs: refined", "own: unchanged", "own: matched")
    options = ("--generators", f"own={models[0]}", "--pool", 2, "--only", *wanted, "--sets", tmp_path / "sets")
    text = run("generators", *MOVED, *options, "--output", tmp_path / "rows.jsonl")
    found = {row["name"] for row in records(tmp_path / "rows.jsonl")}
    assert {name for name in found if ": " in name} == set(wanted)
    assert "own: matched" in text
    run("generators", *MOVED, *options, "--output", tmp_path / "again.jsonl")  # of the sets that were kept
    assert records(tmp_path / "again.jsonl") == records(tmp_path / "rows.jsonl")


@pytest.mark.slow
def test_guides(run, tmp_path: Path) -> None:
    ways = ("two teachers", "real images as atoms", "one teacher, then dm")
    text = run("guides", *MOVED, "--only", *ways, "--output", tmp_path / "rows.jsonl")
    assert {*ways, "random", "full"} <= {row["name"] for row in records(tmp_path / "rows.jsonl")}
    assert "real images as atoms" in text


@pytest.mark.parametrize("validation", [False, True])
def test_images_of_image_bytes_that_are_tested_on(validation: bool) -> None:
    script = importlib.import_module("experiments.refinement")
    options = argparse.Namespace(data="digits", image_size=None, max_per_class=20, validation=validation)
    known = gd.load_data(max_per_class=20, validation_fraction=0.3 if validation else 0.1)
    wanted = known.validation if validation else known.test
    assert script.data_of(options).test.images.equal(wanted.images)


@pytest.mark.slow
def test_image_bytes(run, models: tuple[Path, Path], tmp_path: Path) -> None:
    options = (*MOVED, "--match_iterations", 1, "--formats", "png", "webp_lossless", "webp:20")
    few = (
        "--ipc",
        1,
        2,
        "--output",
        tmp_path / "rows.jsonl",
    )  # fewer than five decoded images are not matched, eight are
    text = run("image_bytes", *options, "--validation", *few)
    rows = {(row["kind"], row["ipc"], row["format"]): row for row in records(tmp_path / "rows.jsonl")}
    kinds, formats = (
        ("random", "k-means (pixels)", "ours", "ours, packed"),
        ("png", "webp_lossless", "webp at quality 20"),
    )
    assert set(rows) == set(product(kinds, (1, 2), formats))
    for kind, ipc in product(kinds, (1, 2)):
        png, lossless, lossy = (rows[kind, ipc, name] for name in formats)
        assert png["accuracy"] == lossless["accuracy"]
        assert png["bytes"] > lossless["bytes"] > lossy["bytes"]
    seen = gd.load_data(max_per_class=20, validation_fraction=0.3)
    found = gd.distill(seen, "random", 2, seed=0).stored_as(gd.Webp(quality=20)).image_bytes
    assert rows["random", 2, "webp at quality 20"]["bytes"] == found
    sizes = [int(line[44:56].replace(",", "")) for line in text.splitlines() if line.startswith(kinds)]
    assert sizes == sorted(row["bytes"] for row in rows.values())
    assert ElementTree.parse(tmp_path / "rows.svg").getroot().tag.endswith("svg")
    assert run("image_bytes", *options, "--validation", *few) == text.partition("\n")[2]  # nothing is made anew
    run("image_bytes", *MOVED, "--generator", models[0], "--formats", "png", "--output", tmp_path / "samples.jsonl")
    assert {row["kind"] for row in records(tmp_path / "samples.jsonl")} == set(kinds)


def test_points_of_image_bytes_and_their_front() -> None:
    script = importlib.import_module("experiments.image_bytes")
    sizes = {"a": (100, 0.2), "b": (200, 0.2), "c": (300, 0.3), "d": (300, 0.4), "e": (400, 0.35)}
    rows = [
        {"seed": seed, "kind": kind, "ipc": 1, "format": "png", "bytes": size + seed, "accuracy": [mean, mean + 0.02]}
        for kind, (size, mean) in sizes.items()
        for seed in (0, 10)
    ]
    rows[1]["accuracy"] = [0.3, 0.32]
    found = script.points(rows)
    assert [(one.kind, one.bytes) for one in found] == [("a", 105), ("b", 205), ("d", 305), ("c", 305), ("e", 405)]
    assert (found[0].accuracy, found[0].spread) == pytest.approx((26.0, 50**0.5))
    assert [one.kind for one in script.front(found)] == ["a", "d"]
    assert script.points(rows[:1])[0].spread is None


@pytest.mark.parametrize("text", ["gif", "webp:0", "webp:x", "webp:", "png:5"])
def test_formats_of_image_bytes_are_checked(text: str, run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("image_bytes", "--formats", text, "--output", "rows.jsonl")
    assert f"{text!r}; expected" in capsys.readouterr().err


def test_image_bytes_refuses_a_generator_with_validation_images(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("image_bytes", "--validation", "--generator", "somewhere", "--output", "rows.jsonl")
    assert "--validation with --generator" in capsys.readouterr().err


@pytest.mark.slow
def test_matching(run, tmp_path: Path) -> None:
    options = ("--methods", "dm", "--selections", "representative", "--starts", "clustered", "--iterations", 2)
    rest = ("--every", 1, "--matching_width", 8, "--real_batch", 8, "--sets", tmp_path / "sets")
    text = run("matching", *QUICK, *options, *rest, "--output", tmp_path / "rows.jsonl")
    (row,) = records(tmp_path / "rows.jsonl")
    assert [point["iteration"] for point in row["points"]] == [0, 1, 2]
    assert ElementTree.parse(tmp_path / "rows.svg").getroot().tag.endswith("svg")
    assert run("matching", *QUICK, *options, *rest, "--output", tmp_path / "rows.jsonl") == text  # nothing is made anew


@pytest.mark.slow
def test_noise(run, tmp_path: Path) -> None:
    options = ("--max_per_class", 20, "--ipc", 1, "--seeds", 0, "--teacher_steps", 2, "--steps", 2, "--judge_steps", 2)
    text = run("noise", *options, "--output", tmp_path / "rows.jsonl")
    names = {row["name"] for row in records(tmp_path / "rows.jsonl")}
    assert {"random", "noise", "class noise, pixels", "real images, pixels"} <= names
    assert "class noise, pixels" in text


@pytest.mark.slow
def test_packing(run, tmp_path: Path) -> None:
    run("packing", *MOVED, "--output", tmp_path / "rows.jsonl")
    sizes = {row["name"]: row["bytes"] for row in records(tmp_path / "rows.jsonl")}
    assert sizes["random, packed"] > 0
    assert {"real: packed patches, selected", "real: whole, refined, then dm"} <= set(sizes)


@pytest.mark.slow
def test_picks(run, tmp_path: Path) -> None:
    options = ("--max_per_class", 20, "--classes", 3, "--networks", 1, "--steps", 1, "--every", 1, "--batch", 4)
    rest = ("--interval", 2, "--candidates", 8, "--dimensions", 8, "--width", 8, "--seeds", 0)
    text = run("picks", *options, *rest, "--output", tmp_path / "picks.svg")
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["random", "free", "fixed"] * 2
    assert ElementTree.parse(tmp_path / "picks.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
def test_pretrained(run, tmp_path: Path) -> None:
    source = timm_folder(tmp_path / "network")
    rest = ("--data", "digits", "--image_size", 8, "--test_per_class", 5, "--input_size", 16, "--pretrained", source)
    text = run("pretrained", *MOVED, *rest, "--output", tmp_path / "rows.jsonl")
    found = {(row["name"], row["labels"]) for row in records(tmp_path / "rows.jsonl")}
    made = {f"{teacher}: {way}" for teacher in ("pretrained", "from scratch") for way in ("refined", "random")}
    assert {(name, "soft") for name in made} <= found
    assert ("pretrained: from noise", "hard") in found
    assert "random" in text


@pytest.mark.slow
def test_refinement(run, models: tuple[Path, Path], tmp_path: Path) -> None:
    rows = ("real: select", "generated: select + atoms", "noise: wmdd", "real: select + all")
    options = ("--only", *rows, "--generator", models[0], "--sets", tmp_path / "sets", "--output")
    run("refinement", *MOVED, "--soft", *options, tmp_path / "rows.jsonl")
    found = {(row["name"], row["labels"]) for row in records(tmp_path / "rows.jsonl")}
    assert {(name, "hard") for name in rows} <= found
    assert ("real: select", "online") in found
    run("refinement", *MOVED, "--soft", "alone", *options, tmp_path / "soft.jsonl")  # of the sets that were kept
    assert {row["labels"] for row in records(tmp_path / "soft.jsonl")} == {"online"}


@pytest.mark.slow
def test_generator_training(run, models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    recipes = (
        "adam:optimizer=adamw,learning_rate=1e-3,batch_size=10,timesteps=uniform,loss_weighting=none,"
        "block_out_channels=16-16:2,3",
        "now:batch_size=10,timesteps=log_normal,block_out_channels=16-16:2",
    )
    run(
        "generator_training",
        "--data",
        "digits",
        "--judge",
        models[1],
        "--recipes",
        *recipes,
        "--ipc",
        8,
        "--output",
        out,
    )
    rows = list(map(json.loads, out.read_text().splitlines()))
    assert [(row["recipe"], row["steps"]) for row in rows] == [("adam", 2), ("adam", 3), ("now", 2)]
    assert {"seconds", "mmd2", "precision", "recall", "right"} <= rows[0].keys()
    assert rows[0]["mmd2"] != rows[2]["mmd2"]


def test_solvers(run, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("experiments.solvers")
    monkeypatch.setattr(script, "STEPS", (2,))
    monkeypatch.setattr(script, "SOLVERS", ("dpmsolver++", "ddim"))
    out = tmp_path / "rows.json"
    run("solvers", "--generator", models[0], "--teacher", models[1], "--ipc", 2, "--seeds", 2, "--json", out)
    assert [row["solver"] for row in json.loads(out.read_text())] == ["dpmsolver++", "ddim"]
