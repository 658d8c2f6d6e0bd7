"""The names that ``import gendistill`` offers."""

import subprocess
import sys


def test_evaluate_is_the_function_after_its_package_was_imported():
    code = "import gendistill, gendistill.report.charts; assert callable(gendistill.evaluate)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
