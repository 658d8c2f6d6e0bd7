"""Refused options say the same on the command line, in a YAML file and in Python, in words of gendistill alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gendistill import config
from gendistill.cli import COMMANDS, main, parse
from gendistill.config import to_dict
from gendistill.config.base import Options, fits, is_required, read_words
from gendistill.config.flat import all_options, options_of, unflatten
from gendistill.errors import ConfigError
from tests.config.test_options import REQUIRED, made

OPTIONS = [(name, *found) for name, command in COMMANDS.items() for found in all_options(command.options)]
FOREIGN = re.compile(r"typing|Union|jsonargparse|argparse|NoneType|Namespace|Literal|Annotated|Traceback|\bNone\b")


def required(command: str, but: str) -> list[str]:
    fields = COMMANDS[command].options.__dataclass_fields__.values()
    found = [f"--{f.name}={REQUIRED[f.name]}" for f in fields if is_required(f) and f.name != but]
    section = but.rpartition("pretrained.")  # which has no options without its source
    return [*found, f"--{section[0]}pretrained.source=x"] if section[1] and section[2] != "source" else found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


@pytest.mark.parametrize(("command", "name", "option"), OPTIONS, ids=[f"{c}-{name}" for c, name, _ in OPTIONS])
def test_a_wrong_value_is_refused_in_our_words(command, name, option, capsys, tmp_path) -> None:
    flags = required(command, name)
    for text in ("no such value", "[[{}]]"):
        messages, nested = [], yaml.safe_load(text)
        short = option.section and option.section.short and text[0] != "["
        if (option.section and not short) or not (short or fits(option.type, read_words(option.type, [text]))):
            messages.append(refused(capsys, command, *flags, f"--{name}={text}"))
        if not short and (
            option.section or not fits(option.type, nested)
        ):  # in a file text is in quotes, so that text takes no list
            for part in reversed(name.split(".")):
                nested = {part: nested}
            (tmp_path / "own.yaml").write_text(yaml.safe_dump(nested), encoding="utf-8")
            messages.append(refused(capsys, command, f"--config={tmp_path / 'own.yaml'}", *flags))
        assert len(set(messages)) == 1 or text != "[[{}]]"
        for message in messages:
            assert not FOREIGN.search(message), message
            assert f"{name.split('.')[-1]} is " in message or "continual is " in message
            assert "; expected " in message


@pytest.mark.parametrize(("command", "name", "option"), OPTIONS, ids=[f"{c}-{name}" for c, name, _ in OPTIONS])
def test_a_misspelt_name_is_refused_with_the_right_one(command, name, option, capsys) -> None:
    message = refused(capsys, command, f"--{name}x=3")
    assert f"has no option --{name}x. Did you mean '--{name}'?" in message


GUESSES = {
    "an option": (lambda: config.TeacherConfig(widht=3), "Did you mean 'width'?"),
    "a value": (lambda: config.RefineConfig(feature_loss="squard"), "Did you mean 'squared'?"),
    "a kind": (lambda: unflatten(config.SampleConfig, {"guidance": "cgf"}), "Did you mean 'cfg'?"),
    "a key": (lambda: unflatten(config.DistillConfig, {"matching": {"facter": 3}}), "Did you mean 'factor'?"),
    "a method": (lambda: config.DistillConfig(method="kmean"), "Did you mean 'kmeans'?"),
    "a baseline": (lambda: config.EvaluateConfig(baselines=("random", "herdin")), "Did you mean 'herding'?"),
    "features": (lambda: config.EvaluateConfig(features="teachr"), "Did you mean 'teacher'?"),
    "a refiner": (lambda: config.RefineConfig(refiner="barycentre"), "Did you mean 'barycenter'?"),
}


@pytest.mark.parametrize("case", GUESSES)
def test_a_close_name_is_proposed(case: str) -> None:
    make, text = GUESSES[case]
    with pytest.raises(ConfigError, match=re.escape(text)):
        make()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verfy", "x"], "Did you mean 'verify'?"),
        (["teacher", "--width"], "--width has no value"),
        (["teacher", "--width", "3", "4"], "'4' belongs to no option"),
        (["teacher", "--width", "3"], "lacks output_dir"),
        (["verify"], "lacks surrogate"),
        (["--plugin"], "--plugin has no value"),
        (["distill", "--matching.selection=random"], "Did you mean '--selection'?"),
        (["run", "--network=convnet"], "Did you mean '--teacher.network'?"),
        (["--plugin="], "--plugin has no value"),
        (["refine", "p", "--select", "medium"], "--select takes true or false or one of easy, hard"),
        (["refine", "--select", "medium", "p"], "--select takes true or false or one of easy, hard"),
        (["refine", "--surrogate", "p", "--select", "medium"], "--select takes true or false or one of easy, hard"),
    ],
)
def test_arguments_that_cannot_be_read_are_one_message(arguments: list[str], words: str, capsys) -> None:
    assert words in refused(capsys, *arguments)


FOLDERS = [
    (c, name) for c, name, option in OPTIONS if name in ("surrogate", "run", "teacher") and fits(option.type, ["x"])
]


@pytest.mark.parametrize(("command", "name"), FOLDERS)
def test_an_empty_list_of_folders_is_refused_alike(command: str, name: str, capsys) -> None:
    message = refused(capsys, command, *required(command, name), f"--{name}=[]")
    assert re.search(rf"{name} is \[\]; expected .*a path or a list of one or more \(each a path\)\.", message)


def nested_places(cls: type[Options], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where a flat form has mappings: at the top, and in each section."""
    inner = [(name, option.section) for name, option in options_of(cls).items() if option.section]
    return [place, *(found for name, one in inner for found in nested_places(one, (*place, name)))]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_key_of_a_nested_mapping_is_dropped(data: st.DataObject) -> None:
    cls = COMMANDS[data.draw(st.sampled_from(sorted(COMMANDS)))].options
    place = data.draw(st.sampled_from(nested_places(cls)))
    flat = inner = to_dict(made(cls))
    for name in place:
        inner[name] = inner[name] if inner[name] is not None else {}
        inner = inner[name]
    known = sorted({name.rpartition(".")[2] for name, _ in all_options(cls)} - set(inner))
    key = data.draw(st.one_of(st.sampled_from([*known, "nonsense"]), st.text()).filter(lambda one: one not in inner))
    found = dict(all_options(cls))
    taken = ".".join((*place, key)) in found
    inner[key] = data.draw(st.sampled_from([None, 3, "x", {}]))
    if not taken:
        with pytest.raises(ConfigError, match=re.escape(f"has no {key}; expected")):
            unflatten(cls, flat)


def test_selection_is_not_taken_below_matching() -> None:
    with pytest.raises(ConfigError, match=r"distill\.matching has no selection; expected some of"):
        unflatten(config.DistillConfig, {"method": "dm", "matching": {"selection": "representative"}})


def test_numbers_and_text_are_read_as_the_option_wants_them(tmp_path: Path) -> None:
    options = parse("teacher", ["--output_dir", "3", "--learning_rate", "1e-3", "--mixed_precision", "no", "--seed=-2"])
    assert (options.output_dir, options.learning_rate, options.mixed_precision) == (Path("3"), 1e-3, "no")
    assert options.seed == -2
    (tmp_path / "own.yaml").write_text("learning_rate: 1e-3\ndata: {name: '3'}\n", encoding="utf-8")
    options = parse("teacher", ["--config", str(tmp_path / "own.yaml"), "--output_dir=x", "--data.revision", "7"])
    assert (options.learning_rate, options.data.name, options.data.revision) == (1e-3, "3", "7")
    options = parse(
        "teacher", ["--output_dir=x", '--data={"name": "a"}', "--data.image_size=8", "--data.revision=null"]
    )
    assert (options.data.name, options.data.image_size, options.data.revision) == ("a", 8, None)
    options = parse("finetune", ["--output_dir=x", "--pretrained=p", "--label_map={0: 5}", "--label_map.cat=1"])
    assert options.label_map == {"0": 5, "cat": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample: {ipc: 3}\ntecher: {width: 3}", "The file has no techer; expected some of"),
        ("sample: {ipc: 3}\nteacher: 3", "teacher is 3; expected its options below it."),
        ("sample: {ipc: 3}\nteacher: {widht: 3}", "teacher has no widht; expected some of"),
        ("- width", "holds list; expected options as `key: value` lines."),
        ("width: [", "cannot be read"),
    ],
)
def test_a_file_of_a_whole_run_is_read_without_losing_a_key(text: str, words: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    assert main(["teacher", f"--config={tmp_path / 'own.yaml'}", "--output_dir=x"]) == 2
    assert words in capsys.readouterr().err


def test_what_comes_later_counts(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("width: 3\ndepth: 4\n", encoding="utf-8")
    flag = f"--config={tmp_path / 'own.yaml'}"
    assert parse("teacher", [flag, "--width=5", "--output_dir=x"]).width == 5
    assert parse("teacher", ["--width=5", flag, "--output_dir=x"]).width == 3
    assert parse("verify", ["a", "b"]).surrogate == [Path("a"), Path("b")]
    assert parse("export", ["--surrogate", "a", "b", "--overwrite", "--output_dir=x"]).overwrite is True


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_what_is_registered_wherever_an_option_takes_it(command: str, capsys) -> None:
    assert main([command, "--help", "all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for _, name, _ in (found for found in OPTIONS if found[0] == command):
        start = text.find(f" --{name} {name.rpartition('.')[2].upper()} ")
        own = text[start : text.find(" --", start + 3)] if start >= 0 else ""
        last = name.rpartition(".")[2]
        assert ("One of " in own) == (last in ("network", "method", "refiner")), (name, own)
    assert not FOREIGN.search(text)


def test_a_rate_of_plain_training_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate is 0\.001; expected null with finetune\.pretrained"):
        config.FinetuneConfig(pretrained="p", learning_rate=1e-3)
