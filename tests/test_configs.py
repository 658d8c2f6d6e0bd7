"""Presets: every one is taken by the command that its head names, and is listed, shown and copied."""

import re

import pytest
import yaml

from gendistill.cli import COMMANDS, main, parse
from gendistill.config.presets import FOLDER, preset_names, read_preset

NAMES = [name for name in preset_names() if not name.startswith("launch/")]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_taken_by_its_command(name, tmp_path):
    text = read_preset(name)
    named = re.search(rf"gendistill (\w+) --config {name} ", text)
    assert named, "its head names no command"
    teacher = ["--teacher", "TEACHER"] if "--teacher TEACHER" in text else []
    by_name = parse(named[1], ["--config", name, *teacher, "--output_dir", str(tmp_path)])
    by_file = parse(named[1], ["--config", str(FOLDER / f"{name}.yaml"), *teacher, "--output_dir", str(tmp_path)])
    assert isinstance(by_name, COMMANDS[named[1]].options)
    assert by_name == by_file


def with_presets():
    return [(name, size) for name in NAMES for size in yaml.safe_load(read_preset(name)).get("presets", {})]


@pytest.mark.parametrize(("name", "size"), with_presets())
def test_a_preset_of_a_file_replaces_its_options(name, size, tmp_path):
    words = ["--config", name, "--output_dir", str(tmp_path)]
    whole, changed = (yaml.safe_load(read_preset(name))[key] for key in ("finetune", "presets"))
    assert changed[size]["finetune"]["base_steps"] < whole["base_steps"]
    small = parse("run", [*words[:2], "--preset", size, *words[2:]])
    assert small.finetune.base_steps == changed[size]["finetune"]["base_steps"]
    assert small.finetune.ema_decay == parse("run", words).finetune.ema_decay == whole["ema_decay"]
    own = parse("finetune", [*words[:2], "--preset", size, *words[2:]])
    assert own.base_steps == small.finetune.base_steps
    later = parse("run", [*words[:2], "--preset", size, "--finetune.base_steps", "7", *words[2:]])
    assert later.finetune.base_steps == 7


def test_a_preset_belongs_to_the_last_file(tmp_path):
    for name, steps in (("one", 1), ("two", 2)):
        (tmp_path / name).write_text(f"steps: 9\npresets:\n  small:\n    steps: {steps}\n")
    files = [word for name in ("one", "two") for word in ("--config", str(tmp_path / name))]
    assert parse("teacher", [*files, "--preset", "small", "--output_dir", "x"]).steps == 2
    assert parse("teacher", [*files, "--output_dir", "x"]).steps == 9


def test_presets_are_listed_shown_and_copied(tmp_path, capsys):
    assert main(["config", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == preset_names()
    assert main(["config", "show", "quick"]) == 0
    assert capsys.readouterr().out == read_preset("quick")
    mine = tmp_path / "mine.yaml"
    assert main(["config", "copy", "matching/dm", str(mine)]) == 0
    assert mine.read_text(encoding="utf-8") == read_preset("matching/dm")
    mine.write_text("changed")
    assert main(["config", "copy", "quick", str(mine)]) == 2
    assert mine.read_text() == "changed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["config", "show", "quik"], "there is no preset 'quik'"),
        (["config", "copy", "quick"], "file is null"),
        (["config", "show"], "name is null"),
        (["config", "quick"], "expected one of list, show, copy"),
        (["run", "--config", "quik", "--output_dir", "x"], "neither a file nor a preset"),
        (["config", "show", "../evaluate"], "there is no preset"),
        (
            ["run", "--config", "cifar10", "--preset", "quik", "--output_dir", "x"],
            "expected one of quick. Did you mean",
        ),
        (["run", "--preset", "quik", "--output_dir", "x"], "expected --config before it, such as"),
        (["run", "--config", "digits", "--preset", "quik", "--output_dir", "x"], "expected --config before it"),
    ],
)
def test_a_wrong_name_is_refused(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "quik" not in str(arguments) or "quick" in said


def test_a_file_of_a_presets_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("seed: 7\noutput_dir: here\n")
    assert parse("run", ["--config", "quick"]).seed == 7
