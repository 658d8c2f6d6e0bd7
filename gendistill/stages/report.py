from pathlib import Path
def write_report(run: Path, data) -> Path:
    return run / "report.html"
def main(command): ...
