"""The names that ``import gendistill`` offers, at run time and to a type checker."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import gendistill as gd

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_no_heavy_library():
    loaded = run_python("import sys, gendistill; dir(gendistill); print(*sys.modules)").split()
    assert not {"torch", "numpy", "PIL", "yaml", "diffusers"} & {*loaded}


@pytest.mark.slow
def test_a_coreset_loads_no_library_that_it_does_not_use(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (i * 9, 60, 90)).save(tmp_path / "images" / name / f"{i}.png")
    words = ["distill", "--method", "random", "--ipc", "1", "--output_dir", str(tmp_path / "set")]
    words += ["--data", str(tmp_path / "images"), "--data.cache", str(tmp_path / "cache"), "--quiet"]
    loaded = run_python(f"import sys, gendistill.cli as c; print(c.main({words!r}), *sys.modules)").split()
    assert loaded[loaded.index("0")] == "0"
    unused = {"diffusers", "transformers", "sklearn", "pandas", "ot", "scipy.stats", "timm", "datasets", "torchvision"}
    assert not unused & {*loaded}


def test_every_name_loads_from_its_module():
    for name in gd.__all__:
        value = getattr(gd, name)
        assert getattr(value, "__name__", name) == name
    assert {*gd.__all__, "__version__"} <= {*dir(gd)}


@pytest.mark.slow
def test_no_name_is_that_of_a_module():
    """``import gendistill.evaluation`` binds ``gendistill.evaluation``: a function of that name would be lost."""
    assert not {*gd.__all__} & {module.name for module in pkgutil.iter_modules(gd.__path__)}
    code = "import gendistill, gendistill.evaluation.evaluator; print(callable(gendistill.evaluate))"
    assert run_python(code) == "True\n"


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="'gendistill' has no attribute 'evalute'"):
        gd.evalute  # noqa: B018
    with pytest.raises(ImportError, match="evalute"):
        from gendistill import evalute  # noqa: F401


RIGHT = """
import gendistill as gd

data: gd.RealData = gd.load_data(name="digits")
teacher = gd.train_teacher(data)
selected, refined = gd.refine_set(gd.distill(data, "random", 50), teacher, data, ipc=10)
refined.save("refined")
version: str = gd.__version__
"""
WRONG = """
import gendistill as gd

gd.evalute(1)
gd.refine_set("a", 2, 3)
"""


@pytest.mark.slow
def test_mypy_reports_wrong_names_and_arguments(tmp_path):
    """Of other libraries nothing is read: they take most of the time, and none of their types are in these lines."""
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = true\nfollow_imports = skip\n[mypy-gendistill.*]\nfollow_imports = silent\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path / "cache"]
    found = subprocess.run(
        [*command, tmp_path / "right.py", tmp_path / "wrong.py"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert found.returncode == 1, found.stderr
    assert "right.py" not in found.stdout
    assert 'wrong.py:4: error: Module has no attribute "evalute"' in found.stdout
    assert 'wrong.py:5: error: Argument 1 to "refine_set" has incompatible type "str"' in found.stdout
