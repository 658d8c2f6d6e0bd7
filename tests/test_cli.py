"""The command line: quick help, typed options, and one clear message with exit code 2 for bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from gendistill.cli import COMMANDS, main, parse
from gendistill.config import to_dict
from gendistill.config.base import arms
from gendistill.config.commands import RunCommand
from gendistill.config.flat import all_options
from gendistill.errors import ConfigError
from tests.helpers import ROOT, TINY, environment, gendistill, messages


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
c.main(["config"])
import torch
kept = torch.ones(2**24)
sizes = re.findall(r"AnonHugePages: +([0-9]+) kB", open("/proc/self/smaps").read())
print("huge MiB:", sum(map(int, sizes)) // 1024)
"""


@pytest.mark.slow
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


LISTS = {
    "words": ["--ipc", "1", "5", "10"],
    "commas": ["--ipc", "1,5,10"],
    "commas and spaces": ["--ipc", "1, 5, 10"],
    "a list": ["--ipc", "[1,5,10]"],
    "an unquoted list": ["--ipc", "[1,", "5,", "10]"],
    "after a sign": ["--ipc=1,5,10"],
}


@pytest.mark.parametrize("words", LISTS.values(), ids=list(LISTS))
def test_a_list_is_written_as_one_likes(words: list[str]) -> None:
    assert parse("distill", [*words, "--output_dir", "x"]).ipc == (1, 5, 10)
    assert parse("distill", ["--output_dir", "x", *words]).ipc == (1, 5, 10)


def test_lists_of_text_have_commas_too_but_names_with_spaces_stay_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    options = parse(
        "evaluate", ["s,t", "--network", "convnet,resnet18", "--augment", "true", "false", "--output_dir=x"]
    )
    assert options.surrogate == [Path("s"), Path("t")]
    assert (options.network, options.augment) == (("convnet", "resnet18"), (True, False))
    assert parse("verify", ["a,b"]).surrogate == Path("a,b")
    classes = ["--classes", "great white shark, white shark", "goldfish", "--guidance_interval", "0.1", "1"]
    options = parse("sample", ["g", *classes, "--guidance=cfg", "--guidance_scale=2", "--output_dir=x"])
    assert options.classes == ("great white shark, white shark", "goldfish")
    assert options.guidance.interval == (0.1, 1.0)
    assert parse("sample", ["g", "--classes", "goldfish", "--output_dir=x"]).classes == ("goldfish",)


READERS = [name for name, command in COMMANDS.items() if "surrogate" in command.options.__dataclass_fields__]


@pytest.mark.parametrize("name", READERS)
def test_every_command_that_reads_sets_takes_them_with_and_without_their_name(name: str) -> None:
    fields = COMMANDS[name].options.__dataclass_fields__
    more = [f"--{one}=t" for one in ("teacher", "output_dir") if one in fields and name != "verify"]
    named = parse(name, ["--surrogate", "a", *more])
    assert named.surrogate == Path("a")
    assert named == parse(name, ["a", *more]) == parse(name, [*more, "a"])
    if name not in ("refine", "label"):
        expected = [Path("a"), Path("b")]
        assert parse(name, ["a", "b", *more]).surrogate == parse(name, ["a", *more, "b"]).surrogate == expected
        with pytest.raises(ConfigError, match="'a' and --surrogate are both given"):
            parse(name, ["a", *more, "--surrogate", "b"])
    else:
        with pytest.raises(ConfigError, match="'b' belongs to no option"):
            parse(name, ["a", "b", *more])


BOOLEANS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option, one in all_options(command.options)
    if bool in (one.type, *arms(one.type)) and option.rpartition(".")[2] not in ("describe", "learned_sigma")
]


@pytest.mark.parametrize(("name", "option"), BOOLEANS, ids=[f"{name}-{option}" for name, option in BOOLEANS])
def test_yes_is_said_with_and_without_a_value(name: str, option: str) -> None:
    fields = COMMANDS[name].options.__dataclass_fields__
    more = [
        f"--{one}=t"
        for one in ("output_dir", "surrogate", "teacher", "generator", "run")
        if is_required(fields.get(one))
    ]
    more += ["--push_to_hub=a/b"] * (option == "private")
    more += ["--method=idc"] * option.startswith("matching.") + ["--method=wmdd", "--teacher=t"] * option.startswith(
        "wmdd."
    )
    if option.endswith("compression_aware"):
        section = option.removesuffix("compression_aware")
        more += [f"--{section}image_format=jpeg", *["--method=dm"] * (name == "distill")]
    more += ["--method=difficulty"] * option.startswith("difficulty.")
    alone, behind = parse(name, [f"--{option}", *more]), parse(name, [*more, f"--{option}"])
    assert alone == behind == parse(name, [f"--{option}", "true", *more]) == parse(name, [f"--{option}=true", *more])
    assert parse(name, [f"--{option}", "false", *more]) != alone or option == "select"


def is_required(field: object) -> bool:
    return field is not None and repr(field.default) == repr(field.default_factory)  # type: ignore[attr-defined]


def test_a_set_may_follow_a_yes() -> None:
    options = parse("export", ["--overwrite", "a", "b", "--output_dir", "x"])
    assert options.overwrite is True
    assert options.surrogate == [Path("a"), Path("b")]


def test_data_has_a_short_form_everywhere(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("data: folder\n", encoding="utf-8")
    for source in (["--data", "folder"], ["--data.name", "folder"], ["--config", str(tmp_path / "own.yaml")]):
        data = parse("teacher", [*source, "--data.image_size", "8", "--output_dir", "x"]).data
        assert (data.name, data.image_size) == ("folder", 8)
    assert parse("refine", ["a", "--teacher=t", "--output_dir=x", "--data", "7"]).data.name == "7"


def test_flags_stand_anywhere_and_are_not_part_of_the_recorded_command(capsys, monkeypatch) -> None:
    for words in (["--json", "config", "list"], ["config", "list", "--json"], ["config", "--quiet", "--json", "true"]):
        monkeypatch.setattr(sys, "argv", ["gendistill", *words])
        assert main() == 0
        assert "quick" in json.loads(capsys.readouterr().out)["presets"]
        assert not {"--json", "--quiet"} & {*sys.argv}
    assert main(["config", "--log_level", "loud"]) == 2
    assert "log_level is 'loud'; expected one of debug, info" in capsys.readouterr().err


FILES = {
    "a key twice": ("width: 3\nwidth: 5", "width stands twice, again in line 2"),
    "a key twice below a section": ("teacher: {width: 3}\ndata: {name: a, name: b}", "name stands twice"),
    "beside a section": (
        "teacher: {width: 3}\nwidth: 5",
        "width stands beside the sections of the file; expected it b",
    ),
    "an unknown section": ("teacher: {width: 3}\ndta: {name: x}", "The file has no dta"),
    "an empty unknown section": ("teacher: {width: 3}\ndta:", "Did you mean 'data'?"),
    "an empty section": ("teacher: {width: 3}\nlabel:", "label is null; expected its options below it"),
    "a date": ("seed: 2024-01-01", "seed is '2024-01-01'; expected a whole number"),
    "a set": ("steps: !!set {3}", "a value of the type set; expected text"),
    "bytes": ("network: !!binary aGk=", "a value of the type binary; expected text"),
    "an object": ("network: !!python/object:os.x {}", "expected text, a number"),
    "a circle": ("data: &a {name: *a}", "in themselves"),
    "too deep": ("width: " + "[" * 50 + "]" * 50, "more than 32 deep"),
    "far too deep": ("width: " + "[" * 50_000, "more than 32 deep"),
    "Latin-1": ("data: {name: caf\xe9}".encode("latin-1"), "is not UTF-8 text (byte 0xe9 at position 16)"),
    "UTF-16": ("width: 3".encode("utf-16"), "is not UTF-8 text"),
    "an absurd width": ("width: 1000000000", "teacher.width is 1000000000; expected a whole number from 1 to 65536"),
    "an absurd size": (
        "data: {image_size: 100000}",
        "data.image_size is 100000; expected null or a whole number from 4",
    ),
    "an absurd rate": (f"learning_rate: 1{'0' * 400}", "expected a number of at least 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_a_file_is_refused_in_one_message(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = FILES[case]
    (tmp_path / "own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(capsys, "teacher", "--config", tmp_path / "own.yaml", "--output_dir", tmp_path / "out")


def test_absurd_numbers_of_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("distill", "sample"):
        assert "ipc is 100000000000" in refused(capsys, name, "--generator=g" if name == "sample" else "--seed=0",
                                                "--ipc", 10**11, "--output_dir", "x")  # fmt: skip


def test_a_file_says_the_same_with_anchors_and_with_a_mark_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("\ufeffdata: &d {name: a}\nteacher: {width: 3}\nlabel: {}\n", encoding="utf-8")
    options = parse("teacher", ["--config", str(tmp_path / "own.yaml"), "--output_dir=x"])
    assert (options.width, options.data.name) == (3, "a")


NOT_THERE = {
    "a set to verify": ["verify", "/nowhere/a"],
    "a set to evaluate": ["evaluate", "/nowhere/a", "--output_dir", "x"],
    "a set to refine": ["refine", "/nowhere/a", "--teacher", "/nowhere/t", "--output_dir", "x"],
    "a teacher": ["label", "owner/name", "--teacher", "/nowhere/t", "--output_dir", "x"],
    "a run": ["report", "/nowhere/a"],
    "a generator": ["sample", "--generator", "/nowhere/g", "--output_dir", "x"],
    "a generator that nobody knows": ["sample", "--generator", "no/where", "--output_dir", "x"],
    "no generator": ["sample", "--generator", str(ROOT / "docs"), "--output_dir", "x"],
    "a generator to tune": ["finetune", "--pretrained", "/nowhere/g", "--output_dir", "x"],
    "an autoencoder": ["finetune", "--codec", "/nowhere/g", "--output_dir", "x"],
    "no adapter": ["sample", "--generator", "/", "--adapter", str(ROOT / "docs"), "--output_dir", "x"],
    "a published teacher": ["teacher", "--pretrained", "/nowhere/t", "--output_dir", "x"],
    "a file of weights": ["teacher", "--pretrained", "no.safetensors", "--output_dir", "x"],
    "a set that nobody knows": ["export", "no/where", "--output_dir", "x"],
    "data": ["teacher", "--data", "/nowhere/data", "--output_dir", "x"],
    "data that nobody knows": ["run", "--data", "digit", "--output_dir", "x"],
    "a teacher of a name that is too long": ["refine", "owner/name", "--teacher", "9" * 400, "--output_dir", "x"],
    "a free place": ["run", "--output_dir", str(ROOT / "docs")],
    "a folder to write": ["export", "owner/name", "--output_dir", str(ROOT / "README.md")],
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_wrong_paths_are_refused_before_anything_is_imported(case: str, capsys) -> None:
    code = f"import sys, gendistill.cli as c; sys.exit(c.main({NOT_THERE[case]!r}) + 10 * ('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=environment()
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1


BAD_OPTIONS = {
    "unknown command": (["destroy"], ["'destroy'", "run, teacher"]),
    "unknown key": (["teacher", "--output_dir", "x", "--widht", "3"], ["widht"]),
    "unknown nested key": (["run", "--output_dir", "x", "--data.nmae", "digits"], ["nmae"]),
    "missing option": (["sample", "--generator", "g"], ["output_dir"]),
    "bad type": (["teacher", "--output_dir", "x", "--width", "wide"], ["width", "wide"]),
    "bad choice": (["distill", "--output_dir", "x", "--method", "magic"], ["magic", "kmeans", "herding"]),
    "ipc 0": (["distill", "--output_dir", "x", "--ipc", "0"], ["distill.ipc is 0", "from 1 to 100000"]),
    "ipc twice": (["sample", "--generator", "g", "--output_dir", "x", "--ipc", "[1,1]"], ["each number once"]),
    "fraction": (["run", "--output_dir", "x", "--data.test_fraction", "1.5"], ["test_fraction", "1.5"]),
    "groups": (["finetune", "--output_dir", "x", "--model.norm_num_groups", "7"], ["block_out_channels", "multiples"]),
    "narrow attention": (
        [
            "finetune",
            "--output_dir",
            "x",
            "--model.block_out_channels",
            "4",
            "8",
            "--model.norm_num_groups",
            "4",
            "--model.attention_levels",
            "2",
        ],
        ["at least 8 channels where there is attention"],
    ),
    "odd heads": (
        [
            "finetune",
            "--output_dir",
            "x",
            "--model.architecture",
            "dit",
            "--model.num_attention_heads",
            "3",
            "--model.attention_head_dim",
            "10",
        ],
        ["attention_head_dim is 10", "a multiple of 4"],
    ),
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sets_and_teachers_say_what_the_images_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without --data the teacher's images are used, by every command that takes a teacher."""
    few = ("--data.max_per_class", 12)
    teacher, made = tmp_path / "teacher", tmp_path / "features"
    assert gendistill("teacher", *few, "--steps", 8, "--output_dir", teacher, "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["train"] > 0
    assert gendistill("distill", "--method", "kmeans", "--teacher", teacher, "--ipc", "1,2", "--output_dir", made) == 0
    manifest = json.loads((made / "ipc-2" / "manifest.json").read_text())
    assert manifest["space"] == "teacher features"
    assert sum(manifest["data"]["counts"]["train"]) < 120
    assert "teacher_hash" in manifest
    capsys.readouterr()
    quick = ("--steps", 3, "--runs", 3, "--baselines", "random", "--describe", "false", "--baseline_cache", "null")
    out = tmp_path / "evaluation"
    assert gendistill("evaluate", made / "ipc-2", "--teacher", teacher, *quick, "--output_dir", out, "--quiet") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert re.search(r"^The .*random real images.*\.$", said.out.splitlines()[-1])
    sources = json.loads((out / "stage.json").read_text())["sources"]
    assert sources["data"]["max_per_class"] == 12
    assert gendistill("report", out, "--output_dir", tmp_path / "report", "--json") == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert gendistill("verify", made / "ipc-1", made / "ipc-2", "--json") == 0
    assert all(one["unchanged"] for one in json.loads(capsys.readouterr().out)["sets"].values())
    assert gendistill("show", made / "ipc-2", "--teacher", teacher, "--output_dir", tmp_path / "show", "--json") == 0
    assert "sets" in json.loads(capsys.readouterr().out)
    message = refused(capsys, "distill", "--method", "random", "--teacher", teacher, "--output_dir", tmp_path / "no")
    assert "teacher is " in message
    assert "with method random" in message


def test_the_doctor_looks_at_the_machine(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["gendistill"]
    assert "threads" in " ".join(found["machine"])
    assert {"peft", "transformers", "tensorboard", "wandb"} == found["optional packages"].keys()
    assert main(["doctor"]) == 0
    assert "avx512_bf16" in capsys.readouterr().out


def test_help_is_short_and_all_of_it_is_there(capsys: pytest.CaptureFixture) -> None:
    for name, command in COMMANDS.items():
        assert main([name, "--help"]) == 0
        short = capsys.readouterr().out
        assert len(short.splitlines()) <= 80
        assert f"example:\n  gendistill {name}" in short
        assert max(map(len, short.splitlines())) <= 100
        assert main([name, "--help", "all"]) == 0
        whole = capsys.readouterr().out
        for option, one in all_options(command.options):
            assert one.section or f"  --{option}" in whole
        for option in command.common.split():
            assert f"  --{option}" in short
        parse_example(name, command.example)
    assert main(["distill", "--help", "matching.q"]) == 0
    assert "--matching.queue_size" in (text := capsys.readouterr().out)
    assert "--matching.width" not in text


def parse_example(name: str, example: str) -> None:
    """The example of a command's help is understood."""
    assert parse(name, example.split())


def test_an_output_folder_among_the_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    words = ["distill", "--method", "random", "--ipc", 1, "--data", tmp_path / "photos", "--output_dir"]
    for place in ("photos", "photos/out", "photos/cat/out"):
        found = refused(capsys, *words, tmp_path / place)
        assert "lies in the folder of the images" in found
    assert not (tmp_path / "photos" / "out").exists()
    assert "lies in" not in refused(capsys, *words, tmp_path / "photos" / ".out")  # hidden folders are no classes
    assert "lies in" not in refused(capsys, *words, tmp_path / "out")


def test_an_output_folder_beside_splits_that_are_named_is_no_image_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/cat", "val/cat"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    words = ["distill", "--method", "random", "--ipc", 1, "--data", tmp_path / "photos", "--data.train", "train"]
    named = [*words, "--data.test", "val", "--output_dir"]
    assert "lies in" not in refused(capsys, *named, tmp_path / "photos" / "out")
    assert "lies in the folder of the images" in refused(capsys, *named, tmp_path / "photos" / "val" / "out")
    assert "lies in the folder of the images" in refused(capsys, *words, "--output_dir", tmp_path / "photos" / "out")
