"""Verify: whether sets are complete and unchanged, and the commands that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendistill.config.commands import VerifyCommand
from gendistill.errors import ArtifactError
from gendistill.surrogate.manifest import read_manifest
from gendistill.surrogate.verify import verify

MOST = 10  # files named of each set


def main(command: VerifyCommand) -> None:
    paths = command.surrogate if isinstance(command.surrogate, list) else [command.surrogate]
    failed = [said for said in map(report, paths) if said]
    if failed:
        raise ArtifactError("\n".join(failed))


def report(folder: Path) -> str:
    """Print what a sound set is, or return what is wrong with it."""
    try:
        manifest, problems = read_manifest(folder), list(verify(folder))
    except ArtifactError as error:  # the other sets want to be looked at as well
        return str(error)
    if problems:
        listed = [*problems[:MOST], *([f"and {len(problems) - MOST} more"] if len(problems) > MOST else [])]
        lines = [f"{folder} is not as it was made; {len(problems)} file(s):", *listed, _origin(manifest)]
        return "\n  ".join(lines)
    print(f"{folder}: complete and unchanged\n  {_contents(manifest)}\n  {_origin(manifest)}")
    return ""


def _contents(manifest: dict[str, Any]) -> str:
    size, decoded = manifest["image_size"], manifest["decoded_images"]
    views = f" decoded to {decoded}" if manifest["factor"] != 1 else ""
    return (
        f"{manifest['stored_images']} images{views}, {len(manifest['classes'])} classes, IPC {manifest['ipc']}, "
        f"{size}x{size} px; {manifest['bytes']['images']:,} bytes of images, {manifest['bytes']['labels']:,} of soft "
        f"labels; checksum {manifest['checksums']}"
    )


def _origin(manifest: dict[str, Any]) -> str:
    return f"made by: {manifest.get('command', 'unknown')}"
