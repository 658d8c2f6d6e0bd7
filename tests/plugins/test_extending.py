"""docs/extending.md: its examples in Python and on the command line, as modules and as packages with entry points."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.processes import Ended, run_python

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r'^"""(my_\w+)\.py')
BLOCKS = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
MODULES = {found[1]: code for kind, code in BLOCKS if kind == "python" and (found := MODULE.match(code))}
REGISTERED = {
    "my_distiller": ("distillers", "mix", "mix"),
    "my_network": ("networks", "mlp", "MLP"),
    "my_refiner": ("refiners", "pull", "pull"),
    "my_source": ("sources", "squares", "squares"),
    "my_check": ("checks", "contrast", "contrast"),
}
COMMANDS = """
import shlex
from gendistill.cli import main
for line in {lines!r}:
    assert main(shlex.split(line)[1:]) == 0, line
"""


def lines(options: str = "") -> list[str]:
    found = [line for kind, code in BLOCKS if kind == "bash" for line in code.splitlines()]
    return [re.sub(r"--plugin \w+ ", "", line) + options for line in found] if options else found


def python(code: str, folder: Path, *path: Path) -> Ended:
    """Run code in ``folder`` by itself, so that nothing stays registered here."""
    return run_python(code, folder, path=path, OMP_NUM_THREADS=1, XDG_CACHE_HOME=folder / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every command of the page has run."""
    path = tmp_path_factory.mktemp("extending")
    for name, code in MODULES.items():
        (path / f"{name}.py").write_text(code, encoding="utf-8")
    done = python(COMMANDS.format(lines=lines()), path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return path


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_page_has_an_example_of_each_kind_in_at_most_30_lines() -> None:
    assert MODULES.keys() == REGISTERED.keys()
    assert all(len(code.splitlines()) <= 30 for code in MODULES.values())


def test_a_distiller_runs_from_the_command_line(folder: Path) -> None:
    made = read(folder / "mixed" / "ipc-5" / "manifest.json")
    assert (made["method"], made["ipc"], made["seed"]) == ("mix", 5, 0)
    assert "strength: 0.4" in (folder / "mixed" / "config.yaml").read_text(encoding="utf-8")


def test_a_network_trains_as_teacher_and_is_matched_on(folder: Path) -> None:
    assert read(folder / "teacher" / "teacher.json")["network"]["name"] == "mlp"
    assert read(folder / "matched" / "ipc-1" / "manifest.json")["matching"]["network"] == "mlp"


def test_a_refiner_takes_the_place_of_ours_and_its_w2_is_measured(folder: Path) -> None:
    made = read(folder / "refined" / "ipc-5" / "manifest.json")
    assert made["stages"] == ["select", "pull"]
    assert read(folder / "refined" / "stage.json")["settings"]["options"]["options"] == {"share": 0.9}
    assert made["w2"].keys() == {"before", "after"}
    assert made["w2"]["after"] != made["w2"]["before"]
    assert "ipc-5: W2^2" in (folder / "stdout.txt").read_text(encoding="utf-8")


def test_a_data_source_is_read_by_its_scheme(folder: Path) -> None:
    made = read(folder / "squares" / "ipc-2" / "manifest.json")
    assert (made["classes"], made["data"]["name"]) == (["dark", "bright"], "squares:40")


def test_a_check_is_in_the_summary_and_on_the_terminal(folder: Path) -> None:
    findings = read(folder / "evaluated" / "summary.json")["findings"]
    assert [f["severity"] for f in findings if f["kind"] == "low contrast"] == ["warning"]
    assert "of the real images' contrast" in (folder / "stdout.txt").read_text(encoding="utf-8")


def test_the_same_from_python(folder: Path) -> None:
    code = [block for kind, block in BLOCKS if kind == "python" and not MODULE.match(block)]
    show = """
import json
print(json.dumps({
    "mixed": mixed.meta["method"], "teacher": teacher.spec["name"], "refined": refined.meta["stages"],
    "few": list(few.classes), "kinds": [f["kind"] for f in result.findings],
}))
"""
    done = python("\n".join(["import gendistill as gd", *code, show]), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("kinds").count("low contrast") == 1
    assert found == {"mixed": "mix", "teacher": "mlp", "refined": ["select", "pull"], "few": ["dark", "bright"]}


def package(root: Path) -> Path:
    """A folder as pip would leave it: the modules, and a dist-info that names their entry points."""
    root.mkdir()
    info = root / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    groups = [f"[gendistill.{group}]\n{name} = {module}:{function}\n" for module, (group, name, function) in
              REGISTERED.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    for name, code in MODULES.items():
        (root / f"{name}.py").write_text(code, encoding="utf-8")
    return root


def test_a_package_offers_them_by_entry_points(tmp_path: Path) -> None:
    code = """
import json
import gendistill as gd
names = [r.names()[-1] for r in (gd.DISTILLERS, gd.NETWORKS, gd.REFINERS, gd.SOURCES, gd.CHECKS)]
few = gd.load_data(name="squares:40")
made = gd.distill(few, "mix", 2)
teacher = gd.train_teacher(few, gd.TeacherConfig(network="mlp", steps=2))
refined = gd.refine_set(made, teacher, few, 1, gd.RefineConfig(batch_norm_weight=0, refiner="pull"))[1]
print(json.dumps([*names, made.meta["method"], refined.meta["stages"], bool(gd.CHECKS["contrast"])]))
"""
    done = python(code, tmp_path, package(tmp_path / "site"))
    assert done.returncode == 0, done.stderr[-3000:]
    names = ["mix", "mlp", "pull", "squares", "contrast"]
    assert json.loads(done.stdout.splitlines()[-1]) == [*names, "mix", ["select", "pull"], True]


def test_a_package_that_cannot_be_imported_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    site = package(tmp_path / "site")
    (site / "my_distiller.py").write_text("import no_such_library\n", encoding="utf-8")
    command = ["distill", "--method", "mix", "--output_dir", "out"]
    code = f"import sys\nfrom gendistill.cli import main\nsys.exit(main({command}))"
    done = python(code, tmp_path, site)
    assert done.returncode == 2
    assert "The method 'mix' of the package mine cannot be imported (ModuleNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
