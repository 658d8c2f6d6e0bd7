"""Whether a set is complete and unchanged since it was made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gendistill.errors import ArtifactError
from gendistill.hashing import hash_bytes
from gendistill.progress import track
from gendistill.surrogate.manifest import CHECKSUMS, LABELS, digests, read_manifest
from gendistill.surrogate.names import TRAIN


def verify(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a set, one line a file; nothing when it is as it was made.

    manifest.json vouches for CHECKSUMS, and that for every image and the soft labels. The card and whatever else lies
    in the folder are not looked at.

    Raises:
        ArtifactError: there is no manifest or no CHECKSUMS to go by, or they disagree.
    """
    manifest = read_manifest(folder)
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} has no readable {CHECKSUMS} ({error}), so nothing can be verified.") from error
    if hash_bytes(lines.encode()) != manifest["checksums"]:
        raise ArtifactError(f"{folder / CHECKSUMS} is not the one its manifest was written with.")
    wanted = {name: digest for digest, name in (line.split("  ", 1) for line in lines.splitlines())}
    present = [name for name in wanted if (folder / name).is_file()]
    found = dict(track(digests(folder, present), "verify", len(present)))
    for name, digest in wanted.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name] != digest:
            yield f"{name} was changed"
    here = [p.relative_to(folder).as_posix() for p in sorted((folder / TRAIN).rglob("*")) if not p.is_dir()]
    for name in [*here, *(name for name in LABELS if (folder / name).exists())]:
        if name not in wanted:
            yield f"{name} does not belong to the set"
